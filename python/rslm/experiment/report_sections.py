"""The sections of a report on runs: summary, curves, table, configuration, samples."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from rslm.experiment.report_cells import (
    MISSING,
    amount,
    flops,
    four_digits,
    number_cell,
    text_cell,
    whole,
)
from rslm.experiment.report_runs import AXES, RunView
from rslm.html_report.blocks import (
    Cell,
    Curves,
    Fact,
    Facts,
    Line,
    Notes,
    Section,
    Table,
    Texts,
    Tone,
)
from rslm.series import duration
from rslm.terminal import readable

CURVES = {
    "validation loss (nats)": ("val_loss",),
    "training loss (nats)": ("loss",),
    "both losses (nats)": ("loss", "val_loss"),
    "bits per byte": ("val_bits_per_byte",),
    "learning rate": ("learning_rate",),
    "norm of the gradients": ("grad_norm",),
    "tokens per second": ("tokens_per_second",),
}
"""What the reader may choose to see, and the metrics drawn for it."""

ROUGH = ("loss", "grad_norm", "tokens_per_second")

SCORES = {
    "loss": "a training loss of",
    "best_val_loss": "a validation loss of",
    "best_bits_per_byte": "bits per byte of",
}
"""What runs are ranked by, in words."""

MAX_SAMPLED = 12
"""Runs whose samples are shown."""

MAX_COLUMNS = 8
"""Runs that stand side by side as columns; more stand one below the other."""

_MEANINGS = {
    "status": "finished, running, stopped, diverged, or what the study says of it",
    "parameters": "all of them, embeddings included",
    "FLOPs": "of training so far, forward and backward",
    "time": "the run's own clock, over all its parts",
    "tokens/s": "median over the run, without validation and checkpoints",
    "loss": "training loss of the last step, nats per token",
    "val loss": "last validation, nats per token",
    "best val loss": "lowest validation loss, nats per token",
    "bits/byte": "lowest of a validation; compares runs of different vocabularies",
    "not finite": "steps whose loss or gradients were infinite or no number",
}


def of_runs(views: Sequence[RunView]) -> list[Section]:
    """All sections on runs, the summary first."""
    parts = [summary(views), curves(views), runs(views), configuration(views), samples(views)]
    return [part for part in parts if part is not None]


def score_key(views: Sequence[RunView]) -> str:
    """What runs are ranked by: bits per byte where vocabularies or texts differ, else loss.

    Without a validation anywhere, the training loss.
    """
    validated = [view for view in views if view.numbers["best_val_loss"] is not None]
    if not validated:
        return "loss"
    have_bits = all(view.numbers["best_bits_per_byte"] is not None for view in validated)
    names = ("model.vocab_size", "data.train", "data.valid")
    differ = len({repr([v.options.get(name) for name in names]) for v in validated}) > 1
    return "best_bits_per_byte" if have_bits and differ else "best_val_loss"


def ranked(views: Sequence[RunView]) -> list[RunView]:
    """The runs, the best first; those without a score last."""
    key = score_key(views)

    def rank(view: RunView) -> float:
        value = view.numbers[key]
        return value if value is not None and math.isfinite(value) else math.inf

    return sorted(views, key=rank)


def lead(views: Sequence[RunView]) -> str:
    """What was run, and what is best, in a few sentences."""
    counts = Counter(view.status for view in views)
    states = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    what = f"{len(views)} runs: {states}." if len(views) > 1 else f"One run: {states}."
    best = ranked(views)[0]
    key = score_key(views)
    value = best.numbers[key]
    if value is None:
        return f"{what} None has a loss yet."
    score = f"{SCORES[key]} {value:.4f}"
    if len(views) == 1:
        return f"{what} It came to {score}."
    second = next((v.numbers[key] for v in ranked(views)[1:]), None)
    gap = "" if second is None else f", {second - value:.4f} below the next"
    noise = seed_deviation(views, key)
    spread = f" Seeds alone spread it by {noise:.4f} (standard deviation)." if noise else ""
    return f"{what} Best is {best.name} with {score}{gap}.{spread}"


def seed_deviation(views: Sequence[RunView], key: str) -> float | None:
    """Standard deviation between runs that differ in their seed alone, pooled over groups."""
    groups = [values for _, values in values_by_group(views, key) if len(values) > 1]
    n_free = sum(len(values) - 1 for values in groups)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups)
    return math.sqrt(squares / n_free) if n_free else None


def values_by_group(views: Sequence[RunView], key: str) -> list[tuple[str, list[float]]]:
    """A number of all runs that have it, by what they share but for the seed."""
    groups: dict[str, list[float]] = {view.group: [] for view in views}
    for view in views:
        value = view.numbers[key]
        if value is not None and math.isfinite(value):
            groups[view.group].append(value)
    return list(groups.items())


def summary(views: Sequence[RunView]) -> Section:
    """The numbers that the reader should see first."""
    best = ranked(views)[0]
    numbers = best.numbers
    facts = [Fact(label="Best run", value=best.name, note=f"of {len(views)}")]
    if numbers["best_val_loss"] is not None:
        loss = four_digits(numbers["best_val_loss"])
        note = f"nats per token, at step {numbers['best_step']:,}"
        facts.append(Fact(label="Its validation loss", value=loss, note=note))
    if numbers["best_bits_per_byte"] is not None:
        bits = four_digits(numbers["best_bits_per_byte"])
        facts.append(Fact(label="Its bits per byte", value=bits, note="lower is better"))
    total_flops, n_tokens, seconds = (
        sum(view.numbers[key] or 0 for view in views)
        for key in ("train_flops", "n_tokens", "elapsed_seconds")
    )
    of_all = "of all runs" if len(views) > 1 else "of training"
    facts += [
        Fact(label="Compute", value=flops(total_flops), note=of_all),
        Fact(label="Tokens", value=amount(n_tokens), note=of_all),
        Fact(label="Time", value=duration(seconds), note=f"{of_all}, by their own clocks"),
    ]
    return Section(title="Summary", blocks=[Facts(facts=facts)])


def curves(views: Sequence[RunView]) -> Section | None:
    """All curves; None where no run has a row yet."""
    present = {metric for view in views for metric in view.series}
    metrics = {title: keys for title, keys in CURVES.items() if set(keys) <= present}
    if not metrics:
        return None
    # A single validation is a point, and no curve.
    if all(len(view.series["val_loss"].y) < 2 for view in views if "val_loss" in view.series):
        metrics = dict(sorted(metrics.items(), key=lambda item: item[1] != ("loss",)))
    lines = [Line(name=view.name, group=view.group, series=view.series) for view in views]
    block = Curves(
        caption="Drag to zoom, double-click to see all again; a name below hides its line. "
        "Where steps are too many to draw, the highest and lowest of each stretch stay.",
        axes=AXES,
        metrics=metrics,
        axis="n_tokens",
        rough=ROUGH,
        lines=lines,
    )
    return Section(title="Curves", blocks=[block])


def runs(views: Sequence[RunView]) -> Section:
    """The table of runs, and how far seeds alone spread."""
    groups = list(dict.fromkeys(view.group for view in views))
    order = ranked(views)
    best = order[0]
    rows = [_run_row(view, groups.index(view.group), is_best=view is best) for view in order]
    heads = [row[0] for row in _run_cells(best)]
    shown = [("run", ""), *((head, _MEANINGS.get(head, "")) for head in heads)]
    if all(not view.numbers["n_nonfinite"] for view in views):
        shown, rows = shown[:-1], [row[:-1] for row in rows]
    table = Table(caption="All runs, the best first. A heading sorts.", columns=shown, rows=rows)
    messages = [f"{view.name}: {view.message}" for view in views if view.message]
    ends = [Notes(title="What runs said of their end", notes=messages)] if messages else []
    return Section(title="Runs", blocks=[table, *seeds(views), *ends])


def _run_row(view: RunView, colour: int, *, is_best: bool) -> list[Cell]:
    name = text_cell(view.name, colour=colour)
    cells = [cell for _, cell in _run_cells(view)]
    if not is_best:
        return [name, *cells]
    heads = [head for head, _ in _run_cells(view)]
    place = heads.index("best val loss")
    cells[place] = Cell(value=cells[place].value, text=cells[place].text, tone="good")
    return [name, *cells]


def _run_cells(view: RunView) -> list[tuple[str, Cell]]:
    n = view.numbers
    return [
        ("status", _status(view)),
        ("parameters", number_cell(n["n_parameters"], amount)),
        ("tokens", number_cell(n["n_tokens"], amount)),
        ("FLOPs", number_cell(n["train_flops"], flops)),
        ("time", number_cell(n["elapsed_seconds"], duration)),
        ("tokens/s", number_cell(n["tokens_per_second"], whole)),
        ("loss", number_cell(n["loss"], four_digits)),
        ("val loss", number_cell(n["val_loss"], four_digits)),
        ("best val loss", number_cell(n["best_val_loss"], four_digits)),
        ("bits/byte", number_cell(n["best_bits_per_byte"], four_digits)),
        ("not finite", number_cell(n["n_nonfinite"], whole)),
    ]


def _status(view: RunView) -> Cell:
    tone: Tone = "bad" if view.status in ("diverged", "failed") else ""
    where = "" if view.status == "finished" else f" at step {view.numbers['step']:,}"
    return Cell(value=view.status, text=view.status + where, tone=tone)


def seeds(views: Sequence[RunView]) -> list[Table]:
    """What the seed alone changes: a table where runs differ in nothing else."""
    key = score_key(views)
    rows = [
        [
            text_cell(group, colour=colour),
            number_cell(len(values), str),
            number_cell(statistics.mean(values), four_digits),
            number_cell(statistics.stdev(values), four_digits),
            number_cell(min(values), four_digits),
            number_cell(max(values), four_digits),
        ]
        for colour, (group, values) in enumerate(values_by_group(views, key))
        if len(values) > 1
    ]
    if not rows:
        return []
    heads = ["runs", "seeds", "mean", "standard deviation", "lowest", "highest"]
    return [
        Table(
            caption=f"Runs that differ in their seed alone: {key.replace('_', ' ')}. "
            "Differences of the size of the standard deviation mean nothing.",
            columns=[(head, "") for head in heads],
            rows=rows,
        )
    ]


def configuration(views: Sequence[RunView]) -> Section:
    """The options in which runs differ, and where they ran."""
    names = dict.fromkeys(name for view in views for name in view.options)
    differing = [n for n in names if len({repr(view.options.get(n)) for view in views}) > 1]
    machines = dict.fromkeys(view.machine for view in views if view.machine)
    ran = f" Ran on {'; '.join(machines)}." if machines else ""
    if len(views) == 1:
        return Section(title="Configuration", lead=ran.strip(), blocks=[_options(views[0], names)])
    if not differing:
        return Section(title="Configuration", lead=f"All runs have the same options.{ran}")
    n_same = len(names) - len(differing)
    text = f"The runs differ in {len(differing)} options; {n_same} are the same in all.{ran}"
    table = _differences(views, differing)
    return Section(title="Configuration", lead=text, blocks=[table])


def _options(view: RunView, names: Mapping[str, None]) -> Table:
    rows = [[text_cell(name), _value(view, name)] for name in names]
    return Table(
        caption="All options of the run.", columns=[("option", ""), ("value", "")], rows=rows
    )


def _differences(views: Sequence[RunView], names: Sequence[str]) -> Table:
    groups = list(dict.fromkeys(view.group for view in views))
    caption = "Only the options in which runs differ."
    if len(views) <= MAX_COLUMNS:
        rows = [[text_cell(n), *(_value(view, n) for view in views)] for n in names]
        heads = [("option", ""), *((view.name, "") for view in views)]
        return Table(caption=caption, columns=heads, rows=rows)
    rows = [
        [
            text_cell(view.name, colour=groups.index(view.group)),
            *(_value(view, name) for name in names),
        ]
        for view in views
    ]
    return Table(caption=caption, columns=[("run", ""), *((n, "") for n in names)], rows=rows)


def _value(view: RunView, name: str) -> Cell:
    if (value := view.options.get(name)) is None:
        return MISSING
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(value=value, text=readable(value) if isinstance(value, int) else f"{value:g}")
    # As a list in JSON: texts in it may hold commas, or nothing.
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else readable(value)
    return text_cell(text)


def samples(views: Sequence[RunView]) -> Section | None:
    """The samples of all runs side by side; None where there are none."""
    writers = [view for view in ranked(views) if view.samples]
    if not writers:
        return None
    columns = {view.name: view.samples for view in writers[:MAX_SAMPLED]}
    who = "each run" if len(columns) == len(writers) else f"each of the best {MAX_SAMPLED} runs"
    block = Texts(
        caption=f"What {who} wrote after so many steps, the best run first. "
        "Of a run without a sample at that step its last one before.",
        choice="step",
        columns=columns,
    )
    return Section(title="Samples", blocks=[block])
