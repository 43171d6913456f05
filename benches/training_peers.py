"""One table: the whole `rslm train` loop beside a bare training step of transformers' Llama.

    python benches/training_peers.py
    python benches/training_peers.py --quick --rows float32

The contenders of a row are processes that take turns; their first losses are compared before
any time counts. The table goes to benches/results/training.md with a plot beside it.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from training_table import Contender, Result, header, plot, table
from training_worker import Job, command

from rslm import _rslm
from rslm.architecture import TransformerConfig

BENCHES = Path(__file__).parent
N_WARM_TURNS = 2
"""The first step, which may compile, and the rest of the steps up to the first whole turn."""


@dataclass(frozen=True)
class Shape:
    """A model, a batch, and how many steps make one turn of a few seconds."""

    model: TransformerConfig
    batch_size: int
    steps_per_turn: int

    @property
    def fields(self) -> dict[str, Any]:
        """What a worker rebuilds the model's sizes from."""
        names = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads")
        return {name: getattr(self.model, name) for name in names}


SHAPES = {
    "small": Shape(
        TransformerConfig(vocab_size=8192, context_length=256, d_model=256, n_layers=4, n_heads=8),
        batch_size=8,
        steps_per_turn=4,
    ),
    "tinystories": Shape(
        TransformerConfig(
            vocab_size=10_000, context_length=256, d_model=512, n_layers=4, n_heads=16
        ),
        batch_size=8,
        steps_per_turn=2,
    ),
    "test": Shape(
        TransformerConfig(vocab_size=300, context_length=16, d_model=16, n_layers=1, n_heads=2),
        batch_size=2,
        steps_per_turn=2,
    ),
}
ROWS = {
    f"{precision} {kind}": (precision, kind == "compiled")
    for precision in ("float32", "bfloat16")
    for kind in ("eager", "compiled")
}


def main() -> None:
    options = read_options()
    if _rslm.BUILD_PROFILE == "debug":
        sys.exit("error: only a release build is timed, this one is debug; run `make setup`")
    started = time.perf_counter()
    results = [
        measure(shape, row, options)
        for shape in options.shapes
        for row in ROWS
        if row.startswith(tuple(options.rows))
    ]
    elapsed = time.perf_counter() - started
    text = "\n".join(header(options.turns, options.threads, elapsed) + table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    plot(results, options.out.with_suffix(".png"))
    print(text)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=[""], help=f"beginnings of {', '.join(ROWS)}")
    parser.add_argument("--shapes", nargs="+", default=["small"], choices=SHAPES)
    parser.add_argument("--turns", type=int, help="of each contender; 12, with --quick 3")
    parser.add_argument("--threads", type=int, default=1, help="of each contender")
    parser.add_argument("--quick", action="store_true", help="three turns")
    parser.add_argument("--out", type=Path, default=BENCHES / "results" / "training.md")
    options = parser.parse_args()
    options.turns = options.turns or (3 if options.quick else 12)
    for wanted in options.rows:
        if not any(row.startswith(wanted) for row in ROWS):
            parser.error(f"--rows must begin names of rows ({', '.join(ROWS)}), got {wanted}")
    return options


def contenders_of(precision: str) -> tuple[str, ...]:
    """Who takes turns, the matrix products that give the peak last."""
    peers = ["transformers", "transformers-bf16-weights"][: 1 + (precision == "bfloat16")]
    return ("rslm train", "rslm step", *peers, "matmul")


def measure(shape_name: str, row: str, options: argparse.Namespace) -> Result:
    """All turns of a row: everybody once in each, who begins going round."""
    shape, (precision, compiles) = SHAPES[shape_name], ROWS[row]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.bin"
        write_random_ids(tokens, shape)
        job = Job(
            who="",
            model=shape.fields,
            precision=precision,
            compiles=compiles,
            batch_size=shape.batch_size,
            steps_per_turn=shape.steps_per_turn,
            # One checkpoint, in the middle of the turns.
            checkpoint_every=shape.steps_per_turn * (1 + (options.turns + 1) // 2),
            n_threads=options.threads,
            tokens=str(tokens),
            out=str(Path(folder) / "run"),
        )
        workers = [Worker(replace(job, who=who)) for who in contenders_of(precision)]
        for worker in workers:
            for _ in range(N_WARM_TURNS):
                tell(f"{shape_name} {row}: {worker.job.who}, warming up")
                worker.turn()
        compare_first_losses(workers)
        for turn in range(options.turns):
            # Any order: whoever always came behind the matrix products would find a hot machine.
            for worker in random.Random(turn).sample(workers, len(workers)):
                tell(f"{shape_name} {row}: {worker.job.who}, turn {turn + 1}")
                worker.turn()
        for worker in workers:
            worker.close()
    tell("")
    return Result(
        shape_name,
        row,
        shape.model,
        n_tokens=shape.steps_per_turn * shape.batch_size * shape.model.context_length,
        n_threads=options.threads,
        contenders=[
            Contender(worker.job.who, worker.refusal, worker.turns[N_WARM_TURNS:])
            for worker in workers
        ],
    )


def write_random_ids(path: Path, shape: Shape) -> None:
    """A token file in llm.c's layout; random ids cost as much as text."""
    ids = np.random.default_rng(0).integers(0, shape.model.resolved_vocab_size, 1_000_000)
    head = np.zeros(256, dtype="<i4")
    head[:3] = 20240520, 1, len(ids)
    path.write_bytes(head.tobytes() + ids.astype("<u2").tobytes())


@dataclass
class Worker:
    """A contender's process, and what its turns measured."""

    job: Job
    refusal: str = ""
    turns: list[dict[str, float]] = field(default_factory=list)
    process: Any = None

    def turn(self) -> None:
        """One turn; whoever fails is asked no more."""
        if self.refusal:
            return
        if self.process is None:
            if importlib.util.find_spec(self.job.who.partition("-")[0]) is None and (
                self.job.who.startswith("transformers")
            ):
                self.refusal = "not installed"
                return
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.job.n_threads)}
            self.process = subprocess.Popen(
                command(self.job),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            self.turns.append(json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            complaints = self.process.stderr.read().strip().splitlines()
            self.refusal = f"failed: {complaints[-1] if complaints else 'without a word'}"

    def close(self) -> None:
        """Ends the process, which waits for its next turn."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process.stderr.close()


def compare_first_losses(workers: list[Worker]) -> None:
    """Refuses whoever begins with another loss than our step: it would be another model."""
    ours = next(worker for worker in workers if worker.job.who == "rslm step")
    for worker in workers:
        if worker.refusal or worker.job.who == "matmul":
            continue
        loss, expected = worker.turns[0]["loss"], ours.turns[0]["loss"]
        # `rslm train` prints four digits; in bfloat16 weights or products are rounded to 2^-9.
        tolerance = 1e-4 if worker.job.precision == "float32" else 2**-9 * expected
        if abs(loss - expected) > tolerance:
            worker.refusal = f"another first loss, {loss:.5f} for {expected:.5f}"


def tell(message: str) -> None:
    """Progress for a person at a terminal; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
