"""Gradients averaged over the processes, one tensor at a time or in buckets."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

Mode = Literal["naive", "flat", "overlap", "bucketed"]
MODES: tuple[Mode, ...] = ("naive", "flat", "overlap", "bucketed")


@dataclass(eq=False)
class _Bucket:
    """Parameters whose gradients travel together; of one dtype, on one device."""

    parameters: list[Parameter]
    ready: set[Parameter] = field(default_factory=set)
    message: Tensor | None = None
    work: Any = None


class GradientAverager:
    """Replaces gradients by their mean over the processes.

    The calls are made in one order on every process, that of the buckets, however backward
    passes go. So a parameter that is unused on some processes counts as a zero gradient there;
    one that is unused on all keeps no gradient, and no optimizer moves it.

    Args:
        parameters: those to average; frozen ones are left out, tied ones come once.
        mode: see `DDP`.
        bucket_mb: megabytes (10^6 bytes) of a bucket of mode "bucketed"; a larger tensor has
            a bucket of its own.
    """

    def __init__(
        self, parameters: Iterable[Parameter], mode: Mode = "bucketed", bucket_mb: float = 25.0
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if not bucket_mb > 0:
            raise ValueError(f"bucket_mb must be positive, got {bucket_mb}")
        self.mode = mode
        self.is_enabled = True
        # A backward pass reaches parameters in about the reverse of the order of registration.
        trained = [p for p in dict.fromkeys(parameters) if p.requires_grad][::-1]
        limits = {"naive": 0.0, "overlap": 0.0, "flat": float("inf")}
        self._buckets = _fill_buckets(trained, limits.get(mode, bucket_mb * 1e6))
        self._n_launched = 0
        self._absent: set[Parameter] = set()
        if mode in ("overlap", "bucketed"):
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    note = functools.partial(self._note_ready, bucket)
                    parameter.register_post_accumulate_grad_hook(note)

    def _note_ready(self, bucket: _Bucket, parameter: Parameter) -> None:
        """After backward has added to a gradient: sends what is complete and next in order."""
        if not self.is_enabled:
            return
        if parameter in bucket.ready:
            raise RuntimeError(
                "finish_gradient_synchronization() must come between two backward passes\n"
                "to accumulate gradients, run all but the last pass inside no_sync()"
            )
        bucket.ready.add(parameter)
        while self._n_launched < len(self._buckets):
            bucket = self._buckets[self._n_launched]
            if len(bucket.ready) < len(bucket.parameters):
                break
            self._launch(bucket)

    def _launch(self, bucket: _Bucket) -> None:
        gradients = []
        for parameter in bucket.parameters:
            if parameter.grad is None:
                self._absent.add(parameter)
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if len(gradients) == 1 and gradients[0].is_contiguous():
            bucket.message = gradients[0]
        else:
            bucket.message = torch.cat([gradient.flatten() for gradient in gradients])
        bucket.work = dist.all_reduce(bucket.message, async_op=True)
        self._n_launched += 1

    def finish(self) -> None:
        """Sends what was not sent yet, waits for all of it, and leaves the means in `.grad`."""
        for bucket in self._buckets[self._n_launched :]:
            self._launch(bucket)
            if self.mode == "naive":
                bucket.work.wait()
        unused = self._agree_on_unused()
        world_size = dist.get_world_size()
        for bucket in self._buckets:
            bucket.work.wait()
            assert bucket.message is not None
            bucket.message.div_(world_size)
            _hand_back(bucket)
            bucket.message = bucket.work = None
            bucket.ready.clear()
        for parameter in unused:
            parameter.grad = None
        self._n_launched = 0
        self._absent.clear()

    def _agree_on_unused(self) -> list[Parameter]:
        """Of the parameters unused here, those that no process used.

        Only a process that has some reads the answer: reading makes a GPU's queue run dry.
        """
        parameters = [p for bucket in self._buckets for p in bucket.parameters]
        if not parameters:
            return []
        used = torch.tensor([p not in self._absent for p in parameters], dtype=torch.int32)
        used = used.to(parameters[0].device, non_blocking=True)
        dist.all_reduce(used)
        if not self._absent:
            return []
        return [p for p, n in zip(parameters, used.tolist(), strict=True) if n == 0]


def _fill_buckets(parameters: list[Parameter], limit: float) -> list[_Bucket]:
    """Cuts a list into buckets of at most `limit` bytes, or of one parameter."""
    buckets: list[_Bucket] = []
    filled, kind = 0, None
    for parameter in parameters:
        n_bytes = parameter.numel() * parameter.element_size()
        if kind == (parameter.dtype, parameter.device) and filled + n_bytes <= limit:
            buckets[-1].parameters.append(parameter)
            filled += n_bytes
        else:
            buckets.append(_Bucket([parameter]))
            filled, kind = n_bytes, (parameter.dtype, parameter.device)
    return buckets


def _hand_back(bucket: _Bucket) -> None:
    """Copies a bucket's message into the gradients, unless it is the gradient."""
    assert bucket.message is not None
    start = 0
    for parameter in bucket.parameters:
        assert parameter.grad is not None
        if parameter.grad is not bucket.message:
            stop = start + parameter.grad.numel()
            parameter.grad.copy_(bucket.message[start:stop].view_as(parameter.grad))
            start = stop
