"""Messages to and from hostile processes: exact round trips, and nothing but ValueError else."""

import contextlib
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.evaluate.sandbox_messages import MAX_MESSAGE_BYTES, Pipe, Stopped, decode, encode

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs"]))
    | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)
plain = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
    ),
    max_leaves=8,
)


def kinds(value: object) -> object:
    """The types throughout, which equality alone does not tell."""
    if isinstance(value, dict):
        return [(kinds(key), kinds(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [kinds(item) for item in value]
    if isinstance(value, float):
        return float, math.copysign(1, value)
    return type(value)


@given(plain)
def test_decode_gives_what_was_encoded(value: object) -> None:
    again = decode(encode(value))
    assert again == value
    assert kinds(again) == kinds(value)


def test_derived_classes_travel_as_plain_ones() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class List(list):  # type: ignore[type-arg]
        def __iter__(self):
            return iter("forged")

    assert decode(encode(Number(3))) == 3
    assert type(decode(encode(Number(3)))) is int
    assert decode(encode(List([1]))) == [1]


@pytest.mark.parametrize("value", [object(), len, iter([]), range(3), [1, {2: object()}], type])
def test_other_objects_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="only plain data"):
        encode(value)


@given(st.binary(max_size=100) | st.text("NTFilcsbtdSZ;0123456789abcdefx-+._ ").map(str.encode))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(repr(decode(data))) < 10_000


@given(plain, st.data())
def test_damaged_messages_decode_or_are_refused(value: object, data: st.DataObject) -> None:
    message = bytearray(encode(value))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        decode(bytes(message))


@pytest.mark.parametrize(
    "data",
    [
        b"l1;" * 100_000,
        b"l7fffffff;",
        b"fnine;",
        b"s5;ab",
        b"b5;ab",
        b"S1;l0;",
        b"d1;l0;N",
        b"i_1;x",
    ],
)
def test_hostile_messages_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="malformed message"):
        decode(data)


def test_pipe_carries_messages_until_it_ends() -> None:
    read, write = os.pipe()
    pipe = Pipe(read, write)
    pipe.send([1, "a"])
    pipe.send(None)
    assert pipe.receive() == [1, "a"]
    assert pipe.receive() is None
    os.write(write, (MAX_MESSAGE_BYTES + 1).to_bytes(8, "big"))
    with pytest.raises(ValueError, match="at most"):
        pipe.receive()
    os.close(write)
    with pytest.raises(Stopped, match="end"):
        pipe.receive()
    os.close(read)


def test_pipe_stops_at_its_deadline_and_with_its_lifeline() -> None:
    read, write = os.pipe()
    alive, lifeline = os.pipe()
    pipe = Pipe(read, write, alive)
    pipe.deadline = 0.0
    with pytest.raises(Stopped, match="timeout"):
        pipe.receive()
    # Nobody reads: a full pipe must not hold the writer for ever.
    with pytest.raises(Stopped, match="timeout"):
        pipe.send(b"x" * (1 << 20))
    pipe.deadline = None
    os.close(lifeline)
    with pytest.raises(Stopped, match="lifeline"):
        pipe.receive()
    for number in (read, write, alive):
        os.close(number)
