"""The table of the inference comparison: medians over turns, and ratios of the turns."""

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import torch
from peer_table import commit, cpu_model

COLUMNS = (
    "who",
    "tokens/s (wall)",
    "tokens per CPU-s",
    "first token ms",
    "ms a token after it",
    "memory MB",
    "of transformers, wall",
    "CPU",
)


class Measured(NamedTuple):
    """One turn: tokens of all prompts, of one, and seconds."""

    n_tokens: int
    n_new: int
    first_seconds: float
    wall_seconds: float
    cpu_seconds: float


def header(options: argparse.Namespace, elapsed: float) -> list[str]:
    """How it was measured, and how fast the machine reads."""
    versions = [f"{name} {metadata.version(name)}" for name in ("rslm", "torch", "transformers")]
    command = shlex.join(["python", "benches/inference_peers.py", *sys.argv[1:]])
    return [
        "# Inference beside transformers",
        "",
        f"Command: `{command}`, {elapsed / 60:.1f} minutes.",
        f"Machine: {cpu_model()}, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, {commit()}; load average "
        f"{os.getloadavg()[1]:.1f} at the end, the measurement's own 1 among it.",
        f"Versions: {', '.join(versions)}; {options.threads} thread(s). It reads memory at "
        f"{read_bandwidth() / 1e9:.1f} GB/s.",
        "",
        "Greedy decoding of random prompts with the same weights, float32, in one process, in "
        f"turns ({options.turns}). Ids are compared before any time counts. Speeds are medians "
        "over the turns, ratios medians of the turns' ratios; above 1 rslm is faster. Memory is "
        "what the process grew by when a contender was made and first used, the weights that all "
        "share not among it; below zero the process shrank meanwhile, and the figure bounds "
        "nothing.",
    ]


def read_bandwidth() -> float:
    """Bytes a second that summing a large array reads, the best of five."""
    numbers, best = torch.ones(60_000_000), 0.0
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.nbytes / (time.perf_counter() - began))
    return best


def table(shape: str, batch_size: int, contenders: Sequence[Any], remark: str) -> list[str]:
    """The rows of one shape and batch."""
    reference = contenders[0].turns
    lines = [
        "",
        f"## {shape}, {batch_size} prompt(s)",
        "",
        f"Prompts with the same ids as transformers: {remark}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- |" + " --: |" * (len(COLUMNS) - 1),
    ]
    for contender in contenders:
        turns = contender.turns
        wall = [turn.n_tokens / turn.wall_seconds for turn in turns]
        cpu = [turn.n_tokens / turn.cpu_seconds for turn in turns]
        after = [
            (turn.wall_seconds - turn.first_seconds) / max(1, turn.n_new - 1) for turn in turns
        ]
        faster = [
            (peer.wall_seconds / own.wall_seconds, peer.cpu_seconds / own.cpu_seconds)
            for own, peer in zip(turns, reference, strict=True)
        ]
        cells = (
            contender.who,
            f"{statistics.median(wall):,.0f}",
            f"{statistics.median(cpu):,.0f}",
            f"{1e3 * statistics.median(turn.first_seconds for turn in turns):,.1f}",
            f"{1e3 * statistics.median(after):,.2f}",
            f"{contender.memory_bytes / 1e6:,.0f}",
            *(f"{statistics.median(ratios):.2f}x" for ratios in zip(*faster, strict=True)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines
