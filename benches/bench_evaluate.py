"""Questions with four options behind ten examples: scored together, and one after the other."""

import random

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from rslm.architecture import TransformerConfig
from rslm.evaluate.continuations import Continuation, ContinuationScorer, score_plainly
from rslm.model import Transformer

N_QUESTIONS, N_PROMPT, N_OPTION, VOCAB_SIZE = 4, 400, 8, 8192


@pytest.fixture(scope="module")
def model() -> Transformer:
    """8 M parameters."""
    sizes = {"d_model": 256, "n_layers": 4, "n_heads": 8, "d_ff": 768}
    config = TransformerConfig(context_length=512, vocab_size=VOCAB_SIZE, **sizes)
    return Transformer(config, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def wanted() -> list[Continuation]:
    """The options of all questions."""
    draw = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(VOCAB_SIZE), k=n))

    prompts = [ids(N_PROMPT) for _ in range(N_QUESTIONS)]
    return [
        Continuation((*prompt, *ids(N_OPTION)), N_PROMPT) for prompt in prompts for _ in range(4)
    ]


@pytest.mark.parametrize("way", ["together", "one after the other"])
def bench_choices(
    benchmark: BenchmarkFixture, model: Transformer, wanted: list[Continuation], way: str
) -> None:
    assert ContinuationScorer(model).score(wanted[:4]) == score_plainly(model, wanted[:4])
    benchmark.group = f"{N_QUESTIONS} questions of four options"
    benchmark.extra_info["n_tokens"] = sum(len(each.token_ids) for each in wanted)
    score = score_plainly if way == "one after the other" else scored_together
    benchmark.pedantic(score, (model, wanted), rounds=3, warmup_rounds=1)


def scored_together(model: Transformer, wanted: list[Continuation]) -> None:
    # A new scorer each time: nothing is left of the round before.
    ContinuationScorer(model).score(wanted)
