"""What is measured: one model, its optimizer and one batch of random tokens."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig, n_parameters
from rslm.attention import Implementation
from rslm.model import Transformer
from rslm.optim import clip_grad_norm, optimizer_step
from rslm.optimizer_setup import build_optimizer
from rslm.profiling.cases import Precision
from rslm.profiling.tables import Record
from rslm.profiling.timing import require_memory
from rslm.train_config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of a table: which model, how fed, how computed.

    Attributes:
        size: the model's name.
        model: its sizes; sequences are as long as its context.
        batch_size: sequences.
        precision: of matrix products: strict float32, TF32 (CUDA), or autocast to bfloat16.
        compiles: through `torch.compile`.
        recompute_blocks: as in `Transformer`.
        implementation: of attention.
    """

    size: str
    model: TransformerConfig
    batch_size: int
    precision: Precision = "float32"
    compiles: bool = False
    recompute_blocks: int | None = None
    implementation: Implementation = "auto"

    @property
    def n_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.model.context_length

    @property
    def label(self) -> str:
        """What identifies it, in a few words."""
        mode = ", compiled" if self.compiles else ""
        kept = self.recompute_blocks
        tail = "" if kept is None else f", recompute {kept}"
        return f"{self.size}, {self.model.context_length} tokens, {self.precision}{mode}{tail}"

    def record(self) -> Record:
        """What identifies it."""
        return {
            "size": self.size,
            "sequence_length": self.model.context_length,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "mode": "compiled" if self.compiles else "eager",
        }


class Workload:
    """One training step of a case, in phases that can be told apart.

    Equal cases have equal weights and tokens, whatever ran before; `rank` moves the tokens.
    Attributes may be replaced by what several processes train with. Weights, gradients and
    optimizer that cannot fit on a CPU raise MemoryError.

    Attributes:
        model: the bare model.
        forward: what is called with token ids.
        optimizer: AdamW as `rslm train` makes it.
        finish: is called after backward.
        clip: `rslm.optim.clip_grad_norm`, or what stands in for it.
        autocast_dtype: dtype of autocast; None: without.
    """

    def __init__(self, case: Case, device: torch.device, *, rank: int = 0) -> None:
        self.case, self.device = case, device
        # Weights, gradients and two moments, all float32.
        require_memory(16 * n_parameters(case.model), device)
        self.model = Transformer(
            case.model,
            implementation=case.implementation,
            recompute_blocks=case.recompute_blocks,
            generator=torch.Generator().manual_seed(0),
            device=device,
        )
        self.forward: Callable[..., tuple[Tensor, Tensor]] = self.model
        if case.compiles:
            # What was compiled for the case before would make this one's shapes dynamic.
            torch.compiler.reset()
            self.forward = torch.compile(self.model)
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            self.model, OptimizerConfig(), case.model
        )
        self.finish: Callable[[], None] = lambda: None
        self.clip: Callable[..., Tensor] = clip_grad_norm
        self.autocast_dtype = torch.bfloat16 if case.precision == "bfloat16" else None
        shape = (case.batch_size, case.model.context_length + 1)
        text = torch.Generator().manual_seed(rank + 1)
        token_ids = torch.randint(case.model.resolved_vocab_size, shape, generator=text)
        self.inputs, self.targets = (
            ids.to(device)
            for ids in (token_ids[:, :-1].contiguous(), token_ids[:, 1:].contiguous())
        )

    def loss(self) -> Tensor:
        """The forward pass."""
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=enabled):
            minimised, _ = self.forward(self.inputs, targets=self.targets)
            return minimised

    def backward(self, loss: Tensor) -> None:
        """The backward pass, up to gradients that all processes agree on."""
        torch.autograd.backward(loss)
        self.finish()

    def update(self) -> None:
        """Clipping, the optimizer's step, and the end of the gradients."""
        # A rate so small that hundreds of steps on one batch stay finite.
        optimizer_step(self.optimizer, learning_rate=1e-5, max_grad_norm=1.0, clip=self.clip)


@contextlib.contextmanager
def matmul_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside the block float32 products are strict, or TF32's where that is asked for.

    Raises:
        ValueError: TF32 without a CUDA device.
    """
    if precision == "tfloat32" and device.type != "cuda":
        raise ValueError(f"precision tfloat32 needs device cuda, got {device.type}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tfloat32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compute_dtype(precision: Precision) -> torch.dtype:
    """The dtype of the tensors that matrix products of a precision read."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def distinct_bytes(tensors: Any) -> int:
    """Bytes of the memory behind tensors, each piece once; of sharded ones the local part."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        storage = local.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of an optimizer's state."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
