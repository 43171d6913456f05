"""`rslm compare`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rslm.commands.inputs import Files
from rslm.terminal import Switch, print_json, print_table, readable

if TYPE_CHECKING:
    from rslm.experiment.compare import Comparison, View
    from rslm.runs import Run

SPEEDRUN_ALPHA = 0.01


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Tell whether two groups of runs differ by more than noise.

    `rslm compare A* B*` tells the groups apart by their options, seeds aside; the first run's is
    the one that the other is compared with. Where the groups are to be others, name them:
    `rslm compare --a A* --b B*`. Differences are b - a.
    """

    runs: Files = ()
    """Run folders of two groups that differ in their options."""
    a: tuple[Path, ...] = ()
    """Run folders of the group to compare with."""
    b: tuple[Path, ...] = ()
    """Run folders of the group that is compared."""
    metric: str | None = None
    """Key of metrics.jsonl; unless given val_bits_per_byte, val_loss or loss, as all runs have."""
    confidence: float = 0.95
    """Confidence of the intervals; what is less likely than 1 less this by chance is a finding."""
    target: float | None = None
    """Say for each group whether its mean is at most this, by the rule of speedruns."""
    json: Switch = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Refuse groups that are not two, and numbers that cannot be."""
        if bool(self.a) != bool(self.b) or bool(self.runs) == bool(self.a):
            raise ValueError("runs must be given as two groups, A* B* or --a A* --b B*")
        if not 0.5 <= self.confidence <= 0.9999:
            raise ValueError(f"confidence must be in [0.5, 0.9999], got {self.confidence}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"target must be finite, got {self.target}")


def compare(options: CompareOptions) -> None:
    """Prints the difference in several views, with intervals, and what it takes to be sure."""
    from rslm.experiment.compare import common_metric
    from rslm.experiment.compare import compare as compare_groups

    a, b = groups(options)
    metric = options.metric or common_metric([*a, *b])
    comparison = compare_groups(a, b, metric, confidence=options.confidence)
    targets = reached(comparison, options.target)
    if options.json:
        print_json(comparison.record() | targets)
        return
    describe(comparison)
    for line in targets.values():
        print(f"target {options.target:g}: {sentence(line)}")


def groups(options: CompareOptions) -> "tuple[list[Run], list[Run]]":
    """The two groups, as named or as their options tell.

    Raises:
        ValueError: the runs make up another number of groups.
    """
    from rslm.experiment.compare import group_runs
    from rslm.runs import read_run

    if options.a:
        return [read_run(path) for path in options.a], [read_run(path) for path in options.b]
    found = group_runs([read_run(path) for path in options.runs])
    if len(found) != 2:
        names = " | ".join(f"{len(g)} like {g[0].path.name}" for g in found)
        raise ValueError(
            f"runs must fall into two groups by their options, seeds aside, got {len(found)}\n"
            f"{names}; name groups with --a and --b"
        )
    return found[0], found[1]


def reached(comparison: "Comparison", target: float | None) -> dict[str, dict[str, float | str]]:
    """By group, the p-value of having missed the target."""
    from rslm.experiment.statistics import p_of_target

    if target is None:
        return {}
    final = comparison.views[0]
    return {
        f"target_{name}": {
            "group": name,
            "target": target,
            "mean": sum(values) / len(values),
            "p_value": p_of_target(values, target),
        }
        for name, values in (("a", final.a), ("b", final.b))
    }


def sentence(line: "dict[str, float | str]") -> str:
    """Whether a group reached its target, in words."""
    p_value = float(line["p_value"])
    word = "reached" if p_value < SPEEDRUN_ALPHA else "not shown to be reached"
    return f"{word} by {line['group']}, mean {readable(line['mean'])}, p = {p_value:.3g}"


def describe(comparison: "Comparison") -> None:
    """Prints groups, table and verdict."""
    from rslm.experiment.compare import verdict
    from rslm.experiment.statistics import bootstrap_coverage

    print(f"a: {len(comparison.a)} runs, {comparison.a[0]} ...")
    print(f"b: {len(comparison.b)} runs, {comparison.b[0]} ...")
    for name, (of_a, of_b) in comparison.options.items():
        print(f"   {name}: {', '.join(map(str, of_a))} -> {', '.join(map(str, of_b))}")
    print()
    level = f"{comparison.views[0].test.confidence:.0%} interval".replace("%", " %")
    header = [comparison.metric, "a", "b", "b - a", level, "p Welch", "p paired", "80 % power"]
    print_table(header, [row(view) for view in comparison.views])
    print()
    for view in comparison.views:
        if view.bootstrap is not None:
            low, high = view.bootstrap
            n = min(len(view.a), len(view.b))
            covered = bootstrap_coverage(n, kind=view.test.kind, confidence=view.test.confidence)
            print(f"{view.name}: bootstrap (BCa) {low:+.4g} to {high:+.4g}, which covers the truth")
            print(f"   in {covered:.1%} of 1,000 simulated experiments of {n} runs")
    for view in comparison.views:
        print(f"{view.name}: {verdict(view.test, comparison.metric)}")


def row(view: "View") -> list[str]:
    """The view's line of the table; the last column is what such an experiment can find."""
    test = view.test
    where = "" if view.at is None else f" {view.at:.3g}"
    return [
        f"{view.name}{where}",
        readable(sum(view.a) / len(view.a)),
        readable(sum(view.b) / len(view.b)),
        f"{test.effect:+.3g}",
        f"{test.low:+.3g} to {test.high:+.3g}",
        f"{view.welch.p_value:.3g}",
        "-" if view.paired is None else f"{view.paired.p_value:.3g}",
        f"{test.minimal_effect():.3g}",
    ]
