"""HumanEval on a miniature of its file: what passes, what does not, and rewards for a task."""

import gzip
import json
from pathlib import Path

import pytest

from rslm.evaluate import humaneval
from rslm.evaluate.humaneval import (
    code_of_response,
    code_task,
    count_passes,
    evaluate_code,
    truncate_completion,
)
from rslm.evaluate.sandbox import check_sandbox
from rslm.evaluate.task_files import CodeProblem, load_humaneval

# The tests' own bound against a machine that is busy.
LONG = 120.0

ADD = CodeProblem(
    "Mini/0",
    'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """ The sum. """\n',
    "add",
    "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert add(-1, 1) == 0\n",
    "    return a + b\n",
)
# As in three problems of HumanEval, the test calls a helper that the prompt defines.
DECODE = CodeProblem(
    "Mini/1",
    "def encode(text: str) -> str:\n    return text[::-1]\n\n\n"
    'def decode(text: str) -> str:\n    """ Undoes encode. """\n',
    "decode",
    "METADATA = {}\n\n\ndef check(candidate):\n"
    "    for text in ['', 'a', 'abc']:\n        assert candidate(encode(text)) == text\n",
    "    return text[::-1]\n",
)
LENGTHS = CodeProblem(
    "Mini/2",
    'def lengths(words: list) -> dict:\n    """ Word -> length. """\n',
    "lengths",
    "def check(candidate):\n    assert candidate(['a', 'bc']) == {'a': 1, 'bc': 2}\n"
    "    assert candidate([]) == {}\n",
    "    return {word: len(word) for word in words}\n",
)
PROBLEMS = [ADD, DECODE, LENGTHS]


@pytest.fixture(scope="module")
def walls() -> None:
    try:
        check_sandbox()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text("".join(json.dumps(record(problem)) + "\n" for problem in PROBLEMS))
    return path


def record(problem: CodeProblem) -> dict[str, str]:
    return {
        "task_id": problem.task_id,
        "prompt": problem.prompt,
        "entry_point": problem.entry_point,
        "canonical_solution": problem.solution,
        "test": problem.test,
    }


def statuses(problems: list[CodeProblem], completions: list[str]) -> list[str]:
    results = evaluate_code(problems, completions, timeout_seconds=LONG, n_workers=2)
    return [result.status for result in results]


def test_solutions_pass_and_others_do_not(walls: None) -> None:
    assert statuses(PROBLEMS, [problem.solution for problem in PROBLEMS]) == ["passed"] * 3
    assert statuses(PROBLEMS, ["    pass\n"] * 3) == ["failed"] * 3
    assert statuses([ADD] * 3, ["    return a - b", "    return a +", ""]) == ["failed"] * 3


def test_completion_cannot_change_what_tests_call(walls: None) -> None:
    cheat = "    return text\n\nencode = lambda text: text\n"
    assert statuses([DECODE], [cheat]) == ["failed"]
    early = "    pass\nimport sys\nsys.exit(0)\n"
    assert statuses([DECODE], [early]) == ["failed"]


def test_counts_of_samples(walls: None) -> None:
    problems = [ADD, ADD, ADD, LENGTHS]
    completions = ["    return a + b", "    return 0", "    return b + a\ndef f(:", "    return {}"]
    results = evaluate_code(problems, completions, timeout_seconds=LONG)
    assert count_passes(problems, results) == {"Mini/0": (3, 2), "Mini/2": (1, 0)}


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="as many as problems, got 1 and 3"):
        evaluate_code(PROBLEMS, [""])


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 1\n", "    return 1\n"),
        ("    return 1\n\n\ndef g():\n    pass", "    return 1\n\n"),
        ("    x = 1\n    if x:\n        print(x)\n    # c\n    return x", None),
        ("    return 1\n#", "    return 1"),
        ("    return 1\nprint(1)\nclass A: pass", "    return 1"),
        ("\nif True: pass", ""),
        ("", ""),
    ],
)
def test_completion_is_cut_outside_the_function(completion: str, kept: str | None) -> None:
    assert truncate_completion(completion) == (completion if kept is None else kept)


def test_code_is_found_in_responses() -> None:
    body = "def add(a, b):\n    return a + b"
    whole = f"{ADD.prompt}\n\n{body}\n"
    for response in [
        f"Here:\n```python\n{body}\n```\nThat is all.",
        f"```\n{body}\n```",
        f"```py\nprint(1)\n```\nor\n```python\n{body}\n```\nuse\n```python\nadd(1, 2)\n```",
        f"```python\ndef add(a, b): pass\n```\nBetter:\n```Python3\n{body}\n```",
        f"```python\n{body}",
        body,
    ]:
        assert code_of_response(response, ADD) == whole, response
    assert code_of_response("    return a + b\n\ndef f(): pass", ADD) == (
        f"{ADD.prompt}    return a + b\n"
    )
    assert code_of_response("```python\nadd = lambda a, b: a + b\n```", ADD) is not None
    assert code_of_response("```python\nprint(1)\n```", ADD) is None
    assert code_of_response("```python\ndef add_up(a, b): pass\n```", ADD) is None


def test_code_is_found_in_linear_time() -> None:
    assert code_of_response("```python\n" * 100_000, ADD) is None
    assert code_of_response("`" * 1_000_000, ADD) is not None
    assert code_of_response("def " * 300_000 + "\n" * 300_000, ADD) is not None


def test_task_rewards_code_that_passes(walls: None, file: Path, monkeypatch) -> None:
    monkeypatch.setattr(humaneval, "is_for_test", lambda prompt: prompt == LENGTHS.prompt)
    task = code_task(file, timeout_seconds=LONG)
    assert [example.prompt for example in task.train] == [ADD.prompt, DECODE.prompt]
    assert [example.prompt for example in task.test] == [LENGTHS.prompt]
    for example in [*task.train, *task.test]:
        assert example.answer is not None
        grade = task.grade(example.answer, example)
        assert (grade.reward, grade.format_reward, grade.reason) == (1.0, 1.0, "right")
    add = task.train[0]
    for response, reason in {
        "    return a - b": "wrong",
        "```python\nprint('hello')\n```": "no answer",
        "    import ctypes\n    ctypes.string_at(8)": "crash",
        "    return bytearray(10 << 30)": "crash",
        "    while True: print('x' * 10000)": "wrong",
    }.items():
        grade = task.grade(response, add)
        assert (grade.reward, grade.answer_reward, grade.reason) == (0.0, 0.0, reason)
        assert grade.format_reward == float(reason != "no answer")
    assert task.grade(None, add).reason == "no answer"
    hasty = code_task(file, timeout_seconds=0.2)
    assert hasty.grade("    while True: pass", add).reason == "timeout"


def test_task_divides_by_the_problem_alone(walls: None, tmp_path: Path) -> None:
    def divide(numbers: list[int]) -> tuple[set[str], set[str]]:
        path = tmp_path / "HumanEval.jsonl.gz"
        lines = [json.dumps({**record(ADD), "prompt": f"# {i}\n{ADD.prompt}"}) for i in numbers]
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        task = code_task(path)
        return {e.prompt for e in task.train}, {e.prompt for e in task.test}

    train, test = divide([*range(40)])
    assert len(train) + len(test) == 40
    assert 2 <= len(test) <= 16
    again = divide([*range(39, -1, -1)])
    assert again == (train, test)


def test_equal_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text((json.dumps(record(ADD)) + "\n") * 2)
    with pytest.raises(ValueError, match="every prompt once"):
        code_task(path)
    assert len(load_humaneval(path)) == 2
