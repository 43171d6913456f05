import math

import pytest

from rslm.series import duration, smooth, sparkline


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([1.0, 2.0], "▁█"),
        ([8, 7, 6, 5, 4, 3, 2, 1], "█▇▆▅▄▃▂▁"),
        ([1.0, math.nan, 2.0], "▁█"),
        ([4.0] * 50 + [1.0] * 50, "████▁▁▁▁"),
    ],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values, 8) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (65, "1m 05s"), (3599.7, "1h 00m"), (7900, "2h 11m")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_smooth_keeps_constants_and_does_not_lag() -> None:
    assert smooth([2.0] * 7) == [2.0] * 7
    line = [float(i) for i in range(200)]
    assert smooth(line)[2:-2] == pytest.approx(line[2:-2])
