"""Options and values as given on a command line: `model.ffn=swiglu,relu2`, and runs made of them.

Everything is checked against `TrainConfig` before anything starts.
"""

import contextlib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rslm.config import Record, check_record, closest_key, from_record, known_keys, to_record
from rslm.experiment.study import PlannedRun
from rslm.run_folder import flatten
from rslm.token_file import TokenFile
from rslm.train_config import TrainConfig

Complete = Callable[[Record], Record]
"""Fills in what follows from other options, as `depth` decides many; given by the command."""

OWN_OPTIONS = ("out", "seed")
"""Options that a study sets itself."""

_SPEEDS = ("tokens_per_second", "mfu")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An option and the values it takes.

    Attributes:
        option: dotted.
        values: of the option's type, no two alike.
    """

    option: str
    values: tuple[Any, ...]


def parse_axis(text: str) -> Axis:
    """Reads OPTION=VALUE,VALUE,...

    Raises:
        ValueError: it is none, the option is unknown, a value is not of its type, or there are
            not at least two different ones.
    """
    option, separator, values = text.partition("=")
    if not separator or "" in values.split(","):
        raise ValueError(f"axis must be OPTION=VALUE,VALUE,..., got {text!r}")
    require_option(option)
    parsed = tuple(parse_value(option, value) for value in values.split(","))
    if len(set(map(repr, parsed))) < max(2, len(parsed)):
        raise ValueError(f"axis must have at least two values, all different, got {text!r}")
    return Axis(option=option, values=parsed)


def parse_setting(text: str) -> Record:
    """Reads OPTION=VALUE as a nested record.

    Raises:
        ValueError: it is none, or does not fit the config.
    """
    option, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"set must be OPTION=VALUE, got {text!r}")
    require_option(option)
    return nested(option, parse_value(option, value))


def require_option(option: str) -> None:
    """Refuses what is no option of a run, or one that a study sets itself.

    Raises:
        ValueError: it is such.
    """
    if option in OWN_OPTIONS:
        raise ValueError(f"{option} is set for each run of a study, it cannot be an axis")
    if option not in known_keys(TrainConfig):
        closest = closest_key(TrainConfig, option)
        raise ValueError(f"unknown option {option}; the closest known one is {closest}")


def parse_value(option: str, text: str) -> Any:
    """A value of an option's type; `none` is no value where the option may have none.

    Raises:
        ValueError: it is not of that type.
    """
    candidates: list[Any] = [None] if text.lower() == "none" else []
    # A number, true or false as in a TOML file; anything else stands for itself.
    with contextlib.suppress(ValueError):
        candidates.append(tomllib.loads(f"x = {text}")["x"])
    for candidate in [*candidates, text]:
        with contextlib.suppress(ValueError):
            return value_in(check_record(TrainConfig, nested(option, candidate)), option)
    checked = check_record(TrainConfig, nested(option, candidates[0] if candidates else text))
    return value_in(checked, option)


def nested(option: str, value: Any) -> Record:
    """A record that holds one value at a dotted option.

    >>> nested("model.ffn", "relu2")
    {'model': {'ffn': 'relu2'}}
    """
    for key in reversed(option.split(".")):
        value = {key: value}
    record: Record = value
    return record


def value_in(record: Mapping[str, Any], option: str) -> Any:
    """The value at a dotted option; None where there is none."""
    return flatten(record).get(option)


def planned_run(
    name: str, record: Record, labels: Mapping[str, Any], complete: Complete
) -> PlannedRun:
    """A run of a record that need not be complete.

    Raises:
        ValueError: the record makes no config; the message begins with the run's name.
    """
    try:
        config = from_record(TrainConfig, complete(record) | {"out": name})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    options = {key: value for key, value in to_record(config).items() if key != "out"}
    plain = {option: _plain(value) for option, value in labels.items()}
    return PlannedRun(name=name, options=options, labels=plain)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def require_metric(metric: str, known: Collection[str], planned: Iterable[PlannedRun]) -> None:
    """Refuses a metric that runs will not have, before they are made.

    Raises:
        ValueError: it is not one of the known, is of validation and a run has none, or is a speed
            and a run has but the step that warms up.
    """
    if metric not in known:
        raise ValueError(f"metric must be one of {', '.join(known)}, got {metric!r}")
    if metric.startswith("val_"):
        for run in planned:
            if run.options["data"]["valid"] is None:
                raise ValueError(f"metric {metric} needs data.valid, which {run.name} has not")
    if metric in _SPEEDS:
        for run in planned:
            if run.options["n_steps"] < 2:
                raise ValueError(f"metric {metric} needs n_steps of at least 2 in {run.name}")


def require_different(planned: Iterable[PlannedRun]) -> None:
    """Refuses runs that are alike, or whose names are: values that differ in later digits.

    Raises:
        ValueError: two are.
    """
    seen: dict[str, str] = {}
    for run in planned:
        if (other := seen.get(run.hash) or seen.get(run.name)) is not None:
            raise ValueError(f"runs must differ, got {run.name} and {other}")
        seen |= {run.hash: run.name, run.name: run.name}


def require_data(planned: Iterable[PlannedRun]) -> None:
    """Opens the token files of runs, so that their mistakes show before any run starts.

    Raises:
        OSError: one is missing.
        FormatError: one is damaged.
    """
    paths: set[str] = set()
    for run in planned:
        data = run.options["data"]
        paths |= {data["train"], *data["mixed_in"]} | ({data["valid"]} - {None})
    for path in sorted(paths):
        TokenFile.open(path)
