"""WARC reading against warcio, and with damage anywhere in the files."""

import base64
import functools
import gzip
import hashlib
import io
import itertools
import random
import zlib
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rslm.data.byte_stream import Limits
from rslm.data.http_message import unchunk
from rslm.data.warc import WarcRecord, read_warc

warcio = pytest.importorskip("warcio")
from warcio.archiveiterator import ArchiveIterator  # noqa: E402

LINE = b"\r\n"


def record_bytes(number: int, body: bytes, **fields: str) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    header = {
        "WARC-Type": "response",
        "WARC-Record-ID": f"<urn:test:{number}>",
        "WARC-Target-URI": f"http://example.org/{number}",
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(block)),
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    lines = [f"{name}: {value}".encode() for name, value in header.items()]
    return LINE.join([b"WARC/1.0", *lines, b"", block, b"", b""])


def body(seed: int, n_bytes: int = 700) -> bytes:
    chosen = random.Random(seed)
    words = [f"<p>{chosen.randrange(10**9)}</p>\n".encode() for _ in range(n_bytes // 16)]
    return b"".join(words)


RECORDS = [record_bytes(number, body(number)) for number in range(8)]


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def read(path: Path, **options) -> tuple[list[WarcRecord], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(read_warc(path, skipped=skipped, **options)), skipped


def read_bytes(tmp_path: Path, data: bytes, **options) -> tuple[list[WarcRecord], Counter[str]]:
    path = tmp_path / "file.warc"
    path.write_bytes(data)
    return read(path, **options)


def ids(records: list[WarcRecord]) -> list[int]:
    return [int(record.id.rpartition(":")[2]) for record in records]


PACKINGS = {
    "plain": lambda records: b"".join(records),
    "gzip": lambda records: b"".join(map(functools.partial(gzip.compress, mtime=0), records)),
    "gzip for all": lambda records: gzip.compress(b"".join(records), mtime=0),
    "zstd": lambda records: b"".join(map(zstd, records)),
    "zstd for all": lambda records: zstd(b"".join(records)),
}


@pytest.fixture(scope="session")
def samples(test_data: Path) -> list[Path]:
    return sorted((test_data / "web" / "warc").iterdir())


def test_samples_equal_warcio(samples: list[Path]):
    n_compared = 0
    for path in samples:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            # warcio refuses members that hold more than a record, or less.
            data = gzip.decompress(data)
        expected = [
            (
                record.rec_type,
                record.rec_headers.get_header("WARC-Record-ID").strip("<>"),
                record.http_headers and record.http_headers.headers,
                record.content_stream().read(),
            )
            for record in ArchiveIterator(io.BytesIO(data))
        ]
        records, skipped = read(path)
        found = [
            (record.type, record.id, record.http and record.http.headers.fields, record.payload)
            for record in records
        ]
        assert found == expected, path
        assert not skipped
        n_compared += len(found)
    assert n_compared > 150


@pytest.mark.parametrize("packing", PACKINGS)
def test_packings_hold_the_same_records(tmp_path: Path, packing: str):
    records, skipped = read_bytes(tmp_path, PACKINGS[packing](RECORDS))
    assert ids(records) == list(range(8))
    assert [record.payload for record in records] == [body(number) for number in range(8)]
    assert records[3].url == "http://example.org/3"
    assert not skipped


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_cut_anywhere_loses_only_the_last_record(tmp_path: Path, packing: str):
    packed = [PACKINGS[packing]([record]) for record in RECORDS[:3]]
    ends = list(itertools.accumulate(map(len, packed)))
    data = b"".join(packed)
    for cut in [*range(0, len(data), 13), *(end + d for end in ends for d in (-9, -5, -1, 0))]:
        records, skipped = read_bytes(tmp_path, data[:cut])
        n_whole = sum(end <= cut for end in ends)
        # A record may be whole where only what stands behind it is cut.
        assert ids(records) in (list(range(n_whole)), list(range(n_whole + 1))), cut
        assert all(r.payload == body(i) for i, r in enumerate(records))
        if len(records) == n_whole and cut not in (0, *ends):
            assert skipped.total() == 1, cut


@pytest.mark.parametrize("packing", ["gzip for all", "zstd for all"])
def test_cut_member_for_all_gives_what_is_before(tmp_path: Path, packing: str):
    data = PACKINGS[packing](RECORDS)
    n_before = 0
    for cut in range(0, len(data), 29):
        records, skipped = read_bytes(tmp_path, data[:cut])
        assert ids(records) == list(range(len(records)))
        assert len(records) >= n_before
        assert all(r.payload == body(i) for i, r in enumerate(records))
        assert skipped.total() == (1 if cut > 4 else cut > 0), (cut, skipped)
        n_before = len(records)
    assert packing.startswith("zstd") or n_before >= 6


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_flipped_byte_loses_only_its_record(tmp_path: Path, packing: str):
    packed = [PACKINGS[packing]([record]) for record in RECORDS[:3]]
    data = b"".join(packed)
    ends = list(itertools.accumulate(map(len, packed)))
    chosen = random.Random(0)
    for at in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[at] ^= 1 << chosen.randrange(8)
        records, skipped = read_bytes(tmp_path, bytes(damaged))
        (hit,) = {sum(end <= at for end in ends)}
        others = {body(number) for number in range(3) if number != hit}
        assert others <= {record.payload for record in records}, at
        if packing == "gzip":
            # Its checksum finds what a plain file cannot know; pyarrow's zstd frames have none.
            assert {record.payload for record in records} <= others | {body(hit)}, at
        assert len(records) + skipped.total() >= 3, at
        assert len(records) <= 3


def test_damaged_samples_never_raise_and_lose_little(samples: list[Path], tmp_path: Path):
    chosen = random.Random(1)
    for path in samples:
        data = path.read_bytes()
        whole = Counter(record.block for record in read(path)[0])
        for _ in range(12):
            damaged = bytearray(data)
            damaged[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
            records, _ = read_bytes(tmp_path, bytes(damaged))
            lost = whole - Counter(record.block for record in records)
            one_member = (
                b"\r\n\r\nWARC/" in zlib.decompressobj(31).decompress(data)
                if (data.startswith(b"\x1f\x8b"))
                else False
            )
            assert one_member or lost.total() <= 1, path
            records, _ = read_bytes(tmp_path, data[: chosen.randrange(len(data))])
            kept = [record.block for record in records]
            assert not Counter(kept) - whole


@given(st.binary(max_size=300), st.integers(0, 3))
def test_junk_never_raises(tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int):
    # A file that begins as a packed one is a damaged packed one.
    assume(place > 0 or not junk.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))
    folder = tmp_path_factory.mktemp("junk", numbered=True)
    records, _ = read_bytes(folder, b"".join([*RECORDS[:place], junk, *RECORDS[place:4]]))
    # Junk may join the record before or behind it.
    assert len(set(ids(records)) & set(range(4))) >= 2


def test_many_damaged_members_lose_only_themselves(tmp_path: Path):
    members = [gzip.compress(record, mtime=0) for record in RECORDS * 20]
    for number in range(1, 160, 2):
        members[number] = members[number][:40] + b"\xff\xff" + members[number][42:]
    records, skipped = read_bytes(tmp_path, b"".join(members))
    assert ids(records) == [0, 2, 4, 6] * 20
    assert skipped == {"corrupt_member": 80}


def test_member_with_wrong_checksum_is_not_given(tmp_path: Path):
    members = [gzip.compress(record, mtime=0) for record in RECORDS[:3]]
    members[1] = members[1][:-8] + b"\0\0\0\0" + members[1][-4:]
    records, skipped = read_bytes(tmp_path, b"".join(members))
    assert ids(records) == [0, 2]
    assert skipped == {"corrupt_member": 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"Content_Length": "7"}, "bad_length"),
        ({"Content_Length": "100000"}, "truncated"),
        ({"Content_Length": "99999999999"}, "too_large"),
        ({"Content_Length": "many"}, "bad_length"),
        ({"Content_Length": "-1"}, "bad_length"),
        ({"Content_Length": "9" * 5000}, "bad_length"),
        ({"X": "a" * 70_000}, "bad_header"),
    ],
)
@pytest.mark.parametrize("packing", ["plain", "gzip"])
def test_broken_header_loses_only_its_record(
    tmp_path: Path, fields: dict[str, str], reason: str, packing: str
):
    broken = record_bytes(1, body(1), **fields)
    data = PACKINGS[packing]([RECORDS[0], broken, RECORDS[2], RECORDS[3]])
    records, skipped = read_bytes(tmp_path, data)
    assert ids(records) == [0, 2, 3]
    assert set(skipped) <= {reason, "bad_length"}
    assert skipped.total() == 1


def test_zip_bomb_is_counted_and_costs_little(tmp_path: Path):
    bomb = gzip.compress(record_bytes(1, bytes(30_000_000)), mtime=0)
    data = b"".join([*map(gzip.compress, RECORDS[:1]), bomb, gzip.compress(RECORDS[2])])
    records, skipped = read_bytes(tmp_path, data)
    assert ids(records) == [0, 2]
    assert skipped == {"zip_bomb": 1}


def test_bomb_behind_a_record_is_counted(tmp_path: Path):
    bomb = gzip.compress(RECORDS[0] + bytes(30_000_000), mtime=0)
    records, skipped = read_bytes(tmp_path, bomb + gzip.compress(RECORDS[1]))
    assert 1 in ids(records)
    assert "zip_bomb" in skipped


def test_limits_of_record_and_file(tmp_path: Path):
    large = record_bytes(1, body(1, 50_000))
    data = b"".join([RECORDS[0], large, RECORDS[2]])
    records, skipped = read_bytes(tmp_path, data, limits=Limits(max_record_bytes=20_000))
    assert ids(records) == [0, 2]
    assert skipped == {"too_large": 1}
    limits = Limits(max_file_bytes=150_000)
    many = b"".join(RECORDS * 40)
    records, skipped = read_bytes(tmp_path, many, limits=limits)
    assert 0 < len(records) < 320
    assert skipped == {"file_too_large": 1}


def test_digests_are_checked_if_asked_for(tmp_path: Path):
    block = RECORDS[0].split(b"\r\n\r\n", 1)[1][:-4]
    digest = base64.b32encode(hashlib.sha1(block).digest()).decode()
    good = record_bytes(0, body(0), WARC_Block_Digest=f"sha1:{digest}")
    bad = record_bytes(1, body(1), WARC_Block_Digest=f"sha1:{digest}")
    unknown = record_bytes(2, body(2), WARC_Block_Digest="none:of-these")
    data = good + bad + unknown
    assert ids(read_bytes(tmp_path, data)[0]) == [0, 1, 2]
    records, skipped = read_bytes(tmp_path, data, check_digests=True)
    assert ids(records) == [0, 2]
    assert skipped == {"bad_digest": 1}


@pytest.mark.parametrize(
    # Each says that it holds nearly all of the file, or has no end of its header; looking so far
    # ahead each time would take minutes.
    "header",
    [
        b"WARC/1.0\r\nContent-Length: 9000000\r\n\r\n",
        b"WARC/1.0\r\nContent-Length: 20000000\r\n\r\n",
        b"WARC/1.0\na:\n",
    ],
)
def test_hostile_headers_take_time_in_proportion(tmp_path: Path, header: bytes):
    records, skipped = read_bytes(tmp_path, header * 100_000)
    assert records == []
    assert skipped.total() >= 1


@given(st.lists(st.binary(min_size=1, max_size=40)), st.booleans())
def test_unchunk_undoes_chunks(pieces: list[bytes], has_end: bool):
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    expected = b"".join(pieces)
    assert unchunk(chunks + b"0\r\n\r\n" * has_end) == expected


@pytest.mark.parametrize("body", [b"", b"<p>no chunks</p>", b"12\r\nshort", b"3\r\nabcd and on"])
def test_unchunk_keeps_a_body_that_is_not_chunked(body: bytes):
    assert unchunk(body) in (body, b"short")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate", "plain", "br"])
def test_content_codings_are_undone(tmp_path: Path, coding: str):
    text = body(5)
    packer = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "raw deflate": packer.compress(text) + packer.flush(),
        "br": b"\x1b\x00\x01\x02" + bytes(50),
    }.get(coding, text)
    named = {"raw deflate": "deflate", "plain": "gzip"}.get(coding, coding)
    block = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\n\r\n%b" % (named.encode(), packed)
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
    data = head + b"Content-Length: %d\r\n\r\n%b\r\n\r\n" % (len(block), block)
    ((record,), _) = read_bytes(tmp_path, data)
    assert record.http is not None
    if coding == "br":
        assert (record.payload, record.http.problem) == (b"", "bad_coding")
    else:
        assert (record.payload, record.http.problem) == (text, "")


def test_packed_body_beyond_the_limit_is_a_problem(tmp_path: Path):
    block = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(20_000_000))
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
    data = head + b"Content-Length: %d\r\n\r\n%b\r\n\r\n" % (len(block), block)
    ((record,), _) = read_bytes(tmp_path, data)
    assert record.http is not None
    assert (record.payload, record.http.problem) == (b"", "zip_bomb")
