"""Models as GGUF files: read back by the `gguf` package and by us, and files that lie."""

import errno
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import (
    END_OF_TEXT,
    EXACT,
    SWITCHES,
    chat_tokenizer,
    chatml_tokenizer,
    model_with,
    random_ids,
    same_weights,
    write_folder,
)

from rslm import cli
from rslm.chat import ChatFormat
from rslm.infer.foreign_tokenizer import DIGITS_GPT2
from rslm.infer.gguf import export_gguf
from rslm.infer.gguf_file import read_gguf
from rslm.infer.gguf_import import import_gguf
from rslm.infer.llama_family import halves_to_pairs, plain_config
from rslm.infer.load import load_chat_format, load_run
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def tokenizer(rust_tokenizer) -> Any:
    return chat_tokenizer(rust_tokenizer())


def exported(model: Transformer, tokenizer: Any, out: Path, **options: Any) -> Path:
    export_gguf(model, ChatFormat.of(tokenizer), out, name="small", **options)
    return out


@pytest.mark.parametrize("name", SWITCHES)
@torch.inference_mode()
def test_what_comes_back_has_the_same_logits(name: str, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, **SWITCHES[name])
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype="f32")
    imported = import_gguf(path, tmp_path / "back")
    assert imported.notes == []
    back, own = load_run(tmp_path / "back", device="cpu")
    ids = random_ids(model)
    torch.testing.assert_close(back(ids), model(ids), rtol=0, atol=1e-5)
    assert own.sha256 == tokenizer.sha256
    assert load_chat_format(tmp_path / "back", own).name == "rslm"
    if name in EXACT:
        same_weights(back, model)
        assert back.config == plain_config(model.config)
        assert torch.equal(back(ids), model(ids))


def llama_by_hand(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a file, by the package's reader and llama.cpp's formula, written out."""
    reader = gguf.GGUFReader(path)
    field = {key: value.contents() for key, value in reader.fields.items()}
    kind = field["general.architecture"]
    w = {
        t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()).double()
        for t in reader.tensors
    }
    n_heads, n_kv = (field[f"{kind}.attention.head_count{s}"] for s in ("", "_kv"))
    d_head = field[f"{kind}.attention.key_length"]
    epsilon = field[f"{kind}.attention.layer_norm_rms_epsilon"]
    theta, n_turned = field[f"{kind}.rope.freq_base"], field[f"{kind}.rope.dimension_count"]
    angles = torch.outer(
        torch.arange(len(ids)).double(),
        theta ** (-torch.arange(0, n_turned, 2).double() / n_turned),
    )

    def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * gain

    def turn(x: torch.Tensor) -> torch.Tensor:
        if kind == "llama":  # ROPE_TYPE_NORM: neighbours.
            even, odd = x[..., 0::2], x[..., 1::2]
        else:  # ROPE_TYPE_NEOX: halves.
            even, odd = x[..., : d_head // 2], x[..., d_head // 2 :]
        a, b = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
        return torch.stack((a, b), -1).flatten(-2) if kind == "llama" else torch.cat((a, b), -1)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    x = w["token_embd.weight"][ids]
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
    for i in range(field[f"{kind}.block_count"]):
        layer = f"blk.{i}"
        y = norm(x, w[f"{layer}.attn_norm.weight"])
        q, k, v = (
            linear(y, f"{layer}.attn_{part}").view(len(ids), -1, d_head).transpose(0, 1)
            for part in "qkv"
        )
        if f"{layer}.attn_q_norm.weight" in w:
            q = norm(q, w[f"{layer}.attn_q_norm.weight"])
            k = norm(k, w[f"{layer}.attn_k_norm.weight"])
        q, k = turn(q), turn(k)
        k, v = (part.repeat_interleave(n_heads // n_kv, 0) for part in (k, v))
        seen = (q @ k.transpose(1, 2) / d_head**0.5 + mask).softmax(-1)
        x = x + linear((seen @ v).transpose(0, 1).flatten(1), f"{layer}.attn_output")
        y = norm(x, w[f"{layer}.ffn_norm.weight"])
        gate = linear(y, f"{layer}.ffn_gate")
        x = x + linear(gate * gate.sigmoid() * linear(y, f"{layer}.ffn_up"), f"{layer}.ffn_down")
    head = w.get("output.weight", w["token_embd.weight"])
    return norm(x, w["output_norm.weight"]) @ head.T


@pytest.mark.parametrize("name", SWITCHES)
@torch.inference_mode()
def test_the_package_reads_our_logits(name: str, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, **SWITCHES[name])
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype="f32")
    ids = random_ids(model)[0]
    logits = llama_by_hand(path, ids).float()
    torch.testing.assert_close(logits, model(ids[None])[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "n_bits"), [("f16", 11), ("q8_0", 7)])
@torch.inference_mode()
def test_smaller_numbers_are_near(dtype: Any, n_bits: int, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, d_ff=60)  # No 32 divides the rows of w2.
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype=dtype)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    import_gguf(path, tmp_path / "back")
    back, _ = load_run(tmp_path / "back", device="cpu")
    for theirs, ours in zip(back.parameters(), model.parameters(), strict=True):
        assert (theirs - ours).abs().max() <= ours.abs().max() * 2.0**-n_bits


def test_the_file_says_what_llama_cpp_asks_for(tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, n_kv_heads=2, tied_head=True)
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype="q8_0")
    fields = {key: f.contents() for key, f in gguf.GGUFReader(path).fields.items()}
    specials, n_rows = tokenizer.special_tokens, tokenizer.vocab_size + 3
    expected = {
        "general.architecture": "llama",
        "general.name": "small",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.context_length": 96,
        "llama.vocab_size": n_rows,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": specials[END_OF_TEXT],
        "tokenizer.ggml.eos_token_id": specials[END_OF_TEXT],
        "tokenizer.ggml.eot_token_id": specials["<|end|>"],
        "tokenizer.ggml.padding_token_id": specials[END_OF_TEXT],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": ChatFormat.of(tokenizer).template,
    }
    assert expected.items() <= fields.items()
    assert (
        len(fields["tokenizer.ggml.tokens"]) == n_rows == len(fields["tokenizer.ggml.token_type"])
    )
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{n_rows - 1}]"
    assert fields["tokenizer.ggml.token_type"][-4:] == [3, 5, 5, 5]
    assert "output.weight" not in {t.name for t in gguf.GGUFReader(path).tensors}


def test_a_pattern_that_llama_cpp_has_no_name_for_is_refused(rust_tokenizer, tmp_path) -> None:
    tokenizer = chat_tokenizer(rust_tokenizer(), pattern="cl100k")
    with pytest.raises(ValueError, match=r'pre must be given, .* "cl100k"'):
        exported(model_with(tokenizer), tokenizer, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_named_and_nothing_left(tokenizer, tmp_path, monkeypatch) -> None:
    def take_part(writer: Any, data: Any) -> None:
        # As numpy has it, without a number for the reason.
        raise OSError("4096 requested and 1296 written")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", take_part)
    with pytest.raises(OSError, match="No space left on device") as error:
        exported(model_with(tokenizer), tokenizer, tmp_path / "m.gguf")
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_other_parts_are_refused(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can be, and has softcap, value_embeddings$"):
        exported(
            model_with(tokenizer, softcap=3.0, value_embeddings=True), tokenizer, tmp_path / "m"
        )
    model = model_with(tokenizer)
    with torch.no_grad():
        model.layers[0].ffn.w1.weight[0, 0] = 7e4
    with pytest.raises(ValueError, match=r"w1.weight must hold numbers below 65520"):
        exported(model, tokenizer, tmp_path / "m", dtype="f16")
    assert list(tmp_path.iterdir()) == []


def test_commands_there_and_back(rust_tokenizer, tmp_path: Path, capsys) -> None:
    tokenizer = chatml_tokenizer(rust_tokenizer())
    model = model_with(tokenizer, qk_norm="rms-gain")
    run = write_folder(tmp_path / "run", model, tokenizer)
    path, back = tmp_path / "m.gguf", tmp_path / "back"
    assert cli.main(["export", "gguf", str(run), str(path), "--dtype", "f32"]) == 0
    assert "weights in f32, " in capsys.readouterr().err
    assert cli.main(["import", "gguf", str(path), str(back), "--dtype", "bfloat16"]) == 0
    assert "chat format chatml" in capsys.readouterr().err
    assert (back / "model.safetensors").stat().st_size < path.stat().st_size * 0.6
    loaded, _ = load_run(back, device="cpu")
    assert loaded.config == plain_config(model.config)
    assert cli.main(["export", "gguf", str(run), str(path)]) == 2
    assert cli.main(["import", "gguf", str(run / "config.toml"), str(tmp_path / "x")]) == 2
    assert "must begin with GGUF" in capsys.readouterr().err


# Other people's files.


def rewritten(path: Path, out: Path, kind: Any, *, drop: str = "", **changes: Any) -> Path:
    """The file with matrices in another form, and other metadata."""
    reader = gguf.GGUFReader(path)
    field = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, changes.get("architecture", field))
    written = {key.replace("__", "."): value for key, value in changes.items()}
    written.pop("architecture", None)
    for key, f in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in written:
            sub_type = f.types[-1] if len(f.types) > 1 else None
            writer.add_key_value(key, f.contents(), f.types[0], sub_type)
    for key, value in written.items():
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for t in reader.tensors:
        if t.name == drop:
            continue
        data = gguf.dequantize(t.data, t.tensor_type)
        if len(t.shape) == 2 and kind is not None:
            data = gguf.quantize(data, kind)
            writer.add_tensor(t.name, data, raw_dtype=kind)
        else:
            writer.add_tensor(t.name, data.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


KINDS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_what_the_package_says(kind: str, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, n_kv_heads=2)
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype="f32")
    other = rewritten(path, tmp_path / "q.gguf", gguf.GGMLQuantizationType[kind])
    import_gguf(other, tmp_path / "back")
    back, _ = load_run(tmp_path / "back", device="cpu")
    theirs = {
        t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(other).tensors
    }
    assert np.array_equal(
        back.layers[1].ffn.w3.weight.numpy(force=True), theirs["blk.1.ffn_up.weight"]
    )
    assert np.array_equal(
        back.token_embeddings.weight.numpy(force=True), theirs["token_embd.weight"]
    )


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_of_any_bits_are_read(kind: str, tokenizer, tmp_path: Path) -> None:
    """The package only reads these, so the bits are made up; all are numbers of some size."""
    model = model_with(tokenizer, d_model=256, d_ff=256, n_layers=1)
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype="f32")
    number = gguf.GGMLQuantizationType[kind]
    block, n_bytes = gguf.GGML_QUANT_SIZES[number]
    reader = gguf.GGUFReader(path)
    generator = np.random.default_rng(0)
    made = generator.integers(0, 60, (256, 256 // block * n_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    for key, f in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(key, f.contents(), f.types[0], f.types[-1])
    for t in reader.tensors:
        if t.name == "blk.0.ffn_up.weight":
            writer.add_tensor(t.name, made, raw_dtype=number)
        else:
            writer.add_tensor(t.name, t.data.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    import_gguf(tmp_path / "k.gguf", tmp_path / "back")
    back, _ = load_run(tmp_path / "back", device="cpu")
    expected = gguf.dequantize(made, number)
    assert np.array_equal(back.layers[0].ffn.w3.weight.numpy(force=True), expected)


def test_halves_become_pairs_and_missing_biases_zeros(tokenizer, tmp_path: Path) -> None:
    """As qwen2 has it: heads in halves, and biases on queries, keys and values alone."""
    model = model_with(tokenizer, biases=True)
    path = exported(model, tokenizer, tmp_path / "m.gguf", dtype="f32")
    sizes = {
        f"qwen2.{key.removeprefix('llama.')}": f.contents()
        for key, f in gguf.GGUFReader(path).fields.items()
        if key.startswith("llama.")
    }
    fields = {f"llama__{key.removeprefix('qwen2.').replace('.', '__')}": None for key in sizes}
    other = rewritten(
        path,
        tmp_path / "q.gguf",
        None,
        drop="blk.1.ffn_down.bias",
        architecture="qwen2",
        **fields,
        **sizes,
    )
    import_gguf(other, tmp_path / "back")
    back, _ = load_run(tmp_path / "back", device="cpu")
    attention, own = back.layers[0].attn, model.layers[0].attn
    assert torch.equal(attention.q_proj.weight, halves_to_pairs(own.q_proj.weight, 8))
    assert torch.equal(attention.k_proj.bias, halves_to_pairs(own.k_proj.bias, 8))
    assert torch.equal(attention.v_proj.weight, own.v_proj.weight)
    assert not back.layers[1].ffn.w2.bias.any()
    assert torch.equal(back.layers[0].ffn.w2.bias, model.layers[0].ffn.w2.bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gemma2"},
            "architecture must be one of llama, qwen2, qwen3, got 'gemma2'",
        ),
        ({"llama__expert_count": 8}, "has experts"),
        ({"llama__rope__scaling__type": "yarn"}, "has scaled rotary embeddings"),
        ({"llama__attention__sliding_window": 16}, "has a sliding window"),
        ({"llama__logit_scale": 2.0}, "has a factor of the logits"),
        ({"llama__block_count": 2**31 - 1}, "must hold 2147483647 layers"),
        ({"llama__block_count": -1}, "n_layers must be at least 1"),
        ({"llama__block_count": "2"}, "llama.block_count must be one int, got '2'"),
        ({"llama__attention__head_count": [4, 4]}, "must be one int, got a list"),
        ({"llama__embedding_length": 64}, "must have the shape"),
        ({"llama__rope__dimension_count": 4}, "rope.dimension_count must be 8, got 4"),
        ({"llama__context_length": 2**30}, "give a context_length"),
        ({"llama__context_length": None}, "llama.context_length must be one int, got None"),
        ({"split__count": 3}, "is one of several shards"),
        ({"drop": "token_embd.weight"}, "token_embd.weight must be a table"),
        ({"drop": "blk.1.ffn_up.weight"}, "blk.1.ffn_up.weight must have .* it is missing"),
        ({"tokenizer__ggml__model": "llama"}, "must be gpt2, which is byte-level BPE"),
        ({"tokenizer__ggml__pre": "my-own"}, 'pre-tokenizer "my-own" is none of those known'),
    ],
)
def test_files_with_other_parts_are_refused(changes, message, tokenizer, tmp_path: Path) -> None:
    path = exported(model_with(tokenizer), tokenizer, tmp_path / "m.gguf", dtype="f32")
    other = rewritten(path, tmp_path / "other.gguf", None, **changes)
    with pytest.raises(ValueError, match=message):
        import_gguf(other, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_digits_and_missing_bytes_as_smollm_has_them(rust_tokenizer, tmp_path: Path) -> None:
    twin = rust_tokenizer()
    with warnings.catch_warnings(action="ignore"):  # The pattern is a slow one.
        tokenizer = Tokenizer(twin.vocab, twin.merges, [END_OF_TEXT], pattern=DIGITS_GPT2)
        path = exported(model_with(tokenizer), tokenizer, tmp_path / "m.gguf", dtype="f32")
        tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
        assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == "smollm"
        gone = [twin.token_to_id(bytes([byte])) for byte in (0x04, 0xC0, 0xFF)]
        changed = ["" if i in gone else token for i, token in enumerate(tokens)]
        other = rewritten(path, tmp_path / "o.gguf", None, tokenizer__ggml__tokens=changed)
        imported = import_gguf(other, tmp_path / "back")
        back, own = load_run(tmp_path / "back", device="cpu")
    assert "the bytes 04 c0 ff" in imported.notes[0]
    n_rows = len(tokens)
    assert back.config.vocab_size == n_rows + 3
    text = "It's 2026,  1 a\x04b\n\n 12 a"
    expected = [n_rows if i == gone[0] else i for i in tokenizer.encode(text)]
    assert own.encode(text) == expected
    assert own.decode_bytes([n_rows + 1, n_rows + 2]) == b"\xc0\xff"
    # An id that was added has the mean logit, so never more than the mean probability.
    for table in (back.token_embeddings.weight, back.lm_head.weight):
        torch.testing.assert_close(table[-3:], table[:-3].mean(0).expand(3, -1))
    with torch.inference_mode():
        probabilities = back(random_ids(back)).softmax(-1)
    assert probabilities[..., n_rows:].max() <= 1 / n_rows


# Files that lie. Every refusal is quick and costs no memory.


def packed(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


HEAD = b"GGUF" + struct.pack("<I", 3)
HUGE = 2**64 - 1
ONE_KEY = HEAD + struct.pack("<QQ", 0, 1) + packed("kkkk")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"4 bytes must follow .*, 0 do"),
        (b"GGUX" + bytes(100), "must begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version must be 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version must be 2 or 3"),
        (HEAD + struct.pack("<QQ", HUGE, 0), r"bytes must follow .*, 0 do"),
        (HEAD + struct.pack("<QQ", 0, HUGE), r"bytes must follow .*, 0 do"),
        (HEAD + struct.pack("<QQQ", 0, 1, HUGE) + bytes(99), "must have at most 1048576 bytes"),
        (ONE_KEY + struct.pack("<IIQ", 9, 0, HUGE), "bytes must follow"),
        (ONE_KEY + struct.pack("<IIQ", 9, 8, HUGE), "bytes must follow"),
        (ONE_KEY + struct.pack("<IIQ", 9, 9, 2**61), "bytes must follow"),
        (ONE_KEY + struct.pack("<I", 99), "0 to 12, got 99"),
        (ONE_KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50, "nest at most"),
        (
            HEAD + struct.pack("<QQ", 0, 2) + (packed("kk") + struct.pack("<II", 4, 4)) * 2,
            "kk twice",
        ),
    ],
)
def test_lengths_that_lie_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_gguf(path, tmp_path / "back")


def test_a_header_that_fills_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:  # A list of ten million empty strings, in a sparse file.
        file.write(HEAD + struct.pack("<QQ", 0, 1) + packed("k") + struct.pack("<IIQ", 9, 8, 10**7))
        file.truncate(10**8)
    with pytest.raises(ValueError, match=r"80000000 bytes must follow \(a header has at most"):
        import_gguf(path, tmp_path / "back")


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return (
        packed(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        + struct.pack("<IQ", kind, offset)
    )


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([tensor("t", [2**40, 2**40], 0, 0)], "must lie inside the file"),
        ([tensor("t", [2**63, 2**63], 2, 0)], "must lie inside the file"),
        ([tensor("t", [8], 0, 2**63)], "must lie inside the file"),
        ([tensor("t", [8], 0, 4)], "must lie inside the file"),
        ([tensor("t", [33], 2, 0)], "rows of t must be multiples of 32"),
        ([tensor("t", [], 0, 0)], "1 to 4 dimensions, got 0"),
        ([tensor("t", [1] * 5, 0, 0)], "1 to 4 dimensions, got 5"),
        ([tensor("t", [8], 4444, 0)], "unknown type 4444"),
        ([tensor("t", [8], 0, 0)] * 2, "t twice"),
    ],
)
def test_tensors_that_lie_are_refused(heads: list[bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HEAD + struct.pack("<QQ", len(heads), 0) + b"".join(heads) + bytes(64))
    with pytest.raises(ValueError, match=message):
        import_gguf(path, tmp_path / "back")


def test_a_file_cut_anywhere_is_refused(tokenizer, tmp_path: Path) -> None:
    path = exported(model_with(tokenizer), tokenizer, tmp_path / "m.gguf", dtype="f32")
    data, draw = path.read_bytes(), random.Random(0)
    cuts = [*range(64), len(data) - 33, *(draw.randrange(len(data) - 33) for _ in range(60))]
    for length in cuts:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"m\.gguf"):
            import_gguf(path, tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_are_refused_or_read(seed: int, tokenizer, tmp_path: Path) -> None:
    """In the header, where everything that decides about memory stands."""
    path = exported(model_with(tokenizer, n_layers=1), tokenizer, tmp_path / "m.gguf", dtype="f32")
    data, draw = path.read_bytes(), random.Random(seed)
    end = min(t.at for t in read_gguf(path).tensors.values())
    for i in range(25):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(end)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            import_gguf(path, tmp_path / f"back{i}")
        except (ValueError, OSError):
            assert not (tmp_path / f"back{i}").exists()
