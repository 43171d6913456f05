"""What a full demo has to show: a table of its models, curves, chats, and what to try next."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rslm.demo.text import MAX_ANSWER, SORTING, TASK
from rslm.evaluate.generation import GenerationOptions, evaluate_generation
from rslm.evaluate.loss import evaluate_loss
from rslm.evaluate.results import TaskResult
from rslm.evaluate.tasks import open_task
from rslm.files import write_atomically
from rslm.infer import Engine, EngineOptions
from rslm.infer.load import load_chat_format, load_run
from rslm.infer.parameters import SamplingParameters
from rslm.run_folder import Row, read_metrics
from rslm.terminal import note, print_table
from rslm.token_file import TokenFile

EVALUATION = "evaluation.json"
CURVES = "curves.png"
N_SAMPLES = 8
N_TOKENS = 65_536
"""Held-out tokens to score; each model takes some seconds for them."""
QUESTIONS = ("Hello!", "Who are you?", "47 + 85 =", "27 + 95 =", "Sort 7 2 9 4")
"""Of the chats that are shown; the sums are held out from training."""

_BLUE, _RED, _GREEN, _GREY = "#1f6fb4", "#d1495b", "#3a7d44", "#8a8a8a"


def evaluate_models(out: Path, names: list[str], *, n_questions: int, seed: int) -> Row:
    """The scores of each model, by name; those that are in `evaluation.json` already are kept."""
    file = out / EVALUATION
    scores: Row = json.loads(file.read_text()) if file.exists() else {}
    valid = out / "base" / "tokens" / "valid"
    for name in names:
        if name not in scores:
            scores[name] = answer_scores(out / name, n_questions=n_questions, seed=seed)
            scores[name]["bits_per_byte"] = bits_per_byte(out / name, valid)
            write_atomically(file, json.dumps(scores, indent=2).encode() + b"\n")
    return scores


def answer_scores(run: Path, *, n_questions: int, seed: int) -> Row:
    """Shares of right answers to held-out questions, each with its standard error."""
    model, tokenizer = load_run(run)
    chat_format = load_chat_format(run, tokenizer)
    engine = Engine(model, tokenizer, EngineOptions(max_sequences=256, max_queued=4096))

    def answers(spec: str, n_samples: int) -> TaskResult:
        task = open_task(spec)
        options = GenerationOptions(
            prompt="chat",
            n_samples=n_samples,
            temperature=float(n_samples > 1),
            max_new_tokens=MAX_ANSWER,
            seed=seed,
        )
        examples = task.test[:n_questions]
        return evaluate_generation(
            spec, examples, (), engine, chat_format, {"task": task.grade}, options
        )

    sampled, greedy, sorting = answers(TASK, N_SAMPLES), answers(TASK, 1), answers(SORTING, 1)
    best = f"pass@{N_SAMPLES}"
    return {
        "sampled": [sampled.value, sampled.stderr],
        "greedy": [greedy.value, greedy.stderr],
        best: [sampled.details[best], sampled.details[f"{best}_stderr"]],
        "sorting": [sorting.value, sorting.stderr],
    }


def bits_per_byte(run: Path, valid: Path) -> float:
    """That of a model on the begin of a held-out token file."""
    model, tokenizer = load_run(run)
    found = evaluate_loss(
        model,
        TokenFile.open(valid, tokenizer=tokenizer),
        batch_size=16,
        n_tokens=N_TOKENS,
        token_byte_lengths=tokenizer.token_byte_lengths,
    )
    assert found is not None, "nothing stops it"
    return found.bits_per_byte or math.nan


def print_scores(scores: Row, n_questions: int) -> None:
    """Prints a row for each model."""
    note(f"   {n_questions} sums and as many rows of digits that none was trained on; ± 1 error")
    columns = ["sampled", "greedy", f"pass@{N_SAMPLES}", "sorting"]
    rows = [
        [
            name,
            *(with_error(*of_model[column]) for column in columns),
            f"{of_model['bits_per_byte']:.3f}",
        ]
        for name, of_model in scores.items()
    ]
    print_table(["", *columns, "bits per byte"], rows)


def with_error(value: float, stderr: float | None) -> str:
    """A share of right answers in percent.

    >>> with_error(0.5, 0.025)
    '50.0 ± 2.5 %'
    """
    error = "" if stderr is None else f" ± {100 * stderr:.1f}"
    return f"{100 * value:.1f}{error} %"


def print_chats(out: Path, names: list[str]) -> None:
    """Prints what the models say to the same messages."""
    said = {name: likeliest_answers(out / name, QUESTIONS) for name in names}
    for number, question in enumerate(QUESTIONS):
        print(f"\n   {question}")
        for name in names:
            print(f"   {name:>8}: {said[name][number]}")
    print(flush=True)


def likeliest_answers(run: Path, questions: Sequence[str]) -> list[str]:
    """What a model says to each message, each time what is likeliest; on one line."""
    model, tokenizer = load_run(run)
    chat_format = load_chat_format(run, tokenizer)
    prompts = [chat_format.prompt([{"role": "user", "content": text}]) for text in questions]
    parameters = SamplingParameters(
        max_new_tokens=MAX_ANSWER, temperature=0.0, stop_token_ids=chat_format.stop_token_ids
    )
    completions = Engine(model, tokenizer).generate(prompts, parameters)
    return [completion.text.replace("\n", " | ") for completion in completions]


def draw_curves(out: Path, names: list[str]) -> None:
    """Draws `curves.png`: how each part went."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=150, layout="constrained")
    panels: dict[str, tuple[str, str, list[tuple[str, str, str, str]]]] = {
        "sft": (
            "SFT on a pupil's chats",
            "nats per token",
            [("loss", _BLUE, "-", "loss"), ("val_loss", _RED, "o-", "held-out")],
        ),
        "dpo": (
            "DPO on its own answers",
            "share of pairs; margin",
            [("val_accuracy", _GREEN, "o-", "accuracy"), ("val_margin", _RED, "o-", "margin")],
        ),
        "rl": (
            "GRPO on right answers",
            "share of held-out sums",
            [
                ("reward", _GREY, "-", "reward in training"),
                ("val_pass_at_k", _GREEN, "o-", f"pass@{N_SAMPLES}"),
                ("val_greedy_reward", _RED, "o-", "greedy"),
                ("val_reward", _BLUE, "o-", "sampled"),
            ],
        ),
    }
    shown = [name for name in panels if name in names]
    for place, name in enumerate(shown):
        title, label, lines = panels[name]
        axes: Any = figure.add_subplot(1, len(shown), place + 1)
        rows = read_metrics(out / name / "metrics.jsonl")
        for key, color, style, legend in lines:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, color=color, label=legend, linewidth=1.4, markersize=3)
        axes.set(xlabel="step", ylabel=label)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(color="#e2e2e2", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(out / CURVES)
