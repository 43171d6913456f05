"""The report of the alignment study: table, curves, samples, and whether the bars are met."""

import json
import platform
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from peer_table import commit, cpu_model

from rslm.architecture import n_parameters
from rslm.demo.report import EVALUATION, answer_scores, likeliest_answers
from rslm.demo.text import TASK
from rslm.evaluate.tasks import open_task
from rslm.infer.model_folder import read_model_config
from rslm.run_folder import read_metrics

RANDOM = "random"
SCORES = {"val_reward": "sampled", "val_greedy_reward": "greedy", "val_pass_at_k": "pass@8"}
NAMES = {
    "grpo": "GRPO",
    "dr_grpo": "Dr. GRPO",
    "rft": "RFT",
    "expert_iteration": "expert iteration",
    "maxrl": "MaxRL",
    RANDOM: "GRPO, random rewards",
}
COLORS = {
    "grpo": "#1f6fb4",
    "dr_grpo": "#d1495b",
    "rft": "#3a7d44",
    "expert_iteration": "#8f5aa8",
    "maxrl": "#d98324",
    RANDOM: "#8a8a8a",
}

Rows = list[dict[str, Any]]


def write_report(
    out: Path, path: Path, n_seeds: int, algorithms: Sequence[str], command: str
) -> None:
    """Writes the page and its picture from the runs in `out`."""
    made_at = commit()  # before the picture changes the tree
    runs = {
        name: [
            read_metrics(out / f"seed-{seed}" / name / "metrics.jsonl") for seed in range(n_seeds)
        ]
        for name in algorithms
    }
    pairs = [
        read_metrics(out / f"seed-{seed}" / "dpo" / "metrics.jsonl") for seed in range(n_seeds)
    ]
    draw(runs, path.with_suffix(".png"))
    lines = [
        "# From a pupil's mistakes to right answers",
        "",
        f"![Held-out accuracy, pass@8 and entropy over steps]({path.with_suffix('.png').name})",
        "",
        f"Command: `{command}`.",
        f"Machine: {cpu_model()}, {platform.system()}, Python {platform.python_version()}, "
        f"torch {metadata.version('torch')}; {made_at}.",
        "",
        *introduction(out, runs, n_seeds),
        "",
        *table(runs, dpo_scores(out, n_seeds)),
        "",
        *bars(runs),
        "",
        *preferences(pairs),
        "",
        *samples(out / "seed-0", algorithms),
        "",
        *demo(out / "demo"),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")


def introduction(out: Path, runs: dict[str, list[Rows]], n_seeds: int) -> list[str]:
    """What was done, in words."""
    rows = next(iter(runs.values()))[0]
    sizes = read_model_config(out / "seed-0" / "sft").model
    return wrap(
        f"A model of {n_parameters(sizes):,} parameters, pre-trained by `rslm demo --full` on "
        "source code and on sums worked column by column, is fine-tuned on 3,000 chats of a pupil "
        "who forgets four carries in five and is one off in one column of five: it takes over the "
        "mistakes. Each run goes on from there with 32 questions x 8 answers a step, AdamW, "
        f"learning rate 3e-4, {rows[-1]['step']} steps; an answer earns 1 where its last line is "
        "right, else 0. Expert iteration makes eight updates a step, the others one. Scores are of "
        f"128 held-out sums that no training has seen, in percent: the mean over {n_seeds} seeds "
        "of fine-tuning and of RL, and the lowest and the highest. Sampler and trainer agree bit "
        "for bit, asserted in each step (exact mode)."
    )


def wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_on_hyphens=False)


def values(runs: Sequence[Rows], key: str, *, last: bool) -> list[float]:
    """Of each seed the first or the last value of a metric."""
    place = -1 if last else 0
    return [[row[key] for row in rows if row.get(key) is not None][place] for rows in runs]


def band(found: Sequence[float]) -> str:
    """Mean, lowest and highest share in percent.

    >>> band([0.5, 0.6, 0.7])
    '60.0 (50.0 to 70.0)'
    """
    low, mean, high = (100 * v for v in (min(found), statistics.fmean(found), max(found)))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def dpo_scores(out: Path, n_seeds: int) -> list[dict[str, Any]]:
    """What the DPO models of all seeds answer; kept beside them, as they do not change."""
    scores = []
    for seed in range(n_seeds):
        file = out / f"seed-{seed}" / "dpo.json"
        if not file.exists():
            found = answer_scores(file.with_suffix(""), n_questions=128, seed=seed)
            file.write_text(json.dumps(found))
        scores.append(json.loads(file.read_text()))
    return scores


def table(runs: dict[str, list[Rows]], of_dpo: list[dict[str, Any]]) -> list[str]:
    """A row for each algorithm, with the start of all of them first."""
    head = ["", *SCORES.values(), "entropy", "no signal", "seconds"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --: |" * (len(head) - 1)]
    first = next(iter(runs.values()))
    start = [band(values(first, key, last=False)) for key in SCORES]
    lines.append(f"| fine-tuned | {' | '.join(start)} | | | |")
    for name, of_seeds in runs.items():
        cells = [band(values(of_seeds, key, last=True)) for key in SCORES]
        entropy = statistics.fmean(values(of_seeds, "entropy", last=True))
        share = statistics.fmean(values(of_seeds, "zero_advantage_fraction", last=True))
        seconds = statistics.fmean(values(of_seeds, "elapsed_seconds", last=True))
        cells += [f"{entropy:.3f}", f"{100 * share:.0f} %", f"{seconds:.0f}"]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    cells = [band([of_seed[key][0] for of_seed in of_dpo]) for key in SCORES.values()]
    lines.append(f"| DPO | {' | '.join(cells)} | | | |")
    note = (
        "No signal: answers of the last step whose advantage is 0. Seconds: of the run's one "
        "thread, beside whatever else the machine did."
    )
    return [*lines, "", *wrap(note)]


def bars(runs: dict[str, list[Rows]]) -> list[str]:
    """What was to be shown, and what was."""

    def change(name: str, key: str) -> list[float]:
        ends = values(runs[name], key, last=True)
        return [b - a for a, b in zip(values(runs[name], key, last=False), ends, strict=True)]

    lines = ["Points gained on held-out sums, by seed:", ""]
    for name in runs:
        gained = ", ".join(f"{100 * gain:+.1f}" for gain in change(name, "val_reward"))
        kept = ", ".join(f"{100 * gain:+.1f}" for gain in change(name, "val_pass_at_k"))
        lines.append(f"- {NAMES[name]}: sampled {gained}; pass@8 {kept}")
    if "grpo" in runs:
        means = {
            name: statistics.fmean(values(runs[name], "val_reward", last=True)) for name in runs
        }
        behind = [
            f"{NAMES[name]} {100 * (mean - means['grpo']):+.1f}"
            for name, mean in means.items()
            if name not in ("grpo", RANDOM)
        ]
        lines += ["", f"Sampled accuracy beside GRPO's, in points: {', '.join(behind)}."]
    return lines


def preferences(pairs: Sequence[Rows]) -> list[str]:
    """What DPO did."""
    said = []
    for key, name in (("val_margin", "margin"), ("val_accuracy", "accuracy")):
        # A mean just below 0 is not to be shown as -0.00.
        before, after = (
            round(statistics.fmean(values(pairs, key, last=last)), 2) + 0.0
            for last in (False, True)
        )
        found = values(pairs, key, last=True)
        said.append(f"{name} {before:.2f} to {after:.2f} ({min(found):.2f} to {max(found):.2f})")
    return wrap(
        "DPO on its own answers, a right one over a wrong one to the same question; on held-out "
        f"pairs, before and after, with the lowest and the highest seed: {', '.join(said)}."
    )


def draw(runs: dict[str, list[Rows]], path: Path) -> None:
    """Curves over steps, with a band from the lowest to the highest seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), dpi=130, layout="constrained")
    panels = {"val_reward": "sampled", "val_pass_at_k": "pass@8", "entropy": "entropy (nats)"}
    for place, (key, title) in enumerate(panels.items()):
        axes: Any = figure.add_subplot(1, len(panels), place + 1)
        for name, of_seeds in runs.items():
            steps, low, mean, high = zip(*curve(of_seeds, key), strict=True)
            axes.fill_between(steps, low, high, color=COLORS[name], alpha=0.15, linewidth=0)
            axes.plot(steps, mean, color=COLORS[name], label=NAMES[name], linewidth=1.6)
        axes.set(xlabel="step")
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(color="#e2e2e2", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def curve(of_seeds: Sequence[Rows], key: str) -> Iterator[tuple[int, float, float, float]]:
    """Step, and over the seeds the lowest, the mean and the highest value."""
    tables = [
        {row["step"]: row[key] for row in rows if row.get(key) is not None} for rows in of_seeds
    ]
    for step in sorted(set.intersection(*map(set, tables))):
        found = [table[step] for table in tables]
        yield step, min(found), statistics.fmean(found), max(found)


def samples(folder: Path, algorithms: Sequence[str]) -> list[str]:
    """What the models of a seed say to held-out sums in which something is carried."""
    questions = [
        example.prompt
        for example in open_task(TASK).test
        if sum(int(number[-1]) for number in example.prompt.split()[:3:2]) > 9
    ][:4]
    names = {"fine-tuned": "sft", "DPO": "dpo"} | {NAMES[name]: name for name in algorithms}
    lines = ["## Answers to held-out sums", "", f"| | {' | '.join(questions)} |"]
    lines.append("| --- |" + " --- |" * len(questions))
    for shown, name in names.items():
        answers = likeliest_answers(folder / name, questions)
        cells = (f"`{answer.replace(' | ', ', ')}`" for answer in answers)
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return [*lines, "", "The likeliest answer of each model of the first seed."]


def demo(out: Path) -> list[str]:
    """The table of `rslm demo --full`, where it was made."""
    if not (out / EVALUATION).exists():
        return []
    scores = json.loads((out / EVALUATION).read_text())
    seconds = json.loads((out / "seconds.json").read_text())
    lines = [
        "## `rslm demo --full`",
        "",
        "| | sampled | greedy | pass@8 | sorting | bits per byte |",
    ]
    lines.append("| --- | --: | --: | --: | --: | --: |")
    for name, of_model in scores.items():
        cells = [
            f"{100 * of_model[key][0]:.1f} ± {100 * of_model[key][1]:.1f}"
            for key in ("sampled", "greedy", "pass@8", "sorting")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {of_model['bits_per_byte']:.3f} |")
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return [*lines, "", f"± one standard error over questions. Wall time: {parts}."]
