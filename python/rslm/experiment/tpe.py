"""Where a sweep looks next, as optuna's TPE has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rslm.errors import FormatError
from rslm.experiment.space import Dimension, Point
from rslm.experiment.study import Outcome

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.journal"

_DAMAGED = (AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What optuna raises where its journal is not as it writes it."""


class Tpe:
    """Points by a tree-structured Parzen estimator, in a file beside the runs.

    Points of an earlier call whose runs had not ended are proposed again, first.

    Args:
        space: where points may lie.
        n_runs: points in all, those of earlier calls among them, but for failed ones.
        folder: of the study, which must exist.
        seed: of the sampler.

    Raises:
        ModuleNotFoundError: optuna is not installed.
        FormatError: the file is damaged.
    """

    def __init__(
        self, space: Sequence[Dimension], n_runs: int, folder: Path, seed: int = 0
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = _open_study(folder / STORAGE)
        trials = self._study.get_trials(deepcopy=False)
        # Seeded anew by how far the sweep is: with the seed alone a sampler would begin again with
        # the points of the call before.
        state = np.random.SeedSequence([seed, len(trials)]).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(
            seed=int(state[0]),
            # Without the liar, runs side by side would all look at one place.
            constant_liar=True,
            n_startup_trials=max(5, n_runs // 4),
        )
        states = optuna.trial.TrialState
        running = [trial for trial in trials if trial.state == states.RUNNING]
        options = {dimension.option for dimension in space}
        # Where a call was killed between asking for a point and noting all of it.
        torn = [trial for trial in running if trial.params.keys() != options]
        for trial in torn:
            self._study.tell(trial.number, state=states.FAIL)
        self._open = [trial for trial in running if trial not in torn]
        n_failed = sum(trial.state == states.FAIL for trial in trials) + len(torn)
        self._n_left = n_runs - (len(trials) - n_failed)

    def next(self) -> tuple[int, Point] | None:
        """A point that was left open, or a new one."""
        if self._open:
            trial = self._open.pop(0)
            return trial.number, self._point(trial.params)
        if self._n_left < 1:
            return None
        self._n_left -= 1
        asked = self._study.ask({d.option: _distribution(d) for d in self._space})
        return asked.number, self._point(asked.params)

    def _point(self, params: dict[str, Any]) -> Point:
        return {
            d.option: d.values[params[d.option]]
            if d.scale == "choice"
            else d.rounded(params[d.option])
            for d in self._space
        }

    def tell(self, number: int, outcome: Outcome, value: float | None) -> None:
        """Notes a value; what diverged counts as worse than all that has one."""
        from optuna.trial import TrialState

        if value is not None:
            self._study.tell(number, value)
        else:
            failed = outcome.status == "failed"
            self._study.tell(number, state=TrialState.FAIL if failed else TrialState.PRUNED)


def _open_study(path: Path) -> "optuna.Study":
    import optuna
    from optuna.storages.journal import JournalFileBackend

    data = path.read_bytes() if path.exists() else b""
    try:
        # optuna would append to a torn line, and fail at the next look.
        if data and not data.endswith(b"\n"):
            raise ValueError("its last line is torn")
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)
    except _DAMAGED as error:
        raise FormatError(f"{path} must be a journal of optuna: {error!r:.200}") from None


def _distribution(dimension: Dimension) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    if dimension.scale == "choice":
        # By number: values need not be what optuna can store.
        return distributions.CategoricalDistribution(range(len(dimension.values)))
    log = dimension.scale == "log"
    if dimension.is_whole:
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=log)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=log)
