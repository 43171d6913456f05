"""Messages between processes of which one may be hostile: plain data, as lengths and bytes.

Neither JSON, whose decoder takes longer to import than a short program to run, nor pickle,
which runs what it reads. The processes of the sandbox import this without the package.
"""

from __future__ import annotations

import os
import select
import time

# Importing these takes longer than all else here; type checkers take the name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_MESSAGE_BYTES = 16 << 20


class Stopped(Exception):
    """The other end is gone, or time is up; the argument says which."""


def encode(value: object) -> bytes:
    """Plain data as bytes that `decode` reads.

    Plain are None, bool, int, float, complex, str, bytes, tuple, list, set, frozenset and dict,
    however nested; they arrive exactly, their types and the signs of zeros too. An object of a
    class derived from one of these travels as the plain one.

    Raises:
        TypeError: the value holds something else.
    """
    parts: list[bytes] = []
    _encode(value, parts.append)
    return b"".join(parts)


def _encode(value: Any, put: Callable[[bytes], object]) -> None:
    if value is None or isinstance(value, bool):
        put({None: b"N", True: b"T", False: b"F"}[value])
    elif isinstance(value, int):
        # Hexadecimal: the decimal form of a long integer takes quadratic time, and is limited.
        put(b"i%x;" % value if value >= 0 else b"i-%x;" % -value)
    elif isinstance(value, float):
        put(b"f" + float.hex(value).encode() + b";")
    elif isinstance(value, complex):
        put(b"c")
        _encode(value.real, put)
        _encode(value.imag, put)
    elif isinstance(value, str):
        text = str.encode(value, "utf-8", "surrogatepass")
        put(b"s%x;" % len(text))
        put(text)
    elif isinstance(value, bytes):
        put(b"b%x;" % len(value))
        put(bytes(value))
    elif isinstance(value, dict):
        put(b"d%x;" % len(value))
        for pair in dict.items(value):
            _encode(pair[0], put)
            _encode(pair[1], put)
    else:
        for kind, letter in _SEQUENCES:
            if isinstance(value, kind):
                put(letter + b"%x;" % len(value))
                for item in kind.__iter__(value):
                    _encode(item, put)
                return
        raise TypeError(f"only plain data can be handed over, got {type(value).__name__}")


_SEQUENCES: list[tuple[Any, bytes]] = [
    (list, b"l"),
    (tuple, b"t"),
    (set, b"S"),
    (frozenset, b"Z"),
]
_BY_LETTER: dict[bytes, Any] = {letter: kind for kind, letter in _SEQUENCES}
_CONSTANTS = {b"N": None, b"T": True, b"F": False}


def decode(data: bytes) -> Any:
    """What `encode` was given.

    Raises:
        ValueError: the bytes are none that `encode` makes.
    """
    try:
        value, end = _decode(data, 0)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"malformed message: {error}") from None
    if end != len(data):
        raise ValueError("malformed message: bytes left over")
    return value


def _decode(data: bytes, at: int) -> tuple[Any, int]:
    letter = data[at : at + 1]
    if letter in _CONSTANTS:
        return _CONSTANTS[letter], at + 1
    if letter == b"c":
        real, at = _decode(data, at + 1)
        imaginary, at = _decode(data, at)
        return complex(real, imaginary), at
    end = data.index(b";", at)
    text, at = data[at + 1 : end].decode("ascii"), end + 1
    if letter == b"f":
        return float.fromhex(text), at
    number = int(text, 16)
    if letter == b"i":
        return number, at
    # Every item takes a byte or more.
    if not 0 <= number <= len(data) - at:
        raise ValueError("a length beyond the end")
    if letter == b"s":
        return data[at : at + number].decode("utf-8", "surrogatepass"), at + number
    if letter == b"b":
        return data[at : at + number], at + number
    items = []
    for _ in range(2 * number if letter == b"d" else number):
        item, at = _decode(data, at)
        items.append(item)
    if letter == b"d":
        return dict(zip(items[::2], items[1::2], strict=True)), at
    if letter not in _BY_LETTER:
        raise ValueError("an unknown letter")
    return _BY_LETTER[letter](items), at


class Pipe:
    """Messages to and from another process, until a deadline or while a lifeline is open."""

    def __init__(self, incoming: int, outgoing: int, lifeline: int | None = None) -> None:
        self._incoming, self._outgoing, self._lifeline = incoming, outgoing, lifeline
        self.deadline: float | None = None
        if lifeline is not None:
            os.set_blocking(outgoing, False)

    def send(self, value: object) -> None:
        """Writes a message.

        Raises:
            TypeError: the value is no plain data.
            Stopped: the other end is gone, or time is up.
        """
        data = encode(value)
        rest = memoryview(len(data).to_bytes(8, "big") + data)
        while rest:
            self._wait(self._outgoing, select.POLLOUT)
            try:
                rest = rest[os.write(self._outgoing, rest) :]
            except OSError:
                raise Stopped("end") from None

    def receive(self) -> Any:
        """Waits for a message.

        Raises:
            ValueError: what came is none, or too long.
            Stopped: the other end is gone, or time is up.
        """
        size = int.from_bytes(self._read(8), "big")
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message must have at most {MAX_MESSAGE_BYTES} bytes")
        return decode(self._read(size))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._incoming, select.POLLIN)
            part = os.read(self._incoming, min(size - len(data), 1 << 16))
            if not part:
                raise Stopped("end")
            data += part
        return bytes(data)

    def _wait(self, number: int, event: int) -> None:
        if self._lifeline is None:
            return
        poll = select.poll()
        poll.register(number, event)
        poll.register(self._lifeline, 0)
        left = None if self.deadline is None else self.deadline - time.monotonic()
        ready = dict(poll.poll(None if left is None else max(0.0, left) * 1000))
        if self._lifeline in ready:
            raise Stopped("lifeline")
        if not ready:
            raise Stopped("timeout")
