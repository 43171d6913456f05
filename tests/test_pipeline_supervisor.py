"""What is blamed for a worker's death, and what ends a worker that goes on for too long."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipelines import HOSTILE, config_of, write_inputs, write_lines

from rslm.data.document import Document
from rslm.data.pipeline import Plan, make_plan
from rslm.data.pipeline.marks import Mark, Task
from rslm.data.pipeline.places import inputs
from rslm.data.pipeline.plan import write_plan
from rslm.data.pipeline.pulse import READ, RESTING, Beat, Pulse
from rslm.data.pipeline.supervisor import (
    MAX_DEATHS,
    Death,
    StoppedError,
    Worker,
    _add_skip,
    _bytes_read,
    do_task,
)
from rslm.data.pipeline.worker import Answer, Failure, Order, _answer

TASK = Task(stage="filter", index=0, upstream="")
DONE = Mark(stage="filter", index=0, hash="", upstream="", files={})


class ScriptedWorker:
    """Ends as it is told, and keeps the orders that it was given."""

    def __init__(self, *outcomes: Answer | Death) -> None:
        self.outcomes, self.orders = list(outcomes), list[Order]()

    def do(self, order: Order, **watch: object) -> Answer | Death:
        self.orders.append(order)
        return self.outcomes.pop(0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = make_plan(config_of(write_inputs(tmp_path / "in", 1, 3), tmp_path / "out"))
    (plan.folder / "filter").mkdir(parents=True)
    return plan


def death(first: int, last: int, *, code: int = -signal.SIGSEGV, cause: str = "crash") -> Death:
    is_certain = code != -signal.SIGKILL or cause != "crash"
    return Death(Beat(1, first, last, "quality.course"), cause, is_certain, code)


def skipped(plan: Plan) -> dict[str, str]:
    path = plan.folder / "filter" / "00000.skip.json"
    return json.loads(path.read_bytes())["skip"] if path.exists() else {}


def test_batch_is_done_again_one_by_one(plan: Plan) -> None:
    worker: Any = ScriptedWorker(death(4, 9), death(20, 30), None, DONE)
    assert do_task(plan, TASK, worker) is DONE
    both = ((4, 9), (20, 30))
    assert [order.careful for order in worker.orders] == [(), both[:1], both, both]
    # From where it died the rest is looked through, and then all is done.
    assert [order.scout_from for order in worker.orders] == [None, 4, 20, None]
    assert len({order.attempt for order in worker.orders}) == 4
    assert skipped(plan) == {}


class Ended(BaseException):
    """What stands for a worker's death."""


class DeadlyPulse(Pulse):
    """Ends whoever takes certain documents, and counts the documents taken."""

    def __init__(self, deadly: set[int]) -> None:
        super().__init__()
        self.deadly, self.n_taken, self.at = deadly, 0, Beat(0, RESTING, RESTING, "")

    def beat(self, first: int, last: int, step: str) -> None:
        self.at = Beat(1, first, last, step)
        self.n_taken += last - first + 1
        if self.deadly.intersection(range(first, last + 1)):
            raise Ended


class WorkerHere:
    """Does orders in this process, and dies at certain documents."""

    def __init__(self, plan: Plan, deadly: set[int]) -> None:
        self.plan, self.pulse, self.n_orders = plan, DeadlyPulse(deadly), 0

    def do(self, order: Order, **watch: object) -> Answer | Death:
        self.n_orders += 1
        try:
            return _answer(self.plan, order, self.pulse)
        except Ended:
            return Death(self.pulse.at, "crash", True, -signal.SIGSEGV)


def test_documents_that_end_workers_cost_what_one_more_pass_does(tmp_path: Path) -> None:
    plan = make_plan(config_of(write_inputs(tmp_path / "in", 1, 1000), tmp_path / "out"))
    deadly = {3, 4, 70, 500, 501, 998}
    worker: Any = WorkerHere(plan, deadly)
    mark = do_task(plan, TASK, worker)
    assert {int(number) for number in skipped(plan)} == deadly
    assert mark.n_rows == 1000 - len(deadly)
    assert mark.steps["skip"].drops["extract_crash"].documents == len(deadly)
    # What dies of four batches and of each document in them, the rest, and all of it.
    assert worker.n_orders == 4 + len(deadly) + 1 + 1
    assert worker.pulse.n_taken < 2 * 1000 + 2 * 64 * 4


@pytest.mark.parametrize("cause", ["crash", "timeout", "memory"])
def test_document_is_blamed_at_once_for_what_it_has_done(plan: Plan, cause: str) -> None:
    worker: Any = ScriptedWorker(death(5, 5, cause=cause), death(2, 2), DONE)
    do_task(plan, TASK, worker)
    assert skipped(plan) == {"2": "quality_crash", "5": f"quality_{cause}"}


def test_document_is_blamed_late_for_what_anybody_may_have_done(plan: Plan) -> None:
    deaths = [death(5, 5, code=-signal.SIGKILL)] * (MAX_DEATHS - 1)
    worker: Any = ScriptedWorker(*deaths, death(6, 6, code=-signal.SIGKILL), DONE)
    do_task(plan, TASK, worker)
    assert skipped(plan) == {}
    worker = ScriptedWorker(*deaths, deaths[0], DONE)
    do_task(plan, TASK, worker)
    assert skipped(plan) == {"5": "quality_crash"}


def test_task_without_a_document_to_blame_is_given_up(plan: Plan) -> None:
    worker: Any = ScriptedWorker(*[death(RESTING, RESTING)] * MAX_DEATHS)
    with pytest.raises(
        ConnectionError, match=r"task 0 of filter ended its worker 3 times \(signal"
    ):
        do_task(plan, TASK, worker)
    worker = ScriptedWorker(*[death(RESTING, RESTING, cause="memory")] * MAX_DEATHS)
    with pytest.raises(ConnectionError, match="it takes more than max_worker_bytes"):
        do_task(plan, TASK, worker)


def reading(number: int, cause: str = "timeout", code: int = -signal.SIGSEGV) -> Death:
    is_certain = code != -signal.SIGKILL or cause != "crash"
    return Death(Beat(1, number, number, READ), cause, is_certain, code)


@pytest.mark.parametrize("cause", ["timeout", "crash"])
def test_reading_is_blamed_the_third_time(plan: Plan, cause: str) -> None:
    deaths = [reading(1, cause)] * (MAX_DEATHS - 1)
    # What a step does at the document counts for itself.
    worker: Any = ScriptedWorker(*deaths, death(1, 1, code=-signal.SIGKILL), DONE)
    do_task(plan, TASK, worker)
    assert skipped(plan) == {}
    assert [order.scout_from for order in worker.orders] == [None, 1, 1, 1]
    do_task(plan, TASK, ScriptedWorker(*deaths, deaths[0], DONE))
    assert skipped(plan) == {"1": f"read_{cause}"}


@pytest.mark.parametrize(
    "ended", [reading(1, "memory"), reading(1, "crash", -signal.SIGKILL)], ids=["memory", "killed"]
)
def test_file_is_not_blamed_for_what_else_takes_memory(plan: Plan, ended: Death) -> None:
    with pytest.raises(ConnectionError, match="ended its worker 3 times"):
        do_task(plan, TASK, ScriptedWorker(*[ended] * MAX_DEATHS))
    assert skipped(plan) == {}


def test_rest_of_an_unreadable_file_is_one_empty_document(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "in", 1, 3)
    plan = make_plan(config_of(folder, tmp_path / "out"))
    (plan.folder / "filter").mkdir(parents=True)
    whole = list(inputs(plan, 0))
    assert len(whole) == 3
    _add_skip(plan, TASK, 0, "extract_crash")
    assert list(inputs(plan, 0)) == whole
    _add_skip(plan, TASK, 2, "read_timeout")
    name = plan.shards[0].files[0][1]
    assert list(inputs(plan, 0)) == [*whole[:2], Document(text="", id=name, source=name)]
    pulse = KeptPulse()
    list(inputs(plan, 0, pulse=pulse))
    assert pulse.numbers == [0, 1, RESTING]


class KeptPulse(Pulse):
    """Keeps what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = list[int]()

    def read(self, number: int) -> None:
        self.numbers.append(number)

    def rest(self) -> None:
        self.numbers.append(RESTING)


@pytest.mark.slow
def test_worker_that_stands_still_at_reading_is_ended(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOSTILE)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), before])))
    write_lines(tmp_path / "in" / "0.jsonl", ["good", "STALL"])
    plan = make_plan(config_of(tmp_path / "in" / "0.jsonl", tmp_path / "new"))
    plan.folder.mkdir()
    write_plan(plan)
    worker = Worker(plan.folder, os.getcwd())
    order = Order(task=TASK, attempt="1")
    watch: Any = {"max_bytes": 1 << 40, "is_stopped": lambda: False}
    try:
        ended = worker.do(order, silence=3.0, **watch)
    finally:
        worker.close()
    assert isinstance(ended, Death)
    assert (ended.cause, ended.is_certain, ended.beat.step) == ("timeout", True, READ)
    assert (ended.beat.first, ended.beat.last) == (1, 1)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not say")
def test_bytes_that_are_read_are_progress(tmp_path: Path) -> None:
    before = _bytes_read(os.getpid())
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    path.read_bytes()
    assert _bytes_read(os.getpid()) >= before + 100_000
    # Of what the system says nothing, each look is progress.
    assert _bytes_read(-1) < _bytes_read(-1)


def test_exception_of_a_task_is_the_run_s(plan: Plan) -> None:
    worker: Any = ScriptedWorker(Failure(ValueError("not so"), "trace"))
    with pytest.raises(ValueError, match="not so"):
        do_task(plan, TASK, worker)


def test_what_an_attempt_left_is_removed(plan: Plan) -> None:
    class Leaving(ScriptedWorker):
        def do(self, order: Order, **watch: object) -> Answer | Death:
            (plan.folder / "filter" / f"00000.jsonl.zst.tmp.{order.attempt}").write_text("x")
            if not self.outcomes:
                raise StoppedError
            return super().do(order, **watch)

    worker: Any = Leaving(death(1, 1))
    with pytest.raises(StoppedError):
        do_task(plan, TASK, worker)
    assert not list(plan.folder.rglob("*.tmp.*"))


def spin(program: str) -> int:
    head = (
        "import tempfile, resource\n"
        "from rslm.data.pipeline.pulse import N_BYTES, Pulse\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "file = tempfile.TemporaryFile()\n"
        "file.truncate(N_BYTES)\n"
        "pulse = Pulse(file.fileno(), 1.0)\n"
        "def spin(seconds):\n"
        "    import time\n"
        "    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\n"
    )
    return subprocess.run([sys.executable, "-c", head + program], timeout=60).returncode


def test_kernel_ends_what_takes_too_long() -> None:
    assert spin("pulse.beat(0, 0, 'a')\nspin(9)") == -signal.SIGXCPU


def test_beats_and_rests_give_time_anew() -> None:
    assert (
        spin("for i in range(3):\n  pulse.beat(i, i, 'a')\n  spin(.8)\npulse.rest()\nspin(2)") == 0
    )
