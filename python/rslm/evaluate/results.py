"""What the evaluation of a task says, as a record and as a row of a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A score, how sure it is, and what was done for it.

    Attributes:
        name: of the task.
        metric: what `value` is, as "accuracy".
        value: the score.
        stderr: standard error of the score, of the choice of questions; None if not known.
        n: questions, or tokens, that it is the mean of.
        n_shots: examples before each question.
        n_shots_dropped: examples that a context had no room for, in all questions together.
        n_cropped: questions of which the begin was cut.
        n_unparsed: responses in which no answer was found.
        n_truncated: responses that ended because of their length.
        seconds: that it took.
        details: further scores; where one has a standard error it is beside it, see `with_errors`.
    """

    name: str
    metric: str
    value: float
    stderr: float | None
    n: int
    n_shots: int = 0
    n_shots_dropped: int = 0
    n_cropped: int = 0
    n_unparsed: int = 0
    n_truncated: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        record: dict[str, Any] = finite(asdict(self))
        return record

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "TaskResult":
        """The result that was kept.

        Raises:
            TypeError: it is the record of something else.
        """
        value = record["value"]
        return cls(**{**record, "value": math.nan if value is None else value})


def with_errors(scores: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Scores with standard errors as details.

    >>> with_errors({"pass@2": (0.5, 0.1)})
    {'pass@2': 0.5, 'pass@2_stderr': 0.1}
    """
    details = {}
    for key, pair in scores.items():
        details[key], details[f"{key}_stderr"] = pair
    return details


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_numbers(log_probs: Iterable[float]) -> None:
    """Refuses what a model with broken weights says.

    Raises:
        FloatingPointError: one of them is NaN.
    """
    if any(map(math.isnan, log_probs)):
        raise FloatingPointError("log-probabilities must be numbers, got NaN from the model")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, the sample's deviation over the root of its size.

    Of one value the error is unknown, infinite.

    >>> mean_and_error([0, 0, 1, 1])
    (0.5, 0.28867513459481287)
    """
    return ratio_and_error(values, [1] * len(values))


def ratio_and_error(sums: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """The sum of n sums over the sum of their sizes, and its standard error.

    With sums s and sizes m the ratio is r = Σs / Σm, and its error
    sqrt(n / (n - 1) · Σ(s - r m)²) / Σm; of one size, those of a mean. Of one sum the error is
    unknown, infinite.

    Source: Cochran 1977, Sampling Techniques, section 2.11.

    >>> ratio_and_error([1.0, 3.0], [1, 3])
    (1.0, 0.0)
    """
    n, size = len(sums), math.fsum(sizes)
    ratio = math.fsum(sums) / size
    if n == 1:
        return ratio, math.inf
    squares = ((own - ratio * m) ** 2 for own, m in zip(sums, sizes, strict=True))
    return ratio, math.sqrt(math.fsum(squares) / (n - 1) * n) / size


def notes(result: TaskResult) -> str:
    """What a reader of the score must know, in some words."""
    counts = {
        "shots dropped": result.n_shots_dropped,
        "cropped": result.n_cropped,
        "unparsed": result.n_unparsed,
        "truncated": result.n_truncated,
    }
    return ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
