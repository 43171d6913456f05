"""Names and numbers as the table and the page write them."""

from __future__ import annotations

from rslm.data.pipeline.tally import Amount
from rslm.data_report.extrapolate import Extrapolation, n_tokens
from rslm.data_report.view import PipelineView
from rslm.series import duration
from rslm.terminal import with_prefix

NONE = "-"


def percent(part: float | None) -> str:
    """A share in per cent, with two digits at least: 12.3, 0.042; of very little, < 0.001."""
    if part is None:
        return NONE
    value = 100 * part
    if value == 0 or value >= 9.995:
        return f"{value:.1f}" if value else "0"
    if value < 0.001:
        return "< 0.001"
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.2g}"


def size(n_bytes: float) -> str:
    """Bytes with a prefix."""
    return with_prefix(n_bytes, "B")


def amount(n: float) -> str:
    """A count with a prefix."""
    return with_prefix(n, "").strip()


def speed(bytes_per_second: float | None) -> str:
    """In MB/s."""
    if bytes_per_second is None:
        return NONE
    value = bytes_per_second / 1e6
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plural(n: int, noun: str) -> str:
    """A count and what is counted."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def state(view: PipelineView) -> str:
    """How far the run is, in a sentence."""
    if view.is_complete:
        return "All stages are finished."
    stopped = next(stage for stage in view.stages if not stage.is_complete)
    done = [stage.name for stage in view.stages if stage.is_complete]
    waiting = [stage.name for stage in view.stages if not stage.marks and stage is not stopped]
    parts = [
        f"Not finished: {stopped.name} has done {len(stopped.marks):,} of "
        f"{plural(stopped.stage.n_tasks, 'task')}"
    ]
    parts += [f"finished before: {', '.join(done)}"] if done else []
    parts += [f"still to come: {', '.join(waiting)}"] if waiting else []
    return "; ".join(parts) + "."


def reading(view: PipelineView) -> str:
    """What was read, in a sentence."""
    read = view.read
    n_files = sum(len(view.plan.shards[index].files) for index in view.stages[0].marks)
    skipped = sum(dropped.documents for dropped in read.drops.values())
    return (
        f"{plural(n_files, 'file')} of {size(read.taken.bytes)}: "
        f"{plural(read.given.documents, 'document')} of {size(read.given.bytes)} unpacked; "
        f"{plural(skipped, 'record')} passed over."
    )


def result(view: PipelineView) -> str:
    """What is left at the end, in a sentence; "" where nothing has come so far."""
    steps = view.steps
    if not steps:
        return ""
    last = steps[-1]
    given: Amount = last.tally.given
    kept = percent(given.documents / last.n_read) if last.n_read else NONE
    tokens = "" if (n := n_tokens(view)) is None else f"{n:,} tokens, "
    most = max(steps, key=lambda step: step.dropped)
    worst = (
        f" Most were dropped by {most.name}: {most.dropped:,}, "
        f"{percent(most.dropped / most.n_read)} % of all."
    )
    return (
        f"After {last.name} {plural(given.documents, 'document')} of {size(given.bytes)} are left, "
        f"{tokens}{kept} % of all that were read.{worst * bool(most.dropped)}"
    )


def forecast(found: Extrapolation) -> list[str]:
    """An extrapolation in sentences."""
    lines = [
        f"{plural(found.n_files, 'file')} like the {found.n_measured:,} measured, "
        f"{size(found.input_bytes)}, would take {duration(found.elapsed_seconds)} on "
        f"{plural(found.n_cpus, 'core')} ({found.cpu_seconds / 3600:,.4g} core hours"
        f"{_error(found.cpu_error)})"
    ]
    if found.bytes is not None and found.documents is not None:
        tokens = "" if found.tokens is None else f", {amount(found.tokens)} tokens"
        lines[0] += (
            f", and leave {amount(found.documents)} documents of {size(found.bytes)}"
            f"{_error(found.bytes_error)}{tokens}"
        )
    lines[0] += "."
    lines.append(
        "Everything is taken to grow with the files; more text has more duplicates in it, so that "
        "less would be left."
    )
    if found.not_begun:
        lines.append(f"Left out, since not begun yet: {', '.join(found.not_begun)}.")
    return lines


def _error(relative: float | None) -> str:
    return "" if relative is None else f" ± {100 * relative:.1f} %"
