"""Behaves as `rslm train --resume --config FILE` does, in a tenth of a second.

It locks the run folder, writes the config and a row of metrics for each step, stops at SIGTERM
with code 75, goes on where it was, and ends with an error line and code 1 where the loss would not
be finite: at learning rates above 1. Losses depend on the options as a test can foresee.
"""

import fcntl
import json
import math
import os
import signal
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEP_SECONDS = 0.02


def loss_of(options: Mapping[str, Any], step: int) -> float:
    """Loss of a step: best at the rate 0.01, 0.05 better with relu2, other by seed."""
    rate, seed = options["optimizer"]["learning_rate"], options["seed"]
    quality = 0.2 * abs(math.log10(rate) + 2) + 0.1 * math.sin(97 * seed)
    if options.get("model", {}).get("ffn") == "relu2":
        quality += -0.05 + 0.001 * math.sin(31 * seed)
    return 3 + quality + 2 * math.exp(-8 * step / options["n_steps"])


def main(source: Path) -> int:
    """Trains, so to say; the exit code."""
    options = tomllib.loads(source.read_text())
    out = Path(options["out"])
    out.mkdir(exist_ok=True)
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: another process uses the run folder {out}")
        return 2
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    (out / "config.toml").write_text(source.read_text())
    with open(out / "starts", "a") as starts:
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        starts.write(" ".join(os.environ.get(name, "-") for name in names) + "\n")
    path = out / "metrics.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
    step, n_steps = len([row for row in rows if "loss" in row]), options["n_steps"]
    rate = options["optimizer"]["learning_rate"]
    with open(path, "a", buffering=1) as metrics:
        while step < n_steps:
            step += 1
            place = {"step": step, "n_tokens": 64 * step, "train_flops": 1e6 * step}
            place["elapsed_seconds"] = step / 8
            loss = loss_of(options, step) if rate <= 1 else None
            print(json.dumps(place | {"loss": loss}), file=metrics)
            if loss is None:
                print(f"error: step {step}: loss nan, grad_norm nan")
                return 1
            if rate < 1e-6:
                print("error: out of ideas")
                return 2
            if step % max(1, n_steps // 5) == 0:
                print(
                    json.dumps(place | {"val_loss": loss, "val_bits_per_byte": loss}), file=metrics
                )
            time.sleep(STEP_SECONDS)
            if stops:
                return 75
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
