"""Tokenizer files: our own JSON round trip, and the formats of others with their own ids."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rslm
from rslm import reference

END_OF_TEXT = "<|endoftext|>"


@pytest.fixture
def saved(rust_tokenizer, tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    rust_tokenizer("o200k").save(path)
    return path


# Our own format.


@pytest.mark.parametrize("pattern", [*reference.PATTERNS, r"\p{L}+|\s"])
def test_save_and_load_keep_everything(pattern: str, rust_tokenizer, tmp_path, bpe_corpus) -> None:
    twin = rust_tokenizer()
    tokenizer = rslm.Tokenizer(
        twin.vocab, twin.merges, [END_OF_TEXT, "é世", "a b"], pattern=pattern
    )
    tokenizer.save(tmp_path / "any name")
    loaded = rslm.Tokenizer.load(tmp_path / "any name")
    for attribute in ("vocab", "merges", "special_tokens", "pattern", "vocab_size", "sha256"):
        assert getattr(loaded, attribute) == getattr(tokenizer, attribute)
    assert loaded.encode(bpe_corpus) == tokenizer.encode(bpe_corpus)
    assert rslm.Tokenizer.load(str(tmp_path / "any name"), "rslm").sha256 == tokenizer.sha256


def test_the_file_is_the_canonical_json_that_is_hashed(saved: Path, rust_tokenizer) -> None:
    content = saved.read_bytes()
    record = json.loads(content)
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    assert content.rstrip(b"\n") == canonical
    assert hashlib.sha256(canonical).hexdigest() == rust_tokenizer("o200k").sha256
    assert record["pattern"] == "o200k"
    assert record["unicode_version"] == "16.0.0"
    vocab = [base64.b64decode(token) for token in record["vocab"]]
    assert dict(enumerate(vocab)) == rust_tokenizer("o200k").vocab


def test_holes_in_the_ids_survive(rust_tokenizer, tmp_path: Path) -> None:
    vocab = {**rust_tokenizer().vocab, 1000: END_OF_TEXT.encode() * 2}
    tokenizer = rslm.Tokenizer(vocab, rust_tokenizer().merges, [END_OF_TEXT * 2])
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = rslm.Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocab == vocab
    assert loaded.vocab_size == 1001
    assert loaded.encode(END_OF_TEXT * 2) == [1000]
    with pytest.raises(ValueError, match="999"):
        loaded.decode([999])


def test_golden_tokenizer_file(rust_tokenizer, tmp_path: Path, check_golden) -> None:
    rust_tokenizer().save(tmp_path / "tokenizer.json")
    check_golden("bpe/tokenizer.json", (tmp_path / "tokenizer.json").read_bytes())


def tampered(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a hand may do to the file, with a word of the refusal."""
    vocab, merges = record["vocab"], record["merges"]
    changes = [
        ("vocab", record | {"vocab": vocab[:-1]}),
        ("base64|bytes", record | {"vocab": ["not base64!", *vocab[1:]]}),
        ("vocab", record | {"vocab": {}}),
        ("vocab|bytes", record | {"vocab": [7, *vocab[1:]]}),
        ("merges", record | {"merges": [["YQ=="], *merges]}),
        ("merge", record | {"merges": [["cXF4", "YQ=="], *merges]}),
        ("special", record | {"special_tokens": {END_OF_TEXT: 1}}),
        ("special", record | {"special_tokens": {END_OF_TEXT: -1}}),
        ("special", record | {"special_tokens": {END_OF_TEXT: "0"}}),
        ("special", record | {"special_tokens": [END_OF_TEXT]}),
        ("pattern", record | {"pattern": "("}),
        ("pattern", record | {"pattern": None}),
        ("version", record | {"version": 2}),
        ("unicode_version", record | {"unicode_version": "15.0.0"}),
    ]
    missing = [(key, {k: v for k, v in record.items() if k != key}) for key in record]
    return changes + [(key, change) for key, change in missing if key != "format"]


def test_a_tampered_file_is_refused_with_path_and_reason(saved: Path) -> None:
    record = json.loads(saved.read_bytes())
    for word, change in tampered(record):
        saved.write_text(json.dumps(change))
        with pytest.raises(rslm.FormatError, match=rf"(?s)tokenizer\.json: .*({word})"):
            rslm.Tokenizer.load(saved)


def test_a_truncated_file_is_refused_at_every_length(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [0, 1, 2, *range(3, len(content) - 1, 97), len(content.rstrip()) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(rslm.FormatError, match=r"tokenizer\.json"):
            rslm.Tokenizer.load(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b'{"model":' * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"null",
        b"{}",
        b"[]",
        b'{"format": "rslm-tokenizer"}',
        b'{"model": 3}',
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b"\x00\xff\xfe" * 100,
        b"just some text",
        b'{"a": 1, "b": -1}',
        b'{"a": 4294967295}',
    ],
    ids=lambda content: content[:20].decode(errors="replace") + f"({len(content)})",
)
def test_foreign_content_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises((rslm.FormatError, FileNotFoundError)):
        rslm.Tokenizer.load(tmp_path / "tokenizer.json")


def test_missing_files_and_unknown_formats_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        rslm.Tokenizer.load(tmp_path / "missing.json")
    with pytest.raises(ValueError, match=r"format must be .*sentencepiece"):
        rslm.Tokenizer.load(saved, "sentencepiece")
    with pytest.raises(ValueError, match=r"format must be .*sentencepiece"):
        rslm.Tokenizer.load(saved).save(tmp_path / "other", format="sentencepiece")
    assert not (tmp_path / "other").exists()


def test_saving_replaces_a_file_whole(saved: Path, rust_tokenizer) -> None:
    rust_tokenizer("gpt2").save(saved)
    assert rslm.Tokenizer.load(saved).pattern == "gpt2"
    assert [path.name for path in saved.parent.iterdir()] == ["tokenizer.json"]


def test_a_folder_that_does_not_exist_is_an_oserror(rust_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        rust_tokenizer().save(tmp_path / "missing" / "tokenizer.json")


# Hugging Face's tokenizer.json.

TEXTS = [
    "Hello, world! It's 12345 o'clock\n\n  and\tall's   well.  ",
    f"one{END_OF_TEXT}two{END_OF_TEXT}{END_OF_TEXT} <|endoftext <|pad|>",
    "naïve café e\u0301 世界 👩\u200d🌾 \u00a0\u2028 y'all'd've I'D'VE",
    "",
]


def hf_json(corpus: str, pattern: str) -> str:
    """A tokenizer.json that Hugging Face's trainer made of the corpus."""
    tokenizers = pytest.importorskip("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if pattern == "gpt2":
        tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    else:
        regex = tokenizers.Regex(reference.PATTERNS.get(pattern, pattern))
        steps = [
            tokenizers.pre_tokenizers.Split(regex, "isolated"),
            byte_level(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[END_OF_TEXT, "<|pad|>"],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus], trainer)
    return tokenizer.to_str(pretty=True)


def assert_same_ids(path: Path, bpe_corpus: str, **options: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    ours = rslm.Tokenizer.load(path, **options)
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in [*TEXTS, bpe_corpus]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", "cl100k_2023", r"\p{N}|\p{L}+"])
def test_hf_json_gives_their_ids(pattern: str, bpe_corpus: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(hf_json(bpe_corpus, pattern))
    assert_same_ids(path, bpe_corpus)
    assert_same_ids(path, bpe_corpus, format="hf")
    assert rslm.Tokenizer.load(path).special_tokens == {END_OF_TEXT: 0, "<|pad|>": 1}
    assert rslm.Tokenizer.load(tmp_path).sha256 == rslm.Tokenizer.load(path).sha256


def test_hf_json_with_merges_as_text_and_added_tokens(bpe_corpus: str, tmp_path: Path) -> None:
    record = json.loads(hf_json(bpe_corpus, "gpt2"))
    record["model"]["merges"] = [" ".join(pair) for pair in record["model"]["merges"]]
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    for token_id, content in enumerate(["<|user|>", "<|user|><|end|>", "<two words>"], start=700):
        token = {"id": token_id, "content": content, "special": False, **flags}
        record["added_tokens"].append(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    text = "a<|user|><|end|><|user|>b<two words> <two  words>"
    assert_same_ids(tmp_path / "tokenizer.json", bpe_corpus + text)
    special_tokens = rslm.Tokenizer.load(tmp_path / "tokenizer.json").special_tokens
    assert special_tokens["<two words>"] == 702


def changed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parents, key = path.split("__")
            target = record
            for parent in parents:
                target = target[parent]
            target[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(model__type="WordPiece"), "WordPiece"),
        (changed(model__type="Unigram"), "Unigram"),
        (changed(model__dropout=0.1), "dropout"),
        (changed(model__byte_fallback=True), "byte_fallback"),
        (changed(model__ignore_merges="yes"), "ignore_merges"),
        (changed(model__end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (changed(model__continuing_subword_prefix="##"), "continuing_subword_prefix"),
        (changed(model__vocab=[]), "vocab"),
        (changed(model__merges=[["a"]]), "merges"),
        (changed(model__merges=[["a", "€"]]), "merges"),
        (changed(model__merges=[["zq", "qz"]]), "merge"),
        (changed(normalizer={"type": "NFC"}), "NFC"),
        (changed(pre_tokenizer=None), "pre_tokenizer"),
        (changed(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (changed(pre_tokenizer={"type": "Metaspace", "replacement": "▁"}), "Metaspace"),
        (changed(pre_tokenizer__add_prefix_space=True), "prefix"),
        (changed(pre_tokenizer__use_regex=False), "ByteLevel"),
    ],
)
def test_hf_json_that_is_not_byte_level_bpe_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, bpe_corpus: str, tmp_path: Path
) -> None:
    record = json.loads(hf_json(bpe_corpus, "gpt2"))
    change(record)
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(rslm.FormatError, match=rf"tokenizer\.json: .*{message}"):
        rslm.Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_hf_added_tokens_that_eat_their_surroundings_are_refused(
    flag: str, bpe_corpus: str, tmp_path: Path
) -> None:
    record = json.loads(hf_json(bpe_corpus, "gpt2"))
    record["added_tokens"][0][flag] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(rslm.FormatError, match=flag):
        rslm.Tokenizer.load(tmp_path / "tokenizer.json")


# GPT-2's two files.


def write_gpt2_files(tokenizer: rslm.Tokenizer, folder: Path) -> None:
    others = (chr(256 + i) for i in range(68))
    stand_in = {b: chr(b) if reference.is_printable(b) else next(others) for b in range(256)}

    def as_text(token_bytes: bytes) -> str:
        return "".join(stand_in[byte] for byte in token_bytes)

    special_ids = set(tokenizer.special_tokens.values())
    vocab = {
        token_bytes.decode() if token_id in special_ids else as_text(token_bytes): token_id
        for token_id, token_bytes in tokenizer.vocab.items()
    }
    lines = [f"{as_text(left)} {as_text(right)}" for left, right in tokenizer.merges]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


def test_gpt2_files_give_the_same_tokenizer(rust_tokenizer, bpe_corpus: str, tmp_path) -> None:
    tokenizer = rust_tokenizer()
    write_gpt2_files(tokenizer, tmp_path)
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    for loaded in (
        rslm.Tokenizer.from_files(*files, [END_OF_TEXT]),
        rslm.Tokenizer.load(tmp_path / "vocab.json", special_tokens=[END_OF_TEXT]),
        rslm.Tokenizer.load(tmp_path, "gpt2", special_tokens=[END_OF_TEXT]),
    ):
        assert loaded.sha256 == tokenizer.sha256
        assert loaded.encode(bpe_corpus) == tokenizer.encode(bpe_corpus)
    other = rslm.Tokenizer.from_files(*map(str, files), pattern="o200k")
    assert other.pattern == "o200k"
    assert other.special_tokens == {}


@pytest.mark.parametrize(
    "line", ["a", "a b c", " a", "€ a", "zz qq", "a  b", "#version: 0.2"], ids=repr
)
def test_a_bad_line_of_merges_is_named(line: str, rust_tokenizer, tmp_path: Path) -> None:
    write_gpt2_files(rust_tokenizer(), tmp_path)
    with (tmp_path / "merges.txt").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(rslm.FormatError, match=r"merges\.txt|vocab\.json"):
        rslm.Tokenizer.load(tmp_path / "vocab.json")


# tiktoken's ranks.


def write_tiktoken(tokenizer: rslm.Tokenizer, path: Path) -> None:
    special_ids = set(tokenizer.special_tokens.values())
    lines = [
        f"{base64.b64encode(token_bytes).decode()} {token_id}\n"
        for token_id, token_bytes in tokenizer.vocab.items()
        if token_id not in special_ids
    ]
    path.write_text("".join(lines))


@pytest.mark.parametrize("pattern", reference.PATTERNS)
def test_tiktoken_file_gives_the_same_ids(
    pattern: str, rust_tokenizer, bpe_corpus: str, tmp_path: Path
) -> None:
    tokenizer, path = rust_tokenizer(pattern), tmp_path / "ranks.tiktoken"
    write_tiktoken(tokenizer, path)
    loaded = rslm.Tokenizer.load(path, pattern=pattern)
    assert loaded.encode_ordinary(bpe_corpus) == tokenizer.encode_ordinary(bpe_corpus)
    assert loaded.merges == tokenizer.merges
    loaded.save(tmp_path / "tokenizer.json")
    again = rslm.Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.sha256 == loaded.sha256
    assert again.encode(bpe_corpus) == loaded.encode(bpe_corpus)


def test_tiktoken_file_needs_a_pattern(rust_tokenizer, tmp_path: Path) -> None:
    write_tiktoken(rust_tokenizer(), tmp_path / "ranks.tiktoken")
    with pytest.raises(ValueError, match=r"pattern must be given for .*ranks\.tiktoken"):
        rslm.Tokenizer.load(tmp_path / "ranks.tiktoken")


@pytest.mark.parametrize("line", ["YQ==", "YQ== x", "!!! 7", "YQ== -1", " 300", "YWI= 99999999999"])
def test_a_bad_line_of_ranks_is_named(line: str, rust_tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    write_tiktoken(rust_tokenizer(), path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(rslm.FormatError, match=r"ranks\.tiktoken: line 457"):
        rslm.Tokenizer.load(path, pattern="gpt2")
