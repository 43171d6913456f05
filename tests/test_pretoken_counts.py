"""Pretoken counts: files of them against a second writer, sums of parts, limits, hostile files."""

import itertools
import json
import os
import random
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from strategies import CORPORA

import rslm
from rslm import reference
from rslm.tokenizer import count_pretokens, read_counts

END_OF_TEXT = "<|endoftext|>"
MIB = 1 << 20


# A second writer of the format, from its specification in rust/bpe/count/file.rs.


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def entry(shared: int, rest: bytes, count: int) -> bytes:
    return varint(shared) + varint(len(rest)) + rest + varint(count)


def file_of(entries: bytes, totals: tuple[int, int, int], header: bytes | None = None) -> bytes:
    origin = {
        "pattern": "gpt2",
        "special_tokens": [],
        "unicode_version": rslm._rslm.UNICODE_VERSION,
        "unit": "document",
    }
    if header is None:
        header = json.dumps(origin, sort_keys=True, separators=(",", ":")).encode()
    body = b"RSLMCNT\x01" + struct.pack("<I", len(header)) + header
    body += struct.pack("<I", zlib.crc32(body)) + entries
    body += struct.pack("<3Q", *totals)
    return body + struct.pack("<I", zlib.crc32(body))


def written(counts: dict[bytes, int]) -> bytes:
    entries, last = b"", b""
    for pretoken, count in sorted(counts.items()):
        pairs = zip(last[:63], pretoken[:-1], strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        entries += entry(shared, pretoken[shared:], count)
        last = pretoken
    n_bytes = sum(len(pretoken) * count for pretoken, count in counts.items())
    return file_of(entries, (len(counts), sum(counts.values()), n_bytes))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.counts"


LONG = "x" * 70 + " " + "x" * 69 + "yz " + "x" * 90 + "\0 a\0 a\0\0 " + "é" * 40


@given(CORPORA)
def test_a_file_of_counts_equals_the_second_writer_s(tmp_path_factory, corpus) -> None:
    texts = [corpus] if isinstance(corpus, str) else [*corpus, LONG]
    expected = reference.count_pretokens(texts, [], "gpt2", "document")
    out = tmp_path_factory.getbasetemp() / "out.counts"
    total = count_pretokens(None, out, texts=texts)
    assert out.read_bytes() == written(expected)
    reader = read_counts(out)
    assert list(reader) == sorted(expected.items())
    n_bytes = sum(len(pretoken) * count for pretoken, count in expected.items())
    assert total == {
        "n_entries": len(expected),
        "n_pretokens": sum(expected.values()),
        "n_bytes": n_bytes,
    }
    assert reader.header.items() >= total.items()


def test_header_says_how_the_counts_were_made(out: Path) -> None:
    specials = [END_OF_TEXT, "<b>", 'q"é']
    count_pretokens(None, out, specials, texts=["a b"], pattern=r"\w+|\W", unit="line")
    assert read_counts(out).header == {
        "pattern": r"\w+|\W",
        "special_tokens": specials,
        "unit": "line",
        "unicode_version": rslm._rslm.UNICODE_VERSION,
        "n_entries": 3,
        "n_pretokens": 3,
        "n_bytes": 3,
    }


@pytest.mark.parametrize("tie_break", ["bytes", "hf"])
@pytest.mark.parametrize("unit", ["document", "line"])
def test_training_from_parts_equals_training_from_the_whole(
    unit: str, tie_break: str, stdlib_text: str, tmp_path: Path
) -> None:
    options = {"unit": unit, "pattern": "cl100k"}
    parts = [stdlib_text[:400_000], stdlib_text[400_000:900_000], ""]
    files = []
    for i, part in enumerate(parts):
        files.append(tmp_path / f"{i}.counts")
        count_pretokens(None, files[-1], [END_OF_TEXT, "self"], texts=[part], **options)
    options["tie_break"] = tie_break
    whole = rslm.train_bpe(None, 700, [END_OF_TEXT, "self"], texts=parts, **options)
    # The order of special tokens gives them their ids, and cuts the text in the same way.
    for specials in ([END_OF_TEXT, "self"], ["self", END_OF_TEXT]):
        expected = rslm.train_bpe(None, 700, specials, texts=parts, **options)
        assert rslm.train_bpe(None, 700, specials, counts=files, **options) == expected
    assert whole[1] == expected[1]


def test_training_takes_a_mapping_or_pairs(stdlib_text: str) -> None:
    text = stdlib_text[:300_000]
    counts = reference.count_pretokens([text], [], "gpt2", "document")
    expected = rslm.train_bpe(None, 500, texts=[text])
    assert rslm.train_bpe(None, 500, counts=counts) == expected
    assert rslm.train_bpe(None, 500, counts=iter(counts.items())) == expected
    halves = [(p, c - c // 2) for p, c in counts.items()] + [(p, c // 2) for p, c in counts.items()]
    assert rslm.Tokenizer.train(None, 500, counts=halves).merges == expected[1]
    assert rslm.train_bpe(None, 500, counts={}) == rslm.train_bpe(None, 500, counts=[])


def disagreement(folder: Path, **options: object) -> list[Path]:
    files = [folder / "a.counts", folder / "b.counts"]
    count_pretokens(None, files[0], ["<a>"], texts=["a b c"])
    arguments = {"special_tokens": ["<a>"], "texts": ["a b c"], **options}
    count_pretokens(None, files[1], **arguments)
    return files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "cl100k"}, r"pattern must be the same .*\"gpt2\".*a\.counts.*\"cl100k\".*b\."),
        ({"special_tokens": []}, r"special_tokens must be the same .*<a>.* a.*\[\] in .*b\.counts"),
        ({"unit": "line"}, r"unit must be the same .*document.*line"),
    ],
)
def test_counts_that_disagree_are_refused(options, message: str, tmp_path: Path) -> None:
    files = disagreement(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        rslm.train_bpe(None, 300, ["<a>"], counts=files)
    # And what training is asked for must agree as well.
    with pytest.raises(ValueError, match="must be the same"):
        rslm.train_bpe(None, 300, ["<a>"], counts=files[1])


def test_counts_of_another_unicode_version_are_refused(out: Path) -> None:
    header = json.dumps(
        {"pattern": "gpt2", "special_tokens": [], "unicode_version": "9.0.0", "unit": "document"}
    )
    out.write_bytes(file_of(entry(0, b"a", 1), (1, 1, 1), header.encode()))
    with pytest.raises(ValueError, match=r"unicode_version must be the same .*9\.0\.0"):
        rslm.train_bpe(None, 300, counts=out)


# What cannot be counted is refused, never wrapped.

MOST = (1 << 63) - 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({b"ab": MOST // 2 + 1}, r"at most 9223372036854775807 bytes of text"),
        ([(b"a", MOST), (b"a", 1)], r"at most 9223372036854775807 bytes of text"),
        ({b"a": 1 << 64}, r"count must be from 0 to 2\^64 - 1, got 18446744073709551616"),
        ({b"a": -1}, r"count must be from 0 to 2\^64 - 1, got -1"),
        ({b"": 1}, r"at least one byte"),
    ],
)
def test_counts_out_of_range_are_refused(counts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rslm.train_bpe(None, 300, counts=counts)


@pytest.mark.parametrize("counts", [{"a": 1}, {b"a": 1.5}, [b"a"], [(b"a", 1, 1)], 7])
def test_counts_of_wrong_types_are_refused(counts: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        rslm.train_bpe(None, 300, counts=counts)


def test_sums_of_files_do_not_wrap(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(written({b"ab": MOST // 4 + 1}))
    rslm.train_bpe(None, 300, counts=tmp_path / "a")
    with pytest.raises(ValueError, match=r"at most 9223372036854775807 bytes of text"):
        rslm.train_bpe(None, 300, counts=[tmp_path / "a", tmp_path / "b"])


def test_the_largest_counts_give_the_merges_of_small_ones() -> None:
    small = {b"abab": 3, b"bcd": 2, b"aaaa": 1}
    unit = MOST // sum(len(pretoken) * count for pretoken, count in small.items())
    large = {pretoken: count * unit for pretoken, count in small.items()}
    assert rslm.train_bpe(None, 270, counts=large) == rslm.train_bpe(None, 270, counts=small)


# Hostile files.


def read_all(path: Path) -> None:
    for _ in read_counts(path):
        pass


def test_every_changed_byte_and_every_cut_is_noticed(out: Path) -> None:
    good = written({b"a": 3, b"ab": 1, b"abc" * 9: 300, b"\xff\0": 1 << 40})
    out.write_bytes(good)
    read_all(out)
    spoilt = [good[:end] for end in range(len(good))]
    spoilt += [good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :] for i in range(len(good))]
    spoilt += [good + b"\0", b"\0" + good, good + good]
    for data in spoilt:
        out.write_bytes(data)
        with pytest.raises(rslm.FormatError, match=r"out\.counts: .*offset"):
            read_all(out)
        with pytest.raises(rslm.FormatError, match=r"out\.counts"):
            rslm.train_bpe(None, 300, counts=out)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (entry(0, b"b", 1) + entry(0, b"a", 1), "must come after the one before"),
        (entry(0, b"b", 1) + entry(0, b"b", 1), "must come after the one before"),
        (entry(0, b"ab", 1) + entry(1, b"a", 1), "must come after the one before"),
        (entry(1, b"b", 1), "share at most 0 bytes"),
        (entry(0, b"b" * 99, 1) + entry(64, b"c", 1), "share at most 63 bytes"),
        (entry(0, b"", 1), "add at least 1"),
        (entry(0, b"a", 0), "count of at least 1"),
        (varint(0) + varint(1 << 60) + b"a", "at most 1, got 0 and 1152921504606846976"),
        (varint(0) + varint(1) + b"a" + b"\xff" * 11, "at most 64 bits"),
        (varint(0) + varint(1) + b"a" + b"\x80\x00", "at most 64 bits"),
        (varint(0) + varint(1) + b"a" + b"\x80", "must end before the totals"),
        (entry(0, b"ab", MOST), "at most 9223372036854775807 bytes of text"),
        (b"", "totals at offset"),
    ],
)
def test_entries_that_cannot_be_are_refused(out: Path, entries: bytes, message: str) -> None:
    out.write_bytes(file_of(entries, (1, 1, 1)))
    with pytest.raises(rslm.FormatError, match=message):
        read_all(out)


@pytest.mark.parametrize(
    "header", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"pattern": 1}', b"x" * 999]
)
def test_headers_that_are_none_are_refused(out: Path, header: bytes) -> None:
    out.write_bytes(file_of(b"", (0, 0, 0), header))
    with pytest.raises(rslm.FormatError, match=r"header at offset 12 must be JSON"):
        read_counts(out)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        read_counts(tmp_path / "missing")
    with pytest.raises(rslm.FormatError, match="regular file"):
        read_counts(tmp_path)


HOSTILE_CHILD = """
import resource, sys
import rslm
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for path in sys.argv[1:]:
    try:
        rslm.train_bpe(None, 300, counts=path)
    except rslm.FormatError as error:
        print("refused", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_file_that_claims_much_takes_no_memory(tmp_path: Path) -> None:
    # A sparse file of 1 TiB whose one entry claims most of it, or shares its way to gigabytes.
    claims = file_of(varint(0) + varint((1 << 40) - 100), (1, 1, 1 << 40))[:-28]
    (tmp_path / "sparse").write_bytes(claims)
    os.truncate(tmp_path / "sparse", 1 << 40)
    growing = entry(0, b"a" * 63, 1) + b"".join(entry(63, b"a", 1) for _ in range(9)) * 9999
    (tmp_path / "growing").write_bytes(file_of(growing, (1 << 40, 1, 1)))
    header = b"RSLMCNT\x01" + struct.pack("<I", (1 << 32) - 1)
    (tmp_path / "header").write_bytes(header)
    os.truncate(tmp_path / "header", 1 << 40)
    files = [tmp_path / name for name in ("sparse", "growing", "header")]
    command = [sys.executable, "-c", HOSTILE_CHILD, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("refused") == 3


# Memory limits.


def many_words(n_words: int, n_occurrences: int, seed: int = 0) -> list[str]:
    """Texts of random words, some of them long, so that tables and arenas outgrow a share."""
    shuffler = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyzéß"
    words = ["".join(shuffler.choices(letters, k=shuffler.randint(3, 8))) for _ in range(n_words)]
    words[::50] = [word * 5 for word in words[::50]]
    drawn = shuffler.choices(words, k=n_occurrences)
    return [" ".join(drawn[i : i + 5000]) for i in range(0, n_occurrences, 5000)]


def count_words(texts: Iterable[str]) -> Counter[bytes]:
    return Counter(
        f" {word}".encode() if i else word.encode()
        for text in texts
        for i, word in enumerate(text.split(" "))
    )


@pytest.mark.parametrize("n_threads", [1, 3])
def test_counting_within_a_limit_gives_the_same_file(n_threads: int, tmp_path: Path) -> None:
    texts = many_words(300_000, 600_000)
    paths = [tmp_path / f"{i}.txt" for i in range(2)]
    paths[0].write_text("\n".join(texts), encoding="utf-8")
    paths[1].write_text("".join(texts[:3]), encoding="utf-8")
    spill_dir = tmp_path / "spill"
    spill_dir.mkdir()
    phases = set()
    options = {"memory_limit": 8 * MIB * n_threads, "spill_dir": spill_dir}
    for pattern in ("gpt2", r"\S+|\s"):
        count_pretokens(paths, tmp_path / "free", pattern=pattern, n_threads=2)
        count_pretokens(
            paths,
            tmp_path / "within",
            pattern=pattern,
            n_threads=n_threads,
            progress=lambda done, total, phase: phases.add(phase),
            **options,
        )
        assert (tmp_path / "within").read_bytes() == (tmp_path / "free").read_bytes()
    assert phases == {"count", "merge runs"}, "the limit was never reached"
    assert list(spill_dir.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "0.txt",
        "1.txt",
        "spill",
        "free",
        "within",
    }


def test_counts_of_texts_within_a_limit_equal_plain_counting(out: Path) -> None:
    texts = many_words(120_000, 250_000)
    phases = set()
    count_pretokens(
        None,
        out,
        texts=texts,
        memory_limit=8 * MIB,
        n_threads=1,
        progress=lambda done, total, phase: phases.add(phase),
    )
    assert "merge runs" in phases
    assert dict(read_counts(out)) == count_words(texts)


def test_training_within_a_limit_gives_the_same_merges(tmp_path: Path) -> None:
    texts = many_words(80_000, 400_000)
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    phases = set()
    limited = rslm.train_bpe(
        path,
        600,
        memory_limit=40 * MIB,
        n_threads=5,
        progress=lambda done, total, phase: phases.add(phase),
    )
    assert phases == {"count", "merge runs", "merge"}, "the limit was never reached"
    assert limited == rslm.train_bpe(path, 600)


def test_a_limit_too_small_is_refused_with_what_it_must_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory_limit must be at least 16777216 .*2 threads.*99"):
        rslm.train_bpe(None, 300, texts=["a"], memory_limit=99, n_threads=2)
    with pytest.raises(ValueError, match=r"memory_limit must be at least 8388608 .*1 thread, .*99"):
        rslm.train_bpe(None, 300, texts=["a"], memory_limit=99)
    with pytest.raises(ValueError, match=r"memory_limit must be from 1"):
        rslm.train_bpe(None, 300, texts=["a"], memory_limit=0)
    with pytest.raises(ValueError, match=r"spill_dir must come with a memory_limit"):
        rslm.train_bpe(None, 300, texts=["a"], spill_dir=tmp_path)
    texts = many_words(400_000, 400_000)
    with pytest.raises(ValueError, match=r"at least \d+ bytes to train on .* pretokens") as caught:
        rslm.train_bpe(None, 300, texts=texts, memory_limit=8 * MIB, n_threads=1)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    expected = rslm.train_bpe(None, 300, texts=texts)
    assert rslm.train_bpe(None, 300, texts=texts, memory_limit=least, n_threads=1) == expected
    with pytest.raises(ValueError, match=f"at least {least} "):
        rslm.train_bpe(None, 300, texts=texts, memory_limit=least - 1, n_threads=1)
    with pytest.raises(ValueError, match="to train on"):
        rslm.train_bpe(None, 300, counts=count_words(texts), memory_limit=least // 2)


def test_a_missing_folder_is_told_before_any_work(tmp_path: Path) -> None:
    options = {"texts": ["a"], "memory_limit": 8 * MIB, "n_threads": 1}
    with pytest.raises(FileNotFoundError, match="gone"):
        count_pretokens(None, tmp_path / "x", spill_dir=tmp_path / "gone", **options)
    assert not (tmp_path / "x").exists()
    with pytest.raises(FileNotFoundError, match="gone"):
        count_pretokens(None, tmp_path / "gone" / "x", texts=["a"])


FULL_DISK_CHILD = """
import resource, sys
from rslm.tokenizer import count_pretokens
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
letters = str.maketrans("0123456789", "ghijklmnop")
texts = [" ".join(f"{i:x}".translate(letters) for i in range(300_000))]
for limit in (8 << 20, None):
    try:
        count_pretokens(None, sys.argv[1] + "/out", texts=texts, memory_limit=limit, n_threads=1,
                        spill_dir=sys.argv[1] if limit else None)
    except OSError as error:
        print(error.filename, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_full_disk_is_the_systems_error_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK_CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(tmp_path), str(tmp_path / "out")]
    assert list(tmp_path.iterdir()) == []


STOPPED_CHILD = """
import itertools, sys
from rslm.tokenizer import count_pretokens

def texts():
    for i in itertools.count():
        yield " ".join(f"{i * j * 2654435761 % 2**32:x}" for j in range(20_000))

def progress(done, total, phase):
    print(phase, done, flush=True)

try:
    count_pretokens(None, sys.argv[1] + "/out", texts=texts(), memory_limit=8 << 20, n_threads=1,
                    spill_dir=sys.argv[1], progress=progress)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_count_leaves_nothing_behind(stop: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED_CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        last = ""
        for line in child.stdout:
            last = line.strip()
            # 60 MB of words that are all different have been spilled several times.
            if line.startswith("count") and int(line.split()[1]) > 60_000_000:
                child.send_signal(stop)
        child.wait(timeout=30)
    assert child.returncode == (0 if stop == signal.SIGINT else -stop)
    assert last == "interrupted" or stop == signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


MEASURED_CHILD = """
import hashlib, re, sys
import rslm

def peak():
    # Not ru_maxrss, which begins with the peak of the process that forked this one.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

path, limit = sys.argv[1], int(sys.argv[2])
phases = set()
rslm.train_bpe(None, 300, texts=["a warm start " * 9])
before = peak()
trained = rslm.train_bpe(path, 2000, memory_limit=limit or None, n_threads=8,
                         progress=lambda done, total, phase: phases.add(phase))
after = peak()
digest = hashlib.sha256(repr(trained).encode()).hexdigest()
print((after - before) * 1024, "merge runs" in phases, digest)
"""


def measured(path: Path, limit: int) -> tuple[int, bool, str]:
    command = [sys.executable, "-c", MEASURED_CHILD, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    n_bytes, spilled, digest = done.stdout.split()
    return int(n_bytes), spilled == "True", digest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_stays_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    with path.open("w", encoding="utf-8") as file:
        for text in many_words(320_000, 8_000_000, seed=1):
            file.write(text)
            file.write("\n")
    limit = 80 * MIB
    free, free_spilled, expected = measured(path, 0)
    within, within_spilled, digest = measured(path, limit)
    assert digest == expected
    assert (free_spilled, within_spilled) == (False, True)
    assert within <= limit
    assert free > 1.25 * limit, f"the corpus is too small to show anything: {free} bytes"
