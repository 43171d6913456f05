"""FlashAttention-2 tile by tile: derivatives, sizes of tiles, what is left out, the course's face.

That it computes attention is tested with all implementations in `test_attention.py`.
"""

from typing import Any

import pytest
import torch

from rslm.kernels import tiled_attention as tiled
from rslm.kernels.tiled_attention import FlashAttentionTorch, tiled_attention


def draw_heads(
    n_queries: int, n_keys: int, *, n_heads: int = 2, n_kv_heads: int = 1, d_head: int = 5
) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(n_queries + 1000 * n_keys)
    shapes = [(n_heads, n_queries), (n_kv_heads, n_keys), (n_kv_heads, n_keys)]
    made = (torch.randn(2, *s, d_head, generator=draw, dtype=torch.float64) for s in shapes)
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize(("causal", "starts"), [(False, None), (True, None), (True, [0, 1, 1, 4])])
def test_gradcheck_passes_through_output_and_lse(
    causal: bool, starts: list[int] | None, softcap: float | None
):
    # Few numbers: each is moved by itself.
    heads = [x.detach()[:1].requires_grad_() for x in draw_heads(4, 5, d_head=2)]
    start = None if starts is None else torch.tensor([starts], dtype=torch.int32)
    options: dict[str, Any] = {"causal": causal, "scale": 0.4, "softcap": softcap}
    tiles = {"tile_queries": 3, "tile_keys": 2}
    assert torch.autograd.gradcheck(
        lambda *x: tiled_attention(*x, start, **options, **tiles), heads
    )


@pytest.mark.parametrize(("n_queries", "n_keys"), [(13, 13), (4, 13), (13, 4)])
def test_sizes_of_tiles_do_not_matter(n_queries: int, n_keys: int):
    heads = draw_heads(n_queries, n_keys)
    start = torch.randint(n_keys, (2, n_queries), generator=torch.Generator().manual_seed(0))
    start = start.sort(-1).values.int()

    def results(tile_queries: int, tile_keys: int) -> list[torch.Tensor]:
        output, lse = tiled_attention(
            *heads,
            start,
            causal=True,
            scale=0.4,
            softcap=None,
            tile_queries=tile_queries,
            tile_keys=tile_keys,
        )
        seen = lse.masked_fill(lse.isinf(), 0.0)
        gradients = torch.autograd.grad((output.square().sum() + seen.square().sum()), heads)
        return [output, lse, *gradients]

    whole = results(64, 64)
    for sizes in ((1, 1), (4, 4), (5, 3), (2, 16)):
        for found, expected in zip(results(*sizes), whole, strict=True):
            torch.testing.assert_close(found, expected)


def test_invisible_tiles_are_left_out_and_whole_ones_not_masked(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    masked: list[tuple[int, int]] = []
    hide = tiled._Plan.hide
    tiles = tiled._Plan.tiles

    def counted_tiles(self: Any, *sizes: int) -> Any:
        for rows, columns, is_whole in tiles(self, *sizes):
            seen.append((rows.start, columns.start))
            yield rows, columns, is_whole

    def counted_hide(self: Any, scores: Any, rows: slice, columns: slice) -> torch.Tensor:
        masked.append((rows.start, columns.start))
        return hide(self, scores, rows, columns)

    monkeypatch.setattr(tiled._Plan, "tiles", counted_tiles)
    monkeypatch.setattr(tiled._Plan, "hide", counted_hide)
    options: dict[str, Any] = {"causal": True, "scale": 1.0, "softcap": None}
    sizes = {"tile_queries": 2, "tile_keys": 2}
    heads = [x.detach() for x in draw_heads(6, 6)]
    tiled_attention(*heads, None, **options, **sizes)
    assert seen == [(0, 0), (2, 0), (2, 2), (4, 0), (4, 2), (4, 4)]
    assert masked == [(0, 0), (2, 2), (4, 4)]
    seen.clear()
    documents = torch.tensor([[0, 0, 2, 2, 2, 2], [0, 0, 2, 2, 4, 4]], dtype=torch.int32)
    tiled_attention(*heads, documents, **options, **sizes)
    assert seen == [(0, 0), (2, 2), (4, 2), (4, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_computed_wide(dtype: torch.dtype):
    heads = [x.detach().to(dtype) for x in draw_heads(70, 70)]
    options: dict[str, Any] = {"causal": True, "scale": 0.4, "softcap": None}
    output, lse = tiled_attention(*heads, None, **options)
    exact, exact_lse = tiled_attention(*(x.double() for x in heads), None, **options)
    assert (output.dtype, lse.dtype, exact_lse.dtype) == (dtype, torch.float32, torch.float64)
    torch.testing.assert_close(lse, exact_lse.float(), rtol=1e-5, atol=1e-5)
    # One rounding at the end, whatever the dtype.
    assert ((output - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


@pytest.mark.parametrize(("n_queries", "n_keys"), [(128, 128), (70, 70), (5, 70), (70, 5)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_courses_face_is_aligned_at_the_top_left(n_queries: int, n_keys: int, is_causal: bool):
    q, k, v = (
        x.flatten(0, 1).detach().requires_grad_()
        for x in draw_heads(n_queries, n_keys, n_kv_heads=2)
    )
    output = FlashAttentionTorch.apply(q, k, v, is_causal)
    fused = torch.nn.functional.scaled_dot_product_attention
    expected = fused(*(x[None] for x in (q, k, v)), is_causal=is_causal)[0]
    torch.testing.assert_close(output, expected)
    mixed = torch.randn_like(output)
    found = torch.autograd.grad((output * mixed).sum(), (q, k, v), retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((expected * mixed).sum(), (q, k, v)))


def test_the_courses_face_saves_one_logsumexp():
    q, k, v = (x.flatten(0, 1).detach().requires_grad_() for x in draw_heads(9, 12, n_kv_heads=2))
    output = FlashAttentionTorch.apply(q, k, v)
    saved = output.grad_fn.saved_tensors
    (lse,) = [x for x in saved if x.shape == (4, 9)]
    torch.testing.assert_close(lse, (q @ k.mT / 5**0.5).logsumexp(-1))
    shapes = {tuple(x.shape) for x in saved}
    assert shapes == {(4, 9, 5), (4, 12, 5), (4, 9)}
    assert len(saved) == 5
