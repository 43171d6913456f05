"""The Triton kernels of attention against the formula, on a CPU: `test_flash_attention` runs it.

Triton reads TRITON_INTERPRET when it is imported, so these have a process of their own. An
operation of the interpreter takes a millisecond, whatever the size of its tile: the cases are as
small as three tiles each way allow.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_interpreter import exact_bfloat16, fill_around, formula, guarded, visible

from rslm.architecture import TransformerConfig
from rslm.kernels.flash_attention import (
    FlashAttentionTriton,
    _last_queries,
    flash_attention,
)
from rslm.kernels.flash_launch import Problem, backward_launches, forward_launch
from rslm.kernels.launch_configs import FlashConfig, LaunchConfig
from rslm.model import Transformer

__all__ = ["exact_bfloat16"]


def tiles(n_queries: int, n_keys: int, use_descriptors: bool = False) -> FlashConfig:
    part = LaunchConfig(n_queries, n_keys, 4, 1, use_descriptors)
    return FlashConfig(part, part, part)


SMALL = tiles(32, 32)


@dataclass(frozen=True)
class Case:
    batch: int = 1
    n_heads: int = 2
    n_kv_heads: int = 2
    n_queries: int = 70
    n_keys: int = 70
    d_head: int = 32
    causal: bool = True
    start: str | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    config: FlashConfig = SMALL
    layout: str = "bnhd"
    spread: float = 1.0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.n_queries * 1000 + self.n_keys)
        shapes = [(self.n_heads, self.n_queries), *[(self.n_kv_heads, self.n_keys)] * 2]
        return tuple(
            (torch.randn(self.batch, *shape, self.d_head, generator=generator) * self.spread).to(
                self.dtype
            )
            for shape in shapes
        )

    def bounds(self) -> Tensor | None:
        rows = torch.arange(self.n_queries, dtype=torch.int32)
        offset = self.n_keys - self.n_queries
        if self.start is None:
            return None
        if self.start == "window":
            return (rows + offset - 19)[None]
        if self.start == "documents":
            lengths = [[1, 33, 5, self.n_queries], [64, self.n_queries]]
            return torch.stack([self.documents(lengths[b % 2]) for b in range(self.batch)])
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(
            -5, self.n_keys + 5, (self.batch, self.n_queries), generator=generator
        )
        return drawn.sort(1).values.int()

    def documents(self, lengths: list[int]) -> Tensor:
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).int()
        return starts.repeat_interleave(torch.tensor(lengths))[: self.n_queries]


def results(run: Any, inputs: tuple[Tensor, ...], d_lse_too: bool) -> list[Tensor]:
    """Output, log-sums and gradients of q, k and v, all in float64."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out, lse = run(*inputs)
    generator = torch.Generator().manual_seed(1)
    loss = (out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum()
    if d_lse_too:
        finite = lse.masked_fill(lse.isinf(), 0.0)
        loss = loss + (finite * torch.randn(lse.shape, generator=generator).to(lse.dtype)).sum()
    return [x.detach().double() for x in (out, lse, *torch.autograd.grad(loss, inputs))]


def assert_close_to_formula(case: Case) -> None:
    """Errors against float64 are at most twice, for gradients three times, the plain formula's.

    The rule of the FlashAttention repository, with 1e-5 for what the formula happens to hit.
    """
    inputs, start = case.tensors(), case.bounds()
    seen = visible(case.n_queries, case.n_keys, case.causal, start)
    scale = case.d_head**-0.5

    def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return formula(q, k, v, seen, scale, case.softcap)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return flash_attention(
            q, k, v, start, causal=case.causal, scale=scale, softcap=case.softcap,
            config=case.config,
        )  # fmt: skip

    single = case.dtype == torch.float32
    exact = results(plain, tuple(x.double() for x in inputs), single)
    baseline = results(plain, inputs, single)
    found = results(ours, tuple(guarded(x, case.layout) for x in inputs), single)
    assert torch.equal(exact[1].isinf(), found[1].isinf())
    for name, wanted, got, rough in zip(
        ("out", "lse", "dq", "dk", "dv"), exact, found, baseline, strict=True
    ):
        wanted, got, rough = (x.masked_fill(exact[1].isinf(), 0) if name == "lse" else x
                              for x in (wanted, got, rough))  # fmt: skip
        assert got.isfinite().all(), name
        allowed = (3 if name[0] == "d" else 2) * (rough - wanted).abs().max().item() + 1e-5
        assert (got - wanted).abs().max().item() <= allowed, name


ONE_HEAD = partial(Case, n_heads=1, n_kv_heads=1)
CASES = {
    "full": Case(causal=False),
    "full, more keys": Case(causal=False, n_queries=40, n_keys=90),
    "round": Case(n_queries=96, n_keys=96),
    "ragged": Case(n_queries=97, n_keys=97),
    "one query": Case(n_queries=1),
    "one key": Case(n_queries=1, n_keys=1),
    "more keys": Case(n_queries=37),
    "more queries": Case(n_keys=37),
    "groups": Case(batch=2, n_heads=4, n_kv_heads=2, n_queries=40, n_keys=40),
    "one kv head": Case(n_heads=3, n_kv_heads=1, causal=False, n_queries=40, n_keys=50),
    "window": Case(start="window", n_queries=110, n_keys=110),
    "window, more keys": Case(start="window", n_queries=40, n_keys=110),
    "documents": ONE_HEAD(start="documents", batch=2, n_queries=110, n_keys=110),
    "drawn": Case(start="drawn", n_heads=4, n_kv_heads=2, n_queries=50, n_keys=80),
    "softcap": Case(softcap=5.0, start="window", n_kv_heads=1, spread=2.0),
    "softcap, full": Case(softcap=20.0, causal=False, d_head=48),
    "wide queries": ONE_HEAD(config=tiles(64, 16), start="window", n_queries=130, n_keys=130),
    "wide keys": ONE_HEAD(config=tiles(16, 64), start="drawn"),
    "16 columns": Case(d_head=16, layout="bhnd"),
    "96 columns": ONE_HEAD(d_head=96),
    "192 columns": ONE_HEAD(d_head=192),
    "256 columns": ONE_HEAD(d_head=256, causal=False),
    "descriptors": Case(d_head=40, start="drawn", config=tiles(32, 32, True), n_kv_heads=1),
    "float16": Case(dtype=torch.float16, d_head=64),
    "float16, softcap": Case(dtype=torch.float16, softcap=10.0, causal=False, d_head=80),
    "bfloat16": Case(dtype=torch.bfloat16, d_head=64, layout="hbnd"),
    "bfloat16, descriptors": Case(
        dtype=torch.bfloat16, d_head=128, n_kv_heads=1, start="window", config=tiles(32, 32, True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradients_equal_formula(case: Case):
    assert_close_to_formula(case)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    n_queries=st.integers(1, 100),
    n_keys=st.integers(1, 100),
    d_head=st.sampled_from([16, 32, 48, 64, 80, 96, 128]),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    causal_start=st.sampled_from([(False, None), (True, None), (True, "window"), (True, "drawn")]),
    softcap=st.sampled_from([None, 8.0]),
    tile=st.sampled_from([(32, 32), (64, 32), (32, 64), (16, 128)]),
    use_descriptors=st.booleans(),
    layout=st.sampled_from(["bnhd", "bhnd", "nbhd"]),
)
def test_drawn_problems_equal_formula(
    n_queries, n_keys, d_head, heads, dtype, causal_start, softcap, tile, use_descriptors, layout
):
    assert_close_to_formula(
        Case(
            n_queries=n_queries, n_keys=n_keys, d_head=d_head, n_heads=heads[0],
            n_kv_heads=heads[1], dtype=dtype, causal=causal_start[0], start=causal_start[1],
            softcap=softcap, config=tiles(*tile, use_descriptors), layout=layout,
        )
    )  # fmt: skip


@pytest.mark.parametrize("case", [CASES["ragged"], CASES["drawn"], CASES["96 columns"]])
def test_kernels_write_their_results_and_nothing_else(case: Case):
    canary = -12345.0
    q, k, v = (guarded(x) for x in case.tensors())
    start = case.bounds()
    out, d_out = guarded(torch.full_like(q, canary), fill=canary), guarded(torch.randn_like(q))
    lse = torch.full((case.batch, case.n_heads, case.n_queries), canary)
    gradients = [guarded(torch.full_like(x, canary), "bhnd", canary) for x in (q, k, v)]
    problem = Problem(q, k, v, start, case.causal, case.n_keys - case.n_queries, 0.2, None)
    end = None if start is None else _last_queries(start, case.n_keys)
    launches = [forward_launch(problem, out, lse, case.config.forward)]
    launches += backward_launches(
        problem, end, out, lse, d_out, torch.zeros_like(lse), tuple(gradients), case.config
    )
    for launch in launches:
        launch.run(q.device)
    for x in (out, *gradients):
        assert (fill_around(x) == canary).all()
        assert x.isfinite().all()
        assert (x != canary).all()


def run_plain(q: Tensor, k: Tensor, v: Tensor, start: Tensor | None = None, **changes: Any) -> Any:
    options = {"causal": True, "scale": 0.2, "softcap": None, "config": SMALL}
    return flash_attention(q, k, v, start, **{**options, **changes})


def test_two_runs_have_the_same_bits():
    case = CASES["drawn"]
    first, second = (
        results(lambda q, k, v: run_plain(q, k, v, case.bounds()), case.tensors(), True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_packed_documents_equal_separate_documents():
    lengths = [40, 7, 64]
    case = Case(n_queries=sum(lengths), n_keys=sum(lengths), n_heads=1, n_kv_heads=1)
    start = case.documents(lengths)[None]
    packed = results(lambda q, k, v: run_plain(q, k, v, start), case.tensors(), False)
    inputs = [x.split(lengths, dim=2) for x in case.tensors()]
    weights = torch.randn(1, 1, case.n_queries, 32, generator=torch.Generator().manual_seed(1))
    apart: list[list[Tensor]] = []
    for q, k, v, w in zip(*inputs, weights.split(lengths, dim=2), strict=True):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = run_plain(*leaves)
        apart.append([out, lse, *torch.autograd.grad((out * w).sum(), leaves)])
    for together, pieces in zip(packed, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(
            together, torch.cat(pieces, dim=2).double(), rtol=1e-5, atol=1e-5
        )


def test_rows_without_keys_give_zeros_minus_infinity_and_no_gradient():
    q, k, v = Case(n_queries=40, n_keys=40, n_heads=1, n_kv_heads=1).tensors()
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    start = torch.cat([torch.zeros(20), torch.full((20,), 40.0)]).int()[None]
    out, lse = run_plain(q, k, v, start)
    assert (out[:, :, 20:] == 0).all()
    assert (lse[:, :, 20:] == -float("inf")).all()
    dq, dk, dv = torch.autograd.grad(out.sum() + lse[:, :, :20].sum(), (q, k, v))
    assert (dq[:, :, 20:] == 0).all()
    assert (dk[:, :, 20:] == 0).all()
    assert (dv[:, :, 20:] == 0).all()


def test_huge_scores_give_what_float32_log_sums_allow():
    case = Case(spread=100.0)
    seen = visible(70, 70, True, None)
    exact = results(
        lambda q, k, v: formula(q, k, v, seen, 0.1), [x.double() for x in case.tensors()], False
    )
    found = results(lambda q, k, v: run_plain(q, k, v, scale=0.1), case.tensors(), False)
    # The backward kernels compute a weight as exp(score - log-sum). Between 2**14 and 2**15,
    # where these lie, neighbouring numbers are 2**-9 apart, and a few roundings add up.
    assert 2**14 < exact[1].max() < 2**15
    for wanted, got in zip(exact, found, strict=True):
        assert (got - wanted).abs().max() <= 2**-7 * wanted.abs().max()


@pytest.mark.parametrize("n_queries", [0, 3])
def test_empty_tensors_give_empty_results_or_zeros(n_queries: int):
    q = torch.randn(1, 2, n_queries, 16, requires_grad=True)
    k = torch.randn(1, 2, 3 - n_queries, 16, requires_grad=True)
    out, lse = run_plain(q, k, k, causal=False)
    assert (out == 0).all()
    assert (lse == -float("inf")).all()
    dq, dk = torch.autograd.grad(out.sum(), (q, k))
    assert (dq == 0).all()
    assert (dk == 0).all()


def test_layouts_that_need_a_copy_give_the_same_bits():
    q, k, v = Case(n_queries=40, n_keys=40, n_kv_heads=1).tensors()
    expected = run_plain(q, k, v)
    columns_first = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    repeated = (q, k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1))
    for inputs in (columns_first, repeated):
        for found, wanted in zip(run_plain(*inputs), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("shape", [(40, 40), (40, 70), (70, 40)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_course_face_saves_one_log_sum_and_masks_at_the_top_left(shape, is_causal: bool):
    case = Case(n_queries=shape[0], n_keys=shape[1], n_heads=1, n_kv_heads=1, batch=2)
    seen = visible(*shape, is_causal, None, offset=0)
    inputs = case.tensors()
    exact = results(
        lambda q, k, v: formula(q, k, v, seen, 32**-0.5), [x.double() for x in inputs], False
    )
    leaves = [x[:, 0].requires_grad_() for x in inputs]
    out = FlashAttentionTriton.apply(*leaves, is_causal)
    saved = [x for x in out.grad_fn.saved_tensors if x.shape == (2, shape[0])]
    assert len(saved) == 1
    weights = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(1))[:, 0]
    found = [out, saved[0], *torch.autograd.grad((out * weights).sum(), leaves)]
    for wanted, got in zip(exact, found, strict=True):
        torch.testing.assert_close(got.double(), wanted[:, 0], rtol=1e-5, atol=1e-5)


# opcheck looks at the gradient of each input, leaf or not.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operator_passes_opcheck():
    q, k, v = (x.requires_grad_() for x in Case(n_queries=20, n_keys=20, d_head=16).tensors())
    start = torch.zeros(1, 20, dtype=torch.int32)
    numbers = tiles(32, 32).numbers()
    for bound, softcap in ((None, None), (start, 3.0)):
        arguments = (q, k, v, bound, True, 0.25, softcap, numbers)
        torch.library.opcheck(torch.ops.rslm.flash_attention.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole_gives_the_same_results(backend: str):
    case = Case(n_queries=40, n_keys=40, n_heads=2, n_kv_heads=1)

    def layer(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = run_plain(q * 2, k + 1, v)
        return out * 3, lse

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for found, wanted in zip(
        results(compiled, case.tensors(), True), results(layer, case.tensors(), True), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_changed_config_is_what_runs():
    case = CASES["round"]
    q, k, v = case.tensors()
    problem = Problem(q, k, v, None, True, 0, 0.2, None)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    part = replace(case.config.forward, use_descriptors=True)
    launch = forward_launch(problem, out, lse, part)
    assert launch.arguments["DESCRIPTORS"]
    assert launch.n_programs == 3 * 2
    odd = problem._replace(k=torch.empty(1, 2, 96, 33)[..., :32])
    assert not forward_launch(odd, out, lse, part).arguments["DESCRIPTORS"]


def test_model_trains_as_with_other_implementations():
    sizes = TransformerConfig(
        vocab_size=61, context_length=24, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1
    )
    text = torch.randint(61, (2, 25), generator=torch.Generator().manual_seed(1))
    losses: dict[str, list[float]] = {}
    for implementation in ("torch", "tiled", "triton"):
        weights = torch.Generator().manual_seed(0)
        model = Transformer(sizes, implementation=implementation, generator=weights)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses[implementation] = []
        for _ in range(30):
            minimised, loss = model(text[:, :-1], targets=text[:, 1:])
            optimizer.zero_grad()
            minimised.backward()
            optimizer.step()
            losses[implementation].append(loss.item())
    assert losses["torch"][-1] < losses["torch"][0] - 1
    for implementation in ("tiled", "triton"):
        torch.testing.assert_close(
            losses[implementation], losses["torch"], rtol=0, atol=1e-4, msg=implementation
        )
