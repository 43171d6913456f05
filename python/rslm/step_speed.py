"""How long a step of a run takes on this machine, from a few real ones."""

import statistics
import time
from dataclasses import dataclass

import torch

from rslm.infer.load import choose_device
from rslm.model import Transformer
from rslm.optim import optimizer_step
from rslm.optimizer_setup import build_optimizer
from rslm.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """Seconds of the two parts of a step, medians.

    Attributes:
        micro_batch_seconds: forward and backward pass over one micro-batch.
        update_seconds: clipping and the optimizer.
        memory_bytes: most that was allocated on a GPU; None elsewhere.
    """

    micro_batch_seconds: float
    update_seconds: float
    memory_bytes: int | None

    def step_seconds(self, n_micro_batches: int) -> float:
        """Seconds of a step that accumulates so many micro-batches."""
        return n_micro_batches * self.micro_batch_seconds + self.update_seconds


def measure_step(config: TrainConfig, micro_batch_size: int, n_steps: int = 5) -> StepSpeed:
    """Times `n_steps` micro-batches and updates of one process, after two to warm up.

    A model of the run's sizes trains on random tokens, with its precision, its compiler and its
    recomputation, in `config.n_threads` threads. Reading data, logging, checkpoints and other
    processes are left out.

    Raises:
        ValueError: the device is not there, or `n_steps` is below 1.
    """
    if n_steps < 1:
        raise ValueError(f"measured steps must be at least 1, got {n_steps}")
    device = choose_device(config.device)
    model = Transformer(
        config.model,
        implementation=config.attention_implementation,
        recompute_blocks=config.recompute_blocks,
        generator=torch.Generator().manual_seed(config.seed),
        device=device,
        dtype=torch.float32,
    )
    optimizer = build_optimizer(model, config.optimizer, config.model)
    forward = torch.compile(model) if config.compile else model
    draw = torch.Generator().manual_seed(config.seed)
    size = (micro_batch_size, config.model.context_length)
    inputs, targets = (
        torch.randint(config.model.resolved_vocab_size, size, generator=draw).to(device)
        for _ in range(2)
    )
    is_half = config.precision == "bfloat16"
    before = torch.get_num_threads()
    torch.set_num_threads(config.n_threads or before)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    micro_batches, updates = [], []
    try:
        for _ in range(2 + n_steps):
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
                minimised, _ = forward(inputs, targets=targets)
            torch.autograd.backward(minimised)
            _wait(device)
            middle = time.perf_counter()
            optimizer_step(
                optimizer,
                learning_rate=0.0,  # Many steps on one batch must not lead anywhere.
                max_grad_norm=config.optimizer.max_grad_norm,
            )
            _wait(device)
            micro_batches.append(middle - start)
            updates.append(time.perf_counter() - middle)
    finally:
        torch.set_num_threads(before)
    is_gpu = device.type == "cuda"
    return StepSpeed(
        micro_batch_seconds=statistics.median(micro_batches[2:]),
        update_seconds=statistics.median(updates[2:]),
        memory_bytes=torch.cuda.max_memory_allocated(device) if is_gpu else None,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
