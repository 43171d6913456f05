"""Run folders written by hand: what a run leaves, without a run."""

import json
import random
from pathlib import Path
from typing import Any

from rslm.config import to_toml
from rslm.experiment.study import STUDY_FILE, PlannedRun, run_name
from rslm.train_config import DataConfig, TrainConfig


def write_run(
    folder: Path,
    *,
    diverges_at: int | None = None,
    worse: float = 0.0,
    rows: list[dict[str, Any]] | None = None,
    **options: Any,
) -> Path:
    """A run whose loss falls from 6 towards 3, or so much worse, unless its rows are given."""
    options = {"data": DataConfig(train=Path("tokens")), "n_steps": 200, "batch_size": 4} | options
    config = TrainConfig(out=folder, **options)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    last = diverges_at or config.n_steps
    if rows is None:
        rows = made_up_rows(config, last, worse, diverges=diverges_at is not None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {"cpu": "a CPU", "cuda": None, "versions": {"rslm": "0.1", "torch": "2.8"}}
    (folder / "env.json").write_text(json.dumps([start]))
    every = max(1, config.n_steps // 4)
    sections = (
        f"## Step {step:,}\n\n    sample at {step}\n    \n    of {folder.name}\n\n    second\n\n"
        for step in range(every, last + 1, every)
    )
    (folder / "samples.md").write_text("".join(sections))
    return folder


def made_up_rows(
    config: TrainConfig, last: int, worse: float, *, diverges: bool
) -> list[dict[str, Any]]:
    """Metrics of so many steps, validated ten times in a run, with some noise."""
    draw = random.Random(repr((config.seed, config.optimizer, config.model)))
    rows: list[dict[str, Any]] = []
    for step in range(1, last + 1):
        place = {"step": step, "n_tokens": step * 1024, "train_flops": step * 1e9}
        place |= {"elapsed_seconds": step * 0.5}
        loss = 3 + worse + 3 / step**0.5 + draw.gauss(0, 0.02)
        row = place | {"loss": None if diverges and step == last else loss, "learning_rate": 1e-3}
        rows.append(row | {"grad_norm": 1.0, "tokens_per_second": 2048.0 if step > 1 else None})
        if step % (config.n_steps // 10) == 0:
            rows.append(place | {"val_loss": loss + 0.1, "val_bits_per_byte": loss / 2})
    return rows


def write_study(folder: Path, runs: list[dict[str, Any]], **study: Any) -> Path:
    """A study of runs that each have `labels`, a `status` and perhaps the options of a run."""
    entries = []
    for run in runs:
        labels = run["labels"]
        planned = PlannedRun(name=run_name(labels), options=labels, labels=labels)
        if "options" in run:
            write_run(folder / planned.folder, **run["options"])
        entries.append(
            {"name": planned.name, "hash": planned.hash, "folder": planned.folder}
            | {"labels": labels, "status": run["status"], "seconds": 1.0}
            | ({"message": run["message"]} if "message" in run else {})
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STUDY_FILE).write_text(json.dumps(study | {"runs": entries}))
    return folder
