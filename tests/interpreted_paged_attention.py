"""The Triton kernel of paged attention against the formula, on a CPU.

`test_paged_attention` runs it: Triton reads TRITON_INTERPRET when it is imported, so these have a
process of their own. An operation of the interpreter takes a millisecond, whatever the size of its
tile: the cases are as small as three tiles of keys allow.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_runner import model_of, ragged_steps, sequences
from torch import Tensor
from triton_interpreter import exact_bfloat16, formula

from rslm.attention import attention
from rslm.infer.paged_cache import PagedCache
from rslm.infer.runner import Runner, StepBatch
from rslm.kernels.launch_configs import LaunchConfig, paged_config
from rslm.kernels.paged_attention import block_tables, paged_attention, tile_queries

__all__ = ["exact_bfloat16"]

SMALL = LaunchConfig(16, 16, 4, 1)
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """Sequences by (keys before the step, new tokens)."""

    sequences: tuple[tuple[int, int], ...] = ((40, 1), (0, 1), (15, 1))
    heads: tuple[int, int] = (2, 1)
    d_head: int = 16
    block_size: int = 16
    window: int | None = None
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    cached: torch.dtype | None = None
    config: LaunchConfig = SMALL
    spread: float = 1.0

    @property
    def group(self) -> int:
        return self.heads[0] // self.heads[1]


@dataclass
class Drawn:
    """A pool of NaN with the sequences' keys and values in blocks of random places."""

    q: Tensor
    pool: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    tables: list[list[int]]


def draw(case: Case) -> Drawn:
    generator = torch.Generator().manual_seed(len(case.sequences) + case.d_head)
    random = Random(case.d_head)
    n_new = sum(new for _, new in case.sequences)
    needed = [-(-(before + new) // case.block_size) for before, new in case.sequences]
    free = list(range(sum(needed) + 3))
    random.shuffle(free)
    cached = case.cached or case.dtype
    pool = torch.full((2, len(free), case.block_size, case.heads[1], case.d_head), NAN).to(cached)
    drawn = Drawn(torch.empty(0), pool, [], [], [])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, case.d_head, generator=generator) * case.spread

    drawn.q = normal(n_new, case.heads[0]).transpose(0, 1).to(case.dtype)
    for (before, new), n in zip(case.sequences, needed, strict=True):
        table = [free.pop() for _ in range(n)]
        slots = [table[i // case.block_size] for i in range(before + new)]
        places = [i % case.block_size for i in range(before + new)]
        parts = [normal(before + new, case.heads[1]).to(cached) for _ in range(2)]
        for half, part in enumerate(parts):
            pool[half][slots, places] = part
        drawn.keys.append(parts[0].transpose(0, 1))
        drawn.values.append(parts[1].transpose(0, 1))
        drawn.tables.append(table)
    return drawn


def run(case: Case, drawn: Drawn) -> Tensor:
    step = block_tables(
        [before + i for before, new in case.sequences for i in range(new)],
        [new for _, new in case.sequences],
        drawn.tables,
        block_size=case.block_size,
        tile_queries=case.config.tile_queries // case.group,
        device=torch.device("cpu"),
    )
    options: dict[str, Any] = {"window": case.window, "scale": case.scale, "config": case.config}
    return paged_attention(drawn.q, *drawn.pool, step, **options)


def by_formula(case: Case, drawn: Drawn, dtype: torch.dtype) -> Tensor:
    parts, first = [], 0
    for i, (before, new) in enumerate(case.sequences):
        q = drawn.q[:, first : first + new]
        own = torch.arange(before, before + new)[:, None]
        keys = torch.arange(before + new)
        seen = keys <= own
        if case.window is not None:
            seen = seen & (keys > own - case.window)
        numbers = (x[None].to(dtype) for x in (q, drawn.keys[i], drawn.values[i]))
        scale = case.d_head**-0.5 if case.scale is None else case.scale
        parts.append(formula(*numbers, seen, scale)[0][0])
        first += new
    return torch.cat(parts, 1)


def assert_close_to_formula(case: Case) -> None:
    """Errors are at most twice those of the formula in the same dtype, as for `attention`."""
    drawn = draw(case)
    found = run(case, drawn)
    assert found.dtype == case.dtype
    assert found.isfinite().all()
    exact = by_formula(case, drawn, torch.float64)
    rough = by_formula(case, drawn, case.dtype).double()
    allowed = 2 * (rough - exact).abs().max().item() + 1e-5
    assert (found.double() - exact).abs().max().item() <= allowed


CASES = {
    "decode": Case(),
    "one key": Case(sequences=((0, 1),)),
    "round": Case(sequences=((47, 1), (31, 1)), d_head=32),
    "chunk": Case(sequences=((0, 37),)),
    "chunk behind keys": Case(sequences=((19, 10),)),
    "ragged": Case(sequences=((33, 1), (0, 9), (7, 3), (16, 1))),
    "a sequence without tokens": Case(sequences=((33, 1), (5, 0), (16, 2))),
    "no groups": Case(heads=(2, 2), sequences=((20, 17), (3, 1))),
    "three share a head": Case(heads=(6, 2), sequences=((20, 6), (3, 1))),
    "eight share a head": Case(heads=(8, 1), sequences=((20, 3), (3, 1))),
    "twenty share a head": Case(
        heads=(20, 1), sequences=((20, 2), (3, 1)), config=replace(SMALL, tile_queries=32)
    ),
    "window": Case(window=5, sequences=((40, 1), (0, 30), (2, 3))),
    "window of one": Case(window=1, sequences=((33, 1), (0, 5))),
    "window of a tile": Case(window=16, sequences=((47, 1), (31, 2))),
    "window beyond all": Case(window=1000, sequences=((20, 3),)),
    "blocks of 8": Case(block_size=8, sequences=((20, 9), (7, 1), (8, 1))),
    "blocks of 32": Case(block_size=32, sequences=((31, 2), (32, 1), (63, 1))),
    "blocks of 5": Case(block_size=5, sequences=((31, 2), (4, 1))),
    "blocks of 1": Case(block_size=1, sequences=((18, 2),)),
    "wide tiles": Case(config=LaunchConfig(32, 64, 4, 1), sequences=((100, 20),)),
    "5 columns": Case(d_head=5),
    "80 columns": Case(d_head=80),
    "256 columns": Case(d_head=256, config=paged_config(256, torch.float32, 2)),
    "scale": Case(scale=0.7),
    "negative scale": Case(scale=-0.7, spread=30.0),
    "large scores": Case(spread=100.0),
    "float16": Case(dtype=torch.float16, d_head=64),
    "float16, window": Case(dtype=torch.float16, window=7, sequences=((30, 5), (3, 1))),
    "bfloat16": Case(dtype=torch.bfloat16, d_head=64),
    "bfloat16, odd": Case(
        dtype=torch.bfloat16, d_head=48, block_size=8, heads=(6, 2), sequences=((30, 7), (8, 1))
    ),
    "bfloat16 over float32": Case(dtype=torch.bfloat16, cached=torch.float32),
    "float32 over bfloat16": Case(cached=torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_equals_formula(case: Case):
    assert_close_to_formula(case)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 20)), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 2), (7, 1)]),
    d_head=st.sampled_from([3, 16, 40, 64, 96, 128]),
    block_size=st.sampled_from([1, 7, 8, 16, 32]),
    window=st.none() | st.integers(1, 80),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    tile_keys=st.sampled_from([16, 32, 64]),
)
def test_drawn_steps_equal_formula(rows, heads, d_head, block_size, window, dtype, tile_keys):
    if not any(new for _, new in rows):
        rows = [*rows, (0, 1)]
    assert_close_to_formula(
        Case(
            sequences=tuple(rows), heads=heads, d_head=d_head, block_size=block_size,
            window=window, dtype=dtype, config=replace(SMALL, tile_keys=tile_keys),
        )
    )  # fmt: skip


GATHERED = [CASES[name] for name in ("ragged", "window", "three share a head", "bfloat16, odd")]


@pytest.mark.parametrize("case", GATHERED)
def test_output_equals_attention_over_gathered_keys(case: Case):
    drawn = draw(case)
    found, first = run(case, drawn), 0
    for (_, new), keys, values in zip(case.sequences, drawn.keys, drawn.values, strict=True):
        own = slice(first, first + new)
        q, k, v = (x[None].float() for x in (drawn.q[:, own], keys, values))
        options: Any = {"causal": True, "window": case.window, "implementation": "reference"}
        expected = attention(q, k, v, **options)[0].to(case.dtype)
        is_wide = case.dtype == torch.float32
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if is_wide else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(found[:, own], expected, **tolerance)
        first += new


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
def test_bits_depend_on_neither_batch_nor_chunks(dtype: torch.dtype, window: int | None):
    whole = Case(sequences=((0, 53),), dtype=dtype, window=window, heads=(6, 2))
    drawn = draw(whole)
    expected = run(whole, drawn)
    other = draw(replace(whole, sequences=((9, 4),), d_head=16))
    for before, new in ((52, 1), (17, 2), (16, 16), (3, 40)):
        last = before + new
        pool = torch.cat([drawn.pool, other.pool], 1)
        shifted = [[block + drawn.pool.shape[1] for block in other.tables[0]]]
        batch = Drawn(
            torch.cat([other.q, drawn.q[:, before:last]], 1), pool, [], [],
            [*shifted, drawn.tables[0]],
        )  # fmt: skip
        found = run(replace(whole, sequences=((9, 4), (before, new))), batch)[:, 4:]
        assert torch.equal(found, expected[:, before:last])


def test_results_are_written_and_nothing_else():
    from rslm.kernels.paged_attention import paged_launch

    case = CASES["ragged"]
    drawn = draw(case)
    room = torch.full((drawn.q.shape[1] + 2, case.heads[0] + 2, case.d_head + 8), -12345.0)
    out = room[1:-1, 1:-1, :-8].transpose(0, 1)
    step = block_tables(
        [before + i for before, new in case.sequences for i in range(new)],
        [new for _, new in case.sequences],
        drawn.tables,
        block_size=16,
        tile_queries=8,
        device=out.device,
    )
    options = (None, 0.25, SMALL)
    paged_launch(drawn.q, *drawn.pool, out, *step[:2], *options).run(out.device)
    assert torch.equal(out, run(case, drawn))
    out.fill_(-12345.0)
    assert (room == -12345.0).all()


def paged_runner(model: Any, block_size: int) -> Runner:
    """A runner whose cache is read by the kernel, which it would be on CUDA alone."""
    runner = Runner(model, n_blocks=200, block_size=block_size)
    runner.cache = PagedCache(
        model.config,
        n_blocks=200,
        block_size=block_size,
        dtype=model.token_embeddings.weight.dtype,
        reading="triton",
    )
    # Float32 on a CPU has a network of its own, in the extension's arithmetic.
    runner.network = model
    runner._hidden_states = model.hidden_states
    return runner


@pytest.mark.parametrize("name", ["grouped-heads", pytest.param("windows", marks=pytest.mark.slow)])
def test_ragged_steps_of_a_model_equal_the_whole_pass(name: str):
    model = model_of(name)
    ids = [x[:9] for x in sequences(model.config, 3)]
    runner = paged_runner(model, 4)
    with torch.no_grad():
        full = [model(torch.tensor([x]))[0] for x in ids]
    largest = max(float(x.abs().max()) for x in full)
    steps = ragged_steps(ids, Random(1), block_size=4, n_blocks=200, most=9)
    for batch, rows in steps:
        difference = runner.forward(batch) - torch.stack([full[i][at] for i, at in rows])
        assert difference.abs().max() < 2e-5 * max(1.0, largest)


def test_what_is_not_finite_stays_in_its_sequence():
    model = model_of("plain")
    model.token_embeddings.weight.data[3] = NAN
    runner = paged_runner(model, 4)
    bad, good = runner.forward(
        StepBatch([3, 3, 3, 1, 2], [0, 1, 2, 0, 1], [3, 2], [[0], [1]], [2, 4])
    )
    assert bad.isnan().all()
    assert good.isfinite().all()


def test_a_step_cut_for_another_configuration_is_refused():
    case = CASES["decode"]
    drawn = draw(case)
    assert tile_queries(16, torch.float32, 2) == 8
    step = block_tables(
        [40, 0, 15], [1, 1, 1], drawn.tables, block_size=16, tile_queries=4, device=drawn.q.device
    )
    with pytest.raises(ValueError, match="cut into tiles of 8 queries, got 4"):
        paged_attention(drawn.q, *drawn.pool, step)
