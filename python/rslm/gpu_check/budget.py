"""The seconds that a check may take, and what had to be left out for them."""

import time


class Budget:
    """A span of time that parts of a check draw on.

    Attributes:
        left_out: what was not measured for lack of time, in words.
    """

    def __init__(self, seconds: float) -> None:
        self._begin, self._end = time.monotonic(), time.monotonic() + seconds
        self.left_out: list[str] = []

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    def until(self, share: float) -> float:
        """Seconds until this share of the whole span is over; below zero afterwards."""
        return self._begin + share * (self._end - self._begin) - time.monotonic()

    def allows(self, what: str, share: float = 1.0) -> bool:
        """Whether that share is not yet over; if it is, `what` is noted as left out."""
        if self.until(share) > 0:
            return True
        self.left_out.append(what)
        return False
