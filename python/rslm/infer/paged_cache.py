"""Keys and values of many sequences in one pool of blocks, and one ragged step over them.

The pool has the shape (n_layers, 2, n_blocks, block_size, n_kv_heads, d_head). A sequence owns
blocks in any order; its table lists them, so position p lies in slot p % block_size of block
table[p // block_size].

Source: Kwon et al. 2023, PagedAttention, section 4.1 (arXiv:2309.06180).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from rslm import _rslm, exact
from rslm.architecture import TransformerConfig
from rslm.attention import attention, reads_blocks
from rslm.kv_cache import Attend, AttentionCache

if TYPE_CHECKING:
    from rslm.kernels.paged_attention import BlockTables

Reading = Literal["gather", "triton", "exact"]
"""How queries come to the keys and values of their blocks."""


@dataclass
class StepBatch:
    """The new tokens of one step, those of one sequence after those of another.

    Attributes:
        token_ids: the tokens of all sequences.
        positions: of each token; those of a sequence follow one another.
        lengths: how many of the tokens belong to each sequence.
        block_tables: the blocks of each sequence, which have room for its last position.
        rows: the indices of the tokens after which logits are wanted.
    """

    token_ids: list[int]
    positions: list[int]
    lengths: list[int]
    block_tables: list[list[int]]
    rows: list[int]


class _Group(NamedTuple):
    """Sequences with equally many new tokens, whose keys are gathered into one rectangle."""

    tokens: Tensor  # (sequences, queries), indices of the flattened tokens
    slots: Tensor  # (sequences, keys), the newest at the right
    start: Tensor | None  # (sequences, queries), the first key that is the sequence's own


class PagedLayer:
    """The view of one layer of a `PagedCache` that its attention is given."""

    def __init__(self, cache: "PagedCache", layer: int) -> None:
        self._cache = cache
        self._keys, self._values = cache.pool[layer].flatten(1, 2)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Attend,
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        """Puts (heads, tokens, d_head) keys and values where they belong, and averages.

        Each query sees the keys of its own sequence up to its own, and of these the last
        `window`.
        """
        slots = self._cache.slots
        self._keys[slots] = k.transpose(0, 1).to(self._keys.dtype)
        self._values[slots] = v.transpose(0, 1).to(self._values.dtype)
        heads = torch.empty_like(q)
        for tokens, slots, start in self._cache.groups:
            # (sequences, heads, positions, d_head)
            grouped = q[:, tokens].transpose(0, 1)
            keys, values = (
                x[slots].transpose(1, 2).to(q.dtype) for x in (self._keys, self._values)
            )
            averaged = attention(
                grouped, keys, values, causal=True, window=window, scale=scale, start=start
            )
            heads[:, tokens] = averaged.transpose(0, 1)
        return heads


class TritonPagedLayer:
    """The same with the kernel of `kernels.paged_attention`, which reads the blocks in place."""

    def __init__(self, cache: "PagedCache", layer: int) -> None:
        self._cache, self._layer = cache, layer
        self._keys, self._values = cache.pool[layer]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Attend,
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        """As `PagedLayer.attend`."""
        if torch.compiler.is_compiling():
            out: Tensor = _read_blocks(q, k, v, self._cache.number, self._layer, window, scale)
            return out
        return self.read(q, k, v, window, scale)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None
    ) -> Tensor:
        """What `attend` does, with nothing of it compiled."""
        # Only here, as it loads Triton, which a machine without a GPU may lack.
        from rslm.kernels.paged_attention import paged_attention

        for pool, x in ((self._keys, k), (self._values, v)):
            pool.flatten(0, 1)[self._cache.slots] = x.transpose(0, 1).to(pool.dtype)
        step = self._cache.step
        return paged_attention(q, self._keys, self._values, step, window=window, scale=scale)


_CACHES: WeakValueDictionary[int, "PagedCache"] = WeakValueDictionary()
_NUMBERS = count()


@torch.library.custom_op("rslm::read_blocks", mutates_args=())
def _read_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: int,
    layer: int,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """`TritonPagedLayer.read` for torch.compile, which must not see the pool.

    All layers' keys and values are views of it. A compiler that sees them written copies the
    whole pool in each layer, to be sure of the order; what q is made of keeps the order here.
    """
    found = _CACHES[cache].layers[layer]
    assert isinstance(found, TritonPagedLayer)
    return found.read(q, k, v, window, scale)


@_read_blocks.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    n_heads, n_tokens, d_head = q.shape
    return q.new_empty(n_tokens, n_heads, d_head).transpose(0, 1)


class ExactPagedLayer:
    """The same in exact arithmetic, which reads the blocks where they lie."""

    def __init__(self, cache: "PagedCache", layer: int) -> None:
        self._cache = cache
        # Made once: a step of a small model takes less time than a hundred such views.
        self._stored = tuple(x.numpy() for x in cache.pool[layer].flatten(1, 2))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Attend,
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        """As `PagedLayer.attend`."""
        plan, (keys, values) = self._cache.plan, self._stored
        plan.append(exact.array(k.transpose(0, 1)), keys)
        plan.append(exact.array(v.transpose(0, 1)), values)
        by_token = exact.array(q.transpose(0, 1))
        out = exact.run_attend(plan, by_token, keys, values, window=window, scale=scale)
        return out.transpose(0, 1)

    def run_block(self, block: _rslm.Block, x: Tensor) -> Tensor:
        """The whole block of this layer over the step's tokens (tokens, d_model)."""
        out, written = exact.empty(x.shape)
        keys, values = self._stored
        n_threads = torch.get_num_threads()
        self._cache.plan.run_block(block, exact.array(x), keys, values, written, n_threads)
        return out


class PagedCache:
    """The pool, and what the layers need to know of the step that is being computed.

    Args:
        config: of the model whose keys and values these are.
        n_blocks: blocks of the pool.
        block_size: positions in a block.
        device: where the pool lies.
        dtype: of its numbers.
        reading: "exact", in exact arithmetic; None takes what `rslm.attention` chooses.

    Raises:
        ValueError: a size is below 1.
    """

    slots: Tensor
    """Where the keys and values of the step's tokens belong."""
    groups: list[_Group]
    step: "BlockTables"

    def __init__(
        self,
        config: TransformerConfig,
        *,
        n_blocks: int,
        block_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        reading: Reading | None = None,
    ) -> None:
        for name, size in (("n_blocks", n_blocks), ("block_size", block_size)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.n_blocks, self.block_size = n_blocks, block_size
        shape = (config.n_layers, 2, n_blocks, block_size, *_kv_shape(config))
        # Zeros cost no memory until they are written over.
        self.pool = torch.zeros(shape, device=device, dtype=dtype)
        self.reading: Reading = reading or _reading(self.pool)
        kind = _LAYERS[self.reading]
        self.layers: list[AttentionCache] = [kind(self, i) for i in range(config.n_layers)]
        self.number = next(_NUMBERS)
        _CACHES[self.number] = self
        self._group = config.n_heads // config.resolved_n_kv_heads
        self._longest = 0

    def begin(self, batch: StepBatch) -> None:
        """Sets what the layers of the coming forward pass read.

        Raises:
            ValueError: a position has no room in its block table, a block is not of the pool, or
                the lengths are not those of the positions.
        """
        self._longest = max(batch.positions) + 1
        if self.reading == "exact":
            step = (batch.positions, batch.lengths, batch.block_tables)
            self.plan = _rslm.StepPlan(*step, self.block_size, self.n_blocks)
            return
        self._check(batch)
        size, device = self.block_size, self.pool.device
        slots = [
            table[position // size] * size + position % size
            for (first, end), table in _spans(batch)
            for position in batch.positions[first:end]
        ]
        self.slots = torch.tensor(slots, dtype=torch.long, device=device)
        if self.reading == "gather":
            self.groups = _groups(batch, size, device)
        else:
            self.step = self._tables(batch)

    def _tables(self, batch: StepBatch) -> "BlockTables":
        from rslm.kernels.paged_attention import block_tables, tile_queries

        return block_tables(
            batch.positions,
            batch.lengths,
            batch.block_tables,
            block_size=self.block_size,
            tile_queries=tile_queries(self.pool.shape[-1], self.pool.dtype, self._group),
            device=self.pool.device,
        )

    def _check(self, batch: StepBatch) -> None:
        """As the extension does it; a kernel that is led outside the pool breaks the process."""
        n, lengths, size = len(batch.positions), batch.lengths, self.block_size
        n_tables = len(batch.block_tables)
        if sum(lengths) != n or len(lengths) != n_tables or min(lengths, default=0) < 0:
            raise ValueError(
                f"lengths must add up to {n} positions of {n_tables} sequences, got {lengths}"
            )
        for (first, end), table in _spans(batch):
            own = batch.positions[first:end]
            if own and own != list(range(own[0], own[0] + len(own))):
                raise ValueError(f"positions of a sequence must follow one another, got {own}")
            if own and not 0 <= own[0] <= own[-1] < len(table) * size:
                raise ValueError(
                    f"a block table must have room for position {own[-1]}, "
                    f"got {len(table)} blocks of {size}"
                )
            if table and not 0 <= min(table) <= max(table) < self.n_blocks:
                wrong = next(block for block in table if not 0 <= block < self.n_blocks)
                raise ValueError(f"a block must be below {self.n_blocks}, got {wrong}")

    def length_after(self, n_tokens: int) -> int:
        """Positions of the longest sequence of the step; its tokens are in `begin` already."""
        return self._longest

    def next_positions(self, n_tokens: int, device: torch.device) -> Tensor:
        """Refuses: the positions of a ragged step must be given."""
        raise ValueError("token_positions must be given with a paged cache")


def bytes_per_block(
    config: TransformerConfig, block_size: int, dtype: torch.dtype = torch.float32
) -> int:
    """Memory of one block of the pool, all layers together."""
    n_kv_heads, d_head = _kv_shape(config)
    return 2 * config.n_layers * block_size * n_kv_heads * d_head * dtype.itemsize


def _kv_shape(config: TransformerConfig) -> tuple[int, int]:
    return config.resolved_n_kv_heads, config.resolved_d_head


def _reading(pool: Tensor) -> Reading:
    return "triton" if reads_blocks(pool.device, pool.dtype, pool.shape[-1]) else "gather"


def _spans(batch: StepBatch) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """The first token of each sequence, the one behind its last, and its table."""
    return zip(pairwise(accumulate(batch.lengths, initial=0)), batch.block_tables, strict=True)


def _groups(batch: StepBatch, block_size: int, device: torch.device) -> list[_Group]:
    """The sequences with new tokens, those with equally many together."""
    groups: dict[int, list[tuple[int, list[int]]]] = {}
    for (first, end), table in _spans(batch):
        slots = [block * block_size + i for block in table for i in range(block_size)]
        if end > first:
            own = slots[: batch.positions[end - 1] + 1]
            groups.setdefault(end - first, []).append((first, own))
    return [_group(length, members, device) for length, members in groups.items()]


def _group(length: int, members: Sequence[tuple[int, list[int]]], device: torch.device) -> _Group:
    """The rectangle of sequences with `length` new tokens each.

    What is missing at the left of a shorter sequence is filled with its own first slot, and
    hidden: a number of another sequence that is not finite would not stay outside otherwise.
    """
    n_keys = max(len(slots) for _, slots in members)
    tokens = [list(range(first, first + length)) for first, _ in members]
    padding = [n_keys - len(slots) for _, slots in members]
    padded = [slots[:1] * n + slots for n, (_, slots) in zip(padding, members, strict=True)]
    start = None
    if any(padding):
        start = torch.tensor(padding, device=device)[:, None].expand(-1, length)
    as_tensor = torch.tensor
    return _Group(as_tensor(tokens, device=device), as_tensor(padded, device=device), start)


_LAYERS: dict[Reading, Callable[[PagedCache, int], AttentionCache]] = {
    "gather": PagedLayer,
    "triton": TritonPagedLayer,
    "exact": ExactPagedLayer,
}
