"""The tokenizer in a GGUF file: metadata there and back, and files that lie about lengths."""

import struct
from pathlib import Path
from typing import Any

import pytest

import rslm

END_OF_TEXT = "<|endoftext|>"
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


def packed(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """Type and value as GGUF has them; a list of str, int or float is an array."""
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, int):
        return struct.pack("<II", UINT32, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + packed(item)
    if not item or isinstance(item[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(item)) + b"".join(map(packed, item))
    kind, code = (FLOAT32, "f") if isinstance(item[0], float) else (INT32, "i")
    return struct.pack(f"<IIQ{len(item)}{code}", ARRAY, kind, len(item), *item)


def gguf(metadata: dict[str, Any], *, version: int = 3, tail: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(metadata))
    return head + b"".join(packed(key) + value(item) for key, item in metadata.items()) + tail


@pytest.fixture
def metadata(rust_tokenizer) -> dict[str, Any]:
    """What stands in a model's file, in the order that converters write it."""
    made = rust_tokenizer().gguf_metadata()
    scores = [0.0] * len(made["tokenizer.ggml.tokens"])
    return {
        "general.architecture": "gpt2",
        "general.file_type": 1,
        "tokenizer.ggml.scores": scores,
        **made,
        "tokenizer.chat_template": "{{ x }}",
    }


def load(content: bytes, tmp_path: Path, **options: Any) -> rslm.Tokenizer:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return rslm.Tokenizer.load(path, **options)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_comes_back_as_the_same_tokenizer(
    version: int, metadata, rust_tokenizer, tmp_path: Path
) -> None:
    tensors = bytes(1 << 20)
    loaded = load(gguf(metadata, version=version, tail=tensors), tmp_path)
    assert loaded.sha256 == rust_tokenizer().sha256
    assert rslm.Tokenizer.load(tmp_path).sha256 == loaded.sha256
    assert rslm.Tokenizer.load(tmp_path / "model.gguf", "gguf").sha256 == loaded.sha256


def test_metadata_is_what_llama_cpp_reads(rust_tokenizer) -> None:
    twin = rust_tokenizer()
    ours = rslm.Tokenizer(twin.vocab, twin.merges, {END_OF_TEXT: 0, "<|x y|>": 460})
    metadata = {k.removeprefix("tokenizer.ggml."): v for k, v in ours.gguf_metadata().items()}
    assert metadata["model"] == "gpt2"
    assert metadata["pre"] == "gpt-2"
    assert metadata["tokens"][0] == END_OF_TEXT
    assert metadata["tokens"][457:] == ["[PAD457]", "[PAD458]", "[PAD459]", "<|x y|>"]
    assert metadata["token_type"] == [3] + [1] * 456 + [5] * 3 + [3]
    assert len(set(metadata["tokens"])) == ours.vocab_size == 461
    assert metadata["merges"][0] == " ".join(
        metadata["tokens"][ours.token_to_id(token)] for token in ours.merges[0]
    )
    assert (metadata["bos_token_id"], metadata["eos_token_id"]) == (0, 0)
    assert metadata["add_bos_token"] is metadata["add_eos_token"] is False


@pytest.mark.parametrize(
    ("pattern", "pre"), [("gpt2", "gpt-2"), ("cl100k_2023", "smaug-bpe"), ("o200k", "gpt-4o")]
)
def test_patterns_have_their_names(pattern: str, pre: str, rust_tokenizer, tmp_path) -> None:
    ours = rust_tokenizer(pattern)
    metadata = ours.gguf_metadata()
    assert metadata["tokenizer.ggml.pre"] == pre
    loaded = load(gguf(metadata), tmp_path)
    # By another name, where several mean the same expression.
    text = "It's 12345 o'clock\n\n  and\tall's   well.  "
    assert loaded.encode(text) == ours.encode(text)
    assert loaded.vocab == ours.vocab


def test_a_pattern_without_a_name_must_be_given_one(rust_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'pre must be given, .* "cl100k"'):
        rust_tokenizer("cl100k").gguf_metadata()
    metadata = rust_tokenizer("cl100k").gguf_metadata(pre="my-own")
    with pytest.raises(ValueError, match=r"pattern must be given for .*model\.gguf.*\"my-own\""):
        load(gguf(metadata), tmp_path)
    loaded = load(gguf(metadata), tmp_path, pattern="cl100k")
    assert loaded.sha256 == rust_tokenizer("cl100k").sha256


@pytest.mark.parametrize(
    ("pre", "whole", "pretokens"),
    [
        ("llama-bpe", True, ["x", "123", "45", "\tabc"]),
        ("qwen2", False, ["x", *"12345", "\tabc"]),
        ("gpt-4o", False, ["x", "123", "45", "\tabc"]),
        ("gpt-2", False, ["x", "12345", "\t", "abc"]),
    ],
)
def test_names_of_pre_tokenizers_mean_their_patterns(
    pre: str, whole: bool, pretokens: list[str], tmp_path: Path
) -> None:
    bare = rslm.Tokenizer({i: bytes([i]) for i in range(256)}, [])
    metadata = bare.gguf_metadata() | {"tokenizer.ggml.pre": pre}
    metadata["tokenizer.ggml.tokens"].append("zqz")
    metadata["tokenizer.ggml.token_type"].append(1)
    loaded = load(gguf(metadata), tmp_path)
    assert rslm._rslm.pretokenize("x12345\tabc", loaded.pattern) == pretokens
    assert loaded.encode("zqz") == ([256] if whole else [122, 113, 122])
    again = load(gguf(loaded.gguf_metadata()), tmp_path) if whole else loaded
    assert again.sha256 == loaded.sha256


def test_a_tokenizer_that_takes_pretokens_whole_needs_a_name_that_does(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    rslm.Tokenizer({i: bytes([i]) for i in range(256)}, []).save(path, "tiktoken")
    with path.open("a") as file:
        file.write("enF6 256\n")  # zqz, which no merge reaches
    whole = rslm.Tokenizer.load(path, pattern="o200k")
    with pytest.raises(ValueError, match="every token must follow from the merges"):
        whole.gguf_metadata()
    whole = rslm.Tokenizer.load(path, pattern="cl100k_2023")
    metadata = whole.gguf_metadata()
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert load(gguf(metadata), tmp_path).encode("zqz zqz") == whole.encode("zqz zqz")


def test_unused_and_empty_tokens_are_holes(metadata, tmp_path: Path) -> None:
    metadata["tokenizer.ggml.tokens"] += ["[PAD457]", "", "<tool>"]
    metadata["tokenizer.ggml.token_type"] += [5, 1, 4]
    loaded = load(gguf(metadata), tmp_path)
    assert loaded.special_tokens == {END_OF_TEXT: 0, "<tool>": 459}
    assert loaded.vocab.keys().isdisjoint({457, 458})
    assert loaded.encode("[PAD457]<tool>")[-1] == 459
    assert 457 not in loaded.encode("[PAD457]")


def test_a_repeated_merge_keeps_its_first_rank(metadata, rust_tokenizer, tmp_path: Path) -> None:
    metadata["tokenizer.ggml.merges"].append(metadata["tokenizer.ggml.merges"][0])
    assert load(gguf(metadata), tmp_path).sha256 == rust_tokenizer().sha256


def changed(metadata: dict[str, Any], **changes: Any) -> dict[str, Any]:
    out = metadata | {f"tokenizer.ggml.{key}": item for key, item in changes.items()}
    return {key: item for key, item in out.items() if item is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, 'must be gpt2, which is byte-level BPE; got "llama"'),
        ({"model": "bert"}, "must be gpt2"),
        ({"model": None}, r"tokenizer\.ggml\.model is missing"),
        ({"model": 7}, "must be of type 8, got type 4"),
        ({"tokens": 7}, "must be of type 9, got type 4"),
        ({"tokens": [1, 2]}, "must be of type 8, got type 5"),
        ({"tokens": None, "token_type": None}, "byte 0x00 is missing"),
        ({"token_type": [1]}, "one entry for each of 457 tokens, got 1"),
        ({"token_type": [6] * 457}, "fall back to bytes"),
        ({"token_type": ["a"]}, "must be of type 5, got type 8"),
        ({"merges": ["ab"]}, "merge 0 must be two byte-level tokens"),
        ({"merges": ["a €"]}, "merge 0 must be two byte-level tokens"),
        ({"merges": ["zq qz"]}, "merge 0 needs the token"),
    ],
)
def test_metadata_of_something_else_is_refused(
    changes: dict[str, Any], message: str, metadata, tmp_path: Path
) -> None:
    with pytest.raises(rslm.FormatError, match=rf"model\.gguf: .*{message}"):
        load(gguf(changed(metadata, **changes)), tmp_path)


HEAD = b"GGUF" + struct.pack("<IQ", 3, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "4 bytes must follow"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version must be 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version must be 2 or 3"),
        (HEAD + struct.pack("<Q", 2**64 - 1), "8 bytes must follow"),
        (HEAD + struct.pack("<QQ", 1, 2**64 - 1), "bytes must follow"),
        (HEAD + struct.pack("<Q", 1) + packed("k") + struct.pack("<I", 13), "type of a value"),
        (HEAD + struct.pack("<Q", 1) + packed(b"\xff") + struct.pack("<II", 4, 4), "UTF-8"),
        (HEAD + struct.pack("<Q", 2) + (packed("k") + value(1)) * 2, '"k" twice'),
        (
            HEAD + struct.pack("<Q", 1) + packed("k") + struct.pack("<IIQ", ARRAY, UINT64, 2**63),
            "bytes must follow",
        ),
        (
            HEAD
            + struct.pack("<Q", 1)
            + packed("tokenizer.ggml.tokens")
            + struct.pack("<IIQ", ARRAY, STRING, 2**64 - 1),
            "8 bytes must follow",
        ),
        (
            HEAD
            + struct.pack("<Q", 1)
            + packed("k")
            + struct.pack("<I", ARRAY)
            + struct.pack("<IQ", ARRAY, 1) * 1000,
            "nest at most",
        ),
    ],
)
def test_lengths_and_types_that_lie_are_refused(content, message, tmp_path: Path) -> None:
    with pytest.raises(rslm.FormatError, match=rf"model\.gguf: .*{message}"):
        load(content, tmp_path)


def test_a_truncated_file_is_refused_at_every_length(metadata, tmp_path: Path) -> None:
    del metadata["tokenizer.chat_template"]
    content = gguf(metadata)
    for length in [*range(4, 200), *range(200, len(content), 61), len(content) - 1]:
        with pytest.raises(rslm.FormatError, match=r"model\.gguf"):
            load(content[:length], tmp_path)


def test_gguf_cannot_be_saved(rust_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format must be .*gguf_metadata"):
        rust_tokenizer().save(tmp_path / "x.gguf", "gguf")


def test_a_file_of_the_gguf_package_gives_the_same_tokenizer(
    metadata, rust_tokenizer, tmp_path: Path
) -> None:
    package = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert rslm.Tokenizer.load(path).sha256 == rust_tokenizer().sha256
