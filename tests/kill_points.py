"""A process that kills itself in the midst of its work, at a place that is counted out."""

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

FILE_CALLS = ((os, "fsync"), (os, "rename"), (os, "replace"))
"""What makes files last; whoever survives a kill before any of these survives all."""


def kill_at(
    point: int,
    places: Iterable[tuple[Any, str]],
    *,
    last_act: Callable[[str, tuple[Any, ...]], None] = lambda name, args: None,
) -> None:
    """Makes this process kill itself before its `point`-th call of any of these functions.

    Args:
        point: counted from 1, over all places together.
        places: module and name of each.
        last_act: done before the kill, with the name and the arguments of the call.
    """
    calls = 0

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == point:
                last_act(name, args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for place, name in places:
        setattr(place, name, counted(name, getattr(place, name)))
