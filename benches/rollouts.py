"""Rollouts of a small model: how fast they are drawn, and how true they are.

    python benches/rollouts.py [--threads 1] [--rounds 10]

For exact mode, the fast mode and bfloat16 it prints ids drawn a second with 256 samples at once,
how often an id is another one when each sample is drawn alone, and how far the trainer's
log-probs are from the sampler's. In exact mode nothing may differ, or it stops. Below stands what
exact values cost the trainer, in seconds of the processor.
"""

import argparse
import random
import time
from dataclasses import dataclass

import torch

from rslm.architecture import TransformerConfig
from rslm.model import Transformer
from rslm.post.log_probs import label_log_probs
from rslm.post.rollout import (
    Flips,
    Mismatch,
    Rollout,
    SampleRequest,
    count_flips,
    measure_mismatch,
)
from rslm.post.rollout_native import NativeSampler
from rslm.post.rows import Rows, make_rows
from rslm.tokenizer import Tokenizer

GROUP_SIZE, MAX_NEW_TOKENS = 8, 20
TOKENIZER = Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"])


@dataclass(frozen=True)
class Case:
    """One way to sample, and what came of it."""

    name: str
    tokens_per_second: float
    flips: Flips
    mismatch: Mismatch


def made(dtype: torch.dtype) -> Transformer:
    """Some 130,000 weights, large enough for the model to have opinions."""
    config = TransformerConfig(
        vocab_size=257, context_length=64, d_model=64, n_layers=2, n_heads=4, d_ff=176
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    return model.to(dtype)


def requests_of(step: int, n_prompts: int) -> list[SampleRequest]:
    """Prompts of 6 to 12 ids, as sums of small numbers have."""
    draw = random.Random(step)
    prompts = [[draw.randrange(256) for _ in range(draw.randint(6, 12))] for _ in range(n_prompts)]
    return [
        SampleRequest(run_seed=0, step=step, prompt_id=i, prompt_ids=prompt, n=GROUP_SIZE)
        for i, prompt in enumerate(prompts)
    ]


def rows_of(rollouts: list[Rollout]) -> Rows:
    """What the trainer reads."""
    return make_rows([r.prompt_ids for r in rollouts], [r.token_ids for r in rollouts])


def scoring_seconds(
    model: Transformer, rows: Rows, *, exact: bool, trains: bool, rounds: int
) -> float:
    """The best of some rounds, with the backward pass where it trains."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        with torch.set_grad_enabled(trains):
            found = label_log_probs(
                model, rows.input_ids, rows.labels, mask=rows.mask, exact=exact
            ).values
            if trains:
                found.sum().backward()
        seconds.append(time.process_time() - start)
    return min(seconds)


def mismatch_of(model: Transformer, rollouts: list[Rollout], *, exact: bool) -> Mismatch:
    """Between the sampler and the trainer."""
    rows = rows_of(rollouts)
    with torch.no_grad():
        values = label_log_probs(
            model, rows.input_ids, rows.labels, mask=rows.mask, exact=exact
        ).values
    drawn = torch.tensor([x for rollout in rollouts for x in rollout.log_probs])
    sampled = torch.zeros(values.shape).masked_scatter(rows.mask, drawn)
    return measure_mismatch(sampled, values, rows.mask)


def measured(name: str, dtype: torch.dtype, *, exact: bool, rounds: int, n_prompts: int) -> Case:
    """The best of some rounds, and the first round once more, sample by sample."""
    model = made(dtype)
    sampler = NativeSampler(model, TOKENIZER, exact=exact, max_new_tokens=MAX_NEW_TOKENS)
    first, fastest = sampler.sample(requests_of(0, n_prompts)), 0.0
    for step in range(1, rounds + 1):
        requests = requests_of(step, n_prompts)
        sampler.update_weights()
        start = time.perf_counter()
        rollouts = sampler.sample(requests)
        seconds = time.perf_counter() - start
        fastest = max(fastest, sum(len(r.token_ids) for r in rollouts) / seconds)
    alone = NativeSampler(
        model, TOKENIZER, exact=exact, max_new_tokens=MAX_NEW_TOKENS, max_sequences=1
    )
    flips = count_flips(first, alone.sample(requests_of(0, n_prompts)))
    return Case(name, fastest, flips, mismatch_of(model, first, exact=exact))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    rounds, n_prompts = options.rounds, options.prompts
    torch.set_num_threads(options.threads)
    ways = [
        ("exact, float32", torch.float32, True),
        ("fast, float32", torch.float32, False),
        ("fast, bfloat16", torch.bfloat16, False),
    ]
    print(f"{n_prompts} prompts, {GROUP_SIZE} samples each, {MAX_NEW_TOKENS} ids at most")
    print(f"threads: {options.threads}; best of {rounds} rounds\n")
    print("| mode | ids/s | samples that flip alone | ids that flip | ids that differ "
          "| largest difference | mean k3 |")  # fmt: skip
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, dtype, exact in ways:
        case = measured(name, dtype, exact=exact, rounds=rounds, n_prompts=n_prompts)
        flips, mismatch = case.flips, case.mismatch
        if exact and (flips.n_flipped or mismatch.n_different):
            raise SystemExit(f"exact mode must not differ anywhere, got {flips} and {mismatch}")
        print(
            f"| {name} | {case.tokens_per_second:,.0f} | {flips.n_flipped}/{flips.n_samples} "
            f"| {flips.rate:.1e} | {mismatch.n_different / mismatch.n_tokens:.1%} "
            f"| {mismatch.largest:.1e} | {mismatch.mean_k3:.1e} |",
            flush=True,
        )
    model = made(torch.float32)
    sampler = NativeSampler(model, TOKENIZER, exact=True, max_new_tokens=MAX_NEW_TOKENS)
    rows = rows_of(sampler.sample(requests_of(0, n_prompts)))
    print("\n| scoring these rollouts | ordinary, ms | exact, ms | ratio |\n|---|--:|--:|--:|")
    for what, trains in (("forward", False), ("forward and backward", True)):
        ordinary, exact_ = (
            scoring_seconds(model, rows, exact=exact, trains=trains, rounds=rounds)
            for exact in (False, True)
        )
        ratio = exact_ / ordinary
        print(f"| {what} | {1e3 * ordinary:.1f} | {1e3 * exact_:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
