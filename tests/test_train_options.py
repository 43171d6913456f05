"""Options of training: when it ends, how long tokens grow, what it goes on from."""

import base64
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CORPORA

import rslm
from rslm import Tokenizer, reference
from rslm.cli import main

END_OF_TEXT = "<|endoftext|>"


def train_texts(texts, vocab_size, special_tokens=(), **options):
    return Tokenizer.train(None, vocab_size, special_tokens, texts=texts, **options)


def hf_merges(texts: list[str], vocab_size: int, **options) -> list[tuple[bytes, bytes]]:
    """The merges of Hugging Face's trainer, as bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre_tokenizers = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator(texts, trainer)
    shown = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(as_bytes(left), as_bytes(right)) for left, right in shown]


def as_bytes(token: str) -> bytes:
    """The bytes that GPT-2's printable characters stand for."""
    hidden = [byte for byte in range(256) if not reference.is_printable(byte)]
    return bytes(ord(c) if ord(c) < 256 else hidden[ord(c) - 256] for c in token)


@pytest.mark.parametrize("min_frequency", [0, 1, 2, 7, 200])
def test_min_frequency_ends_training_where_hugging_face_does(
    min_frequency: int, stdlib_text: str
) -> None:
    text = stdlib_text[:100_000]
    size = 3_000 if min_frequency < 7 else 100_000
    expected = hf_merges([text], size, min_frequency=min_frequency)
    found = train_texts([text], size, tie_break="hf", min_frequency=min_frequency)
    assert found.merges == expected


@pytest.mark.parametrize("max_token_length", [2, 3, 5, 8])
def test_max_token_length_is_one_less_than_in_hugging_face(
    max_token_length: int, stdlib_text: str
) -> None:
    # There a token must be shorter, here it may be as long.
    text = stdlib_text[:100_000]
    expected = hf_merges([text], 1_500, max_token_length=max_token_length + 1)
    found = train_texts([text], 1_500, tie_break="hf", max_token_length=max_token_length)
    assert found.merges == expected
    assert max(map(len, found.vocab.values())) == max_token_length


def test_no_token_is_longer_than_max_token_length_even_of_one_byte() -> None:
    assert train_texts(["aaaa bbbb"], 300, max_token_length=1).merges == []
    assert max(map(len, train_texts(["aaaa bbbb"], 300).vocab.values())) == 5


@pytest.mark.parametrize("tie_break", ["bytes", "hf", "first_id"])
def test_min_frequency_cuts_the_list_of_merges_short(tie_break: str, bpe_corpus: str) -> None:
    everything = train_texts([bpe_corpus], 2_000, tie_break=tie_break).merges
    fewer = train_texts([bpe_corpus], 2_000, tie_break=tie_break, min_frequency=4).merges
    assert fewer == everything[: len(fewer)]
    assert 0 < len(fewer) < len(everything)


@given(st.data())
def test_extending_equals_training_at_once(data: st.DataObject) -> None:
    corpus = data.draw(CORPORA, label="corpus")
    options = {
        "pattern": data.draw(st.sampled_from([*reference.PATTERNS, "a|bb"]), label="pattern"),
        "unit": data.draw(st.sampled_from(["document", "line"]), label="unit"),
        "tie_break": data.draw(st.sampled_from(["bytes", "hf"]), label="tie_break"),
    }
    small, more = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))
    base = train_texts(corpus, 257 + small, [END_OF_TEXT], **options)
    at_once = train_texts(corpus, 257 + small + more, [END_OF_TEXT], **options)
    del options["pattern"]
    extended = train_texts(corpus, 257 + small + more, extend=base, **options)
    assert extended.to_json() == at_once.to_json()


@pytest.mark.parametrize("tie_break", ["bytes", "hf", "first_id"])
def test_extending_on_real_text_equals_training_at_once(tie_break: str, stdlib_text: str) -> None:
    text = stdlib_text[:500_000]
    base = train_texts([text], 1_000, tie_break=tie_break)
    at_once = train_texts([text], 2_000, tie_break=tie_break)
    assert train_texts([text], 2_000, tie_break=tie_break, extend=base) == at_once


def test_extending_on_other_text_keeps_ids_and_merges(stdlib_text: str) -> None:
    base = train_texts(["the cat sat on the mat"] * 3, 262, [END_OF_TEXT, "<pad>"])
    extended = train_texts([stdlib_text[:50_000]], 400, ["<pad>", "<new>"], extend=base)
    assert extended.vocab_size == 400
    assert extended.vocab.items() >= base.vocab.items()
    assert extended.merges[: len(base.merges)] == base.merges
    assert extended.special_tokens == {END_OF_TEXT: 0, "<pad>": 1, "<new>": 262}
    assert len(extended.encode("import")) < len(base.encode("import"))


def test_extending_a_tokenizer_that_merges_by_ids(tmp_path: Path, stdlib_text: str) -> None:
    text = stdlib_text[:50_000]
    plain = train_texts([text], 500)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in plain.vocab.items()]
    (tmp_path / "500.tiktoken").write_text("".join(lines))
    base = Tokenizer.load(tmp_path / "500.tiktoken", pattern="gpt2", special_tokens={"<s>": 510})
    extended = train_texts([text], 700, extend=base)
    at_once = train_texts([text], 500 + 700 - 511)
    # Ids between the last token and the special one stay holes.
    assert sorted(set(range(700)) - set(extended.vocab)) == list(range(500, 510))
    to_new = {i: i if i < 500 else i + 11 for i in at_once.vocab}
    assert extended.encode(text) == [to_new[i] for i in at_once.encode(text)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_frequency": -1}, "min_frequency must be from 0"),
        ({"max_token_length": 0}, "max_token_length must be from 1"),
        ({"vocab_size": (1 << 21) + 1}, "vocab_size must be at most 2097152, got 2097153"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_texts(["a"], **({"vocab_size": 300} | options))


def test_extending_below_the_size_of_the_tokenizer_is_refused() -> None:
    base = train_texts(["aaaa"], 258)
    with pytest.raises(ValueError, match=r"at least 259 \(258 ids of the tokenizer to extend"):
        train_texts(["aaaa"], 258, ["<s>"], extend=base)


def test_a_token_cannot_become_special_by_extending() -> None:
    base = train_texts(["low low"], 258)
    with pytest.raises(ValueError, match="must not be tokens of the tokenizer to extend"):
        train_texts(["aaaa"], 300, ["low"], extend=base)


def test_train_bpe_takes_the_same_options() -> None:
    base = train_texts(["aaaa"], 257)
    vocab, merges = rslm.train_bpe(None, 300, texts=["aaaa bb"], extend=base, min_frequency=1)
    assert merges[:2] == [(b"a", b"a"), (b"b", b"b")]
    assert vocab[257] == b"bb"


def test_the_command_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("low low low lower newest newest widest")
    train = "tokenizer train text.txt --vocab-size"
    for command in (
        f"{train} 260 --out small.json --pattern cl100k",
        f"{train} 264 --out extended.json --extend small.json",
        f"{train} 264 --out at_once.json --pattern cl100k",
        f"{train} 400 --out short.json --max-token-length 2 --min-frequency 3",
    ):
        assert main(shlex.split(command)) == 0
    assert Path("extended.json").read_bytes() == Path("at_once.json").read_bytes()
    short = Tokenizer.load("short.json")
    assert {left + right for left, right in short.merges} == {b" l", b"ow", b"st"}
