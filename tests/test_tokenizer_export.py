"""Tokenizers written in the formats of others: the ids that their own software gives."""

import base64
import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import texts_with_special

import rslm
from rslm import reference

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, "<|end", "é世", "a b", "  \n"]


def bytes_and(*tokens: str) -> dict[int, bytes]:
    """A vocabulary of all bytes and these tokens."""
    return dict(enumerate([*(bytes([b]) for b in range(256)), *(t.encode() for t in tokens)]))


def write_ranks(path: Path, tokens: dict[int, bytes]) -> Path:
    lines = (f"{base64.b64encode(v).decode()} {token_id}\n" for token_id, v in tokens.items())
    path.write_text("".join(lines))
    return path


@functools.cache
def hugging_face(path: Path) -> Any:
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))


def their_ids(theirs: Any, text: str) -> list[int]:
    return theirs.encode(text, add_special_tokens=False).ids


# Hugging Face's tokenizer.json.


@pytest.fixture(scope="module", params=[*reference.PATTERNS, r"\p{N}|\p{L}+"])
def exported(request, rust_tokenizer, tmp_path_factory) -> tuple[rslm.Tokenizer, Path]:
    twin = rust_tokenizer()
    ours = rslm.Tokenizer(twin.vocab, twin.merges, SPECIAL_TOKENS, pattern=request.param)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    ours.save(path, "hf")
    return ours, path


def test_hf_file_gives_their_library_our_ids(exported, bpe_corpus: str, stdlib_text: str) -> None:
    ours, path = exported
    theirs = hugging_face(path)
    assert theirs.get_vocab_size() == ours.vocab_size
    draw = random.Random(0)
    alphabet = (
        "aA'sſSdDlLrRevmt  \n\r\t\u00a0\u0085\u2028\u3000\u1680123٣½Ⅷ世é\u0301👩\u200d-=/._<|>"
    )
    texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 50))) for _ in range(2000)]
    for text in [bpe_corpus, stdlib_text[:300_000], *texts]:
        assert ours.encode(text) == their_ids(theirs, text), repr(text[:100])
    token_ids = ours.encode(bpe_corpus)
    assert theirs.decode(token_ids, skip_special_tokens=False) == bpe_corpus


@given(text=texts_with_special(SPECIAL_TOKENS))
def test_hf_file_gives_their_library_our_ids_on_any_text(exported, text: str) -> None:
    ours, path = exported
    assert ours.encode(text) == their_ids(hugging_face(path), text)


def test_hf_file_comes_back_as_the_same_tokenizer(exported) -> None:
    ours, path = exported
    assert rslm.Tokenizer.load(path).sha256 == ours.sha256


def test_hf_file_marks_special_tokens_and_writes_merges_as_pairs(exported) -> None:
    ours, path = exported
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {t["content"]: t["id"] for t in record["added_tokens"]} == ours.special_tokens
    assert all(t["special"] and not t["normalized"] for t in record["added_tokens"])
    assert all(len(pair) == 2 for pair in record["model"]["merges"])
    assert len(record["model"]["merges"]) == len(ours.merges)


def test_hf_file_keeps_holes_in_the_ids(rust_tokenizer, tmp_path: Path) -> None:
    twin = rust_tokenizer()
    ours = rslm.Tokenizer(twin.vocab, twin.merges, {"<|far|>": 1000, END_OF_TEXT: 0})
    ours.save(tmp_path / "tokenizer.json", "hf")
    text = f"the<|far|> miller{END_OF_TEXT}"
    assert their_ids(hugging_face(tmp_path / "tokenizer.json"), text) == ours.encode(text)
    assert rslm.Tokenizer.load(tmp_path).sha256 == ours.sha256


def test_tokens_that_no_merge_reaches_are_written_with_every_pair(tmp_path: Path) -> None:
    ranks = bytes_and("b c", "bc", "abc", "aa", "aaaa", "xyz", "aaa")
    path = write_ranks(tmp_path / "ranks.tiktoken", ranks)
    ours = rslm.Tokenizer.load(path, pattern="cl100k")
    ours.save(tmp_path / "tokenizer.json", "hf")
    theirs, back = hugging_face(tmp_path / "tokenizer.json"), rslm.Tokenizer.load(tmp_path, "hf")
    draw = random.Random(0)
    words = ["".join(draw.choices("aaabcxyz ", k=draw.randint(1, 9))) for _ in range(3000)]
    assert ours.encode("xyz") == [261]
    for text in words:
        assert ours.encode(text) == their_ids(theirs, text) == back.encode(text), text
    back.save(tmp_path / "again.json", "hf")
    assert rslm.Tokenizer.load(tmp_path / "again.json").sha256 == back.sha256
    back.save(tmp_path / "ours.json")
    assert rslm.Tokenizer.load(tmp_path / "ours.json").sha256 == back.sha256


def test_a_special_token_that_looks_like_a_byte_cannot_be_written(tmp_path: Path) -> None:
    tokenizer = rslm.Tokenizer(bytes_and(), [], {"é": 256})
    for format in ("hf", "gpt2"):
        with pytest.raises(ValueError, match=r"tokens must be written differently .*é"):
            tokenizer.save(tmp_path / "out", format)
    with pytest.raises(ValueError, match="tokens must be written differently"):
        tokenizer.gguf_metadata()
    assert not list(tmp_path.iterdir())


# tiktoken's ranks.


@pytest.mark.parametrize("pattern", reference.PATTERNS)
def test_tiktoken_file_has_every_ordinary_token_and_comes_back(
    pattern: str, rust_tokenizer, build_tiktoken, bpe_corpus: str, tmp_path: Path
) -> None:
    ours = rust_tokenizer(pattern)
    ours.save(tmp_path / "ranks.tiktoken", "tiktoken")
    specials = ours.special_tokens
    back = rslm.Tokenizer.load(
        tmp_path / "ranks.tiktoken", pattern=pattern, special_tokens=specials
    )
    assert back.vocab == ours.vocab
    assert back.encode(bpe_corpus) == ours.encode(bpe_corpus)
    load = pytest.importorskip("tiktoken.load")
    ranks = load.load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    assert {v: k for k, v in ranks.items()} | {
        i: t.encode() for t, i in specials.items()
    } == ours.vocab
    assert build_tiktoken(back).encode(bpe_corpus, allowed_special="all") == ours.encode(bpe_corpus)


@pytest.mark.parametrize(
    ("tokens", "merges"),
    [
        (["ab", "cd"], [("c", "d"), ("a", "b")]),  # the list in another order than the ids
        (["ab", "abc", "bc"], [("a", "b"), ("ab", "c")]),  # a token that no merge makes
        (["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")]),  # ids would make a + bc
        (["ab"], [("a", "b"), ("a", "b")]),
    ],
)
def test_tiktoken_file_is_refused_where_ids_are_no_ranks(tokens, merges, tmp_path: Path) -> None:
    pairs = [(left.encode(), right.encode()) for left, right in merges]
    with pytest.raises(ValueError, match=r"ids must be the ranks of the merges .* tiktoken"):
        rslm.Tokenizer(bytes_and(*tokens), pairs).save(tmp_path / "out", "tiktoken")
    assert not list(tmp_path.iterdir())


@settings(max_examples=200)
@given(data=st.data())
def test_tiktoken_file_that_is_written_means_the_same(data, tmp_path_factory) -> None:
    """Whatever merges over few letters: either refused, or every text has the same ids."""
    tokens, merges = [b"a", b"b", b"c"], []
    for _ in range(data.draw(st.integers(1, 7))):
        pair = (data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens)))
        if pair[0] + pair[1] not in tokens:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    tokenizer = rslm.Tokenizer(bytes_and(*(t.decode() for t in tokens[3:])), merges)
    path = tmp_path_factory.mktemp("ranks") / "out.tiktoken"
    try:
        tokenizer.save(path, "tiktoken")
    except ValueError:
        return
    back = rslm.Tokenizer.load(path, pattern="gpt2")
    for text in data.draw(st.lists(st.text("abc", max_size=24), min_size=20, max_size=20)):
        assert back.encode(text) == tokenizer.encode(text)


# GPT-2's two files.


def test_gpt2_files_come_back_as_the_same_tokenizer(
    rust_tokenizer, bpe_corpus: str, tmp_path: Path
) -> None:
    twin = rust_tokenizer()
    ours = rslm.Tokenizer(twin.vocab, twin.merges, SPECIAL_TOKENS)
    ours.save(tmp_path / "new" / "gpt2", "gpt2")
    files = [tmp_path / "new" / "gpt2" / name for name in ("vocab.json", "merges.txt")]
    assert rslm.Tokenizer.from_files(*files, SPECIAL_TOKENS).sha256 == ours.sha256
    back = rslm.Tokenizer.load(files[0].parent, special_tokens=SPECIAL_TOKENS)
    assert back.sha256 == ours.sha256
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["merges.txt", "vocab.json"]
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(*map(str, files))
    ordinary = bpe_corpus.replace("<", "(")
    assert theirs.encode(ordinary).ids == ours.encode_ordinary(ordinary)


def test_gpt2_files_are_refused_for_another_pattern(rust_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pattern must be gpt2 .* got \"o200k\""):
        rust_tokenizer("o200k").save(tmp_path / "out", "gpt2")
    path = write_ranks(tmp_path / "ranks.tiktoken", bytes_and("xyz"))
    with pytest.raises(ValueError, match="every token must follow from the merges"):
        rslm.Tokenizer.load(path, pattern="gpt2").save(tmp_path / "out", "gpt2")
    assert not (tmp_path / "out").exists()


# Special tokens with the bytes of ordinary ones.


def test_a_special_token_of_one_byte_needs_an_id() -> None:
    for special_tokens in (["a"], [END_OF_TEXT, "\n"]):
        with pytest.raises(ValueError, match="a special token of one byte must come with its id"):
            rslm.Tokenizer(bytes_and(), [], special_tokens)
        with pytest.raises(ValueError, match="special_tokens must be longer than one byte"):
            rslm.train_bpe(None, 300, special_tokens, texts=["a text"])


@pytest.mark.parametrize("token_id", [97, 300])
def test_a_special_token_of_one_byte_is_as_in_tiktoken(token_id: int) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: i for i, token in bytes_and().items()}
    special_tokens = {"a": token_id}
    theirs = tiktoken.Encoding(
        "bytes", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens=special_tokens
    )
    ours = rslm.Tokenizer(bytes_and(), [], special_tokens)
    text = "a banana"
    token_ids = ours.encode(text)
    assert token_ids == theirs.encode(text, allowed_special="all")
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    assert ours.decode(token_ids) == theirs.decode(token_ids) == text


def test_a_special_token_of_one_byte_is_as_in_hugging_face_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    rslm.Tokenizer(bytes_and(), []).save(tmp_path / "tokenizer.json", "hf")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.add_special_tokens(["a"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = rslm.Tokenizer.load(tmp_path)
    assert ours.special_tokens == {"a": theirs.token_to_id("a")} == {"a": 97}
    assert ours.encode("a banana") == theirs.encode("a banana").ids


def test_a_special_token_and_an_ordinary_one_with_the_same_bytes_both_keep_their_id(
    tmp_path: Path,
) -> None:
    merges = [(b"t", b"h"), (b"th", b"e")]
    ours = rslm.Tokenizer(bytes_and("th", "the"), merges, {"the": 300, "a": 301})
    assert ours.encode("the theta") == [300, 32, 300, 116, 301]
    assert ours.encode_ordinary("the a") == [257, 32, 97]
    assert ours.decode([300, 257, 301, 97]) == "thetheaa"
    ours.save(tmp_path / "tokenizer.json")
    assert rslm.Tokenizer.load(tmp_path).encode_ordinary("the a") == [257, 32, 97]
    assert rslm.Tokenizer.load(tmp_path).sha256 == ours.sha256
