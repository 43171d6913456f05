"""HumanEval: completions of functions, judged by the tests of each problem in the sandbox.

Source: Chen et al. 2021 (arXiv:2107.03374): 164 problems, completions cut at the stop
sequences of section 2.1, and its pass@k. We differ in how a test runs: not behind the
completion in its process, but in another one, on helper functions of the prompt's own
(`rslm.evaluate.sandbox`). So what a function returns must be plain data, which the answers to
all problems are.
"""

import time
from collections.abc import Sequence

from rslm.evaluate.choice import Progress
from rslm.evaluate.example import Example
from rslm.evaluate.few_shot import begin_ids, choose_examples
from rslm.evaluate.generation import GenerationOptions, respond, result_of
from rslm.evaluate.prompts import BuiltPrompt
from rslm.evaluate.results import TaskResult
from rslm.evaluate.sandbox import Program, SandboxResult, run_all
from rslm.evaluate.task_files import CodeProblem
from rslm.infer.engine import Engine

STOP_SEQUENCES = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""A completion ends where one of these begins: a line outside the function."""
MEMORY_BYTES = 1 << 30


def truncate_completion(completion: str, stop_sequences: Sequence[str] = STOP_SEQUENCES) -> str:
    r"""What stands in front of the first stop sequence.

    >>> truncate_completion("    return 1\n\ndef g():")
    '    return 1\n'
    """
    ends = (completion.find(stop) for stop in stop_sequences)
    return completion[: min((end for end in ends if end >= 0), default=len(completion))]


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


def evaluate_humaneval(
    problems: Sequence[CodeProblem],
    engine: Engine,
    options: GenerationOptions,
    *,
    max_examples: int | None = None,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """The share of completions that pass the tests of their problem, in the sandbox.

    In `details` what came of the others. The prompt is the head of the function as it is, behind
    end of text.

    Raises:
        OSError: the sandbox cannot be closed here; nothing that was written is run.
    """
    started = time.perf_counter()
    chosen = [problems[number] for number in choose_examples(len(problems), max_examples)]
    tokenizer = engine.tokenizer

    def build(example: Example, n_dropped: int) -> BuiltPrompt:
        token_ids = begin_ids(tokenizer) + tokenizer.encode_ordinary(example.prompt)
        return BuiltPrompt(token_ids, STOP_SEQUENCES, (), keep_stop=False)

    # By its name and not its place: whichever are asked, its draws are the same.
    numbers = {problem.task_id: number for number, problem in enumerate(problems)}
    examples = [Example(numbers[one.task_id], one.prompt, one.solution) for one in chosen]
    responses = respond(engine, examples, build, options, progress=progress)
    repeated = [problem for problem in chosen for _ in range(options.n_samples)]
    texts = [one.text for own in responses.completions for one in own]
    statuses = [result.status for result in evaluate_code(repeated, texts)]
    passed = [float(status == "passed") for status in statuses]
    n = options.n_samples
    result = result_of(
        "humaneval",
        {"accuracy": [passed[i : i + n] for i in range(0, len(passed), n)]},
        responses,
        n_shots=0,
        n_unparsed=0,
        started=started,
    )
    result.details.update({status: statuses.count(status) for status in sorted(set(statuses))})
    return result
