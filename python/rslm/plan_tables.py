"""A plan as people read it, in tables, and as programs do, in lines of `name=value`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from rslm.plan import Plan
from rslm.terminal import readable, with_prefix

MEMORY_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "activations": "activations",
    "workspace": "workspace",
    "communication": "communication",
    "checkpoint_copy": "copy for checkpoints",
    "peak": "peak",
    "sent_per_step": "sent per step",
}
RUN_ROWS = {
    "n_steps": "steps",
    "tokens_per_step": "tokens per step",
    "n_tokens": "tokens",
    "tokens_per_parameter": "tokens per parameter",
    "n_data_tokens": "tokens in the data",
    "data_passes": "passes over the data",
    "n_processes": "processes",
    "n_micro_batches": "micro-batches per step",
    "precision": "precision",
}

NOT_TIMED = "Validation, samples, checkpoints and what processes exchange come on top."


def print_plan(plan: Plan, console: Console) -> None:
    """Prints tables on a terminal, lines in a pipe."""
    record = plan.record()
    if not console.is_terminal:
        # As it is: rich would wrap lines and colour numbers.
        console.file.write("".join(f"{line}\n" for line in lines(record)))
        return
    pairs = [
        (_parameters(record["parameters"]), _flops(record["flops_per_token"])),
        (_fields("Run", run_fields(record["run"])), _fields("Time", time_fields(record["time"]))),
    ]
    for pair in pairs:
        console.print(Columns(pair, padding=(0, 4)))
    console.print(_memory(record["memory_bytes"]))
    verdict = "green" if plan.fits else "red"
    console.print(fit_sentence(plan), style=verdict, highlight=False)
    if plan.speed is not None:
        console.print(f"Speed: {plan.speed.source}. {NOT_TIMED}", style="dim", highlight=False)


def lines(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested values as `a.b=value`, the values as JSON has them; texts without quotes."""
    found: list[str] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            found += lines(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return found


def run_fields(run: Mapping[str, Any]) -> dict[str, str]:
    """Names and values of the run's sizes."""
    fields = {name: readable(run[key]) for key, name in RUN_ROWS.items() if run[key] is not None}
    if run["n_processes"] > 1:
        fields["processes"] += f" ({run['parallel']})"
    return fields | {"training": with_prefix(run["train_flops"], "FLOP")}


def time_fields(time: Mapping[str, Any]) -> dict[str, str]:
    """Names and values of speed, hours and cost."""
    if time["hours"] is None:
        return {"speed": "not known"}
    fields = {"tokens per second": readable(time["tokens_per_second"])}
    if time["utilisation"] is not None:
        fields["utilisation"] = f"{time['utilisation']:.1%}"
    fields["time"] = _hours(time["hours"])
    if time["cost"] is not None:
        fields["cost"] = f"{time['cost']:,.2f}"
    return fields


def fit_sentence(plan: Plan) -> str:
    """Whether the run fits into the memory, and the largest micro-batch that would."""
    need = with_prefix(plan.memory.peak, "B")
    if plan.memory_bytes is None:
        return f"A process needs {need}."
    has = f"{with_prefix(plan.memory_bytes, 'B')}, of which {plan.free_share:.0%} should stay free"
    verdict = f"A process needs {need} and has {has}: it {'fits' if plan.fits else 'does not fit'}."
    if not plan.largest_micro_batch:
        return f"{verdict} Not even a micro-batch of 1 sequence would."
    size = f"micro-batches up to {plan.largest_micro_batch} sequences"
    if plan.best_micro_batch != plan.largest_micro_batch:
        size += f", {plan.best_micro_batch} of those that divide the batch"
    return f"{verdict} There is room for {size}."


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours:,.0f} hours ({hours / 24:.1f} days)"


def _table(title: str, headers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    return table


def _fields(title: str, fields: Mapping[str, str]) -> Table:
    table = _table(title, ("", ""))
    table.show_header = False
    for name, value in fields.items():
        table.add_row(name, value)
    return table


def _parameters(parameters: Mapping[str, int]) -> Table:
    table = _table("Parameters", ("", "number", "share"))
    total = parameters["n_parameters"]
    for name, number in parameters.items():
        if number and not name.startswith("n_"):
            table.add_row(name.replace("_", " "), readable(number), f"{number / total:.1%}")
    table.add_section()
    sums = {
        "all": total,
        "without input embedding": parameters["n_non_embedding_parameters"],
        "body": parameters["n_body_parameters"],
    }
    for name, number in sums.items():
        table.add_row(name, readable(number), f"{number / total:.1%}")
    return table


def _flops(flops: Mapping[str, float]) -> Table:
    table = _table("Training FLOPs per token", ("", "FLOP", "share"))
    total = flops["all"]
    for name, number in flops.items():
        if name == "all":
            table.add_section()
        shown = {"6n": "6 x parameters"}.get(name, name.replace("_", " "))
        table.add_row(shown, with_prefix(number, ""), f"{number / total:.1%}")
    return table


def _memory(memory: Mapping[str, Mapping[str, Any]]) -> Table:
    kinds = ["bytes" if kind == "none" else kind for kind in memory]
    table = _table("Memory of a process", ("", *kinds))
    for key, name in MEMORY_ROWS.items():
        values = [entry[key] for entry in memory.values()]
        if key == "peak":
            table.add_section()
        if any(values):
            style = "bold" if key == "peak" else None
            table.add_row(name, *(with_prefix(value, "B") for value in values), style=style)
    table.add_row("at its peak in", *(str(entry["peak_at"]) for entry in memory.values()))
    return table
