"""`rslm demo --full`: from raw text to a model that was rewarded for right answers.

The demo's folder holds a run folder for each way of training. `base` learns from the corpus and
from worked sums. `sft` learns to chat from a pupil who makes mistakes, and takes them over. `dpo`
and `rl` both go on from there: one by pairs of its own right and wrong answers, the other by
GRPO, with nothing but a reward for each right answer. All four then answer the same held-out
questions. What is finished stays: a demo that was stopped goes on with the part it was in.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rslm.chat import CHAT_TOKENS
from rslm.demo.chain import BASE, DemoOptions, pretrain, run_config, run_folder, stopped
from rslm.demo.text import MAX_ANSWER, SORTING, TASK, pupil_chats, worked_documents
from rslm.evaluate.tasks import Task, open_task
from rslm.files import END_OF_TEXT, write_atomically
from rslm.post.dpo_config import DpoConfig, DpoOptimizerConfig
from rslm.post.post_config import PostOptimizerConfig
from rslm.post.rl_config import RlConfig, RlOptimizerConfig
from rslm.post.sft_config import SftConfig
from rslm.series import duration
from rslm.terminal import note
from rslm.text_run import require_free
from rslm.train_config import TrainConfig

if TYPE_CHECKING:
    from rslm.post.rollout import Rollout

SECONDS = "seconds.json"
"""How long each finished part took."""
MODELS = (BASE, "sft", "dpo", "rl")
"""The run folders, in the order in which they come to be."""
SHARE_OF_SUMS = 0.5
"""Of the tokens of pre-training, those of worked sums."""
WORKED_BYTES = 1_300_000
"""About a million tokens, so that each is read twice."""
N_CHATS, N_HELD_OUT_CHATS = 3_000, 200
MAX_EXCHANGES = 3
"""Of a chat: a model that has seen none of several answers the second question badly."""
N_PAIR_QUESTIONS, N_PAIR_SAMPLES = 500, 8
N_QUESTIONS = 200
"""Held-out questions that the models are compared by."""


def demo_full(options: DemoOptions) -> int:
    """Makes what is missing of the four models, and compares them."""
    out = run_folder(options)
    require_free(out, resume=options.resume)
    config = base_config(options, out)
    steps: dict[str, Callable[[], str]] = {
        BASE: lambda: make_base(options, config, out),
        "sft": lambda: fine_tune(options, config, out),
        "dpo": lambda: prefer(options, config, out),
        "rl": lambda: reinforce(options, config, out),
    }
    taken: dict[str, float] = {}
    for name, make in steps.items():
        taken = json.loads((out / SECONDS).read_text()) if (out / SECONDS).exists() else {}
        if name in taken:
            note(f"{name}: kept, in {out / name}")
            continue
        begin = time.perf_counter()
        reason = make()
        if reason != "finished":
            return stopped(reason, out)
        taken |= {name: time.perf_counter() - begin}
        write_atomically(out / SECONDS, json.dumps(taken, indent=2).encode() + b"\n")
        note(f"   {duration(taken[name])}")
    show(options, out, taken)
    return 0


def show(options: DemoOptions, out: Path, taken: dict[str, float]) -> None:
    """Evaluates the models, and shows what came of it."""
    from rslm.demo.report import CURVES, draw_curves, evaluate_models, print_chats, print_scores

    note("7  evaluation")
    begin = time.perf_counter()
    names = [name for name in MODELS if (out / name).is_dir()]
    # Of a single question there is no standard error.
    n_questions = max(2, capped(N_QUESTIONS, options))
    scores = evaluate_models(out, names, n_questions=n_questions, seed=options.seed)
    print_scores(scores, n_questions)
    draw_curves(out, names)
    note("8  chats, by what is likeliest")
    print_chats(out, names[1:])
    taken = taken | {"evaluation": time.perf_counter() - begin}
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in taken.items())
    note(
        f"Time: {duration(sum(taken.values()))} ({parts}).\n"
        f"Curves are in {out / CURVES}, samples in each run's samples.md. What to try next:\n"
        f"  rslm chat {out / 'rl'}    talk to the model of the end\n"
        f"  rslm serve {out}    all of them, on a page in your browser\n"
        f"  rslm eval {out / 'sft'} {out / 'rl'} --tasks {TASK} {SORTING} --prompt chat\n"
        f"  rslm rl {out / 'sft'} --out {out / 'dr_grpo'} --algorithm dr_grpo --task {TASK} "
        f"--max-new-tokens {MAX_ANSWER} --optimizer.learning-rate 3e-4\n"
        f"  rslm runs plot {out / 'rl'} --metric entropy --over step"
    )


def base_config(options: DemoOptions, out: Path) -> TrainConfig:
    """Pre-training as the preset says, with worked sums beside the corpus."""
    preset = "demo-full" if options.preset == "demo" else options.preset
    config = run_config(options, out / BASE, preset)
    mixed_in = (out / BASE / "tokens" / "mixed_in",)
    weights = (1 - SHARE_OF_SUMS, SHARE_OF_SUMS)
    return replace(config, data=replace(config.data, mixed_in=mixed_in, weights=weights))


def make_base(options: DemoOptions, config: TrainConfig, out: Path) -> str:
    """Text, tokenizer, token files and pre-training."""
    task = open_task(TASK)
    _, result = pretrain(
        options,
        config,
        out,
        special_tokens=[END_OF_TEXT, *CHAT_TOKENS],
        # Of the patterns that every reader of tokenizers knows the one that splits digits.
        pattern="qwen2",
        mixed_in=lambda: worked_documents(task, WORKED_BYTES, seed=options.seed),
    )
    return result.reason


def fine_tune(options: DemoOptions, config: TrainConfig, out: Path) -> str:
    """Chats of a pupil, and fine-tuning on them."""
    from rslm.post.sft import sft

    note("4  chats, in which a pupil makes mistakes")
    chats, held_out = out / "chats.jsonl", out / "chats-held-out.jsonl"
    n_chats = N_CHATS if options.n_steps is None else min(N_CHATS, 64 * options.n_steps)
    write_chats(chats, held_out, n_chats, seed=options.seed, max_exchanges=MAX_EXCHANGES)
    run = sft_config(out / BASE, out / "sft", chats, held_out, seed=options.seed)
    run = replace(run, precision=config.precision, n_threads=options.n_threads)
    return sft(run, resume=True).reason


def prefer(options: DemoOptions, config: TrainConfig, out: Path) -> str:
    """Answers of the fine-tuned model, and training on which of them are right."""
    from rslm.post.dpo import train
    from rslm.post.pairs import pair_rollouts
    from rslm.post.rollout import read_rollouts

    note("5  preferences: its own answers, right ones over wrong ones")
    pairs = out / "pairs.jsonl"
    n_questions = capped(N_PAIR_QUESTIONS, options)
    if not pairs.exists():
        draw_answers(out / "sft", pairs, n_questions, seed=options.seed)
    if not pair_rollouts(read_rollouts(pairs))[0]:
        note("   no question has a right answer and a wrong one: nothing to prefer")
        return "finished"
    run = dpo_config(out / "sft", out / "dpo", pairs, seed=options.seed)
    run = replace(run, precision=config.precision, n_threads=options.n_threads)
    return train(run, resume=True).reason


def reinforce(options: DemoOptions, config: TrainConfig, out: Path) -> str:
    """GRPO on the sums."""
    from rslm.post.rl import train

    note("6  rewards: GRPO on sums, 1 for a right answer and 0 for a wrong one")
    run = rl_config(out / "sft", out / "rl", seed=options.seed)
    n_steps = capped(run.n_steps, options)
    run = replace(run, n_steps=n_steps, n_threads=options.n_threads)
    return train(run, resume=True).reason


def capped(n: int, options: DemoOptions) -> int:
    """So many, or where fewer updates were asked for, as few as those."""
    return n if options.n_steps is None else min(n, options.n_steps)


def sft_config(base: Path, out: Path, data: Path, valid: Path, *, seed: int) -> SftConfig:
    """Fine-tuning as the demo does it."""
    return SftConfig(
        base=base,
        out=out,
        data=(data,),
        valid=(valid,),
        n_epochs=2,
        batch_size=16,
        seed=seed,
        optimizer=PostOptimizerConfig(
            learning_rate=1e-3, warmup_fraction=0.1, schedule="linear", weight_decay=0.01
        ),
        validate_every=50,
        log_every=25,
    )


def dpo_config(base: Path, out: Path, pairs: Path, *, seed: int) -> DpoConfig:
    """Training on preferences as the demo does it."""
    return DpoConfig(
        base=base,
        out=out,
        pairs=pairs,
        n_epochs=2,
        batch_size=32,
        seed=seed,
        optimizer=DpoOptimizerConfig(learning_rate=1e-4),
        validate_every=20,
        log_every=10,
    )


def rl_config(base: Path, out: Path, *, seed: int) -> RlConfig:
    """GRPO as the demo does it."""
    return RlConfig(
        base=base,
        out=out,
        task=TASK,
        n_steps=60,
        prompts_per_step=32,
        group_size=8,
        max_new_tokens=MAX_ANSWER,
        seed=seed,
        optimizer=RlOptimizerConfig(learning_rate=3e-4),
        log_every=10,
    )


def write_chats(
    train: Path, held_out: Path, n_chats: int, *, seed: int, max_exchanges: int = 1
) -> None:
    """Writes a pupil's chats to learn from, and further ones to validate on."""
    n = n_chats + N_HELD_OUT_CHATS
    chats = list(pupil_chats(open_task(TASK), n, seed=seed, max_exchanges=max_exchanges))
    for file, part in ((train, chats[:n_chats]), (held_out, chats[n_chats:])):
        lines = (json.dumps({"messages": chat}) for chat in part)
        write_atomically(file, "".join(f"{line}\n" for line in lines).encode())


def draw_answers(run: Path, file: Path, n_questions: int, *, seed: int) -> None:
    """Writes graded answers of a model to the first questions of the task."""
    from rslm.batches import counter_seed
    from rslm.evaluate.prompts import build_prompt
    from rslm.infer.load import load_chat_format, load_run
    from rslm.post.rollout import SampleRequest, write_rollouts
    from rslm.post.rollout_native import NativeSampler

    task = open_task(TASK)
    model, tokenizer = load_run(run)
    prompts = [
        build_prompt("chat", task.train[i], load_chat_format(run, tokenizer))
        for i in range(n_questions)
    ]
    sampler = NativeSampler(
        model,
        tokenizer,
        exact=False,
        max_new_tokens=MAX_ANSWER,
        stop_token_ids=prompts[0].stop_token_ids,
    )
    answers = sampler.sample(
        [
            SampleRequest(
                run_seed=counter_seed(seed, "pairs"),
                step=0,
                prompt_id=i,
                prompt_ids=prompt.token_ids,
                n=N_PAIR_SAMPLES,
            )
            for i, prompt in enumerate(prompts)
        ]
    )
    write_rollouts(file, [replace(answer, reward=mark(task, answer)) for answer in answers])


def mark(task: Task, answer: "Rollout") -> float:
    """1 where an answer to a question of training is right, else 0."""
    return task.grade(answer.text, task.train[answer.prompt_id]).reward
