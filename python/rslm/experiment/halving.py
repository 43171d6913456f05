"""Successive halving: runs that are behind the others early on are stopped.

Curves are compared at rungs, after a ninth and a third of the steps. Where a learning rate decays
that favours small ones, which look better early: a pruned run is not known to be a bad one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rslm.experiment.queue import PlannedRun
from rslm.experiment.queue_display import last_step
from rslm.runs import Run, read_run


@dataclass(kw_only=True)
class Halving:
    """What is known of runs at each rung, and which go on from there.

    Only the best of each `reduction` that came to a rung goes on; the first to come there does.

    Attributes:
        metric: lower is better.
        n_rungs: places where runs are compared.
        reduction: how many come to a rung for each that goes on, and how much later the next is.
        values: of the metric at each rung, by the hash of the run.

    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, Algorithm 2
    (arXiv:1810.05934), as a rule for stopping: a run goes on at once or never.
    """

    metric: str
    n_rungs: int = 2
    reduction: int = 3
    values: dict[int, dict[str, float]] = field(default_factory=dict)

    def rungs(self, n_steps: int) -> list[int]:
        """The steps at which a run is compared, first to last."""
        steps = (n_steps // self.reduction**k for k in range(self.n_rungs, 0, -1))
        return [step for step in steps if step > 0]

    def judge(self, run: PlannedRun, path: Path) -> str | None:
        """Why a run should be stopped, if it should; notes what it had at each rung."""
        for rung, step in enumerate(self.rungs(run.options["n_steps"])):
            known = self.values.setdefault(rung, {})
            if run.hash in known:
                continue
            if last_step(path / "metrics.jsonl") < step:
                return None
            value = value_by(read_run(path), self.metric, step)
            if value is None:
                return None
            known[run.hash] = value
            if not self._is_promoted(value, list(known.values())):
                best = min(known.values())
                return f"{self.metric} {value:.4g} at step {step}, the best had {best:.4g}"
        return None

    def _is_promoted(self, value: float, values: Sequence[float]) -> bool:
        n_better = sum(other < value for other in values)
        return n_better < max(1, len(values) // self.reduction)


def value_by(run: Run, metric: str, step: int) -> float | None:
    """A metric at the first row from a step on; the training loss's mean over a tenth before."""
    steps, values = run.curve(metric, "step")
    if metric == "loss":
        inside = [v for at, v in zip(steps, values, strict=True) if 0.9 * step < at <= step]
        return sum(inside) / len(inside) if inside else None
    return next((v for at, v in zip(steps, values, strict=True) if at >= step), None)
