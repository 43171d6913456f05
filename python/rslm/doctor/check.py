"""What a check says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what.
        status: "ok"; "warn", the run would work but worse than it could; "fail", it would not.
        found: what was seen.
        advice: what to do about it; None where nothing.
    """

    name: str
    status: Status
    found: str
    advice: str | None = None


def guarded(name: str, check: Callable[[], Iterator[Check]], advice: str) -> Iterator[Check]:
    """The results of a check; what it raises is a failure with this advice."""
    try:
        yield from check()
    except (OSError, ValueError, RuntimeError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        yield Check(name=name, status="fail", found=found, advice=advice)
