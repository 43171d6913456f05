"""Models of a wanted size, in the proportions of a base model."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from rslm.architecture import (
    TransformerConfig,
    n_body_parameters,
    n_non_embedding_parameters,
    n_parameters,
)

Counting = Literal["all", "non-embedding", "body"]
"""Which parameters are N: all, those without the input embedding, those of the blocks."""

_ASPECT_RANGE = 2.0
_ASPECT_WEIGHT = 0.25
_MANY_LAYERS = 8
_FINENESS = 64


def count_parameters(model: TransformerConfig, counting: Counting) -> int:
    """N in one of the three ways."""
    count = {
        "all": n_parameters,
        "non-embedding": n_non_embedding_parameters,
        "body": n_body_parameters,
    }[counting]
    if model.n_layers < _MANY_LAYERS:
        return count(model)
    # Two layers more always add the same, and counting thousands of them one by one takes long.
    few = 2 + model.n_layers % 2
    fewer, more = (count(replace(model, n_layers=n)) for n in (few, few + 2))
    return fewer + (model.n_layers - few) // 2 * (more - fewer)


def find_shape(base: TransformerConfig, n_wanted: float, counting: Counting) -> TransformerConfig:
    """The model closest to a size, of those that keep the base's width of heads.

    Widths are whole heads, or groups of heads that share keys and values; the ratio of width to
    depth stays within a factor of 2 of the base's, closer where the sizes are alike. A feed-forward
    width that the base states grows with the width.
    """
    aspect = base.d_model / base.n_layers

    def distance(model: TransformerConfig) -> float:
        off = abs(math.log(count_parameters(model, counting) / n_wanted))
        return off + _ASPECT_WEIGHT * abs(math.log(model.d_model / model.n_layers / aspect))

    return min(_candidates(base, n_wanted, counting), key=distance)


def _candidates(
    base: TransformerConfig, n_wanted: float, counting: Counting
) -> Iterator[TransformerConfig]:
    group = base.n_heads // base.resolved_n_kv_heads
    aspect = base.d_model / base.n_layers
    n_heads = group
    while True:
        depth = base.d_model * n_heads / base.n_heads / aspect
        sizes = []
        for n_layers in sorted(_depths(base, n_heads, depth, n_wanted, counting)):
            model = scaled(base, n_heads, n_layers)
            if model is not None:
                sizes.append(count_parameters(model, counting))
                yield model
        # The smallest of this width is already too large, and so is all that is wider.
        if sizes and min(sizes) > n_wanted:
            return
        # Of wide models those a 64th apart are enough: their depths come as near as one likes.
        n_heads += group * max(1, n_heads // (_FINENESS * group))


def _depths(
    base: TransformerConfig, n_heads: int, depth: float, n_wanted: float, counting: Counting
) -> set[int]:
    """Depths to look at for a width: the base's proportion, the limits, the one of that size."""
    # In one layer no other one could have a window.
    shallowest = 1 if base.window_pattern is None else 2
    low = max(shallowest, math.floor(depth / _ASPECT_RANGE))
    high = max(low, math.ceil(depth * _ASPECT_RANGE))
    ends = [scaled(base, n_heads, n_layers) for n_layers in (low, high)]
    counts = [count_parameters(model, counting) for model in ends if model is not None]
    found = {low, high, min(max(round(depth), low), high)}
    if len(counts) == 2 and counts[1] > counts[0]:
        share = (n_wanted - counts[0]) / (counts[1] - counts[0])
        found.add(round(low + min(max(share, 0.0), 1.0) * (high - low)))
    return found


def scaled(base: TransformerConfig, n_heads: int, n_layers: int) -> TransformerConfig | None:
    """The base with other sizes; None where its switches do not allow them.

    In a parametrisation that transfers, the base's own sizes become those it was tuned at.
    """
    if base.d_model * n_heads % base.n_heads:
        return None
    d_model = base.d_model * n_heads // base.n_heads
    d_ff = None if base.d_ff is None else max(8, round(base.d_ff * n_heads / base.n_heads / 8) * 8)
    n_kv_heads = base.n_kv_heads and base.n_kv_heads * n_heads // base.n_heads
    transfers = base.parametrisation != "standard"
    is_completep = base.parametrisation == "completep"
    try:
        return replace(
            base,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            d_ff=d_ff,
            base_d_model=(base.base_d_model or base.d_model) if transfers else None,
            base_n_layers=(base.base_n_layers or base.n_layers) if is_completep else None,
        )
    except ValueError:
        return None
