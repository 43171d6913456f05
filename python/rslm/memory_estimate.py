"""The memory that a run needs in each process, from its options alone. No torch.

To the activations come weights, gradients, optimizer state and what several processes exchange.
They are not all there at once: gradients come as activations go, and the peak is the fullest
moment of a step. Not counted are PyTorch itself and the context of a GPU (some hundred megabytes)
and what an allocator loses between blocks.

Source of what is divided in which way: Rajbhandari et al. 2020, ZeRO, section 5
(arXiv:1910.02054).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rslm.activation_memory import Activations, DeviceKind, saved_activations
from rslm.architecture import parameter_shapes
from rslm.group_rules import assign_groups, parse_group_rule
from rslm.train_config import OptimizerConfig, TrainConfig

Shapes = Mapping[str, tuple[int, ...]]

_WIDE = 4
"""Bytes of a weight, a gradient and a number of the optimizer's state."""
_BUCKET_BYTES = 25e6
"""Gradients that are smaller travel in buckets, which are copies."""
_MAX_SEQUENCES = 1 << 20
"""Where the search for the largest micro-batch ends."""
_N_WHOLE_GRADIENTS = 3
"""FSDP: matrices' gradients on their way, and the one that backward is making."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes in one process.

    Attributes:
        weights: parameters, or the process's part of them.
        gradients: likewise.
        optimizer_state: likewise.
        activations: kept from a forward pass for its backward pass.
        workspace: of the fullest moment, beside all that.
        communication: gathered weights, and copies of gradients that are sent.
        checkpoint_copy: on a CPU, weights and state while they are being written.
        peak: at the fullest moment; less than the sum of the parts.
        peak_at: that moment: "loss", "blocks" (of the backward pass), "update".
    """

    weights: int
    gradients: int
    optimizer_state: int
    activations: int
    workspace: int
    communication: int
    checkpoint_copy: int
    peak: int
    peak_at: str


def estimate_memory(
    config: TrainConfig,
    *,
    micro_batch_size: int | None = None,
    n_processes: int = 1,
    device: DeviceKind = "cpu",
) -> MemoryEstimate:
    """What each of `n_processes` processes needs from the second step on.

    Args:
        config: the run; its model's vocabulary must be known.
        micro_batch_size: sequences of a forward pass; those of the config unless given.
        n_processes: processes that train together, in the way of `config.parallel`.
        device: what each process computes on.

    Raises:
        ValueError: the vocabulary is not known, a group's rule does not fit, or the batch cannot
            be divided by the processes.
    """
    share = sequences_per_process(config, n_processes)
    size = micro_batch_size or min(config.micro_batch_size or share, share)
    shapes = parameter_shapes(config.model)
    state = optimizer_state_bytes(config.optimizer, shapes)
    kind = config.parallel if n_processes > 1 else "none"
    is_cut = kind in ("fsdp", "torch-fsdp2")
    is_half = config.precision == "bfloat16"
    kept = saved_activations(
        config.model,
        size,
        itemsize=2 if is_half else _WIDE,
        casts_weights=is_half and not is_cut,
        stream_itemsize=2 if is_half and is_cut else _WIDE,
        # All but the formula keep a number for each query, not for each pair.
        attention="reference" if config.attention_implementation == "reference" else "torch",
        device=device,
    )
    cut = _cut_sizes(shapes, n_processes if is_cut else 1)
    weights = _WIDE * sum(cut.values())
    owned = _owned_state(shapes, state, n_processes) if kind == "sharded" else sum(state.values())
    if is_cut:
        owned = sum(state[name] * cut[name] // math.prod(shapes[name]) for name in shapes)
    step = _Step(
        config=config,
        kept=kept,
        shapes=shapes,
        cut=cut,
        exchange=_exchange(config, shapes, n_processes),
        accumulates=share > size,
    )
    peak, at, workspace = max(step.moments())
    copy = weights + owned if device == "cpu" else 0
    return MemoryEstimate(
        weights=weights,
        gradients=weights,
        optimizer_state=owned,
        activations=kept.kept(config.recompute_blocks),
        workspace=workspace,
        communication=step.exchange.largest,
        checkpoint_copy=copy,
        peak=weights + owned + peak + copy,
        peak_at=at,
    )


def sequences_per_process(config: TrainConfig, n_processes: int) -> int:
    """A process's part of the batch.

    Raises:
        ValueError: the parts would differ.
    """
    if n_processes < 1:
        raise ValueError(f"processes must be at least 1, got {n_processes}")
    if config.batch_size % n_processes:
        raise ValueError(
            f"batch_size must be a multiple of the {n_processes} processes, got {config.batch_size}"
        )
    return config.batch_size // n_processes


def optimizer_state_bytes(config: OptimizerConfig, shapes: Shapes) -> dict[str, int]:
    """The state of each parameter: two moments for AdamW, momentum for Muon.

    NorMuon adds a number for each row, or for each column of a wide matrix. AdamW's count of
    steps, 4 bytes on the CPU, is left out.

    Raises:
        ValueError: a parameter is in no group, or in several.
    """
    muon = set()
    if config.algorithm == "muon" and not config.groups:
        # The matrices between embedding and head.
        muon = {n for n, shape in shapes.items() if n.startswith("layers.") and len(shape) == 2}
    elif config.groups:
        rules = [parse_group_rule(text) for text in config.groups]
        groups = zip(rules, assign_groups(shapes, rules), strict=True)
        muon = {name for rule, names in groups if rule.algorithm == "muon" for name in names}
    state = {}
    for name, shape in shapes.items():
        n_neurons = max(shape) if config.muon.normuon_beta2 is not None else 0
        moments = math.prod(shape) + n_neurons if name in muon else 2 * math.prod(shape)
        state[name] = _WIDE * moments
    return state


def largest_micro_batch(
    memory_bytes: int, n_sequences: int, peak_of: Callable[[int], int]
) -> tuple[int, int]:
    """The most sequences of a forward pass that fit, and the most that also divide the batch.

    Both are 0 where not even one fits. The first may be more than there are in the batch.

    Args:
        memory_bytes: what there is.
        n_sequences: the process's part of a batch.
        peak_of: bytes at the peak with so many sequences, more for more; but for the whole part,
            which needs no place for sums of gradients.
    """

    def fits(size: int) -> bool:
        return peak_of(size) <= memory_bytes

    low, high = 0, n_sequences
    if fits(n_sequences):
        low, high = n_sequences, 2 * n_sequences
        while high < _MAX_SEQUENCES and fits(high):
            low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    divisors = [size for size in range(1, min(low, n_sequences) + 1) if n_sequences % size == 0]
    return low, max(divisors, default=0)


def _cut_sizes(shapes: Shapes, n_processes: int) -> dict[str, int]:
    """Numbers of each parameter in one process: rows of what has two dimensions."""
    return {
        name: math.ceil(shape[0] / n_processes) * math.prod(shape[1:])
        if len(shape) > 1
        else math.prod(shape)
        for name, shape in shapes.items()
    }


def _owned_state(shapes: Shapes, state: Mapping[str, int], n_processes: int) -> int:
    """The state of the process that has most, where whole parameters have owners."""
    counts, owned = [0] * n_processes, [0] * n_processes
    # As `rslm.distributed.ShardedOptimizer` gives them: the largest first, to who has least.
    for name in sorted(shapes, key=lambda name: math.prod(shapes[name]), reverse=True):
        owner = min(range(n_processes), key=counts.__getitem__)
        counts[owner] += math.prod(shapes[name])
        owned[owner] += state[name]
    return max(owned)


@dataclass(frozen=True, kw_only=True)
class _Exchange:
    """What is in a process's memory because of the others, by the moment of a step."""

    at_loss: int = 0
    in_blocks: int = 0
    at_update: int = 0

    @property
    def largest(self) -> int:
        return max(self.at_loss, self.in_blocks, self.at_update)


def _exchange(config: TrainConfig, shapes: Shapes, n_processes: int) -> _Exchange:
    """Gathered weights and copies of gradients in a process."""
    if n_processes == 1 or config.parallel == "none":
        return _Exchange()
    sizes = {name: _WIDE * math.prod(shape) for name, shape in shapes.items()}
    half = 2 if config.precision == "bfloat16" else 1
    if config.parallel == "fsdp":
        second, largest = sorted(sizes.values())[-2:]
        gathered = (largest + second) // half
        return _Exchange(at_loss=largest // half, in_blocks=gathered + _N_WHOLE_GRADIENTS * largest)
    if config.parallel == "torch-fsdp2":
        # Its units are blocks, and the rest of the model.
        blocks = sum(size for name, size in sizes.items() if name.startswith("layers."))
        block, root = blocks // config.model.n_layers, sum(sizes.values()) - blocks
        gathered = (root + 2 * block) // half
        return _Exchange(at_loss=root // half, in_blocks=gathered + max(root, 2 * block))
    if config.parallel == "torch-ddp":
        # Its buckets are made once and stay.
        everything = sum(sizes.values())
        return _Exchange(at_loss=everything, in_blocks=everything, at_update=everything)
    # Ours are made when they are full and given back when all have arrived.
    return _Exchange(at_update=sum(size for size in sizes.values() if size < _BUCKET_BYTES))


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step of a run, for the moments in it that may be the fullest."""

    config: TrainConfig
    kept: Activations
    shapes: Shapes
    cut: Mapping[str, int]
    exchange: _Exchange
    accumulates: bool

    def moments(self) -> Iterator[tuple[int, str, int]]:
        """Bytes beside weights and state, the moment's name, and the workspace among them."""
        head, blocks, whole = self._gradients()
        # Where gradients are summed, all are there already, and each new one comes beside them.
        before = whole if self.accumulates else 0
        n_kept = self.config.recompute_blocks
        kept = self.kept.kept(n_kept)
        workspace = self.kept.loss_workspace
        yield before + self.exchange.at_loss + kept + workspace, "loss", workspace

        rest = kept - self.kept.logits
        done = 0 if self.accumulates else head
        new = head if self.accumulates else 0
        workspace = self.kept.block_workspace
        n_layers = len(self.kept.blocks)
        for first in reversed(range(0, n_layers, n_kept or 1)):
            stretch = range(first, min(first + (n_kept or 1), n_layers))
            again = 0 if n_kept is None else sum(self.kept.blocks[i] for i in stretch)
            total = before + self.exchange.in_blocks + rest + again + workspace + max(done, new)
            yield total, "blocks", workspace
            rest -= self.kept.stream if n_kept else sum(self.kept.blocks[i] for i in stretch)
            done += 0 if self.accumulates else sum(blocks[i] for i in stretch)
            new = 0
        workspace = self._update_workspace()
        table = head if self.accumulates else 0
        total = whole + max(workspace, table) + self.exchange.at_update
        yield total, "update", max(workspace, table)

    def _gradients(self) -> tuple[int, list[int], int]:
        """Bytes of the gradients of the head, of each block, and of all."""
        sizes = {name: _WIDE * numel for name, numel in self.cut.items()}
        head = sizes.get("lm_head.weight", sizes["token_embeddings.weight"])
        blocks = [0] * self.config.model.n_layers
        for name, size in sizes.items():
            if name.startswith("layers."):
                blocks[int(name.split(".")[1])] += size
        return head, blocks, sum(sizes.values())

    def _update_workspace(self) -> int:
        """What the update of the largest parameter needs beside gradients and state."""
        optimizer = self.config.optimizer
        workspace = 0
        if optimizer.algorithm == "muon":
            matrices = [
                s for n, s in self.shapes.items() if n.startswith("layers.") and len(s) == 2
            ]
            itemsize = 2 if optimizer.muon.orthogonalization_dtype == "bfloat16" else _WIDE
            for shape in matrices:
                numel = math.prod(shape)
                products = 4 * numel + 2 * min(shape) ** 2
                workspace = max(workspace, _WIDE * numel + itemsize * products)
                if optimizer.muon.normuon_beta2 is not None:
                    workspace = max(workspace, 4 * _WIDE * numel)
        if optimizer.implementation == "reference":
            workspace = max(workspace, _WIDE * max(self.cut.values()))
        return workspace
