"""Learning-rate schedules: pure functions of the step, so a resumed run needs no state of them.

Each rises in a line from 0 to `learning_rate` over `warmup_steps`, and is at
`min_learning_rate` from `decay_steps` on. Steps count from 0.
"""

import itertools
import math
from collections.abc import Sequence


def cosine_schedule(
    step: int,
    *,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
) -> float:
    """Learning rate of `step` (from 0): a line up, half a cosine down, then flat.

    With w = `warmup_steps` and c = `decay_steps`: step/w of the peak before w; between w
    and c, min + (1 + cos(π(step - w)/(c - w)))/2 · (peak - min); the minimum after c.

    Raises:
        ValueError: `decay_steps` is smaller than `warmup_steps`, or one is negative.

    Source: Loshchilov & Hutter 2017, SGDR, equation 5, without restarts
    (arXiv:1608.03983), as used by Touvron et al. 2023, LLaMA, section 2.3.
    """
    _require_warmup(warmup_steps, decay_steps)
    if step < warmup_steps:
        return step / warmup_steps * learning_rate
    if step >= decay_steps:
        return min_learning_rate
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    share = (1 + math.cos(math.pi * progress)) / 2
    return min_learning_rate + share * (learning_rate - min_learning_rate)


def linear_schedule(
    step: int,
    *,
    learning_rate: float,
    min_learning_rate: float = 0.0,
    warmup_steps: int,
    decay_steps: int,
) -> float:
    """Learning rate of `step` (from 0): a line up, then a line down to the minimum.

    Raises:
        ValueError: `decay_steps` is smaller than `warmup_steps`, or one is negative.

    Source: Bergsma et al. 2025, Straight to Zero (arXiv:2502.15938); their D2Z has the
    minimum 0.
    """
    _require_warmup(warmup_steps, decay_steps)
    if step < warmup_steps:
        return step / warmup_steps * learning_rate
    return _line_down(step, warmup_steps, decay_steps, learning_rate, min_learning_rate)


def wsd_schedule(
    step: int,
    *,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    cooldown_fraction: float,
) -> float:
    """Learning rate of `step` (from 0): a line up, flat, then a line down; a trapezoid.

    The cooldown fills the last `cooldown_fraction` of all `decay_steps`.

    Raises:
        ValueError: the cooldown would begin before the warm-up ends, or is no fraction.

    Source: Hu et al. 2024, MiniCPM, section 4 (arXiv:2404.06395); the line instead of their
    exponential after Hägele et al. 2024 (arXiv:2405.18392).
    """
    return wsd_s_schedule(
        step,
        learning_rate=learning_rate,
        min_learning_rate=min_learning_rate,
        warmup_steps=warmup_steps,
        decay_ends=(decay_steps,),
        cooldown_fraction=cooldown_fraction,
    )


def wsd_s_schedule(
    step: int,
    *,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    decay_ends: Sequence[int],
    cooldown_fraction: float,
) -> float:
    """Learning rate of `step` (from 0): flat after the warm-up, with several lines down.

    Each line fills the last `cooldown_fraction` of the steps from the end before (or 0) to
    its own, where the minimum is reached; the step after that has the peak again, so the run
    goes on from the cooled weights, and each end is as good as a run of that length.

    Args:
        step: the step.
        learning_rate: the peak.
        min_learning_rate: rate at every end, and after the last one.
        warmup_steps: steps of the line up.
        decay_ends: steps at which the minimum is reached, in rising order.
        cooldown_fraction: share of each stretch, in [0, 1].

    Raises:
        ValueError: the ends do not rise, the first cooldown would begin before the warm-up
            ends, or `cooldown_fraction` is none.

    Source: Wen et al. 2024, Understanding Warmup-Stable-Decay Learning Rates, WSD-S
    (arXiv:2410.05192); with lines down, each a share of its own stretch, as in OLMo-core.
    """
    starts = _cooldown_starts(decay_ends, cooldown_fraction)
    if not 0 <= warmup_steps <= starts[0]:
        raise ValueError(
            f"warmup_steps must lie between 0 and the beginning of the cooldown, {starts[0]:g}, "
            f"got {warmup_steps}"
        )
    if step < warmup_steps:
        return step / warmup_steps * learning_rate
    for start, end in zip(starts, decay_ends, strict=True):
        if step <= end:
            return _line_down(step, start, end, learning_rate, min_learning_rate)
    return min_learning_rate


def _cooldown_starts(decay_ends: Sequence[int], cooldown_fraction: float) -> list[float]:
    """Where each line down begins, which need not be a whole step."""
    if not 0 <= cooldown_fraction <= 1:
        raise ValueError(f"cooldown_fraction must lie in [0, 1], got {cooldown_fraction}")
    stretches = list(itertools.pairwise([0, *decay_ends]))
    if not stretches or any(before >= end for before, end in stretches):
        raise ValueError(f"decay_ends must rise from above 0, got {tuple(decay_ends)}")
    return [end - cooldown_fraction * (end - before) for before, end in stretches]


def _line_down(step: int, start: float, end: int, peak: float, minimum: float) -> float:
    """The peak until `start`, the minimum from `end` on, a line between."""
    if step >= end:
        return minimum
    if step <= start:
        return peak
    return minimum + (end - step) / (end - start) * (peak - minimum)


def _require_warmup(warmup_steps: int, decay_steps: int) -> None:
    if not 0 <= warmup_steps <= decay_steps:
        raise ValueError(
            "decay_steps must be at least warmup_steps, and that at least 0, "
            f"got decay_steps {decay_steps} and warmup_steps {warmup_steps}"
        )
