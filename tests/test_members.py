"""Members of packed files: the fast way gives what the readable one gives, damaged or not."""

import gzip
import io
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import seconds

from rslm.data.members import SegmentEnd, unpack_members


def segments(data: bytes, implementation, *, max_inflation: int = 200) -> list[tuple[bytes, str]]:
    """What each member gave and the damage, whatever the pieces."""
    found, pieces = [], []
    for piece in unpack_members(
        io.BytesIO(data), "gzip", max_inflation, b"W", implementation=implementation
    ):
        if isinstance(piece, SegmentEnd):
            found.append((b"".join(pieces), piece.damage))
            pieces = []
        else:
            assert piece
            pieces.append(piece)
    return found


def assert_equal(data: bytes, **options: int) -> list[tuple[bytes, str]]:
    found = segments(data, "rust", **options)
    assert found == segments(data, "reference", **options)
    return found


def member(content: bytes, *, flags: int = 0, extra: bytes = b"") -> bytes:
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(content) + packer.flush()
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff" + extra
    checks = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return head + packed + checks


CONTENTS = st.binary(max_size=200) | st.integers(0, 200_000).map(
    lambda size: random.Random(size).randbytes(size)
)


@given(st.lists(CONTENTS.map(lambda content: b"W" + content), max_size=5), st.data())
def test_fast_equals_reference_with_damage_anywhere(contents: list[bytes], data: st.DataObject):
    packed = bytearray(b"".join(map(member, contents)))
    assert segments(bytes(packed), "rust") == [(content, "") for content in contents]
    for _ in range(data.draw(st.integers(0, 2)) if packed else 0):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(packed)))
    assert_equal(bytes(packed))
    assert_equal(bytes(packed[:cut]))


@pytest.mark.parametrize(
    ("flags", "extra"),
    [
        (1, b""),
        (4, b"\x03\x00abc"),
        (8, b"name\0"),
        (16, b"comment\0"),
        (28, b"\x00\x00name\0comment\0"),
        # A checksum of the header, right or not, is left to the reference.
        (2, (zlib.crc32(b"\x1f\x8b\x08\x02" + bytes(5) + b"\xff") & 0xFFFF).to_bytes(2, "little")),
        (2, b"\0\0"),
        (32, b""),
    ],
)
def test_headers_of_any_kind_are_read(flags: int, extra: bytes):
    data = member(b"W1", flags=flags, extra=extra) + member(b"W2")
    found = assert_equal(data)
    assert found[-1] == (b"W2", "")
    assert (found[0] == (b"W1", "")) == (extra != b"\0\0" and flags != 32)


def test_zeros_between_members_are_padding():
    assert assert_equal(member(b"W1") + bytes(100_000) + member(b"W2") + bytes(9)) == [
        (b"W1", ""),
        (b"W2", ""),
    ]


def test_large_members_and_windows_join():
    chosen = random.Random(1)
    contents = [b"W" + chosen.randbytes(chosen.randrange(400_000)) for _ in range(20)]
    contents += [b"W" + chosen.randbytes(5_000_000), b"W" + bytes(5_000_000)]
    found = assert_equal(b"".join(map(member, contents)), max_inflation=2000)
    assert found == [(content, "") for content in contents]


def test_bombs_are_found_alike():
    bomb = member(b"W" + bytes(3_000_000))
    (first, second) = assert_equal(bomb + member(b"W2"))
    assert first[1] == "zip_bomb"
    assert second == (b"W2", "")


def test_many_cut_members_take_time_in_proportion():
    def take(n_members: int) -> float:
        data = gzip.compress(b"W" + random.Random(2).randbytes(3000))[:-9] * n_members
        return seconds(lambda: segments(data, "rust"))

    few, many = take(50), take(200)
    assert many < 12 * few + 0.2
