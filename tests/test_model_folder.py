"""Model folders: written, found, loaded, and those that lie about their sizes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rslm.architecture import TransformerConfig
from rslm.chat import CHAT_TOKENS, CHATML_TOKENS
from rslm.checkpoint import model_tensors
from rslm.errors import FormatError
from rslm.infer.load import end_ids, find_models, load_chat_format, load_run
from rslm.infer.model_folder import ModelFolderConfig, new_path, write_model_folder
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SIZES: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_length": 32}


def bytes_tokenizer(*special_tokens: str) -> Tokenizer:
    return Tokenizer({i: bytes([i]) for i in range(256)}, [], special_tokens)


def write(out: Path, tokenizer: Tokenizer, *, dtype=torch.float32, chat: Any = None, **sizes: Any):
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, **{**SIZES, **sizes})
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).eval()
    record = ModelFolderConfig(model=config, **(chat or {}))
    write_model_folder(out, record, model_tensors(model).items(), tokenizer, dtype=dtype)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_loaded(tied: bool, tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(END_OF_TEXT)
    model = write(tmp_path / "m", tokenizer, tied_head=tied)
    loaded, own = load_run(tmp_path / "m", device="cpu")
    assert own.sha256 == tokenizer.sha256
    assert not loaded.training
    assert loaded.config == model.config
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), model(ids))
    # The library reads what was written without it.
    for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
        assert torch.equal(tensor, model_tensors(model)[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_disk_is_float32_in_memory(dtype, tmp_path: Path) -> None:
    model = write(tmp_path / "m", bytes_tokenizer(END_OF_TEXT), dtype=dtype)
    loaded, _ = load_run(tmp_path / "m", device="cpu")
    for name, tensor in model_tensors(loaded).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model_tensors(model)[name].to(dtype).float())


def test_how_a_model_is_talked_to_stands_in_its_config(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(END_OF_TEXT, *CHAT_TOKENS, *CHATML_TOKENS)
    write(tmp_path / "a", tokenizer)
    assert load_chat_format(tmp_path / "a", tokenizer).name == "rslm"
    write(tmp_path / "b", tokenizer, chat={"chat_format": "chatml", "default_system": 'Be\n"x"'})
    chat_format = load_chat_format(tmp_path / "b", tokenizer)
    assert (chat_format.name, chat_format.default_system) == ("chatml", 'Be\n"x"')
    assert load_chat_format(tmp_path, bytes_tokenizer()).name == "plain"
    with pytest.raises(ValueError, match="chat format chatml needs a tokenizer trained with"):
        load_chat_format(tmp_path / "b", bytes_tokenizer())


def test_a_sample_ends_at_the_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(END_OF_TEXT, *CHAT_TOKENS, *CHATML_TOKENS)
    model = write(tmp_path / "m", tokenizer)
    specials = tokenizer.special_tokens
    assert end_ids(model, tokenizer) == {
        specials[t] for t in (END_OF_TEXT, "<|end|>", "<|im_end|>")
    }


def test_models_are_found(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(END_OF_TEXT)
    for name in ("b", "study/runs/a", ".hidden/c", "1/2/3/4/5"):
        write(tmp_path / name, tokenizer)
    run = tmp_path / "run"  # As a run leaves it.
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    for name in ("config.toml", "tokenizer.json"):
        (run / name).write_bytes((tmp_path / "b" / name).read_bytes())
    (tmp_path / "begun").mkdir()  # A run without a checkpoint is no model.
    (tmp_path / "begun" / "config.toml").touch()
    os.symlink(tmp_path, tmp_path / "loop")
    assert list(find_models(tmp_path)) == ["b", "run", "study/runs/a"]
    assert find_models(run) == {"run": run}
    assert find_models(tmp_path / "begun") == {}
    with pytest.raises(FileNotFoundError, match="must be a folder with a model"):
        find_models(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="must be a folder with a model, and is none"):
        find_models(run / "config.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d_model = 16", "d_model = 16000000000", r"must hold \d+ numbers to fit the config, got"),
        ("n_layers = 2", f"n_layers = {2**62}", r"must hold \d+ layers .*, got 21 tensors"),
        ("context_length = 32", f"context_length = {2**40}", "context_length must be at most"),
        ("n_layers = 2", "n_layers = -2", "n_layers must be at least 1"),
        ("n_layers = 2", "layers = 2", "unknown key model.layers"),
        ("[model]", "[modell]", "unknown key modell"),
        ("[model]", 'chat_format = "x"\n[model]', "chat_format must be one of rslm, chatml, plain"),
        ("vocab_size = 257", "vocab_size = 256", "must hold 16464 numbers"),
        ("tied_head = false", "tied_head = true", "must hold"),
        ("n_heads = 2", "n_heads = 2\nqk_norm = 'rms'", "Cannot overwrite"),
        ('ffn = "swiglu"', 'ffn = "gelu"', "must hold"),
    ],
)
def test_a_config_that_lies_gets_no_memory(old, new, message, tmp_path: Path) -> None:
    write(tmp_path / "m", bytes_tokenizer(END_OF_TEXT))
    path = tmp_path / "m" / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / "m", device="cpu")


@pytest.mark.parametrize(
    "fault", ["nan", "inf", "large", "kind", "float8", "name", "shape", "cut", "text"]
)
def test_damaged_weights_are_refused(fault: str, tmp_path: Path) -> None:
    write(tmp_path / "m", bytes_tokenizer(END_OF_TEXT))
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    if fault in ("nan", "inf"):
        tensors["ln_final.weight"][3] = float(fault)
    elif fault == "kind":
        tensors["ln_final.weight"] = tensors["ln_final.weight"].int()
    elif fault == "float8":
        tensors["ln_final.weight"] = tensors["ln_final.weight"].to(torch.float8_e4m3fn)
    elif fault == "large":
        tensors["ln_final.weight"] = tensors["ln_final.weight"].double() * 1e300
    elif fault == "name":
        tensors["ln_last.weight"] = tensors.pop("ln_final.weight")
    elif fault == "shape":
        tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous()
    save_file(tensors, path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "text":
        path.write_bytes(b"\xff" * 1000)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        load_run(tmp_path / "m", device="cpu")


def test_a_folder_without_weights_or_checkpoints_is_neither_run_nor_model(tmp_path: Path) -> None:
    write(tmp_path / "m", bytes_tokenizer(END_OF_TEXT))
    (tmp_path / "m" / "model.safetensors").unlink()
    message = r"must be a run or model folder, and holds neither checkpoints nor model\.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        load_run(tmp_path / "m", device="cpu")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", bytes_tokenizer(END_OF_TEXT))
    bytes_tokenizer(END_OF_TEXT, *CHAT_TOKENS).save(tmp_path / "m" / "tokenizer.json")
    with pytest.raises(FormatError, match=r"ids below the model's 257 \(vocab_size\), got 261"):
        load_run(tmp_path / "m", device="cpu")


def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(END_OF_TEXT)
    config = ModelFolderConfig(model=TransformerConfig(vocab_size=257, **SIZES))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        write_model_folder(tmp_path / "m", config, [], tokenizer)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "m", tokenizer)
    with pytest.raises(FileExistsError, match=r"out must not exist yet, but .*m does"):
        write(tmp_path / "m", tokenizer)


@pytest.mark.parametrize("name", ["file/out", "file/below/out"])
def test_new_path_below_a_file_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        NotADirectoryError, match=r"out must lie in a folder, and .*file of .*out is"
    ):
        new_path(tmp_path / name).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "does not exist"), ("file", "is a file"), ("empty", "holds no config.toml")],
)
def test_what_is_no_model_is_said_to_be_none(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=f"{name} must be a run or model folder, and {message}"):
        load_run(tmp_path / name)


TERMINATED = """
import os, signal, sys
from pathlib import Path
from rslm.infer.model_folder import new_path
with new_path(Path(sys.argv[1])) as folder:
    folder.mkdir()
    (folder / "half").write_text("written")
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_nothing_half_written_stays_at_sigterm(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", TERMINATED, str(tmp_path / "out")])
    assert ended.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
