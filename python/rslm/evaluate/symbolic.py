"""The worker that tells whether two formulas are equal; `python -m` runs it for `Workers`.

It limits its own memory and processor time before it reads a formula, and reads and writes
nothing but a socket that it is given as standard input. SymPy gets expressions that are built
node by node from our own tree, never a string.

A message is its length in four bytes, big-endian, and JSON: `{"left": ..., "right": ...}` to the
worker, `{"equal": true}` from it, and once at its start `{"ready": true}`. A number is
`[numerator, denominator]`, a name a string, an operation `[head, operand, ...]`.
"""

import json
import math
import resource
import socket
import sys
import time
from fractions import Fraction
from typing import Any

from rslm.evaluate.arithmetic import Node

MAX_MESSAGE_BYTES = 1 << 18


def to_json(tree: Node) -> Any:
    """A tree as what JSON can hold."""
    if tree.value is not None:
        return [tree.value.numerator, tree.value.denominator]
    if not tree.operands:
        return tree.head
    return [tree.head, *map(to_json, tree.operands)]


def from_json(record: Any) -> Node:
    """The tree that `to_json` wrote."""
    match record:
        case str(name):
            return Node(name)
        case [int(numerator), int(denominator)]:
            return Node("number", value=Fraction(numerator, denominator))
        case [str(head), *operands]:
            return Node(head, tuple(map(from_json, operands)))
    raise ValueError(f"a tree must be a name, a number or an operation, got {record!r:.80}")


def send(connection: socket.socket, record: Any, deadline: float = math.inf) -> None:
    """Writes a message, before `deadline` of the monotonic clock.

    Raises:
        TimeoutError: the other side does not take it.
        OSError: the other side is gone.
    """
    data = json.dumps(record).encode()
    _limit_wait(connection, deadline)
    connection.sendall(len(data).to_bytes(4, "big") + data)


def receive(connection: socket.socket, deadline: float = math.inf) -> Any:
    """Reads a message, the whole of it before `deadline` of the monotonic clock.

    Raises:
        TimeoutError: it does not come.
        EOFError: the other side is gone.
        OSError: the other side is gone.
        ValueError: it is too long, or no JSON.
    """
    n_bytes = int.from_bytes(_read(connection, 4, deadline), "big")
    if n_bytes > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message must have at most {MAX_MESSAGE_BYTES} bytes, got {n_bytes}")
    return json.loads(_read(connection, n_bytes, deadline))


def _read(connection: socket.socket, n_bytes: int, deadline: float) -> bytes:
    data = b""
    while len(data) < n_bytes:
        _limit_wait(connection, deadline)
        if not (piece := connection.recv(n_bytes - len(data))):
            raise EOFError("the other side is gone")
        data += piece
    return data


def _limit_wait(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    connection.settimeout(left if left < math.inf else None)


def _sympy() -> Any:
    """SymPy, loaded only in the worker."""
    import sympy

    return sympy


def to_sympy(tree: Node) -> Any:
    """The tree as an expression of SymPy, of which names are real numbers."""
    sympy = _sympy()
    if tree.value is not None:
        return sympy.Rational(tree.value.numerator, tree.value.denominator)
    if not tree.operands:
        return sympy.pi if tree.head == "pi" else sympy.Symbol(tree.head, real=True)
    operands = [to_sympy(operand) for operand in tree.operands]
    match tree.head, operands:
        case "negative", [a]:
            return -a
        case "+", [a, b]:
            return a + b
        case "-", [a, b]:
            return a - b
        case "*", [a, b]:
            return a * b
        case "/", [a, b]:
            return a / b
        case "^", [a, b]:
            return a**b
        case "root", [a, degree]:
            return sympy.root(a, degree)
        case ("sqrt" | "sin" | "cos" | "tan" | "log" | "ln" | "exp" | "abs") as name, [a]:
            return getattr(sympy, "Abs" if name == "abs" else name)(a)
    raise ValueError(f"there is no operation {tree.head!r:.40} of {len(operands)} operands")


def equal(left: Any, right: Any) -> bool:
    """Whether the difference of two expressions of SymPy simplifies to 0."""
    return bool(_sympy().simplify(left - right) == 0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a message."""
    left, right = (to_sympy(from_json(request[side])) for side in ("left", "right"))
    return {"equal": equal(left, right)}


def serve(connection: socket.socket, memory_bytes: int, seconds: int) -> None:
    """Answers until the other side closes.

    Args:
        connection: to whom it answers.
        memory_bytes: of address space that the process may have.
        seconds: of processor time for each answer, after which the system ends the process: a
            worker whose parent is gone must not run on.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _sympy()  # Loading it takes longer than most answers: no deadline runs yet.
    send(connection, {"ready": True})
    while True:
        try:
            request = receive(connection)
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        try:
            reply = answer(request)
        # A formula that has no value is equal to none; errors of SymPy are of many kinds.
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            reply = {"equal": False}
        send(connection, reply)


if __name__ == "__main__":
    serve(socket.socket(fileno=0), int(sys.argv[1]), int(sys.argv[2]))
