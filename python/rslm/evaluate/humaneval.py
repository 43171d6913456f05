"""HumanEval: completions of functions, judged by the tests of each problem in the sandbox.

Source: Chen et al. 2021 (arXiv:2107.03374): 164 problems, completions cut at the stop
sequences of section 2.1, pass@k of section 2.1 from the counts (n, c) of `count_passes`. We
differ in how a test runs: not behind the completion in its process, but in another one, on
helper functions of the prompt's own (`rslm.evaluate.sandbox`). So what a function returns must
be plain data, which the answers to all problems are.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from rslm.evaluate.drawn import is_for_test
from rslm.evaluate.example import Example, Grade
from rslm.evaluate.sandbox import Program, SandboxResult, check_sandbox, run_all, run_untrusted
from rslm.evaluate.task_files import CodeProblem, load_humaneval
from rslm.evaluate.tasks import Task

STOP_SEQUENCES = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""A completion ends where one of these begins: a line outside the function."""
MEMORY_BYTES = 1 << 30
# Of a fenced block of Markdown that says Python or nothing, what is in it.
_FENCE = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)


def truncate_completion(completion: str, stop_sequences: Sequence[str] = STOP_SEQUENCES) -> str:
    r"""What stands in front of the first stop sequence.

    >>> truncate_completion("    return 1\n\ndef g():")
    '    return 1\n'
    """
    ends = (completion.find(stop) for stop in stop_sequences)
    return completion[: min((end for end in ends if end >= 0), default=len(completion))]


def code_of_response(response: str, problem: CodeProblem) -> str | None:
    """The program that a chat's response makes of a problem, or None where there is no code.

    It is the last fenced block that defines the function, behind the prompt, whose imports and
    helpers it may use. A response without a fence is such a block itself, or goes on where the
    prompt ends, as a completion does.
    """
    name = re.escape(problem.entry_point)
    head = re.compile(rf"^(?:(?:async[ \t]+)?def[ \t]+{name}\b|{name}[ \t]*=)", re.MULTILINE)
    blocks = [match.group(1) for match in _FENCE.finditer(response)]
    defining = [block for block in blocks or [response] if head.search(block)]
    if defining:
        return f"{problem.prompt}\n\n{defining[-1]}\n"
    return None if blocks else problem.prompt + truncate_completion(response)


def judging_text(problem: CodeProblem) -> str:
    """The text that judges a program: the prompt, whose helpers tests call, and the tests."""
    name = problem.entry_point
    return f"{problem.prompt}\n\n{name} = program.{name}\n{problem.test}\n\ncheck({name})\n"


def evaluate_code(
    problems: Sequence[CodeProblem],
    completions: Sequence[str],
    *,
    n_workers: int | None = None,
    timeout_seconds: float = 10.0,
    memory_bytes: int = MEMORY_BYTES,
    unsafe: bool = False,
) -> list[SandboxResult]:
    """What came of each completion of the problem beside it; several run at once.

    Completions continue the prompt and are cut at `STOP_SEQUENCES`.

    Raises:
        ValueError: there are not as many completions as problems.
        OSError: the sandbox cannot be closed here; nothing was run.
    """
    if len(problems) != len(completions):
        raise ValueError(
            f"completions must be as many as problems, got {len(completions)} and {len(problems)}"
        )
    programs = [
        Program(problem.prompt + truncate_completion(completion), judging_text(problem))
        for problem, completion in zip(problems, completions, strict=True)
    ]
    return run_all(
        programs,
        n_workers=n_workers,
        timeout_seconds=timeout_seconds,
        memory_bytes=memory_bytes,
        unsafe=unsafe,
    )


def count_passes(
    problems: Sequence[CodeProblem], results: Sequence[SandboxResult]
) -> dict[str, tuple[int, int]]:
    """Of each task_id how many samples there were, and how many passed: the n and c of pass@k.

    A problem that was sampled n times stands n times in `problems`, as in `evaluate_code`.
    """
    counts: dict[str, tuple[int, int]] = {}
    for problem, result in zip(problems, results, strict=True):
        n, c = counts.get(problem.task_id, (0, 0))
        counts[problem.task_id] = (n + 1, c + (result.status == "passed"))
    return counts


def code_task(source: Path, *, timeout_seconds: float = 10.0, unsafe: bool = False) -> Task:
    """The task of completing functions, from a file of HumanEval's form.

    A hash of the problem decides whether it is to train or to test on. A response is marked in
    the sandbox: "right", "wrong", "timeout", "crash" (memory and signals too), or "no answer"
    where none of its fenced blocks defines the function; only then is the format wrong.

    Raises:
        OSError: there is nothing at `source`, or the sandbox cannot be closed here.
        ValueError: a line is no problem, or two problems have the same prompt.
    """
    all_problems = load_humaneval(source)
    problems = {problem.prompt: problem for problem in all_problems}
    if len(problems) != len(all_problems):
        raise ValueError(f"{source} must hold every prompt once")
    check_sandbox(unsafe=unsafe)

    def grade(response: str | None, example: Example) -> Grade:
        problem = problems[example.prompt]
        code = None if response is None else code_of_response(response, problem)
        if code is None:
            return Grade(0.0, 0.0, 0.0, "no answer")
        result = run_untrusted(
            code,
            test=judging_text(problem),
            timeout_seconds=timeout_seconds,
            memory_bytes=MEMORY_BYTES,
            unsafe=unsafe,
        )
        passed = float(result.status == "passed")
        return Grade(passed, 1.0, passed, _REASONS[result.status])

    train = [problem for problem in all_problems if not is_for_test(problem.prompt)]
    test = [problem for problem in all_problems if is_for_test(problem.prompt)]
    return Task("code", _examples(train), _examples(test), grade)


_REASONS = {
    "passed": "right",
    "failed": "wrong",
    "output": "wrong",
    "timeout": "timeout",
    "memory": "crash",
    "killed": "crash",
}


def _examples(problems: Sequence[CodeProblem]) -> tuple[Example, ...]:
    return tuple(
        Example(number, problem.prompt, problem.solution, _worked_answer(problem))
        for number, problem in enumerate(problems)
    )


def _worked_answer(problem: CodeProblem) -> str:
    return f"```python\n{problem.prompt}{problem.solution.rstrip()}\n```"
