"""A training step of the Transformer on the CPU: tokens and FLOPs per second."""

from typing import Literal

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from rslm.architecture import TransformerConfig, train_flops_per_token
from rslm.losses import cross_entropy
from rslm.model import Transformer
from rslm.optim import AdamW, optimizer_step, parameter_groups

Variant = Literal["fast", "reference"]

CONFIG = TransformerConfig(vocab_size=2048, context_length=256, d_model=128, n_layers=4, n_heads=4)
BATCH_SIZE = 8


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Inputs and targets: random ids cost as much as text."""
    shape = (BATCH_SIZE, CONFIG.context_length + 1)
    ids = torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class Run:
    """A model and its optimizer, from the same seed in both variants."""

    def __init__(self, variant: Variant) -> None:
        reference = variant == "reference"
        self.model = Transformer(
            CONFIG,
            implementation="reference" if reference else "auto",
            generator=torch.Generator().manual_seed(0),
        )
        self.optimizer = AdamW(
            parameter_groups(self.model, weight_decay=0.1),
            implementation="reference" if reference else "fused",
        )

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy(self.model(inputs), targets)
        loss.backward()
        optimizer_step(self.optimizer, learning_rate=1e-3, max_grad_norm=1.0)
        return loss.detach()


@pytest.mark.parametrize("variant", ["fast", "reference"])
def bench_training_step(
    benchmark: BenchmarkFixture, batch: tuple[Tensor, Tensor], variant: Variant
) -> None:
    run, oracle = Run(variant), Run("reference")
    first_rows = [tensor[:2] for tensor in batch]
    losses = [run.step(*first_rows) for _ in range(3)]
    expected = [oracle.step(*first_rows) for _ in range(3)]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)

    n_tokens = batch[0].numel()
    benchmark.group = "training step"
    benchmark.extra_info["n_tokens"] = n_tokens
    benchmark.extra_info["flops"] = train_flops_per_token(CONFIG) * n_tokens
    benchmark.pedantic(run.step, batch, rounds=10, warmup_rounds=1)
