"""The alignment study: what rewards, preferences and noise make of one fine-tuned model.

    python benches/alignment.py --out runs/alignment --write

The base is that of `rslm demo --full`, made first where it is missing. For each seed it is
fine-tuned on a pupil's chats, and from there goes on by each algorithm and by DPO. Every run is a
process of its own, as a user would start it; a study that was stopped goes on where it was.
`--write` makes benches/results/alignment.md of what there is.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment_report import RANDOM, write_report

from rslm.config import to_toml
from rslm.demo.full import (
    N_CHATS,
    N_PAIR_QUESTIONS,
    dpo_config,
    draw_answers,
    rl_config,
    sft_config,
    write_chats,
)
from rslm.post.rl_config import RlConfig
from rslm.post.rl_presets import PRESETS
from rslm.run_folder import read_metrics

ALGORITHMS = ("grpo", "dr_grpo", "rft", "expert_iteration", "maxrl", RANDOM)
RESULTS = Path(__file__).parent / "results" / "alignment.md"


def main() -> None:
    options = read_options()
    out: Path = options.out
    base = options.base or out / "demo" / "base"
    if not options.report:
        out.mkdir(parents=True, exist_ok=True)
        if options.base is None:
            make_demo(out / "demo", options)
        make_runs(base, options)
    if options.write:
        write_report(out, RESULTS, options.seeds, options.algorithms, command())


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/alignment"), help="the runs")
    parser.add_argument("--base", type=Path, help="a model to begin with, instead of the demo's")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning and what follows")
    parser.add_argument("--n-steps", type=int, default=40, help="rollouts of each RL run")
    parser.add_argument("--demo-steps", type=int, help="updates of the demo, for a glance")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--report", action="store_true", help="make no runs, only the report")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    return parser.parse_args()


def command() -> str:
    """The command that makes the runs and the report, without this machine's places."""
    words = [word for word in sys.argv[1:] if word != "--report"]
    for flag in ("--out", "--base"):
        if flag in words:
            place = words.index(flag)
            del words[place : place + 2]
    return " ".join(["python benches/alignment.py", *words])


def make_demo(out: Path, options: argparse.Namespace) -> None:
    """The full demo, whose base is wanted, and whose table the report shows."""
    steps = [] if options.demo_steps is None else ["--n-steps", str(options.demo_steps)]
    again = ["--resume"] if (out / "demo.json").exists() else steps
    start(["demo", "--full", "--out", str(out), *again], out.with_suffix(".log"))


def make_runs(base: Path, options: argparse.Namespace) -> None:
    """Fine-tunes for each seed, then makes all that goes on from there."""
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: fine_tune(base, options, seed), range(options.seeds)))
        for seed in range(options.seeds):
            folder = options.out / f"seed-{seed}"
            # Here and not in a thread: it computes in this process.
            if not (folder / "pairs.jsonl").exists():
                n_questions = min(N_PAIR_QUESTIONS, 8 * options.n_steps)
                draw_answers(folder / "sft", folder / "pairs.jsonl", n_questions, seed=seed)
        jobs = [(name, seed) for seed in range(options.seeds) for name in options.algorithms]
        runs = [pool.submit(reinforce, options, name, seed) for name, seed in jobs]
        runs += [pool.submit(prefer, options, seed) for seed in range(options.seeds)]
        for run in runs:
            run.result()


def fine_tune(base: Path, options: argparse.Namespace, seed: int) -> None:
    """SFT of one seed, whose chats are of that seed, too."""
    folder: Path = options.out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    chats, held_out = folder / "chats.jsonl", folder / "chats-held-out.jsonl"
    if not held_out.exists():
        write_chats(chats, held_out, min(N_CHATS, 64 * options.n_steps), seed=seed)
    config = sft_config(base, folder / "sft", chats, held_out, seed=seed)
    # Three times, as these chats are of one question each.
    make_run("sft", replace(config, n_epochs=3))


def prefer(options: argparse.Namespace, seed: int) -> None:
    """DPO of one seed."""
    folder: Path = options.out / f"seed-{seed}"
    make_run("dpo", dpo_config(folder / "sft", folder / "dpo", folder / "pairs.jsonl", seed=seed))


def reinforce(options: argparse.Namespace, name: str, seed: int) -> None:
    """One algorithm of one seed."""
    folder: Path = options.out / f"seed-{seed}"
    make_run("rl", algorithm_config(name, folder, options.n_steps, seed=seed))


def algorithm_config(name: str, folder: Path, n_steps: int, *, seed: int) -> RlConfig:
    """The demo's options with those of an algorithm; "random" is GRPO with a coin as reward."""
    config = rl_config(folder / "sft", folder / name, seed=seed)
    # Most is gained in the first ten steps.
    config = replace(config, n_steps=n_steps, evaluate_every=min(5, n_steps))
    changes: dict[str, Any] = {"rewards": ("random",)} if name == RANDOM else PRESETS[name]
    return replace(config, **changes)


def make_run(kind: str, config: Any) -> None:
    """Makes a run by its command, or goes on with it; one that is finished stays as it is."""
    out: Path = config.out
    done = out.with_suffix(".done")
    if done.exists():
        return
    file = out.with_suffix(".toml")
    file.write_text(to_toml(replace(config, n_threads=1)))
    flags = ["--resume"] if (out / "config.toml").exists() else ["--config", str(file)]
    start([kind, str(config.base), "--out", str(out), *flags], out.with_suffix(".log"))
    if kind == "rl":
        rows = read_metrics(out / "metrics.jsonl")
        assert rows[-1]["step"] == config.n_steps, f"{out} is not finished"
    done.touch()


def start(arguments: Sequence[str], log: Path) -> None:
    """Runs `rslm` with these arguments in a process, whose output goes to a file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if arguments[0] == "demo":
        environment.pop("OMP_NUM_THREADS")
    with open(log, "a") as file:
        result = subprocess.run(
            [sys.executable, "-m", "rslm", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if result.returncode:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        sys.exit(f"error: rslm {' '.join(arguments)} ended with {result.returncode}:\n{tail}")


if __name__ == "__main__":
    main()
