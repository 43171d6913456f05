"""The full demo in miniature: its texts, its parts, and going on after a kill in each of them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.demo.chain import DemoOptions, recall
from rslm.demo.text import SORTING, TASK, careless_sum, pupil_chats, worked_documents
from rslm.evaluate.example import Example
from rslm.evaluate.tasks import open_task

ARGUMENTS = ["demo", "--full", "--corpus", "corpus.txt", "--n-steps", "3", "--vocab-size", "300"]

# A model of some thousand numbers is never right. What it learns is not what is tested: so what
# answers to it is decided by their length.
MINIATURE = """
import sys
from rslm.demo import chain, full
from rslm.cli import main

read = chain.read_preset

def small(name):
    record = read(name)
    record["model"] |= {"d_model": 16, "n_layers": 1, "n_heads": 1, "context_length": 64}
    return record | {"batch_size": 2}

chain.read_preset = small
full.WORKED_BYTES = 20_000
full.mark = lambda task, answer: float(sum(answer.token_ids) % 2)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_worked_documents_are_right_and_hold_no_question_of_the_test() -> None:
    task = open_task(TASK)
    held_out = {example.prompt for example in (*task.test, *open_task(SORTING).test)}
    documents = worked_documents(task, 40_000, seed=3)
    assert sum(map(len, documents)) >= 40_000
    lines = "".join(documents).splitlines()
    questions = [i for i, line in enumerate(lines) if line.endswith(" =")]
    assert len(questions) > 500
    for place in questions:
        first, plus, second, _ = lines[place].split()
        answer = next(line for line in lines[place:] if line.startswith("####"))
        assert (plus, answer) == ("+", f"#### {int(first) + int(second)}")
        assert lines[place] not in held_out
    for place, line in enumerate(lines):
        if line.startswith("Sort "):
            assert line not in held_out
            assert lines[place + 1].split() == sorted(line.split()[1:])
    assert documents == worked_documents(task, 40_000, seed=3)
    assert documents != worked_documents(task, 40_000, seed=4)


@given(st.integers(0, 999), st.integers(0, 999))
def test_careless_sum_without_a_mistake_is_the_worked_answer(a: int, b: int) -> None:
    worked = careless_sum(a, b, lambda n: n - 1)
    assert worked.endswith(f"#### {a + b}")
    *columns, _ = worked.splitlines()
    assert all(sum(map(int, left.split("+"))) == int(right) for left, right in halves(columns))


def halves(columns: list[str]) -> list[list[str]]:
    return [column.split("=") for column in columns]


def test_careless_sum_forgets_and_slips_as_it_is_told() -> None:
    # Each column asks for a number below 100 whether to forget, if there is a carry, and whether
    # to slip, then which way.
    assert careless_sum(47, 85, iter_below(99, 0, 99)) == "7+5=12\n4+8=12\n#### 122"
    assert careless_sum(47, 85, iter_below(0, 1, 99, 99)) == "7+5=13\n4+8+1=13\n#### 133"
    assert careless_sum(0, 0, iter_below(0, 0)) == "0+0=0\n#### 0"
    assert careless_sum(99, 1, iter_below(99, 0, 0, 1)) == "9+1=10\n9+0=10\n#### 100"


def iter_below(*numbers: int) -> Any:
    remaining = iter(numbers)
    return lambda n: next(remaining)


def test_pupil_is_mostly_wrong_where_something_is_carried() -> None:
    task = open_task(TASK)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for question, answer in pupil_chats(task, 3_000, seed=0):
        if question["content"].endswith("="):
            first, _, second, _ = question["content"].split()
            gold = Example(0, question["content"], str(int(first) + int(second)))
            carries = int(first[-1]) + int(second[-1]) > 9
            right[carries].append(task.grade(answer["content"], gold).reward == 1)
    assert 0.05 < sum(right[True]) / len(right[True]) < 0.25
    assert 0.55 < sum(right[False]) / len(right[False]) < 0.75
    held_out = {example.prompt for example in task.test}
    chats = list(pupil_chats(task, 3_000, seed=0))
    assert not held_out & {question["content"] for question, _ in chats}
    assert chats == list(pupil_chats(task, 3_000, seed=0))


def test_pupil_chats_take_turns() -> None:
    task = open_task(TASK)
    chats = list(pupil_chats(task, 300, seed=1, max_exchanges=3))
    assert {len(chat) for chat in chats} == {2, 4, 6}
    for chat in chats:
        assert [message["role"] for message in chat] == ["user", "assistant"] * (len(chat) // 2)
    # One exchange is one, whatever may follow.
    assert all(len(chat) == 2 for chat in pupil_chats(task, 50, seed=1))


def test_full_demo_that_was_stopped_at_its_first_file_is_known_as_such(tmp_path: Path) -> None:
    (tmp_path / "x" / "base").mkdir(parents=True)
    assert recall(DemoOptions(out=tmp_path / "x", resume=True)).full
    (tmp_path / "y").mkdir()
    assert not recall(DemoOptions(out=tmp_path / "y", resume=True)).full


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of sixty documents, and the demo in miniature."""
    document = "def f{0}(value):\n    return value + {0}\n\n"
    texts = ("".join(document.format(i * j) for i in range(30)) for j in range(60))
    (tmp_path / "corpus.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "miniature.py").write_text(MINIATURE)
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "miniature.py", *arguments, "--n-threads", "1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def weights(run_folder: Path) -> str:
    checkpoint = max((run_folder / "checkpoints").glob("step_*"), key=lambda path: path.name)
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_full_demo_compares_four_models(folder: Path) -> None:
    done = run(folder, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / "demo-full"
    scores = json.loads((out / "evaluation.json").read_text())
    assert list(scores) == ["base", "sft", "dpo", "rl"]
    assert json.loads((out / "seconds.json").read_text()).keys() == scores.keys()
    assert all(name in done.stdout for name in scores)
    assert (out / "curves.png").stat().st_size > 10_000
    assert "What to try next" in done.stderr
    # What is said to be tried next works, and what is finished stays.
    made_at = {name: (out / name / "metrics.jsonl").stat().st_mtime_ns for name in scores}
    again = run(folder, "demo", "--full", "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert {name: (out / name / "metrics.jsonl").stat().st_mtime_ns for name in scores} == made_at
    refused = run(folder, "demo", "--full", "--resume", "--seed", "3")
    assert refused.returncode == 2
    assert "seed must stay 0" in refused.stderr
    refused = run(folder, *ARGUMENTS, "--out", str(out))
    assert refused.returncode == 2
    assert "add --resume to go on with it" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_demo_killed_in_each_part_comes_to_the_same_end(folder: Path) -> None:
    whole = run(folder, *ARGUMENTS, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    killed = ["base", "sft", "dpo", "rl"]
    arguments = [*ARGUMENTS, "--out", "x"]
    for name in killed:
        kill_when(folder, arguments, folder / "x" / name / "metrics.jsonl")
        arguments = ["demo", "--resume", "--out", "x"]
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    for name in killed:
        assert weights(folder / "x" / name) == weights(folder / "whole" / name), name
    assert done.stdout == whole.stdout


def kill_when(folder: Path, arguments: list[str], metrics: Path) -> None:
    """Starts the demo and kills it once this file has something in it."""
    command = [sys.executable, "miniature.py", *arguments, "--n-threads", "1"]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, cwd=folder, stdout=nowhere, stderr=nowhere)
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.exists(), f"the demo ended before {metrics.parent.name}"
