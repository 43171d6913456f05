"""Packing plans for documents of the lengths that web text has: documents per second."""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rslm import _rslm
from rslm.packing_reference import PackingPolicy, pack

N_DOCUMENTS, CONTEXT_LENGTH = 1_000_000, 2048


@pytest.fixture(scope="module")
def lengths() -> np.ndarray:
    """Lognormal, as the lengths of web pages are: a median of 540 tokens and a long tail."""
    draw = np.random.default_rng(0).lognormal(6.3, 1.1, N_DOCUMENTS)
    return draw.clip(1, 100_000).astype(np.uint32)


@pytest.mark.parametrize("policy", ["bos-bestfit", "obfd"])
def bench_plan_packing(
    benchmark: BenchmarkFixture, lengths: np.ndarray, policy: PackingPolicy
) -> None:
    some = lengths[:1500]
    offsets, *columns = _rslm.plan_packing(some, CONTEXT_LENGTH, policy)
    expected = pack(some.tolist(), CONTEXT_LENGTH, policy)
    assert np.diff(offsets.astype(np.int64)).tolist() == list(map(len, expected))
    pieces = [piece for row in expected for piece in row]
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == pieces

    benchmark.group = f"packing plan of {N_DOCUMENTS:,} documents"
    benchmark.extra_info["n_tokens"] = int(lengths.sum())
    benchmark.pedantic(
        _rslm.plan_packing, (lengths, CONTEXT_LENGTH, policy), rounds=5, warmup_rounds=1
    )
