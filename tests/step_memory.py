"""Measures what one training step allocates on the CPU, for the tests of the estimates."""

from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from rslm.architecture import TransformerConfig
from rslm.model import Transformer
from rslm.optim import optimizer_step
from rslm.optimizer_setup import build_optimizer
from rslm.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """Bytes beside weights and optimizer state: kept after the forward pass, most at a time."""

    kept: int
    peak: int


def draw_batch(config: TransformerConfig, n_sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs and targets."""
    size = (n_sequences, config.context_length)
    draw = torch.Generator().manual_seed(0)
    ids = (torch.randint(config.resolved_vocab_size, size, generator=draw) for _ in range(2))
    return next(ids), next(ids)


def measure_step(config: TrainConfig) -> Allocated:
    """What a step allocates once the optimizer has its state, by the allocator's own events."""
    model = Transformer(
        config.model,
        implementation=config.attention_implementation,
        recompute_blocks=config.recompute_blocks,
    )
    optimizer = build_optimizer(model, config.optimizer, config.model)
    size = config.micro_batch_size or config.batch_size

    def step() -> None:
        for _ in range(config.batch_size // size):
            with record_function("rslm_forward"):
                inputs, targets = draw_batch(config.model, size)
                with torch.autocast("cpu", enabled=config.precision == "bfloat16"):
                    loss, _ = model(inputs, targets=targets)
            loss.backward()
        optimizer_step(optimizer, learning_rate=0.0, max_grad_norm=1.0)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    return read_events(seen)


def read_events(seen: profile) -> Allocated:
    """Sums of the allocations and releases in the order of their times."""
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    ends = [event.end_ns() for event in events if event.name() == "rslm_forward"]
    total = peak = kept = 0
    for time, n_bytes in changes:
        total += n_bytes
        peak = max(peak, total)
        if ends and time <= ends[0]:
            kept = total
    return Allocated(kept=kept, peak=peak)
