"""Encoding and decoding in Rust: equal to the reference and to tiktoken, for any text."""

import codecs
import functools
import itertools
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CORPORA, SPECIAL_TOKENS, TEXTS, WORDS, texts_with_special

import rslm
from rslm import reference

PATTERNS = list(reference.PATTERNS)
END_OF_TEXT = "<|endoftext|>"


# Equal to the reference.


@given(st.data())
def test_encode_equals_reference_on_random_vocabularies(data: st.DataObject) -> None:
    special_tokens = data.draw(SPECIAL_TOKENS, label="special_tokens")
    corpus = data.draw(CORPORA, label="corpus")
    pattern = data.draw(st.sampled_from([*PATTERNS, r"\S+|\s"]), label="pattern")
    vocab, merges = reference.train_bpe(
        corpus, 256 + len(special_tokens) + 40, special_tokens, pattern=pattern
    )
    expected = reference.Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    tokenizer = rslm.Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    text = data.draw(texts_with_special(special_tokens), label="text")
    assert tokenizer.encode(text) == expected.encode(text)
    assert tokenizer.encode_ordinary(text) == expected.encode_ordinary(text)
    assert tokenizer.count(text) == len(expected.encode(text))
    assert tokenizer.special_tokens == expected.special_tokens


@given(st.data())
def test_encode_equals_reference_with_merges_in_any_order(data: st.DataObject) -> None:
    # Not what training gives: a merge may come before the merges that make its parts.
    vocab, merges = reference.train_bpe(data.draw(CORPORA), 256 + 20)
    merges = data.draw(st.permutations(merges))
    text = data.draw(st.lists(WORDS, max_size=10).map("".join))
    expected = reference.Tokenizer(vocab, merges).encode(text)
    assert rslm.Tokenizer(vocab, merges).encode(text) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS)
def test_encode_equals_reference_on_random_text(
    pattern: str, text: str, rust_tokenizer, reference_tokenizer
) -> None:
    assert rust_tokenizer(pattern).encode(text) == reference_tokenizer(pattern).encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_encode_equals_reference_on_source_code(
    pattern: str, stdlib_text: str, bpe_corpus: str, rust_tokenizer, reference_tokenizer
) -> None:
    for text in (stdlib_text[-300_000:], bpe_corpus):
        assert rust_tokenizer(pattern).encode(text) == reference_tokenizer(pattern).encode(text)


@pytest.mark.parametrize("n", [31, 32, 33, 34, 255, 256, 257, 1000])
def test_encode_equals_reference_on_words_of_every_path(
    n: int, rust_tokenizer, reference_tokenizer
) -> None:
    for unit in ("a", "ab", "na", "é", "\0", " ", "low", "=-"):
        text = (unit * n)[:n]
        assert rust_tokenizer().encode(text) == reference_tokenizer().encode(text)


@given(text=st.text(st.characters(min_codepoint=0xD000, max_codepoint=0xE0FF), max_size=12))
def test_surrogates_are_replaced_as_in_the_reference(
    text: str, rust_tokenizer, reference_tokenizer
) -> None:
    tokenizer, expected = rust_tokenizer(), reference_tokenizer().encode(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_ordinary(text) == expected
    assert tokenizer.count(text) == len(expected)
    assert tokenizer.encode_batch([text])[0].tolist() == expected
    assert list(tokenizer.encode_iterable([text])) == expected


def test_encode_iterable_joins_a_surrogate_pair_cut_in_two(rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    for texts in (
        ["a\ud83d", "\ude00b"],
        ["\ud83d"],
        ["\ud83d", "", "\ude00"],
        ["\ude00", "\ud83d"],
    ):
        assert list(tokenizer.encode_iterable(texts)) == tokenizer.encode("".join(texts))


# Equal to tiktoken's engine with our ranks.


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS | st.text(max_size=30).filter(lambda text: "\u0295" not in text))
def test_encode_equals_tiktoken_on_random_text(
    pattern: str, text: str, rust_tokenizer, build_tiktoken
) -> None:
    # Both know Unicode 16, so unassigned code points and surrogates take part.
    tokenizer = rust_tokenizer(pattern)
    assert tokenizer.encode(text) == build_tiktoken(tokenizer).encode(text, allowed_special="all")


def own_source() -> str:
    root = Path(__file__).parent.parent
    folders = [root / "python", root / "rust", root / "tests", root / "benches"]
    files = (path for folder in folders for path in sorted(folder.rglob("*.[pr][ys]")))
    return "".join(path.read_bytes().decode() for path in files)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tie_break", ["bytes", "hf", "first_id"])
def test_encode_equals_tiktoken_on_source_code(
    tie_break: str, pattern: str, stdlib_text: str, build_tiktoken
) -> None:
    text = stdlib_text[:1_500_000]
    vocab, merges = rslm.train_bpe(
        None, 3000, [END_OF_TEXT], texts=[text], pattern=pattern, tie_break=tie_break
    )
    tokenizer = rslm.Tokenizer(vocab, merges, [END_OF_TEXT], pattern=pattern)
    tiktoken = build_tiktoken(tokenizer)
    for text in (own_source(), stdlib_text[1_000_000:3_000_000]):
        assert tokenizer.encode(text) == tiktoken.encode(text, allowed_special="all")


@pytest.mark.parametrize("name", ["books-valid", "multilingual"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_encode_equals_tiktoken_on_real_text(
    pattern: str, name: str, read_test_text, build_tiktoken
) -> None:
    text = read_test_text(name, 3_000_000)
    vocab, merges = rslm.train_bpe(None, 8000, [END_OF_TEXT], texts=[text], pattern=pattern)
    tokenizer = rslm.Tokenizer(vocab, merges, [END_OF_TEXT], pattern=pattern)
    expected = build_tiktoken(tokenizer).encode(text, allowed_special="all")
    assert tokenizer.encode(text) == expected


# What must always hold.


@given(data=st.data())
def test_decode_inverts_encode(data: st.DataObject, rust_tokenizer) -> None:
    tokenizer = rust_tokenizer(data.draw(st.sampled_from(PATTERNS)))
    text = data.draw(texts_with_special([END_OF_TEXT]))
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.decode_bytes(token_ids) == text.encode()
    assert tokenizer.decode(np.array(token_ids, dtype=np.uint16)) == text
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@given(st.lists(TEXTS, max_size=8))
def test_encode_batch_is_encode_of_each(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    token_ids, offsets = tokenizer.encode_batch(texts)
    assert token_ids.dtype == np.uint16
    assert offsets.dtype == np.int64
    assert len(offsets) == len(texts) + 1
    assert offsets[0] == 0
    each = [token_ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert each == [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode_batch(each) == texts


@functools.cache
def byte_tokenizer(vocab_size: int = 256) -> rslm.Tokenizer:
    """Single bytes, and single bytes repeated up to the size."""
    vocab = {i: bytes([i % 256]) * (i // 256 + 1) for i in range(vocab_size)}
    return rslm.Tokenizer(vocab, [])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_batches_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: type) -> None:
    tokenizer = byte_tokenizer(vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.encode_batch(["a", ""])[0].dtype == dtype
    assert tokenizer.decode_bytes([vocab_size - 1]) == tokenizer.vocab[vocab_size - 1]


@given(data=st.data())
def test_encode_iterable_equals_the_joined_text(data: st.DataObject, rust_tokenizer) -> None:
    tokenizer = rust_tokenizer(data.draw(st.sampled_from([*PATTERNS])))
    text = data.draw(texts_with_special([END_OF_TEXT]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(tokenizer.encode_iterable(iter(pieces))) == tokenizer.encode(text)


@given(st.data())
def test_encode_iterable_waits_for_overlapping_special_tokens(data: st.DataObject) -> None:
    special_tokens = data.draw(SPECIAL_TOKENS)
    vocab, merges = reference.train_bpe("the the abab abab", 256 + 5)
    pattern = data.draw(st.sampled_from([*PATTERNS, r"\S+|\s+"]))
    tokenizer = rslm.Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    text = data.draw(texts_with_special(special_tokens))
    assert list(tokenizer.encode_iterable(text)) == tokenizer.encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_encode_iterable_equals_encode_by_lines_characters_and_blocks(
    pattern: str, stdlib_text: str, bpe_corpus: str, rust_tokenizer
) -> None:
    tokenizer = rust_tokenizer(pattern)
    expected = tokenizer.encode(bpe_corpus)
    assert list(tokenizer.encode_iterable(bpe_corpus)) == expected
    assert list(tokenizer.encode_iterable(bpe_corpus.splitlines(keepends=True))) == expected
    text = stdlib_text[:500_000]
    for size in (1, 77, 65_536, 300_000):
        pieces = (text[start : start + size] for start in range(0, len(text), size))
        assert list(tokenizer.encode_iterable(pieces)) == tokenizer.encode(text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("special_tokens", [[], [END_OF_TEXT]])
@pytest.mark.parametrize("line", ["a few words here\n", " "])
def test_encode_iterable_takes_linear_time(line: str, special_tokens: list[str]) -> None:
    # Where nothing is decided before the end, what is held must not be searched each time.
    for pattern in ("gpt2", "o200k", r"\S+|\s+"):
        tokenizer = rslm.Tokenizer(all_bytes(), [], special_tokens, pattern=pattern)
        token_ids = tokenizer.encode_iterable(itertools.repeat(line, 400_000))
        assert sum(1 for _ in token_ids) == 400_000 * len(line)


def test_encode_iterable_is_lazy(rust_tokenizer) -> None:
    n_read = 0

    def endless():
        nonlocal n_read
        while True:
            n_read += 1
            yield "a line of text\n"

    token_ids = rust_tokenizer().encode_iterable(endless())
    for _ in range(10):
        next(token_ids)
    assert n_read < 10_000


def test_encode_iterable_passes_errors_of_the_iterable_on(rust_tokenizer) -> None:
    def failing():
        yield "a b "
        raise LookupError("from the texts")

    with pytest.raises(LookupError, match="from the texts"):
        list(rust_tokenizer().encode_iterable(failing()))
    with pytest.raises(TypeError):
        list(rust_tokenizer().encode_iterable([b"bytes"]))


@pytest.mark.parametrize("bad", [b"bytes", None])
def test_encode_iterable_is_finished_once_it_has_raised(bad: object, rust_tokenizer) -> None:
    texts = iter(["a b ", bad, "never read"])
    token_ids = rust_tokenizer().encode_iterable(texts)
    with pytest.raises(TypeError):
        list(token_ids)
    assert list(token_ids) == []
    assert next(texts) == "never read"


def test_encode_iterable_does_not_ask_a_source_again_that_raised(rust_tokenizer) -> None:
    class Failing:
        n_asked = 0

        def __iter__(self):
            return self

        def __next__(self) -> str:
            self.n_asked += 1
            if self.n_asked == 2:
                raise LookupError("once")
            return "text "

    source = Failing()
    token_ids = rust_tokenizer().encode_iterable(source)
    with pytest.raises(LookupError, match="once"):
        list(token_ids)
    assert next(token_ids, None) is None
    assert source.n_asked == 2


def test_special_tokens_are_never_split_and_the_longest_wins() -> None:
    vocab, merges = reference.train_bpe("<|endoftext|>" * 9, 256 + 12)
    double = END_OF_TEXT * 2
    tokenizer = rslm.Tokenizer(vocab, merges, [END_OF_TEXT, double, "<|end"])
    one, two, part = (tokenizer.special_tokens[t] for t in (END_OF_TEXT, double, "<|end"))
    assert sorted([one, two, part]) == list(range(len(vocab), len(vocab) + 3))
    assert tokenizer.encode(END_OF_TEXT * 3) == [two, one]
    assert tokenizer.encode("<|endo") == [part, tokenizer.token_to_id(b"o")]
    assert not {one, two, part} & set(tokenizer.encode_ordinary(double))
    assert tokenizer.decode([two, part, one]) == double + "<|end" + END_OF_TEXT


def test_allowed_and_disallowed_special_tokens_follow_tiktoken(rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    text = f"a{END_OF_TEXT}b"
    ordinary = tokenizer.encode_ordinary(text)
    assert tokenizer.encode(text) == tokenizer.encode(text, allowed_special={END_OF_TEXT})
    assert tokenizer.encode(text, allowed_special=set()) == ordinary
    assert tokenizer.encode(text, allowed_special=()) == ordinary
    for disallowed in ("all", [END_OF_TEXT]):
        with pytest.raises(ValueError, match="endoftext"):
            tokenizer.encode(text, allowed_special=set(), disallowed_special=disallowed)
        assert tokenizer.encode("a", allowed_special=set(), disallowed_special=disallowed)
    assert tokenizer.encode(text, allowed_special="all", disallowed_special="all")


def test_attributes_describe_the_tokenizer(rust_tokenizer, reference_tokenizer) -> None:
    tokenizer, expected = rust_tokenizer("o200k"), reference_tokenizer("o200k")
    assert tokenizer.vocab == expected.vocab
    assert tokenizer.merges == list(expected.ranks)
    assert tokenizer.special_tokens == {END_OF_TEXT: 0}
    assert tokenizer.pattern == "o200k"
    assert tokenizer.vocab_size == 457
    assert tokenizer.end_of_text == 0
    lengths = [len(token_bytes) for token_bytes in expected.vocab.values()]
    assert tokenizer.token_byte_lengths.dtype == np.uint32
    assert tokenizer.token_byte_lengths.tolist() == [0, *lengths[1:]]
    for token_id in (0, 1, 300, 456):
        assert tokenizer.id_to_token(token_id) == expected.vocab[token_id]
        assert tokenizer.token_to_id(expected.vocab[token_id]) == token_id
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert rslm.Tokenizer(expected.vocab, list(expected.ranks)).end_of_text is None


def test_the_hash_names_the_content(rust_tokenizer, reference_tokenizer) -> None:
    twin = reference_tokenizer()
    merges = list(twin.ranks)
    same = rslm.Tokenizer(twin.vocab, merges, [END_OF_TEXT])
    assert same.sha256 == rust_tokenizer().sha256
    assert len(bytes.fromhex(same.sha256)) == 32
    others = [
        rslm.Tokenizer(twin.vocab, merges, [END_OF_TEXT], pattern="o200k"),
        rslm.Tokenizer(twin.vocab, merges, [END_OF_TEXT, "<|pad|>"]),
        rslm.Tokenizer(twin.vocab, merges[::-1], [END_OF_TEXT]),
    ]
    assert len({tokenizer.sha256 for tokenizer in [same, *others]}) == 4


# Decoding.


@given(token_ids=st.lists(st.integers(0, 456), max_size=30))
def test_decode_replaces_as_python_does(token_ids: list[int], rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    joined = b"".join(tokenizer.vocab[token_id] for token_id in token_ids)
    assert tokenizer.decode_bytes(token_ids) == joined
    assert tokenizer.decode(token_ids) == joined.decode("utf-8", "replace")
    assert tokenizer.decode(token_ids, errors="ignore") == joined.decode("utf-8", "ignore")


@given(
    st.lists(st.integers(0, 255).map(lambda byte: byte | 0x80) | st.integers(0, 255), max_size=12)
)
def test_stream_decoder_shows_all_that_is_decided(token_bytes: list[int]) -> None:
    tokenizer = byte_tokenizer()
    decoder = rslm.StreamDecoder(tokenizer)
    python = codecs.getincrementaldecoder("utf-8")("replace")
    shown, shown_by_python = "", ""
    for byte in token_bytes:
        shown += decoder.add(byte)
        # Python holds the halves of surrogates for a while, which no byte can make valid.
        shown_by_python += python.decode(bytes([byte]))
        assert shown.startswith(shown_by_python)
    assert tokenizer.decode(token_bytes).startswith(shown)
    assert shown + decoder.finish() == tokenizer.decode(token_bytes)


@given(text=TEXTS)
def test_stream_decoder_never_shows_half_a_character(text: str, rust_tokenizer) -> None:
    tokenizer = rust_tokenizer("o200k")
    decoder = rslm.StreamDecoder(tokenizer)
    token_ids = tokenizer.encode(text)
    shown = ""
    for n_added, token_id in enumerate(token_ids, start=1):
        shown += decoder.add(token_id)
        assert text.startswith(shown)
        complete = tokenizer.decode_bytes(token_ids[:n_added])
        assert len(complete) - len(shown.encode()) <= 3
    assert shown == text
    assert decoder.finish() == ""


@pytest.mark.parametrize("bad_ids", [[457], [0, 1, 2**32 - 1], [2**40], [-1]])
def test_ids_out_of_range_are_refused(bad_ids: list[int], rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises((ValueError, OverflowError), match=str(bad_ids[-1]) + "|convert|int"):
            decode(bad_ids)
    with pytest.raises((ValueError, OverflowError)):
        rslm.StreamDecoder(tokenizer).add(bad_ids[-1])


def test_arrays_hold_the_ids_of_lists(rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    wide = rslm.Tokenizer(tokenizer.vocab | {70_000: b" never seen "}, tokenizer.merges)
    for text in ("", "x", "Zürich, l'été;\n\n  " * 500):
        for each, dtype in ((tokenizer, np.uint16), (wide, np.uint32)):
            for same in (text, text.encode()):
                token_ids = each.encode_to_numpy(same)
                assert token_ids.dtype == dtype
                assert token_ids.tolist() == each.encode(text)
                assert each.count(same) == len(token_ids)
    texts = ["a b", "", "é"]
    for left, right in zip(
        tokenizer.encode_batch(texts),
        tokenizer.encode_batch([text.encode() for text in texts]),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_bytes_need_not_be_utf8(rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    for data in (b"\xff", b"ab\xc3", b" \xed\xa0\x80 x"):
        assert tokenizer.decode_bytes(tokenizer.encode_to_numpy(data)) == data
    by_expression = rslm.Tokenizer(tokenizer.vocab, tokenizer.merges, pattern=r"\w+|\W")
    with pytest.raises(ValueError, match="UTF-8"):
        by_expression.encode_to_numpy(b"\xff")


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 61, 62, 63, 64, 100])
def test_what_was_seen_before_encodes_the_same(
    length: int, rust_tokenizer, reference_tokenizer
) -> None:
    """Words at the borders of the cache's tables, with NUL, at both ends of a text."""
    tokenizer, expected = rust_tokenizer(), reference_tokenizer()
    rng = random.Random(length)
    words = ["".join(rng.choices("ab\0é", k=length)) for _ in range(20)]
    words += ["\0" * length, "a" * length, "a" * (length - 1) + "\0"]
    texts = [*words, " ".join(words), " ".join(words * 30), " ".join(reversed(words))]
    for text in [*texts, *texts]:
        assert tokenizer.encode(text) == expected.encode(text)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        " " * 200_000,
        "ab" * 100_000,
        "ab" * 100_000 + "c",
        "".join(random.Random(0).choices("ACGTacgt", k=200_000)),
        "สวัสดีชาวโลก" * 5_000,
        "😀🎉" * 20_000,
    ],
    ids=lambda text: text[:4],
)
def test_one_huge_word_takes_no_time(text: str, rust_tokenizer, reference_tokenizer) -> None:
    """A quadratic merge would take minutes; the reference stands in for a part of it."""
    tokenizer, expected = rust_tokenizer(), reference_tokenizer()
    assert tokenizer.encode(text[:1000]) == expected.encode(text[:1000])
    started = time.process_time()
    token_ids = tokenizer.encode_to_numpy(text)
    assert time.process_time() - started < 5
    assert tokenizer.decode(token_ids) == text


@given(text=TEXTS, dropout=st.sampled_from([0.1, 0.5, 0.9, 1.0]), seed=st.integers(0, 2**64 - 1))
def test_dropout_equals_reference(
    text: str, dropout: float, seed: int, rust_tokenizer, reference_tokenizer
) -> None:
    tokenizer, expected = rust_tokenizer(), reference_tokenizer()
    token_ids = tokenizer.encode(text, dropout=dropout, seed=seed)
    assert token_ids == expected.encode_with_dropout(text, dropout, seed)
    assert tokenizer.decode(token_ids) == reference.replace_surrogates(text)


def test_dropout_of_a_huge_word_takes_no_time(rust_tokenizer) -> None:
    text = "ab" * 50_000
    started = time.process_time()
    assert rust_tokenizer().decode(rust_tokenizer().encode(text, dropout=0.5)) == text
    assert time.process_time() - started < 5
    with pytest.raises(ValueError, match=r"dropout must be from 0 to 1, got 1.5"):
        rust_tokenizer().encode("a", dropout=1.5)
    with pytest.raises(ValueError, match="seed must be"):
        rust_tokenizer().encode("a", dropout=0.5, seed=-1)
    with pytest.raises(ValueError, match="must not be combined"):
        rust_tokenizer().encode("a", dropout=0.5, allowed_special=())


@given(text=TEXTS)
def test_offsets_are_those_of_tokenizers_and_tiktoken(text: str, rust_tokenizer) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tiktoken = pytest.importorskip("tiktoken")
    tokenizer = rust_tokenizer()
    text = reference.replace_surrogates(text).replace("\ufffd", "")
    token_ids, offsets = tokenizer.encode_with_offsets(text)
    assert token_ids == tokenizer.encode(text)
    printable = {byte: chr(byte if reference.is_printable(byte) else 0) for byte in range(256)}
    others = iter(range(256, 400))
    printable = {b: c if c != "\0" else chr(next(others)) for b, c in printable.items()}
    name = {token: "".join(printable[b] for b in token) for token in tokenizer.vocab.values()}
    hf = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {name[token]: i for i, token in tokenizer.vocab.items()},
            [(name[left], name[right]) for left, right in tokenizer.merges],
        )
    )
    hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding = hf.encode(text)
    if encoding.ids == token_ids:  # Special tokens in the text are none to this one.
        assert offsets == encoding.offsets
    ranks = {token: i for i, token in tokenizer.vocab.items()}
    ours = tiktoken.Encoding(
        "ours", pat_str=reference.PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={}
    )
    assert tokenizer.decode_with_offsets(token_ids) == ours.decode_with_offsets(token_ids)


def test_batches_come_back_from_their_arrays(rust_tokenizer) -> None:
    texts = ["one", "", "two words", "é"]
    assert rust_tokenizer().decode_batch(*rust_tokenizer().encode_batch(texts)) == texts


def test_wrong_types_are_refused(rust_tokenizer) -> None:
    tokenizer = rust_tokenizer()
    for call in (
        lambda: tokenizer.encode(b"bytes"),
        lambda: tokenizer.encode(None),
        lambda: tokenizer.encode_batch("one text"),
        lambda: tokenizer.encode_batch([3]),
        lambda: tokenizer.encode_batch(b"one text"),
        lambda: tokenizer.encode_to_numpy(None),
        lambda: tokenizer.decode(["a"]),
        lambda: tokenizer.decode([1.5]),
        lambda: tokenizer.decode_bytes(3),
    ):
        with pytest.raises(TypeError):
            call()


def all_bytes() -> dict[int, bytes]:
    return {byte: bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    ("vocab", "merges", "special_tokens", "message"),
    [
        ({0: b"a"}, [], None, "256 single bytes"),
        (all_bytes(), [(b"a", b"b")], None, r'merge 0 needs the token "ab"'),
        (all_bytes() | {256: b"abc"}, [(b"ab", b"c")], None, r'merge 0 needs the token "ab"'),
        (all_bytes() | {256: b""}, [], None, "at least one byte"),
        (all_bytes() | {-1: b"ab"}, [], None, "-1"),
        (all_bytes() | {2**31: b"ab"}, [], None, str(2**31)),
        (all_bytes(), [], [""], "must not be empty"),
        (all_bytes(), [], ["<a>", "<a>"], "<a>"),
    ],
)
def test_parts_that_do_not_fit_are_refused(vocab, merges, special_tokens, message) -> None:
    with pytest.raises((ValueError, OverflowError), match=message):
        rslm.Tokenizer(vocab, merges, special_tokens)


def test_an_unknown_pattern_is_a_regular_expression() -> None:
    assert rslm.Tokenizer(all_bytes(), [], pattern="gpt-2").encode("a") == [97]
    with pytest.raises(ValueError, match=r"pattern.*\("):
        rslm.Tokenizer(all_bytes(), [], pattern="(")
