"""Attention over block tables: whether the numbers are right, and speed beside what it replaces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.attention import attention
from rslm.gpu_check.budget import Budget
from rslm.gpu_check.cases import Dtype
from rslm.gpu_check.correctness import ALLOWED, SLACK
from rslm.gpu_check.speed import seconds_per_call
from rslm.infer.paged_cache import PagedCache, Reading, StepBatch
from rslm.kernels.launch_configs import LaunchConfig
from rslm.profiling.tables import Record, Table, column
from rslm.profiling.timing import Announce, quiet

OURS = "rslm paged"
CONFIGS = tuple(
    LaunchConfig(16, *row) for row in ((32, 4, 3), (64, 4, 3), (64, 4, 5), (64, 8, 5), (128, 8, 3))
)
"""Tiles, warps and stages worth a row in the table of configurations, all without spills."""


@dataclass(frozen=True, kw_only=True)
class PagedCase:
    """A step of one layer.

    Attributes:
        sequences: keys before the step and new tokens, of each.
        n_heads: heads of queries.
        n_kv_heads: heads of keys and values.
        d_head: width of a head.
        block_size: positions in a block.
        window: keys that a query sees at most.
        dtype: of all tensors.
    """

    sequences: tuple[tuple[int, int], ...]
    n_heads: int = 32
    n_kv_heads: int = 8
    d_head: int = 128
    block_size: int = 16
    window: int | None = None
    dtype: Dtype = "bfloat16"

    @property
    def label(self) -> str:
        """What identifies it, in a few words."""
        n_new = sum(new for _, new in self.sequences)
        longest = max(before + new for before, new in self.sequences)
        parts = [f"{len(self.sequences)} sequences, {n_new} tokens, up to {longest} keys"]
        parts += [f"{self.n_heads}/{self.n_kv_heads} heads x {self.d_head}"]
        parts += [f"blocks of {self.block_size}", self.dtype]
        parts += [f"window {self.window}"] if self.window else []
        return ", ".join(parts)

    @property
    def n_bytes(self) -> int:
        """Of keys and values that some query sees: what has to be read once at least."""
        n_keys = sum(
            min(before + new, new + (self.window or before + 1) - 1)
            for before, new in self.sequences
        )
        itemsize = torch.finfo(getattr(torch, self.dtype)).bits // 8
        return 2 * n_keys * self.n_kv_heads * self.d_head * itemsize

    def record(self) -> Record:
        """What identifies it."""
        return {"case": self.label, "block_size": self.block_size, "dtype": self.dtype}

    def cache(self, device: torch.device, reading: Reading) -> PagedCache:
        """A pool of one layer with numbers from N(0, 1) in it."""
        needed = sum(-(-(before + new) // self.block_size) for before, new in self.sequences)
        config = TransformerConfig(
            vocab_size=16,
            context_length=max(before + new for before, new in self.sequences),
            d_model=self.n_heads * self.d_head,
            n_layers=1,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
        )
        sizes: Any = {"n_blocks": needed, "block_size": self.block_size}
        dtype: torch.dtype = getattr(torch, self.dtype)
        cache = PagedCache(config, **sizes, device=device, dtype=dtype, reading=reading)
        cache.pool.normal_(generator=torch.Generator(device).manual_seed(0))
        return cache

    def batch(self) -> StepBatch:
        """All sequences, in blocks of a shuffled pool."""
        needed = [-(-(before + new) // self.block_size) for before, new in self.sequences]
        free = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(0)).tolist()
        return StepBatch(
            token_ids=[0] * sum(new for _, new in self.sequences),
            positions=[before + i for before, new in self.sequences for i in range(new)],
            lengths=[new for _, new in self.sequences],
            block_tables=[[free.pop() for _ in range(n)] for n in needed],
            rows=[],
        )

    def draw(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the new tokens, (heads, tokens, d_head)."""
        n_tokens = sum(new for _, new in self.sequences)
        generator = torch.Generator(device).manual_seed(1)
        options: Any = {"generator": generator, "device": device}
        dtype: torch.dtype = getattr(torch, self.dtype)
        q, k, v = (
            torch.randn(n_tokens, n_heads, self.d_head, **options).to(dtype).transpose(0, 1)
            for n_heads in (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        )
        return q, k, v


CHECKED = (
    PagedCase(sequences=((1023, 1), (0, 1), (15, 1), (640, 1))),
    PagedCase(sequences=((300, 1), (0, 130), (77, 33)), d_head=64, n_heads=12, n_kv_heads=4),
    PagedCase(sequences=((999, 1), (40, 60)), window=100, block_size=32),
    PagedCase(sequences=((90, 9), (31, 1)), d_head=80, n_heads=5, n_kv_heads=5, block_size=8),
    PagedCase(sequences=((90, 9), (31, 1)), d_head=256, n_heads=4, n_kv_heads=1),
    PagedCase(sequences=((60, 3), (31, 1)), d_head=64, n_heads=24, n_kv_heads=1, block_size=5),
)
TIMED = (
    PagedCase(sequences=((1023, 1),) * 64),
    PagedCase(sequences=((4095, 1),) * 8),
    PagedCase(sequences=((1023, 1),) * 32 + ((512, 480),)),
    PagedCase(sequences=((8191, 1),)),
    PagedCase(sequences=((1023, 1),) * 256),
    PagedCase(sequences=((2047, 1),) * 64, window=512),
)
DRY = PagedCase(
    sequences=((20, 1), (3, 2)), n_heads=2, n_kv_heads=1, d_head=16, block_size=8, dtype="float32"
)


def check_paged(
    cases: Sequence[PagedCase],
    dtypes: Sequence[Dtype],
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case and dtype: errors against float64, and bits against other batches.

    The rule of errors is that of `check_correctness`. `n_different` counts tokens whose bits are
    others when their sequence is alone in a step, or read token by token.
    """
    records = []
    for dtype in dtypes:
        for case in (replace(case, dtype=dtype) for case in cases):
            if budget.allows(f"paged attention, {case.label}", share):
                announce(f"paged attention: {case.label}")
                records.append(_check(case, device))
    return records


def _check(case: PagedCase, device: torch.device) -> Record:
    cache, batch, heads = case.cache(device, "triton"), case.batch(), case.draw(device)
    found = _attend(cache, batch, heads, case.window)
    exact, plain = (
        _by_formula(cache, batch, heads[0], case.window, wide) for wide in (True, False)
    )
    error, ordinary = (float((x - exact).abs().max()) for x in (found, plain))
    worst = error / (ALLOWED["output"] * ordinary + SLACK)
    n_different, first = 0, 0
    for length, table in zip(batch.lengths, batch.block_tables, strict=True):
        own = range(first, first + length)
        for chunk in (own, *(range(i, i + 1) for i in own)):
            alone = _share(batch, chunk, table)
            again = _attend(
                cache, alone, [x[:, chunk.start : chunk.stop] for x in heads], case.window
            )
            same = (again == found[:, chunk.start : chunk.stop]).all(-1).all(0)
            n_different += int((~same).sum())
        first += length
    passed = worst <= 1.0 and n_different == 0
    return case.record() | {
        "error": error,
        "error of the formula": ordinary,
        "worst": worst,
        "n_different": n_different,
        "passed": passed,
    }


def _share(batch: StepBatch, chunk: range, table: list[int]) -> StepBatch:
    """The step of these tokens alone, which are of one sequence."""
    positions = batch.positions[chunk.start : chunk.stop]
    return StepBatch([0] * len(chunk), positions, [len(chunk)], [table], [])


def _attend(
    cache: PagedCache, batch: StepBatch, heads: Sequence[Tensor], window: int | None
) -> Tensor:
    cache.begin(batch)
    q, k, v = heads
    return cache.layers[0].attend(q, k, v, attend=attention_alone, window=window, scale=None)


def attention_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a layer would do without a cache; a paged one has no use for it."""
    return attention(q, k, v, causal=True)


def _by_formula(
    cache: PagedCache, batch: StepBatch, q: Tensor, window: int | None, wide: bool
) -> Tensor:
    """Sequence by sequence, in float64 with `wide`, over keys copied out of their blocks."""
    parts, first = [], 0
    for length, table in zip(batch.lengths, batch.block_tables, strict=True):
        n_keys = batch.positions[first + length - 1] + 1
        blocks = cache.pool[0][:, torch.tensor(table, device=q.device)]
        keys, values = blocks.flatten(1, 2)[:, :n_keys].transpose(1, 2)
        own = (q[:, first : first + length], keys, values)
        parts.append(
            attention(
                *(x.double() if wide else x for x in own),
                causal=True,
                window=window,
                implementation="reference",
            )
        )
        first += length
    return torch.cat(parts, 1)


def time_paged(
    cases: Sequence[PagedCase],
    device: torch.device,
    budget: Budget,
    *,
    share: float,
    announce: Announce = quiet,
) -> list[Record]:
    """A record for each case and way: seconds of a layer, and bytes of keys and values a second.

    "gathered" is what a machine without Triton does; "SDPA alone" leaves the gathering out and
    needs equally many new tokens of all sequences and no window. Configurations other than the
    table's follow `OURS`.
    """
    records = []
    for case in cases:
        for name, make in _ways(case).items():
            if not budget.allows(f"speed of {name}, {case.label}", share):
                continue
            announce(f"paged attention: {name}, {case.label}")
            seconds = seconds_per_call(make(device), device)
            records.append(
                case.record()
                | {"way": name, "seconds": seconds, "bytes_per_second": case.n_bytes / seconds}
            )
    return records


def _ways(case: PagedCase) -> dict[str, Callable[[torch.device], Callable[[], Tensor]]]:
    ways: dict[str, Any] = {OURS: partial(_layer, case, "triton")}
    ways["gathered"] = partial(_layer, case, "gather")
    if case.window is None and len(set(case.sequences)) == 1:
        ways["SDPA alone"] = partial(_sdpa, case)
    group = case.n_heads // case.n_kv_heads
    for config in CONFIGS if group <= 16 else ():
        name = f"{OURS}, {config.tile_keys} keys w{config.n_warps} s{config.n_stages}"
        ways[name] = partial(_configured, case, config)
    return ways


def _layer(case: PagedCase, reading: Reading, device: torch.device) -> Callable[[], Tensor]:
    cache, heads = case.cache(device, reading), case.draw(device)
    cache.begin(case.batch())
    q, k, v = heads
    layer = cache.layers[0]
    return lambda: layer.attend(q, k, v, attend=attention_alone, window=case.window, scale=None)


def _configured(
    case: PagedCase, config: LaunchConfig, device: torch.device
) -> Callable[[], Tensor]:
    from rslm.kernels.paged_attention import paged_attention

    cache, (q, _, _) = case.cache(device, "triton"), case.draw(device)
    cache.begin(case.batch())
    keys, values = cache.pool[0]
    options: Any = {"window": case.window, "config": config}
    return lambda: paged_attention(q, keys, values, cache.step, **options)


def _sdpa(case: PagedCase, device: torch.device) -> Callable[[], Tensor]:
    before, new = case.sequences[0]
    n_sequences, dtype = len(case.sequences), getattr(torch, case.dtype)
    q, k, v = (
        torch.randn(n_sequences, n_heads, length, case.d_head, device=device, dtype=dtype)
        for n_heads, length in (
            (case.n_heads, new),
            (case.n_kv_heads, before + new),
            (case.n_kv_heads, before + new),
        )
    )
    return partial(attention, q, k, v, causal=True, implementation="torch")


def paged_table(records: list[Record]) -> Table:
    """The table of `check_paged`."""
    return Table(
        name="paged",
        title="Attention over block tables: errors, and tokens whose bits depend on the batch",
        columns=(
            column("case", "case"),
            column("error", "error", lambda error: f"{error:.1e}"),
            column("share of allowed", "worst", lambda share: f"{share:.2f}"),
            column("different", "n_different"),
            column("verdict", "passed", lambda passed: "passed" if passed else "FAILED"),
        ),
        records=records,
    )


def paged_speed_table(records: list[Record]) -> Table:
    """The table of `time_paged`."""
    return Table(
        name="paged_speed",
        title="Attention over block tables: milliseconds of a layer, GB/s of keys and values",
        columns=(
            column("case", "case"),
            column("way", "way"),
            column("ms", "seconds", lambda seconds: f"{1e3 * seconds:,.3f}"),
            column("GB/s", "bytes_per_second", lambda speed: f"{speed / 1e9:,.0f}"),
        ),
        records=records,
    )
