"""The runs of the convergence study: what one is, and which are still wanted.

The plan is a function of the results so far, so a study that was stopped goes on where it was:
a learning rate's grid grows until its best point has a neighbour on either side, and what is
tuned first decides what comes after.
"""

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

MAX_RUNS = 40
N_SEEDS = 3
DECAYS = (0.0, 0.5)
"""Tried at the best rate, beside that of the default recipe."""
N_SEARCHES = 7
# What the runs that are wanted in any case leave to grids that must grow: seven grids of three,
# the decays, the other seeds of both optimizers, and Muon in equal time.
_N_GROWN = MAX_RUNS - (3 * N_SEARCHES + len(DECAYS) + 2 * (N_SEEDS - 1) + N_SEEDS)


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    vocab_size: int = 4096
    context_length: int = 128
    n_layers: int = 2
    d_head: int = 32
    widths: tuple[int, int, int] = (64, 128, 256)
    batch_size: int = 8
    n_steps: int = 512
    n_validations: int = 8
    n_validation_tokens: int = 40_960
    text_bytes: int = 40_000_000
    centre: float = 8e-3
    """Learning rate in the middle of each grid at first; its points are factors of two apart."""

    @property
    def main_width(self) -> int:
        """The width at which optimizers are compared."""
        return self.widths[1]

    @property
    def validate_every(self) -> int:
        return self.n_steps // self.n_validations


TOY = Study(
    vocab_size=400,
    context_length=32,
    n_layers=1,
    d_head=8,
    widths=(8, 16, 32),
    batch_size=4,
    n_steps=16,
    n_validations=4,
    n_validation_tokens=1024,
    text_bytes=300_000,
    centre=1e-2,
)


@dataclass(frozen=True)
class Run:
    """One run: all in which it differs from others. `muon_learning_rate` makes it Muon's."""

    d_model: int
    n_steps: int
    learning_rate: float
    muon_learning_rate: float | None = None
    weight_decay: float = 0.1
    parametrisation: str = "standard"
    seed: int = 0

    @property
    def label(self) -> str:
        """The run in a few words, also a file name."""
        muon = f"-muon{self.muon_learning_rate:g}" if self.muon_learning_rate is not None else ""
        return (
            f"{self.parametrisation}-d{self.d_model}-lr{self.learning_rate:g}{muon}"
            f"-decay{self.weight_decay:g}-steps{self.n_steps}-seed{self.seed}"
        )


@dataclass(frozen=True)
class Outcome:
    """What a run gave. `curve` has a row per validation, `losses` the mean training loss of
    equal stretches; `val_loss` is infinite where the run diverged."""

    val_loss: float
    val_bits_per_byte: float
    cpu_seconds: float
    wall_seconds: float
    curve: tuple[dict[str, float], ...]
    losses: tuple[tuple[int, float], ...]
    commit: str = ""

    @property
    def seconds_per_step(self) -> float:
        return self.cpu_seconds / self.curve[-1]["step"] if self.curve else math.nan


Outcomes = Mapping[Run, Outcome]


@dataclass(frozen=True)
class Search:
    """A grid over one learning rate: the points that have a result, and the best if it is found."""

    runs: tuple[Run, ...]
    missing: tuple[Run, ...]
    best: Run | None


def search(start: Run, name: str, centre: float, outcomes: Outcomes, may_grow: bool) -> Search:
    """The grid of the rate `name` around `centre`, in factors of two.

    It is found when its best point is an inner one, or when it may not grow any more.
    """
    low, high = -1, 1
    while True:
        runs = tuple(replace(start, **{name: centre * 2.0**i}) for i in range(low, high + 1))
        missing = tuple(run for run in runs if run not in outcomes)
        if missing and (may_grow or (low, high) == (-1, 1)):
            return Search(tuple(run for run in runs if run in outcomes), missing, None)
        runs = tuple(run for run in runs if run in outcomes)
        best = min(runs, key=lambda run: outcomes[run].val_loss)
        if missing or 0 < runs.index(best) < len(runs) - 1:
            return Search(runs, (), best)
        low, high = (low - 1, high) if best == runs[0] else (low, high + 1)


@dataclass(frozen=True)
class Plan:
    """The study as far as its results go; what is not known yet is None or empty."""

    widths: Mapping[tuple[str, int], Search]
    decays: tuple[Run, ...]
    tuned: Run | None
    muon_search: Search | None
    muon: Run | None
    adamw_seeds: tuple[Run, ...]
    muon_seeds: tuple[Run, ...]
    muon_equal_time: tuple[Run, ...]

    def runs(self) -> list[Run]:
        """All runs known to be wanted, each once, in the order in which they are made."""
        main, *others = self.widths.values()
        # What later runs wait for comes first, and grids begin before others grow.
        searches = [main, *([self.muon_search] if self.muon_search else [])]
        searches += sorted(others, key=lambda found: len(found.runs) >= 3)
        grids = [(*found.runs, *found.missing) for found in searches]
        wanted = [*grids[0], *self.decays, *(run for grid in grids[1:] for run in grid)]
        wanted += [*self.adamw_seeds, *self.muon_seeds, *self.muon_equal_time]
        return list(dict.fromkeys(wanted))


def make_plan(study: Study, outcomes: Outcomes) -> Plan:
    """The plan that follows from these results; grids grow while there are runs left for it."""
    plan = _plan(study, outcomes, may_grow=False)
    muon = [plan.muon_search] if plan.muon_search is not None else []
    n_grown = sum(max(0, len(found.runs) - 3) for found in (*plan.widths.values(), *muon))
    # Two grids may want to grow at a time.
    return _plan(study, outcomes, may_grow=n_grown < _N_GROWN - 1)


def _plan(study: Study, outcomes: Outcomes, *, may_grow: bool) -> Plan:
    widths = {
        (kind, width): search(
            Run(width, study.n_steps, study.centre, parametrisation=kind),
            "learning_rate",
            study.centre,
            outcomes,
            may_grow,
        )
        for kind, width in _widths(study)
    }
    best = widths["standard", study.main_width].best
    decays: tuple[Run, ...] = ()
    tuned = muon = None
    if best is not None:
        decays = tuple(replace(best, weight_decay=decay) for decay in DECAYS)
        if all(run in outcomes for run in decays):
            tuned = min((best, *decays), key=lambda run: outcomes[run].val_loss)
    muon_search = None
    if tuned is not None:
        # The rate of embedding and head stays AdamW's; only that of the matrices is searched.
        start = replace(tuned, muon_learning_rate=tuned.learning_rate)
        rate = tuned.learning_rate
        muon_search = search(start, "muon_learning_rate", rate, outcomes, may_grow)
        muon = muon_search.best
    adamw_seeds, muon_seeds = with_seeds(tuned), with_seeds(muon)
    equal_time = tuple(_equal_time(adamw_seeds, muon_seeds, outcomes))
    return Plan(widths, decays, tuned, muon_search, muon, adamw_seeds, muon_seeds, equal_time)


def _widths(study: Study) -> list[tuple[str, int]]:
    """Parametrisations and widths, the one that the rest waits for first, then by cost."""
    wide_first = sorted(study.widths, reverse=True)
    pairs = [(kind, width) for width in wide_first for kind in ("standard", "mup")]
    return sorted(pairs, key=lambda pair: pair != ("standard", study.main_width))


def with_seeds(run: Run | None) -> tuple[Run, ...]:
    return () if run is None else tuple(replace(run, seed=seed) for seed in range(N_SEEDS))


def _equal_time(adamw: tuple[Run, ...], muon: tuple[Run, ...], outcomes: Outcomes) -> Iterator[Run]:
    """Muon with the steps, and a schedule over them, that take AdamW's seconds."""
    if not adamw or not muon or any(run not in outcomes for run in (*adamw, *muon)):
        return
    adamw_seconds, muon_seconds = (
        statistics.median(outcomes[run].seconds_per_step for run in runs) for runs in (adamw, muon)
    )
    for run in muon:
        n_steps = round(run.n_steps * adamw_seconds / muon_seconds)
        yield replace(run, n_steps=min(n_steps, run.n_steps - 1))


def from_record(record: dict[str, Any]) -> tuple[Run, Outcome]:
    """The run and outcome that a line of the results holds."""
    outcome = dict(record["outcome"])
    for name in ("val_loss", "val_bits_per_byte"):
        outcome[name] = math.inf if outcome[name] is None else outcome[name]
    for name in ("curve", "losses"):
        outcome[name] = tuple(tuple(x) if isinstance(x, list) else x for x in outcome[name])
    return Run(**record["run"]), Outcome(**outcome)


def to_record(study: Study, run: Run, outcome: Outcome) -> dict[str, Any]:
    """A line of the results; JSON has no infinity, so a diverged run's losses are null."""
    found = asdict(outcome)
    for name in ("val_loss", "val_bits_per_byte"):
        found[name] = found[name] if math.isfinite(found[name]) else None
    return {"study": asdict(study), "run": asdict(run), "outcome": found}
