"""Workers that hang, die, eat memory or talk nonsense."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rslm.evaluate import workers
from rslm.evaluate.arithmetic import MAX_CHARACTERS, parse
from rslm.evaluate.equality import course_equal
from rslm.evaluate.symbolic import MAX_MESSAGE_BYTES, from_json, to_json
from rslm.evaluate.tasks import open_task
from rslm.evaluate.workers import Workers

pytest.importorskip("sympy")
# What a test's worker does instead of comparing formulas; `request` is the message.
FAKE = """
import os, signal, sys, time
from rslm.evaluate import symbolic
count = {count!r}
def answer(request):
    with open(count, "a") as file:
        file.write(".")
    n = os.path.getsize(count)
    {body}
symbolic.answer, symbolic._sympy = answer, lambda: None
symbolic.serve(symbolic.socket.socket(fileno=0), int(sys.argv[1]), int(sys.argv[2]))
"""
LEFT, RIGHT = parse("x+1"), parse("1+x")
PLENTY_SECONDS = 100.0
Pool = Callable[..., Workers]


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    pool = Workers(deadline_seconds=PLENTY_SECONDS)
    yield pool
    pool.close()


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pool]:
    """`faked(body)`: workers that run `body`, of which `n` counts the questions so far."""
    pools: list[Workers] = []

    def make(body: str, **options: float) -> Workers:
        program = FAKE.format(count=str(tmp_path / "count"), body=body)
        monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", program])
        pools.append(Workers(**{"deadline_seconds": PLENTY_SECONDS, **options}))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


@pytest.mark.parametrize(
    ("left", "right", "outcome"),
    [
        ("x+1", "1+x", "right"),
        ("(x+1)^2", "x^2+2x+1", "right"),
        (r"2\sqrt{3}", r"\sqrt{12}", "right"),
        (r"\frac{\sqrt2}{2}", r"1/\sqrt{2}", "right"),
        (r"\sqrt[3]{8}x", "2x", "right"),
        ("sin(x)^2+cos(x)^2", "x/x", "right"),
        (r"3\pi", r"\pi*3", "right"),
        ("exp(ln(2))x", "2x", "right"),
        ("abs(-x)", "abs(x)", "right"),
        (r"\sqrt{x^2}", "abs(x)", "right"),  # Names are real numbers.
        ("x", "y", "wrong"),
        ("x+1", "x-1", "wrong"),
        (r"\sqrt{x^2}", "x", "wrong"),
        (r"\pi", "3.14159265358979", "wrong"),
        ("x/0", "x/0+1", "wrong"),
        ("1/(x-x)", "2/(x-x)", "wrong"),
        ("tan(x)", "sin(x)", "wrong"),
        ("log(-x)", "log(x)", "wrong"),
    ],
)
def test_formulas_are_compared_for_all_values(pool: Workers, left: str, right: str, outcome: str):
    assert course_equal(left, right, pool.equal) == outcome


def test_a_worker_that_hangs_is_killed_and_counted(faked: Pool):
    pool = faked("while True: pass", deadline_seconds=0.2)
    assert pool.equal(LEFT, RIGHT) == "timeout"
    assert pool.counts == {"timeout": 1}
    assert pool._workers[0]._process is None


def test_a_worker_that_sends_byte_by_byte_meets_the_same_deadline(faked: Pool):
    drip = "while True:\n        os.write(0, b' '); time.sleep(0.01)"
    head = "os.write(0, b'\\0\\0\\x80\\0')\n    "
    assert faked(head + drip, deadline_seconds=0.3).equal(LEFT, RIGHT) == "timeout"


def test_the_next_question_is_answered_after_a_hang(faked: Pool):
    pool = faked(
        "\n    while n == 1: time.sleep(1)\n    return {'equal': True}", deadline_seconds=2
    )
    assert pool.equal(LEFT, RIGHT) == "timeout"
    assert pool.equal(LEFT, RIGHT) == "right"


@pytest.mark.parametrize(
    "death",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "sys.exit()",
        "hoard = [bytearray(1 << 26) for _ in range(10**9)]",
        "os.write(0, b'nonsense')",
        "os.write(0, b'\\x7f\\xff\\xff\\xff')",
        "return 5",
        "return {'equal': 'yes'}",
        "return {'equal': None}",
        "return {}",
        "return []",
    ],
)
def test_a_crash_is_tried_once_more_and_is_no_wrong_answer(faked: Pool, death: str):
    pool = faked(
        f"\n    if n == 1:\n        {death}\n        os._exit(1)\n    return {{'equal': True}}"
    )
    assert pool.equal(LEFT, RIGHT) == "right"
    assert pool.counts == {"retry": 1}


def test_a_second_crash_is_counted(faked: Pool):
    pool = faked("os._exit(1)")
    assert pool.equal(LEFT, RIGHT) == "crash"
    assert pool.counts == {"retry": 1, "crash": 1}


def test_a_worker_killed_while_idle_is_replaced(pool: Workers):
    assert pool.equal(LEFT, RIGHT) == "right"
    process = pool._workers[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert pool.equal(LEFT, RIGHT) == "right"


def test_memory_is_limited(faked: Pool):
    pool = faked("hoard = bytearray(1 << 29)\n    return {'equal': True}", memory_bytes=1 << 28)
    assert pool.equal(LEFT, RIGHT) == "crash"


def test_any_thread_may_ask_and_all_get_their_own_answer(pool: Workers):
    outcomes: dict[int, str] = {}

    def ask(n: int) -> None:
        outcomes[n] = pool.equal(parse(f"x+{n}"), parse(f"{n % 2}+x"))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PLENTY_SECONDS)
    assert outcomes == {n: "right" if n < 2 else "wrong" for n in range(8)}


def test_workers_end_with_whoever_made_them():
    pool = Workers()
    pool.equal(LEFT, RIGHT)
    process = pool._workers[0]._process
    assert process is not None
    del pool
    gc.collect()
    assert process.poll() is not None


def test_a_worker_whose_parent_was_killed_ends(tmp_path: Path):
    program = (
        "import os, signal\n"
        "from rslm.evaluate.arithmetic import parse\n"
        "from rslm.evaluate.workers import Workers\n"
        "pool = Workers(deadline_seconds=100)\n"
        "pool.equal(parse('x'), parse('y'))\n"
        "print(pool._workers[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL
    command = Path(f"/proc/{int(done.stdout)}/cmdline")
    for _ in range(2000):
        # Of a process that nobody has waited for yet it is empty.
        if not command.exists() or not command.read_bytes():
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_trees_survive_the_journey():
    for text in ("1/3", "x", r"-\sqrt[3]{x^2}+\frac{1}{2}y", "pi*2.5", "1+" * 90 + "1"):
        tree = parse(text)
        assert from_json(to_json(tree)) == tree
    for record in (None, 1, [], [1], [1, 2, 3], [[]], {"a": 1}, [1.5, 2]):
        with pytest.raises(ValueError, match="a tree must be"):
            from_json(record)


def test_the_largest_tree_fits_into_a_message():
    tree = parse("1" * (MAX_CHARACTERS - 2) + "+x")
    deep = parse("+".join(["x"] * 99))
    for each in (tree, deep):
        request = {"left": to_json(each), "right": to_json(each)}
        assert len(json.dumps(request)) < MAX_MESSAGE_BYTES


def test_a_missing_sympy_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda _: None)
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "gold": "x"}\n')
    with pytest.raises(ValueError, match=r"^equality course needs sympy.*'rslm\[post\]'$"):
        open_task(f"{path}:equality=course")
