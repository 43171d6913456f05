"""The evaluation of a model on tasks, one after the other, and scores over several of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from rslm.evaluate.choice import Progress
from rslm.evaluate.core import BaselineVersion, core_score
from rslm.evaluate.evaluations import EvaluationRecord
from rslm.evaluate.results import TaskResult, notes
from rslm.evaluate.task_plan import EvalSettings, Examinee, PlannedTask, plan_tasks
from rslm.model import Transformer
from rslm.terminal import readable
from rslm.tokenizer import Tokenizer

Watch = Callable[[str], Progress]
"""Told the name of a task that begins; what to tell of its progress."""


def evaluate_tasks(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    settings: EvalSettings | None = None,
    *,
    batch_size: int = 64,
) -> list[TaskResult]:
    """The results of tasks by their names, see `task_plan`; nothing is written.

    Raises:
        ValueError: there is no such task, or a file does not hold what it must.
        FloatingPointError: the model's logits are no numbers.
    """
    planned = plan_tasks(tasks, settings or EvalSettings())
    return run_tasks(Examinee(model, tokenizer, batch_size=batch_size), planned)


def run_tasks(
    examinee: Examinee,
    planned: Sequence[PlannedTask],
    *,
    kept: EvaluationRecord | None = None,
    watch: Watch = lambda name: lambda done, n: None,
) -> list[TaskResult]:
    """The results of planned tasks; those that are kept are not evaluated again.

    Args:
        examinee: the model.
        planned: the tasks.
        kept: gives the results that are there, and takes each new one as soon as it is.
        watch: told which task begins.
    """
    results = []
    for task in planned:
        result = None if kept is None else kept.find(task.name, task.options)
        if result is None:
            result = task.run(examinee, watch(task.name))
            if kept is not None:
                kept.add(result, task.options)
        results.append(result)
    return results


def scores_over_tasks(
    results: Sequence[TaskResult], version: BaselineVersion
) -> dict[str, dict[str, Any]]:
    """CORE-18 or CORE, where its tasks are there; what else a task gives with a standard error."""
    scores: dict[str, dict[str, Any]] = {}
    of_tasks = {
        result.name: (result.value, math.inf if result.stderr is None else result.stderr)
        for result in results
        if result.metric == "accuracy"
    }
    core = core_score(of_tasks, version)
    if core is not None:
        scores[core.name] = {
            "task": core.name,
            "metric": "centred",
            "value": core.value,
            "stderr": core.stderr,
            "baselines": core.version,
            "centred": core.centred,
        }
    for result in results:
        for key, value in result.details.items():
            if f"{key}_stderr" in result.details:
                scores[f"{result.name}, {key}"] = {
                    "task": result.name,
                    "metric": key,
                    "value": value,
                    "stderr": result.details[f"{key}_stderr"],
                }
    return scores


def table_of(
    models: Sequence[str], results: Sequence[Sequence[TaskResult]], version: BaselineVersion
) -> tuple[list[str], list[list[Any]]]:
    """Header and rows: a task a row, a column of scores with standard errors for each model."""
    rows: list[list[Any]] = []
    for of_task in zip(*results, strict=True):
        first = of_task[0]
        values = [_with_error(result.value, result.stderr) for result in of_task]
        said = list(dict.fromkeys(filter(None, map(notes, of_task))))
        rows.append(
            [first.name, first.metric, *values, f"{first.n:,}", first.n_shots, "; ".join(said)]
        )
    over = [scores_over_tasks(of_model, version) for of_model in results]
    for name, score in over[0].items():
        values = [_with_error(scores[name]["value"], scores[name]["stderr"]) for scores in over]
        by = f"baselines {score['baselines']}" if "baselines" in score else ""
        rows.append([score["task"], score["metric"], *values, "", "", by])
    return ["task", "metric", *models, "n", "shots", "notes"], rows


def _with_error(value: float, stderr: float | None) -> str:
    if stderr is None or not math.isfinite(stderr):
        return readable(value)
    return f"{value:.3f} ± {stderr:.3f}"
