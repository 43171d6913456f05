"""What every benchmark shares: no debug build is timed, and throughput is printed at the end."""

from collections.abc import Iterator
from typing import Any

import pytest

# Units of `extra_info`, and how a rate per second of each is printed.
RATES = {
    "input_bytes": lambda rate: f"{rate / 1e6:,.1f} MB/s",
    "n_tokens": lambda rate: f"{rate:,.0f} tokens/s",
    "flops": lambda rate: f"{rate / 1e9:,.1f} GFLOP/s",
}


class Throughput:
    """Collects one row per benchmark and prints them, fastest first in each group."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float, str]] = []

    def add(self, benchmark: Any) -> None:
        seconds = benchmark.stats.stats.median
        rates = [
            as_text(benchmark.extra_info[key] / seconds)
            for key, as_text in RATES.items()
            if key in benchmark.extra_info
        ]
        self.rows.append((benchmark.group or "", benchmark.name, seconds, "  ".join(rates)))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows:
            return
        terminalreporter.section("throughput (medians)")
        width = max(len(name) for _, name, _, _ in self.rows)
        fastest: dict[str, float] = {}
        for group, name, seconds, rates in sorted(self.rows, key=lambda row: (row[0], row[2])):
            if group not in fastest:
                terminalreporter.write_line(group or "no group")
            best = fastest.setdefault(group, seconds)
            terminalreporter.write_line(f"  {name:<{width}}  {seconds / best:8.2f}x  {rates}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Throughput(), "throughput")
    if not config.getoption("benchmark_disable"):
        refuse_debug_build()


def refuse_debug_build() -> None:
    from rslm import _rslm

    if _rslm.BUILD_PROFILE == "debug":
        pytest.exit("the extension is a debug build; run `make setup`", returncode=2)


@pytest.fixture(autouse=True)
def collect_throughput(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    benchmark = request.node.funcargs.get("benchmark")
    if benchmark is not None and benchmark.stats is not None and benchmark.enabled:
        request.config.pluginmanager.get_plugin("throughput").add(benchmark)
