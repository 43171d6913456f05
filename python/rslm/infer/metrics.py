"""Numbers for Prometheus, in its text format.

Source: the exposition format of Prometheus, version 0.0.4.
"""

import bisect
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = Mapping[str, str]
Value = tuple[tuple[str, ...], float]
"""The values of the labels, and the number."""


class Histogram:
    """How often a value was at most each of some bounds."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self) -> Iterable[tuple[str, Labels, float]]:
        """Suffix, labels and value of each line."""
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            yield "_bucket", {"le": _number(bound)}, total
        yield "_sum", {}, self.sum
        yield "_count", {}, total


class Text:
    """Metrics, written one family after another."""

    def __init__(self, prefix: str = "rslm_") -> None:
        self._prefix = prefix
        self._lines: list[str] = []

    def counter(self, name: str, help: str, values: Iterable[Value], *labels: str) -> None:
        """A number that only grows, for each tuple of labels' values."""
        self._family(f"{name}_total", "counter", help, values, labels)

    def gauge(self, name: str, help: str, values: Iterable[Value], *labels: str) -> None:
        """A number as it is now."""
        self._family(name, "gauge", help, values, labels)

    def histogram(self, name: str, help: str, histogram: Histogram) -> None:
        """A histogram without labels."""
        self._head(name, "histogram", help)
        for suffix, labels, value in histogram.samples():
            self._lines.append(f"{self._prefix}{name}{suffix}{_labels(labels)} {_number(value)}")

    def __str__(self) -> str:
        """All of it, with a line end at the end."""
        return "".join(f"{line}\n" for line in self._lines)

    def _family(
        self,
        name: str,
        kind: str,
        help: str,
        values: Iterable[Value],
        labels: tuple[str, ...],
    ) -> None:
        self._head(name, kind, help)
        for given, value in values:
            shown = _labels(dict(zip(labels, given, strict=True)))
            self._lines.append(f"{self._prefix}{name}{shown} {_number(value)}")

    def _head(self, name: str, kind: str, help: str) -> None:
        self._lines.append(f"# HELP {self._prefix}{name} {help}")
        self._lines.append(f"# TYPE {self._prefix}{name} {kind}")


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
