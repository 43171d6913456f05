"""The model that post-training begins with: rows for new tokens, contexts, chat formats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer, write_tiny_model

from rslm.architecture import TransformerConfig
from rslm.chat import CHAT_TOKENS, CHATML_TOKENS
from rslm.checkpoint import model_tensors
from rslm.infer.load import load_run
from rslm.infer.model_folder import ModelFolderConfig, write_model_folder
from rslm.model import Transformer
from rslm.post.base_model import NOISE, Base, open_base

SWITCHES: list[dict[str, Any]] = [
    {},
    {"tied_head": True},
    {"value_embeddings": True, "n_layers": 2},
    {"parametrisation": "completep", "base_d_model": 8, "base_n_layers": 1, "softcap": 15.0},
    {"residual_scalars": True, "x0_scalars": True, "biases": True, "norm": "none"},
]


def write_model(folder: Path, *, vocab_size: int = 257, **switches: Any) -> Transformer:
    """A model folder without chat tokens, with random numbers in every tensor."""
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32} | switches
    config = TransformerConfig(context_length=64, vocab_size=vocab_size, **sizes)
    generator = torch.Generator().manual_seed(1)
    model = Transformer(config, generator=generator)
    with torch.no_grad():
        for tensor in model_tensors(model).values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    tensors = [(name, tensor.detach()) for name, tensor in model_tensors(model).items()]
    tokenizer = tiny_tokenizer(has_chat=False)
    write_model_folder(folder, ModelFolderConfig(model=config), tensors, tokenizer)
    return model


def open_chat(folder: Path, **options: Any) -> Base:
    return open_base(folder, device="cpu", wants_chat=True, **options)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("vocab_size", [257, 259, 320])
def test_new_tokens_get_mean_rows_and_old_ones_keep_theirs(
    tmp_path: Path, switches: dict[str, Any], vocab_size: int
):
    model = write_model(tmp_path / "base", vocab_size=vocab_size, **switches)
    base = open_chat(tmp_path / "base")
    assert base.config.vocab_size == max(vocab_size, 262)
    assert [base.tokenizer.special_tokens[token] for token in CHAT_TOKENS] == [*range(257, 262)]
    before, after = model_tensors(model), model_tensors(base.model)
    tables = [name for name in before if "embeddings" in name or name == "lm_head.weight"]
    for name, tensor in before.items():
        if name not in tables:
            assert torch.equal(after[name], tensor)
            continue
        assert torch.equal(after[name][:257], tensor[:257])
        # Rows of padding beyond the new tokens stay as they were.
        assert torch.equal(after[name][262:vocab_size], tensor[262:])
        off = after[name][257:262] - tensor[:257].mean(0)
        assert 0 < off.abs().max() < 6 * NOISE * tensor[:257].std()
        assert len(off.unique(dim=0)) == 5
    x = torch.arange(20)[None]
    old, new = model(x), base.model(x)
    assert torch.equal(old[..., :257], new[..., :257])


def test_equal_folders_give_equal_models_and_say_what_they_got(tmp_path: Path):
    write_model(tmp_path / "base")
    one, two = open_chat(tmp_path / "base"), open_chat(tmp_path / "base")
    for name, tensor in model_tensors(one.model).items():
        assert torch.equal(tensor, model_tensors(two.model)[name])
    assert one.note is not None
    assert "<|user|>" in one.note
    assert "262 rows" in one.note
    assert one.model.training


def test_a_base_with_chat_tokens_is_left_as_it_is(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "base", has_chat=True)
    base = open_chat(folder)
    assert base.note is None
    assert base.chat_format.name == "rslm"
    expected, _ = load_run(folder, device="cpu")
    for name, tensor in model_tensors(expected).items():
        assert torch.equal(tensor, model_tensors(base.model)[name])


def test_without_a_wish_for_chat_a_base_model_stays_plain(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "base", has_chat=False)
    assert open_base(folder, device="cpu").chat_format.name == "plain"
    assert open_base(folder, device="cpu").config.vocab_size == 257


def test_another_format_gets_its_own_tokens(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "base", has_chat=False)
    base = open_chat(folder, chat_format="chatml", default_system="Be kind.")
    assert set(CHATML_TOKENS) <= base.tokenizer.special_tokens.keys()
    assert base.chat_format.default_system == "Be kind."
    assert open_chat(folder, chat_format="plain").config.vocab_size == 257


def test_what_a_folder_says_of_its_chat_holds_unless_given(tmp_path: Path):
    tokenizer = tiny_tokenizer(has_chat=True)
    model = tiny_model(tokenizer)
    config = ModelFolderConfig(model=model.config, chat_format="plain", default_system="Hm.")
    write_model_folder(tmp_path / "m", config, model_tensors(model).items(), tokenizer)
    base = open_chat(tmp_path / "m")
    assert (base.chat_format.name, base.chat_format.default_system) == ("plain", "Hm.")
    assert open_chat(tmp_path / "m", chat_format="rslm").chat_format.name == "rslm"


def test_context_can_be_longer_and_shorter(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "base", has_chat=True)
    before = open_chat(folder)
    longer, shorter = (open_chat(folder, context_length=n) for n in (80, 32))
    assert (longer.config.context_length, shorter.config.context_length) == (80, 32)
    assert longer.config == replace(before.config, context_length=80)
    x = torch.arange(32)[None]
    assert torch.equal(longer.model(x), before.model(x))
    assert torch.equal(shorter.model(x), before.model(x))
    assert longer.model(torch.arange(80)[None]).isfinite().all()


def test_context_that_does_not_fit_the_windows_is_refused(tmp_path: Path):
    write_model(tmp_path / "base", n_layers=2, window_pattern="SL", window_size=16)
    with pytest.raises(ValueError, match="window_size must be below context_length 8"):
        open_chat(tmp_path / "base", context_length=8)


def test_no_model_and_no_tokens_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_chat(tmp_path / "nothing")
    folder = write_tiny_model(tmp_path / "base", has_chat=False)
    with pytest.raises(ValueError, match="chat format must be one of"):
        open_chat(folder, chat_format="tulu")
