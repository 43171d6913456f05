"""Sizes of activations as a model grows: the picture that accepts or rejects a parametrisation.

A few updates at one learning rate are made in models of several widths (or depths). Where the
parametrisation transfers hyperparameters, activations have the same size after them at every
width; where it does not, their size goes with a power of it.

Source: Yang et al. 2022, Tensor Programs V, appendix D.1, Figure 5 (arXiv:2203.03466).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from rslm.architecture import Parametrisation, TransformerConfig
from rslm.losses import cross_entropy
from rslm.model import Transformer
from rslm.optim import AdamW, optimizer_step
from rslm.parametrisation import scaled_groups

Axis = Literal["width", "depth"]

ACTIVATIONS = ("embedding", "attention", "feed_forward", "residual", "logits")


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Mean sizes |x| of the activations of one model over its first updates.

    Attributes:
        parametrisation: of the model.
        size: its width or depth, whichever is varied.
        sizes: by name in `ACTIVATIONS`, the mean |x| after 0, 1, 2, ... updates: of the token
            embeddings, the last block's attention and feed-forward layer before the residual
            multiplier, the residual stream after it, and the logits.
    """

    parametrisation: Parametrisation
    size: int
    sizes: dict[str, list[float]]


def sized(
    config: TransformerConfig, axis: Axis, size: int, base: int, parametrisation: Parametrisation
) -> TransformerConfig:
    """`config` at another width, with heads as wide as before, or at another depth.

    Raises:
        ValueError: the width is no multiple of the head's.
    """
    named: dict[str, Any] = {"parametrisation": parametrisation}
    if axis == "depth":
        if parametrisation == "completep":
            named["base_n_layers"] = base
        return replace(config, n_layers=size, **named)
    d_head = config.resolved_d_head
    if size % d_head:
        raise ValueError(f"widths must be multiples of d_head {d_head}, got {size}")
    if parametrisation != "standard":
        named["base_d_model"] = base
    return replace(config, d_model=size, n_heads=size // d_head, **named)


def coordinate_sizes(
    config: TransformerConfig,
    *,
    axis: Axis,
    sizes: Sequence[int],
    parametrisation: Parametrisation,
    n_steps: int = 4,
    learning_rate: float = 1e-2,
    batch_size: int = 4,
    n_seeds: int = 2,
) -> list[Coordinates]:
    """Trains a model of each size on one batch of random ids and measures its activations.

    The first of `sizes` is the base model; AdamW without decay or clipping updates. Seeds
    are averaged. Deterministic on one machine, whatever torch's global generator holds.

    Raises:
        ValueError: a size does not fit the config.
    """
    results = []
    for size in sizes:
        own = sized(config, axis, size, sizes[0], parametrisation)
        runs = [
            _measure(own, n_steps, learning_rate, batch_size, seed=seed) for seed in range(n_seeds)
        ]
        averages = {
            name: [fmean(step) for step in zip(*(run[name] for run in runs), strict=True)]
            for name in ACTIVATIONS
        }
        results.append(Coordinates(parametrisation=parametrisation, size=size, sizes=averages))
    return results


def _measure(
    config: TransformerConfig, n_steps: int, learning_rate: float, batch_size: int, *, seed: int
) -> dict[str, list[float]]:
    """Mean |x| of every activation after each of 0 to `n_steps` updates."""
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    optimizer = AdamW(
        scaled_groups(groups, names, config, epsilon=1e-8), lr=learning_rate, betas=(0.9, 0.95)
    )
    shape = (batch_size, config.context_length + 1)
    # The same text at every size: a generator of its own, apart from that of the weights.
    text = torch.Generator().manual_seed(2**32 + seed)
    token_ids = torch.randint(config.resolved_vocab_size, shape, generator=text)
    seen: dict[str, list[float]] = {name: [] for name in ACTIVATIONS}

    def record(name: str) -> Any:
        def hook(_module: Module, _inputs: Any, output: Tensor) -> None:
            seen[name].append(output.detach().abs().mean().item())

        return hook

    last: Any = model.layers[-1]
    modules: list[Module] = [model.token_embeddings, last.attn, last.ffn, last]
    for name, module in zip(ACTIVATIONS, modules, strict=False):
        module.register_forward_hook(record(name))
    for step in range(n_steps + 1):
        logits = model(token_ids[:, :-1])
        seen["logits"].append(logits.detach().abs().mean().item())
        if step < n_steps:
            torch.autograd.backward(cross_entropy(logits, token_ids[:, 1:]))
            optimizer_step(optimizer, learning_rate=learning_rate, max_grad_norm=math.inf)
    return seen


def growth(results: Sequence[Coordinates], activation: str, step: int = -1) -> float:
    """The power of the size that an activation grows with: the slope of a log-log line.

    0 is what transfers; NaN where an activation is zero or not finite.
    """
    values = [result.sizes[activation][step] for result in results]
    if any(not 0 < value < math.inf for value in values):
        return math.nan
    x = [math.log(result.size) for result in results]
    y = [math.log(value) for value in values]
    x_mean, y_mean = fmean(x), fmean(y)
    products = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return products / sum((a - x_mean) ** 2 for a in x)


def draw(results: Sequence[Coordinates], axis: Axis, path: Path) -> None:
    """A picture with a row for each parametrisation, a column for each activation."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(result.parametrisation for result in results))
    figure = Figure(figsize=(14, 2.8 * len(kinds)), dpi=120, layout="constrained")
    grid = figure.subplots(len(kinds), len(ACTIVATIONS), squeeze=False, sharex=True, sharey="col")
    n_steps = len(results[0].sizes["logits"])
    for row, kind in zip(grid, kinds, strict=True):
        own = [result for result in results if result.parametrisation == kind]
        for axes, name in zip(row, ACTIVATIONS, strict=True):
            for step in range(n_steps):
                axes.plot(
                    [result.size for result in own],
                    [result.sizes[name][step] for result in own],
                    color=(0.12, 0.44, 0.71, 0.25 + 0.75 * step / max(1, n_steps - 1)),
                    marker="o",
                    markersize=3,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"{kind}: {name}, power {growth(own, name):+.2f}", fontsize=9)
            axes.grid(color="#e2e2e2", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel(axis)
        # At least a factor of ten, so that what stays looks as if it stayed.
        low, high = axes.get_ylim()
        spare = max(1.0, math.sqrt(10 * low / high))
        axes.set_ylim(low / spare, high * spare)
    grid[0][0].set_ylabel("mean |x|; darker: later")
    figure.savefig(path)
