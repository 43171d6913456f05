"""Training in Rust: equal to the reference on every corpus, whatever the source and the threads."""

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CORPORA, SPECIAL_TOKENS, texts_with_special

import rslm
from rslm import reference

PATTERNS = list(reference.PATTERNS)
TIE_BREAKS = ["bytes", "hf", "first_id"]
END_OF_TEXT = "<|endoftext|>"


def train_texts(texts, vocab_size, special_tokens=(), **options):
    return rslm.train_bpe(None, vocab_size, special_tokens, texts=texts, **options)


@given(st.data())
def test_train_bpe_equals_reference_on_random_corpora(data: st.DataObject) -> None:
    special_tokens = data.draw(SPECIAL_TOKENS)
    corpus = data.draw(
        CORPORA | st.lists(texts_with_special(special_tokens), max_size=3), label="corpus"
    )
    vocab_size = 256 + len(special_tokens) + data.draw(st.integers(0, 40), label="n_merges")
    options = {
        "pattern": data.draw(st.sampled_from([*PATTERNS, r"\p{L}+|\s", "a|bb"]), label="pattern"),
        "tie_break": data.draw(st.sampled_from(TIE_BREAKS), label="tie_break"),
        "unit": data.draw(st.sampled_from(["document", "line"]), label="unit"),
    }
    expected = reference.train_bpe(corpus, vocab_size, special_tokens, **options)
    assert train_texts(corpus, vocab_size, special_tokens, **options) == expected


@pytest.mark.parametrize("tie_break", TIE_BREAKS)
@pytest.mark.parametrize("text", ["a" * 97, "ab" * 50, "aab" * 40, "\0" * 33, "abaab" * 20])
def test_train_bpe_equals_reference_on_repeats(text: str, tie_break: str) -> None:
    corpus = " ".join(text[:end] for end in range(len(text)))
    expected = reference.train_bpe(corpus, 256 + 60, tie_break=tie_break)
    assert train_texts([corpus], 256 + 60, tie_break=tie_break) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("unit", ["document", "line"])
def test_train_bpe_equals_reference_on_a_page_of_scripts(
    pattern: str, unit: str, bpe_corpus: str
) -> None:
    special_tokens = [END_OF_TEXT, "low", "low low"]
    expected = reference.train_bpe(bpe_corpus, 900, special_tokens, pattern=pattern, unit=unit)
    assert train_texts([bpe_corpus], 900, special_tokens, pattern=pattern, unit=unit) == expected


@pytest.mark.parametrize(
    ("pattern", "tie_break"),
    [*((pattern, "bytes") for pattern in PATTERNS), ("gpt2", "hf"), ("gpt2", "first_id")],
)
def test_train_bpe_equals_reference_on_source_code(
    pattern: str, tie_break: str, stdlib_text: str
) -> None:
    text = stdlib_text[:1_000_000]
    expected = reference.train_bpe(text, 1256, pattern=pattern, tie_break=tie_break)
    assert train_texts([text], 1256, pattern=pattern, tie_break=tie_break) == expected


def test_train_bpe_equals_reference_on_books(read_test_text) -> None:
    text = read_test_text("books-valid", 1_500_000)
    expected = reference.train_bpe(text, 2000, [END_OF_TEXT])
    assert train_texts([text], 2000, [END_OF_TEXT]) == expected


@pytest.mark.parametrize("pattern", ["gpt2", "o200k"])
def test_train_bpe_equals_reference_on_many_languages(pattern: str, read_test_text) -> None:
    text = read_test_text("multilingual", 1_000_000)
    expected = reference.train_bpe(text, 1500, pattern=pattern)
    assert train_texts([text], 1500, pattern=pattern) == expected


@pytest.mark.slow
def test_train_bpe_equals_reference_on_larger_books(read_test_text) -> None:
    text = read_test_text("books-train", 4_000_000)
    expected = reference.train_bpe(text, 5000, [END_OF_TEXT])
    assert train_texts([text], 5000, [END_OF_TEXT]) == expected


def test_lone_surrogates_are_replaced_in_training() -> None:
    corpus = ["a\ud83db a\ud83db", "\ud83d\ude00 \ud83d\ude00"]
    assert train_texts(corpus, 270) == reference.train_bpe(corpus, 270)


def long_corpus(stdlib_text: str) -> str:
    """Some 12 MB in which special tokens, whole and cut short, stand where blocks may end."""
    shuffler = random.Random(1)
    lines = stdlib_text.splitlines(keepends=True)
    pieces = []
    for line in itertools.islice(itertools.cycle(lines), 3 * len(lines)):
        pieces.append(line)
        if shuffler.random() < 0.05:
            pieces.append(shuffler.choice([END_OF_TEXT, "<|endoftext", "  \n\n\t ", "é世" * 5]))
    return "".join(pieces)


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", r"\S+|\s+"])
def test_train_bpe_from_files_equals_texts_for_any_thread_count(
    pattern: str, stdlib_text: str, tmp_path: Path
) -> None:
    text = long_corpus(stdlib_text)
    documents = [text[:9_000_001], text[9_000_001:], ""]
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path, document in zip(paths, documents, strict=True):
        path.write_bytes(document.encode())
    special_tokens = [END_OF_TEXT, "  \n\n"]
    expected = train_texts(documents, 600, special_tokens, pattern=pattern, n_threads=1)
    for n_threads in (1, 2, 3, None):
        trained = rslm.train_bpe(paths, 600, special_tokens, pattern=pattern, n_threads=n_threads)
        assert trained == expected


def test_train_bpe_from_one_long_file_equals_reference(stdlib_text: str, tmp_path: Path) -> None:
    text = long_corpus(stdlib_text)
    (tmp_path / "corpus.txt").write_bytes(text.encode())
    counts = reference.count_pretokens([text], [END_OF_TEXT], "gpt2", "document")
    merges = reference.learn_merges(counts, 150, {bytes([b]): b for b in range(256)}, "bytes")
    for path in (tmp_path / "corpus.txt", str(tmp_path / "corpus.txt")):
        assert rslm.train_bpe(path, 407, [END_OF_TEXT])[1] == merges


def test_a_text_without_any_border_is_one_pretoken(tmp_path: Path) -> None:
    # 3 MB without a place to cut, and a special token at the very end.
    text = "ab" * 1_500_000 + END_OF_TEXT
    (tmp_path / "corpus.txt").write_bytes(text.encode())
    _, merges = rslm.train_bpe(tmp_path / "corpus.txt", 260, [END_OF_TEXT], n_threads=2)
    assert merges == [(b"a", b"b"), (b"ab", b"ab"), (b"abab", b"abab")]


def test_texts_may_be_a_generator_and_documents_do_not_touch() -> None:
    texts = ["a", "b"] * 10
    assert train_texts((text for text in texts), 300)[1] == []
    assert train_texts(["".join(texts)], 300)[1] == reference.train_bpe("".join(texts), 300)[1]


def test_crlf_in_files_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"a\r\n\r\nb" * 10)
    vocab, _ = rslm.train_bpe(tmp_path / "corpus.txt", 258)
    assert b"\r\n" in vocab.values()


def test_progress_counts_bytes_up_to_the_total(stdlib_text: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(stdlib_text.encode())
    calls: list[tuple[int, int, str]] = []
    trained = rslm.train_bpe(path, 400, progress=lambda *call: calls.append(call))
    assert trained == rslm.train_bpe(path, 400)
    assert calls
    for phase in {call[2] for call in calls}:
        done = [call[0] for call in calls if call[2] == phase]
        assert done == sorted(done)
        assert all(call[0] <= call[1] for call in calls if call[2] == phase)
    assert any(call[1] == path.stat().st_size for call in calls)


def test_an_error_in_progress_or_in_texts_reaches_the_caller(stdlib_text: str) -> None:
    def failing_texts():
        yield "a text"
        raise LookupError("from the texts")

    with pytest.raises(LookupError, match="from the texts"):
        train_texts(failing_texts(), 300)

    def fail(*_: object) -> None:
        raise LookupError("from progress")

    with pytest.raises(LookupError, match="from progress"):
        train_texts([stdlib_text], 1000, progress=fail)


# Bad arguments: each message says what must hold and what was given.


@pytest.mark.parametrize(
    ("vocab_size", "special_tokens", "message"),
    [
        (255, [], r"vocab_size must be at least 256 .*got 255"),
        (
            256,
            [END_OF_TEXT],
            r"vocab_size must be at least 257 \(256 bytes \+ 1 special token\).*256",
        ),
        (0, [], r"vocab_size must be at least .*got 0"),
        (-1, [], r"vocab_size must be at least .*got -1"),
        (300, [""], r"must not be empty"),
        (300, ["<a>", "<a>"], r"<a>"),
    ],
)
def test_bad_sizes_and_special_tokens_are_refused(vocab_size, special_tokens, message) -> None:
    with pytest.raises(ValueError, match=message):
        train_texts(["abc"], vocab_size, special_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_break": "minbpe"}, r"tie_break.*bytes.*minbpe"),
        ({"unit": "word"}, r"unit.*document.*word"),
        ({"errors": "ignore"}, r"errors.*strict.*ignore"),
        ({"pattern": "("}, r"pattern.*\("),
        ({"n_threads": 0}, r"n_threads.*0"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        train_texts(["abc"], 300, **options)


def test_exactly_one_source_is_needed(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("abc")
    with pytest.raises(ValueError, match="texts"):
        rslm.train_bpe(None, 300)
    with pytest.raises(ValueError, match="texts"):
        rslm.train_bpe(tmp_path / "corpus.txt", 300, texts=["abc"])
    with pytest.raises(ValueError, match=r"[Nn]o |empty|at least one"):
        rslm.train_bpe([], 300)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError):
        train_texts([b"abc"], 300)
    with pytest.raises(TypeError):
        train_texts(["abc"], "300")
    with pytest.raises(TypeError):
        train_texts(["abc"], 300, [b"<a>"])
    with pytest.raises(TypeError):
        train_texts("one text is not a list of texts", 300)
    with pytest.raises(TypeError):
        train_texts(["abc"], 300, END_OF_TEXT)


def test_missing_files_and_folders_are_the_systems_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        rslm.train_bpe(tmp_path / "missing.txt", 300)
    with pytest.raises((IsADirectoryError, ValueError), match=tmp_path.name):
        rslm.train_bpe(tmp_path, 300)


def test_invalid_utf8_in_files(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    content = b"caf\xc3\xa9 \xff\xfe caf\xe9 " * 3 + b"cut short \xe4\xb8"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"corpus\.txt.*byte 6"):
        rslm.train_bpe(path, 270)
    expected = reference.train_bpe(content.decode(errors="replace"), 290)
    assert rslm.train_bpe(path, 290, errors="replace") == expected
    vocab, merges = rslm.train_bpe(path, 290, errors="raw")
    assert (b"\xff", b"\xfe") in merges
    assert not any(b"\xef\xbf\xbd" in token_bytes for token_bytes in vocab.values())


# Ctrl-C: a child trains, and gets a SIGINT in the phase that the test waits for.

INTERRUPTED_CHILD = """
import itertools, random, sys
import rslm

def progress(done, total, phase):
    print(phase, flush=True)

letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz     ", k=6_000_000)
text = "".join(letters)
texts = itertools.repeat(text) if sys.argv[1] == "count" else [text]
print("ready", flush=True)
try:
    rslm.train_bpe(None, 2_000_000, texts=texts, progress=progress, n_threads=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("phase", ["count", "merge"])
def test_training_obeys_ctrl_c(phase: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_CHILD, phase]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen: set[str] = set()
        for line in child.stdout:
            seen.add(line.strip())
            if phase in seen and child.returncode is None and "sent" not in seen:
                child.send_signal(signal.SIGINT)
                seen.add("sent")
        assert child.wait(timeout=30) == 0
    assert "interrupted" in seen, "training ended before it was interrupted"
