"""How long something takes, for tests of growth with the input."""

import time
from collections.abc import Callable


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of the faster of two, so that neighbours do not count."""
    times = []
    for _ in range(2):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)
