"""One run of the convergence study, in a process of its own.

Started by convergence.py with a JSON of (study, run, tokens, out) as its only argument; answers
with one line of JSON, the run's outcome.
"""

import io
import json
import math
import re
import shutil
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from convergence_plan import Outcome, Run, Study
from rich.console import Console

from rslm.architecture import TransformerConfig
from rslm.run_folder import read_metrics
from rslm.train import DataConfig, OptimizerConfig, TrainConfig, train
from rslm.train_config import MuonConfig

N_STRETCHES = 32
"""Means of the training loss that are kept of a run."""


class CpuSeconds(io.StringIO):
    """Where a run prints: CPU seconds of its updates alone, by step, without validation.

    A line with a loss comes right behind an update, one with a val_loss behind the validation,
    before which the checkpoint is saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_step: dict[int, float] = {}
        self._training = 0.0
        self._resumed = math.nan

    def write(self, text: str) -> int:
        found = re.search(r"^step=(\d+)/\S* (val_)?loss=", text, re.MULTILINE)
        if found is not None:
            now, step = time.process_time(), int(found[1])
            if not found[2] and step > 1:
                self._training += now - self._resumed
                # Counted from the end of the first update, which warms up.
                self.at_step[step] = self._training * step / (step - 1)
            self._resumed = now
        return len(text)


def config_of(study: Study, run: Run, tokens: Path, out: Path) -> TrainConfig:
    """The run in the package's own terms: the default recipe but for what the study fixes."""
    muon = run.muon_learning_rate is not None
    base = study.widths[0] if run.parametrisation == "mup" else None
    return TrainConfig(
        out=out,
        data=DataConfig(train=tokens / "train", valid=tokens / "valid"),
        model=TransformerConfig(
            vocab_size=study.vocab_size,
            context_length=study.context_length,
            d_model=run.d_model,
            n_layers=study.n_layers,
            n_heads=run.d_model // study.d_head,
            parametrisation="mup" if run.parametrisation == "mup" else "standard",
            base_d_model=base,
        ),
        optimizer=OptimizerConfig(
            algorithm="muon" if muon else "adamw",
            learning_rate=run.learning_rate,
            warmup_steps=run.n_steps // 10,
            weight_decay=run.weight_decay,
            muon=MuonConfig(learning_rate=run.muon_learning_rate) if muon else MuonConfig(),
        ),
        n_steps=run.n_steps,
        batch_size=study.batch_size,
        seed=run.seed,
        device="cpu",
        validate_every=study.validate_every,
        n_validation_tokens=study.n_validation_tokens,
        checkpoint_every=run.n_steps,
        keep_checkpoints=1,
        keep_best=False,
        n_sample_tokens=1,
        log_every=study.validate_every,
        n_threads=1,
    )


def execute(study: Study, run: Run, tokens: Path, out: Path) -> Outcome:
    """Makes the run and reads what it left; the run folder is removed."""
    shutil.rmtree(out, ignore_errors=True)
    config = config_of(study, run, tokens, out)
    clock, started = CpuSeconds(), time.perf_counter()
    result = None
    try:
        result = train(config, console=Console(file=clock, width=200))
    except FloatingPointError as error:
        print(f"{run.label}: {error}", file=sys.stderr)
    wall = time.perf_counter() - started
    rows = read_metrics(out / "metrics.jsonl")
    shutil.rmtree(out)
    diverged = result is None or not math.isfinite(result.val_loss or math.nan)
    return Outcome(
        val_loss=math.inf if diverged or result is None else float(result.val_loss or 0),
        val_bits_per_byte=(
            math.inf if diverged or result is None else float(result.val_bits_per_byte or 0)
        ),
        cpu_seconds=clock.at_step.get(run.n_steps, math.nan) if not diverged else 0.0,
        wall_seconds=wall,
        curve=tuple(
            {
                "step": row["step"],
                "n_tokens": row["n_tokens"],
                "cpu_seconds": clock.at_step[row["step"]],
                "val_loss": row["val_loss"],
            }
            for row in rows
            if row.get("val_loss") is not None and math.isfinite(row["val_loss"])
        ),
        losses=tuple(stretches(run, rows)),
    )


def stretches(run: Run, rows: list[dict[str, float]]) -> list[tuple[int, float]]:
    """Last step and mean training loss of equal parts of the run."""
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    edges = [run.n_steps * i // N_STRETCHES for i in range(N_STRETCHES + 1)]
    means = []
    for start, stop in pairwise(edges):
        part = losses[start:stop]
        if part and all(map(math.isfinite, part)):
            means.append((stop, round(sum(part) / len(part), 5)))
    return means


def command(study: Study, run: Run, tokens: Path, out: Path) -> list[str]:
    asked = [asdict(study), asdict(run), str(tokens), str(out)]
    return [sys.executable, __file__, json.dumps(asked)]


def main() -> None:
    study, run, tokens, out = json.loads(sys.argv[1])
    study["widths"] = tuple(study["widths"])
    outcome = execute(Study(**study), Run(**run), Path(tokens), Path(out))
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
