"""HumanEval as a task: functions that the model completes, judged by their tests."""

import time
from collections.abc import Sequence

from rslm.evaluate.choice import Progress
from rslm.evaluate.example import Example
from rslm.evaluate.few_shot import begin_ids, choose_examples
from rslm.evaluate.generation import GenerationOptions, respond, result_of
from rslm.evaluate.humaneval import STOP_SEQUENCES, evaluate_code
from rslm.evaluate.prompts import BuiltPrompt
from rslm.evaluate.results import TaskResult
from rslm.evaluate.task_files import CodeProblem
from rslm.infer.engine import Engine


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
        {"passed": [passed[i : i + n] for i in range(0, len(passed), n)]},
        responses,
        n_shots=0,
        n_unparsed=0,
        started=started,
    )
    result.details.update({status: statuses.count(status) for status in sorted(set(statuses))})
    return result
