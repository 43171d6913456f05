"""What `Tokenizer.load` makes of files as they are published, and what it says to others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rslm
from rslm import reference

END_OF_TEXT = "<|endoftext|>"
FLAGS = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)


@pytest.fixture
def record(rust_tokenizer, tmp_path: Path) -> dict[str, Any]:
    """A tokenizer.json to change: 457 tokens, end of text first."""
    rust_tokenizer().save(tmp_path / "made.json", "hf")
    return json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))


def added(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    return {"id": token_id, "content": content, **FLAGS, **flags}


@pytest.fixture
def assert_theirs(tmp_path: Path) -> Callable[..., None]:
    """Our ids of each text are those that their library gives to the same record."""
    tokenizers = pytest.importorskip("tokenizers")

    def check(record: dict[str, Any], *texts: str) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(record))
        ours, theirs = rslm.Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
        for text in texts:
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids

    return check


def refused(record: dict[str, Any], path: Path, message: str) -> None:
    path.write_text(json.dumps(record))
    with pytest.raises(rslm.FormatError, match=rf"(?s)tokenizer\.json: .*{message}"):
        rslm.Tokenizer.load(path)


def test_pretokens_that_are_tokens_are_taken_whole_where_merges_are_ignored(
    record, assert_theirs
) -> None:
    record["model"]["vocab"] |= {"Ġunreachable": 457, "qzx": 458}
    record["added_tokens"].append(added(459, "<|x|>"))
    texts = ["an unreachable qzx qzxq<|x|>qzx", "unreachable", " unreachable"]
    assert_theirs(record, *texts)
    record["model"]["ignore_merges"] = True
    assert_theirs(record, *texts)


def test_added_tokens_may_share_their_bytes_with_ordinary_ones(record, assert_theirs) -> None:
    # The runs of blanks of GPT-NeoX: "ĠĠ" is an ordinary token, "  " an added one.
    assert "ĠĠ" in record["model"]["vocab"]
    record["model"]["vocab"]["ĠĠĠĠ"] = 457
    record["model"]["merges"].append(["ĠĠ", "ĠĠ"])
    record["added_tokens"] += [
        added(458, "  ", normalized=True),
        added(459, "\n"),
        added(record["model"]["vocab"]["q"], "q"),
    ]
    assert_theirs(record, "a  b   c     d\n\ne  \n", "aqua quite q\n")


def test_unused_literal_tokens_are_harmless_or_refused(record, assert_theirs, tmp_path) -> None:
    record["model"]["vocab"]["世 界"] = 457
    assert_theirs(record, "世 界", "the world")
    record["model"]["vocab"]["ä¸ĸĠçķĮ"] = 458
    refused(record, tmp_path / "tokenizer.json", "token 457 must be written in byte-level")


def test_what_stands_around_a_text_is_ignored(record, assert_theirs) -> None:
    begin = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, sequence],
        "pair": [begin, sequence, sequence],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    record["normalizer"] = {"type": "Sequence", "normalizers": []}
    record["model"]["fuse_unk"] = True
    record["model"]["dropout"] = 0.0
    assert_theirs(record, "the miller", "")


@pytest.mark.parametrize("pattern", ["cl100k_2023", "o200k"])
def test_a_split_that_keeps_the_matches_of_a_known_pattern_is_read(
    pattern: str, record, assert_theirs, bpe_corpus: str, tmp_path: Path
) -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": reference.PATTERNS[pattern]},
        "behavior": "Removed",
        "invert": True,
    }
    byte_level = record["pre_tokenizer"] | {"use_regex": False}
    record["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    assert_theirs(record, bpe_corpus)
    split["pattern"] = {"Regex": r"\w+"}
    refused(record, tmp_path / "tokenizer.json", "behavior Isolated")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([added(500, "<|x|>")], "must have the id 457 .* got 500"),
        ([added(457, "<b>"), added(457, "<c>")], "must have the id 458"),
        ([added(457, "<b>"), added(458, "<b>")], "twice|458|457"),
        ([added(3, "é")], "id"),
        ([added(457, "")], "empty"),
        ([added(457, "x" * 2000)], "at most 1024 bytes"),
        ([added(457, "<a>"), added(458, "x<a>", normalized=True)], "must not overlap"),
        ([added(457, "<a>"), added(458, "x<", normalized=True)], "must not overlap"),
        ([{"id": 457}], "content and id"),
        ([{"content": "x", "id": -1}], "content and id"),
        ([7], "content and id"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_added_tokens_that_their_library_reads_otherwise_are_refused(
    tokens: list[Any], message: str, record, tmp_path: Path
) -> None:
    record["added_tokens"] += tokens
    refused(record, tmp_path / "tokenizer.json", message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, "NFC"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}, "Lowercase"),
        ("pre_tokenizer", {"type": "Digits", "individual_digits": True}, "Digits"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]},
            "one Split and ByteLevel.* got Digits, ByteLevel",
        ),
    ],
)
def test_steps_that_are_not_supported_are_named(key, value, message, record, tmp_path) -> None:
    refused(record | {key: value}, tmp_path / "tokenizer.json", message)


# Which format a file has.

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "none of them"),
        ("tokenizer.json", b'{"a": "b"}', "none of them"),
        ("tokenizer.json", b'{"version": "1.0", "model": null}', "none of them"),
        ("vocab.json", b'{"a": 1, "b": null}', "none of them"),
        ("x.json", b'{"tokenizer_class": "GPT2Tokenizer"}', r"tokenizer_config\.json; give"),
        ("x.json", b'{"added_tokens_decoder": {"0": {}}}', r"tokenizer_config\.json; give"),
        ("tokenizer.model", SENTENCEPIECE * 9, "SentencePiece"),
        ("any", SENTENCEPIECE * 9, "SentencePiece"),
        ("vocab.txt", b"[PAD]\n[unused0]\n[UNK]\nthe\n", "WordPiece"),
        ("merges.txt", b"#version: 0.2\nt h\n", r"vocab\.json"),
        ("x.bin", b"PK\x03\x04" + bytes(100), "neither"),
        ("x.bin", b"", "neither"),
        (
            "tokenizer.json",
            b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}}',
            "byte-level BPE, got WordPiece",
        ),
        (
            "tokenizer.json",
            b'{"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}',
            "byte-level BPE, got Unigram",
        ),
        (
            "tokenizer.json",
            b'{"model": {"type": "WordLevel", "vocab": {"a": 0}}}',
            "byte-level BPE, got WordLevel",
        ),
        (
            "tokenizer.json",
            b'{"model": {"type": "BPE", "byte_fallback": true, "vocab": {}, "merges": []}}',
            "byte_fallback must be off",
        ),
    ],
)
def test_what_is_not_byte_level_bpe_is_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(rslm.FormatError, match=message):
        rslm.Tokenizer.load(tmp_path / name)


def test_a_vocabulary_with_the_words_model_and_format_is_gpt2s(
    rust_tokenizer, tmp_path: Path
) -> None:
    tokens = {**rust_tokenizer().vocab, 457: b"model", 458: b"format"}
    ours = rslm.Tokenizer(tokens, rust_tokenizer().merges)
    ours.save(tmp_path, "gpt2")
    assert rslm.Tokenizer.load(tmp_path).sha256 == ours.sha256


def test_a_folder_must_hold_one_tokenizer(rust_tokenizer, tmp_path: Path) -> None:
    ours = rust_tokenizer()
    with pytest.raises(rslm.FormatError, match=r"must hold tokenizer\.json, vocab\.json"):
        rslm.Tokenizer.load(tmp_path)
    ours.save(tmp_path / "a.tiktoken", "tiktoken")
    found = rslm.Tokenizer.load(tmp_path, pattern="gpt2", special_tokens=ours.special_tokens)
    assert found.vocab == ours.vocab
    ours.save(tmp_path / "b.tiktoken", "tiktoken")
    with pytest.raises(rslm.FormatError, match=r"one tokenizer, got 2 files, .*a\.tiktoken and"):
        rslm.Tokenizer.load(tmp_path, pattern="gpt2")
    with pytest.raises(rslm.FormatError, match="must hold a tokenizer in the format"):
        rslm.Tokenizer.load(tmp_path, "hf")
    ours.save(tmp_path, "gpt2")
    assert rslm.Tokenizer.load(tmp_path, special_tokens=[END_OF_TEXT]).sha256 == ours.sha256
    rust_tokenizer("o200k").save(tmp_path / "tokenizer.json", "hf")
    assert rslm.Tokenizer.load(tmp_path).pattern == "o200k"
    assert rslm.Tokenizer.load(tmp_path, "gpt2").pattern == "gpt2"
