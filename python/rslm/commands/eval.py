"""`rslm eval`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rslm.commands.inputs import Files
from rslm.terminal import note, print_table

if TYPE_CHECKING:
    from rslm.evaluate.results import TaskResult
    from rslm.evaluate.suite import Watch
    from rslm.evaluate.task_plan import EvalSettings, PlannedTask


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure models on tasks, several models side by side."""

    runs: Files
    """Run or model folders."""
    tasks: tuple[str, ...] = ()
    """Names: core or one of its tasks, mmlu, mmlu_text, gsm8k, svamp, humaneval, arithmetic and
    others that need no data, FILE.jsonl, loss:TOKEN_FILE, text:FILE."""
    suite: Literal["offline", "procedural"] | None = None
    """Tasks by one name: core, mmlu and gsm8k; or those that need no data."""
    data: Path | None = None
    """Folder that holds core, mmlu, gsm8k and humaneval, as folders or archives."""
    max_examples: int | None = None
    """Questions of each task, always the same ones; all unless given."""
    shots: int | None = None
    """Answered examples before each question; as is usual for the task unless given."""
    batch_size: int = 64
    """Sequences that are computed at once."""
    dialect: Literal["gauntlet", "nanochat"] = "gauntlet"
    """How prompts are made: as llm-foundry does, or as nanochat."""
    baselines: Literal["v1", "v2"] = "v2"
    """DCLM's table that CORE is centred by; nanochat's scores are by v1."""
    prompt: Literal["chat", "r1_zero", "r1_zero_three_shot", "question_only", "plain"] | None = None
    """How questions are put that are answered in words; plain, or chat where it fits."""
    n_samples: int = 1
    """Answers to each such question, for pass@k."""
    temperature: float = 0.0
    """That they are drawn at."""
    max_new_tokens: int = 256
    """Tokens of such an answer, at most."""
    seed: int = 0
    """Of draws, and of tasks that make their problems."""
    name: str | None = None
    """Of the record RUN/evaluations/NAME.json; that of the suite, or tasks, unless given."""
    json: Path | None = None
    """File to write all results to."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU when there is one."""


def eval(options: EvalOptions) -> None:
    """Prints the table; what a run's folder has already is not measured again."""
    _check(options)
    from rslm.evaluate.results import finite
    from rslm.evaluate.suite import scores_over_tasks, table_of
    from rslm.evaluate.task_plan import EvalSettings, plan_tasks
    from rslm.files import require_place, write_atomically
    from rslm.infer.load import require_config

    if options.json is not None:
        require_place(options.json)
    settings = EvalSettings(
        **{name: getattr(options, name) for name in EvalSettings.__dataclass_fields__}
    )
    specs = [*([options.suite] if options.suite else []), *options.tasks]
    planned = plan_tasks(specs, settings)
    for run in options.runs:
        require_config(run)
    results = {run: _evaluate(run, planned, options, settings) for run in options.runs}
    names = [run.resolve().name for run in options.runs]
    print_table(*table_of(names, list(results.values()), options.baselines))
    if options.json is not None:
        record = {
            str(run): {
                "tasks": [result.record() for result in of_run],
                "scores": scores_over_tasks(of_run, options.baselines),
            }
            for run, of_run in results.items()
        }
        write_atomically(options.json, json.dumps(finite(record), indent=1).encode())


def _check(options: EvalOptions) -> None:
    if not options.runs:
        raise ValueError("runs must name at least one run or model folder, got none")
    if len(set(options.runs)) < len(options.runs):
        raise ValueError("runs must name each folder once")
    if options.suite is None and not options.tasks:
        raise ValueError("one of suite and tasks must be given")
    if options.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {options.batch_size}")
    if options.name is not None and Path(options.name).name != options.name:
        raise ValueError(f"name must be that of a file without folders, got {options.name!r}")


def _evaluate(
    run: Path, planned: "list[PlannedTask]", options: EvalOptions, settings: "EvalSettings"
) -> "list[TaskResult]":
    from rslm.evaluate.evaluations import FOLDER, EvaluationRecord, ModelIdentity
    from rslm.evaluate.suite import run_tasks, scores_over_tasks
    from rslm.evaluate.task_plan import Examinee
    from rslm.infer.load import load_chat_format, load_run

    model, tokenizer = load_run(run, device=options.device)
    chat_format = load_chat_format(run, tokenizer)
    path = run / FOLDER / f"{options.name or options.suite or 'tasks'}.json"
    asked = {name: value for name, value in asdict(settings).items() if name != "data"}
    kept = EvaluationRecord(path, ModelIdentity.of(model, tokenizer), asked)
    n_kept = sum(kept.find(task.name, task.options) is not None for task in planned)
    if n_kept:
        note(f"{path} has {n_kept} of {len(planned)} results already")
    examinee = Examinee(model, tokenizer, chat_format=chat_format, batch_size=options.batch_size)
    name = run.resolve().name if len(options.runs) > 1 else ""
    with shown_progress(name) as watch:
        results = run_tasks(examinee, planned, kept=kept, watch=watch)
    kept.write(scores_over_tasks(results, options.baselines))
    return results


@contextmanager
def shown_progress(run: str) -> "Iterator[Watch]":
    """What to tell of tasks: a bar with rate and time left on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda name: lambda done, n: None
        return
    # Imported here: a program that shows no bar should not pay for it.
    from rich import progress as rich
    from rich.console import Console

    columns = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeRemainingColumn(),
    ]
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:

        def watch(name: str) -> Callable[[int, int], object]:
            started = time.monotonic()
            bar = bars.add_task(f"{run} {name}".strip(), total=None, rate="")

            def show(done: int, n: int) -> None:
                rate = done / max(time.monotonic() - started, 1e-9)
                bars.update(bar, completed=done, total=n, rate=f"{rate:,.1f}/s")

            return show

        yield watch
