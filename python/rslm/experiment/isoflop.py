"""IsoFLOP plans: budgets, each spent on several sizes, as runs; and the runs as points.

Sizes lie evenly spaced in their logarithm around the N at which C = 6ND has the wanted tokens per
parameter. FLOPs are the exact counts of `rslm.architecture`; only that first guess uses 6ND.
Batch and learning rate follow from those of a base run, tuned at its own size and length:

| option | rule | source |
|---|---|---|
| batch B | B₀ (D/D₀)^0.383 tokens, in whole sequences | Bergsma et al. 2025 (2505.13738) |
| rates | η₀ √(B/B₀) | Malladi et al. 2022 (2205.10287) |
| AdamW's rate without muP | times (N/N₀)^(-1/3) | OLMo-core's ladder |
| warm-up, cooldown | the base's shares of the steps | |

All else is the base's. A warm-up that does not shrink with a short run, a rate tuned at one size
and an output head left out of the count are what made early laws differ (Porian et al. 2024,
arXiv:2406.19146).

With WSD-S a run is as good at each of its cooldowns as one of that length (Wen et al. 2024,
arXiv:2410.05192): one run of each size then gives a point for every budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rslm.architecture import TransformerConfig, train_flops_per_token
from rslm.config import to_record
from rslm.experiment.shapes import Counting, count_parameters, find_shape
from rslm.experiment.study import PlannedRun, run_name
from rslm.train_config import TrainConfig

TOKENS_PER_PARAMETER = 20.0
BATCH_EXPONENT = 0.383
RATE_EXPONENT = -1 / 3
MIN_SIZES = 3

_N_VALIDATIONS = 8
_LARGE_MISS = 0.02


@dataclass(frozen=True, kw_only=True)
class IsoflopRun:
    """A run of a plan.

    Attributes:
        config: its options; `out` is the base's.
        flop_budgets: what it is to spend, rising; several with WSD-S.
        ends: the steps at which each is spent.
        n_parameters: N, counted as the plan counts it.
    """

    config: TrainConfig
    flop_budgets: tuple[float, ...]
    ends: tuple[int, ...]
    n_parameters: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an update."""
        return self.config.tokens_per_step

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.config.n_tokens

    @property
    def train_flops(self) -> float:
        """FLOPs of the whole run."""
        return self.config.train_flops

    @property
    def miss(self) -> float:
        """The largest part by which a budget is not met, as whole steps cannot meet it."""
        per_step = self.tokens_per_step * train_flops_per_token(self.config.model)
        spent = zip(self.ends, self.flop_budgets, strict=True)
        return max(abs(end * per_step / budget - 1) for end, budget in spent)

    def planned(self) -> PlannedRun:
        """The run as the queue takes it."""
        model = self.config.model
        named = {
            "flop_budget": self.flop_budgets[-1],
            "model.d_model": model.d_model,
            "model.n_layers": model.n_layers,
        }
        labels = named | {"flop_budgets": list(self.flop_budgets), "ends": list(self.ends)}
        options = to_record(self.config)
        del options["out"]
        return PlannedRun(name=run_name(named), options=options, labels=labels)


def plan_isoflop(
    base: TrainConfig,
    flop_budgets: Sequence[float],
    *,
    n_sizes: int = 6,
    width: float = 4.0,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    counting: Counting = "non-embedding",
    wsd_s: bool = False,
) -> list[IsoflopRun]:
    """The runs of a plan, by budget or, with WSD-S, one for each size.

    Args:
        base: a run whose rates and batch are tuned; its model's vocabulary is known.
        flop_budgets: to spend on each of the sizes.
        n_sizes: sizes of each budget; with WSD-S of the whole plan.
        width: the smallest and largest size are this factor from the guess of the best.
        tokens_per_parameter: the guess.
        counting: which parameters are N.
        wsd_s: one run of each size for all budgets whose sizes it is among.

    Raises:
        ValueError: an option cannot be, fewer than three sizes differ, or a budget is less than
            a step.
    """
    budgets = _checked(flop_budgets, n_sizes, width, tokens_per_parameter)
    guesses = [math.sqrt(budget / (6 * tokens_per_parameter)) for budget in budgets]
    if wsd_s:
        wanted = _spaced(guesses[0] / width, guesses[-1] * width, n_sizes)
        shapes = _shapes(base, wanted, counting)
        spent = [_near(shape, budgets, guesses, width, counting) for shape in shapes]
        return [
            _wsd_s_run(base, shape, own, counting)
            for shape, own in zip(shapes, spent, strict=True)
            if own
        ]
    runs = []
    for budget, guess in zip(budgets, guesses, strict=True):
        wanted = _spaced(guess / width, guess * width, n_sizes)
        runs += [_run(base, shape, budget, counting) for shape in _shapes(base, wanted, counting)]
    return runs


def _checked(
    flop_budgets: Sequence[float], n_sizes: int, width: float, tokens_per_parameter: float
) -> list[float]:
    budgets = sorted(flop_budgets)
    if not budgets or not all(1 <= budget <= 1e40 for budget in budgets):
        raise ValueError(f"budgets must be FLOPs from 1 to 1e40, got {list(flop_budgets)}")
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"budgets must differ, got {list(flop_budgets)}")
    if not MIN_SIZES <= n_sizes <= 100:
        raise ValueError(f"sizes must be {MIN_SIZES} to 100, got {n_sizes}")
    if not 1 < width <= 1000:
        raise ValueError(f"width must be above 1 and at most 1000, got {width}")
    if not 1e-3 <= tokens_per_parameter <= 1e6:
        raise ValueError(f"tokens_per_parameter must be 0.001 to 1e6, got {tokens_per_parameter}")
    return budgets


def _spaced(low: float, high: float, n: int) -> list[float]:
    """Numbers with the same ratio between neighbours."""
    return [float(low * (high / low) ** (i / (n - 1))) for i in range(n)]


def _shapes(
    base: TrainConfig, wanted: Sequence[float], counting: Counting
) -> list[TransformerConfig]:
    """The models of the wanted sizes; two sizes may have one model between them."""
    shapes = list(dict.fromkeys(find_shape(base.model, n, counting) for n in wanted))
    if len(shapes) < MIN_SIZES:
        raise ValueError(
            f"at least {MIN_SIZES} sizes are needed for a budget, and around {wanted[0]:.3g} to "
            f"{wanted[-1]:.3g} parameters there are {len(shapes)} models with heads of "
            f"{base.model.resolved_d_head}\nlarger budgets, narrower heads or a wider spread help"
        )
    return shapes


def _near(
    shape: TransformerConfig,
    budgets: Sequence[float],
    guesses: Sequence[float],
    width: float,
    counting: Counting,
) -> list[float]:
    """The budgets among whose sizes this one is."""
    n = count_parameters(shape, counting)
    reach = 1.05 * width  # A shape is not just as large as it was wanted.
    return [b for b, g in zip(budgets, guesses, strict=True) if g / reach <= n <= g * reach]


def _run(
    base: TrainConfig, model: TransformerConfig, flop_budget: float, counting: Counting
) -> IsoflopRun:
    batch_size = _batch_size(base, model, flop_budget)
    n_steps = _steps(model, batch_size, flop_budget)
    optimizer: dict[str, Any] = {"warmup_steps": _warmup(base, n_steps), "decay_ends": ()}
    return _with_rates(base, model, batch_size, (flop_budget,), (n_steps,), optimizer, counting)


def _wsd_s_run(
    base: TrainConfig, model: TransformerConfig, budgets: Sequence[float], counting: Counting
) -> IsoflopRun:
    # One batch for all: that of the budget in the middle.
    batch_size = _batch_size(base, model, math.sqrt(budgets[0] * budgets[-1]))
    steps = [_steps(model, batch_size, budget) for budget in budgets]
    # Each end must be at a validation.
    every = max(1, steps[0] // _N_VALIDATIONS)
    ends = tuple(max(every, round(n / every) * every) for n in steps)
    if len(set(ends)) < len(ends):
        raise ValueError(f"budgets must be further apart than a step, got {list(budgets)}")
    optimizer: dict[str, Any] = {
        "schedule": "wsd-s",
        "decay_ends": ends[:-1],
        "warmup_steps": min(_warmup(base, ends[-1]), ends[0] // 2),
    }
    if base.optimizer.schedule not in ("wsd", "wsd-s"):
        optimizer["cooldown_fraction"] = None
    run = _with_rates(base, model, batch_size, tuple(budgets), ends, optimizer, counting)
    return replace(run, config=replace(run.config, validate_every=every))


def _batch_size(base: TrainConfig, model: TransformerConfig, flop_budget: float) -> int:
    """Sequences: the base's by the power of the tokens."""
    n_tokens = flop_budget / train_flops_per_token(model)
    of_base = base.n_steps * base.batch_size * base.model.context_length
    growth: float = (n_tokens / of_base) ** BATCH_EXPONENT
    return max(1, round(base.batch_size * growth))


def _steps(model: TransformerConfig, batch_size: int, flop_budget: float) -> int:
    per_step = batch_size * model.context_length * train_flops_per_token(model)
    if flop_budget < per_step:
        raise ValueError(
            f"budgets must be at least a step, {per_step:.3g} FLOPs of {batch_size} sequences for "
            f"a model of width {model.d_model}, got {flop_budget:.3g}"
        )
    return round(flop_budget / per_step)


def _warmup(base: TrainConfig, n_steps: int) -> int:
    # In whole numbers: 7 / 25 * 25 is above 7.
    return -(-base.optimizer.warmup_steps * n_steps // base.n_steps)


def _with_rates(
    base: TrainConfig,
    model: TransformerConfig,
    batch_size: int,
    budgets: tuple[float, ...],
    ends: tuple[int, ...],
    optimizer: dict[str, Any],
    counting: Counting,
) -> IsoflopRun:
    n_parameters = count_parameters(model, counting)
    by_batch = math.sqrt(batch_size / base.batch_size)
    by_size = 1.0
    if model.parametrisation == "standard":
        by_size = (n_parameters / count_parameters(base.model, counting)) ** RATE_EXPONENT
    old = base.optimizer
    rates: dict[str, Any] = {"learning_rate": old.learning_rate * by_batch * by_size}
    if old.min_learning_rate is not None:
        rates["min_learning_rate"] = old.min_learning_rate * by_batch * by_size
    if old.muon.learning_rate is not None:
        rates["muon"] = replace(old.muon, learning_rate=old.muon.learning_rate * by_batch)
    largest = min(base.micro_batch_size or 1, batch_size)
    micro = max(n for n in range(1, largest + 1) if batch_size % n == 0)
    config = replace(
        base,
        depth=None,
        model=model,
        n_steps=ends[-1],
        batch_size=batch_size,
        micro_batch_size=None if base.micro_batch_size is None else micro,
        validate_every=max(1, ends[-1] // _N_VALIDATIONS),
        optimizer=replace(old, **rates, **optimizer),
    )
    return IsoflopRun(config=config, flop_budgets=budgets, ends=ends, n_parameters=n_parameters)


def plan_pitfalls(runs: Sequence[IsoflopRun], n_data_tokens: int | None) -> list[str]:
    """What in a plan would make its laws doubtful."""
    found = []
    worst = max(runs, key=lambda run: run.miss)
    if worst.miss > _LARGE_MISS:
        found.append(
            f"whole steps miss a budget by up to {worst.miss:.1%} (width "
            f"{worst.config.model.d_model}); a fit uses the FLOPs that are spent"
        )
    spent = [budget for run in runs for budget in run.flop_budgets]
    rare = [budget for budget in sorted(set(spent)) if spent.count(budget) < MIN_SIZES]
    if rare:
        found.append(f"{rare[0]:.3g} FLOPs are spent on fewer than {MIN_SIZES} sizes")
    longest = max(run.n_tokens for run in runs)
    if n_data_tokens is not None and longest > n_data_tokens:
        found.append(
            f"the longest run reads the data {longest / n_data_tokens:.1f} times; the laws are for "
            "tokens that are new (Muennighoff et al. 2023, arXiv:2305.16264)"
        )
    return found
