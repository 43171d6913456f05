"""Ids drafted ahead, for one step to verify.

A draft is right as far as it equals what the model draws with the same key at the same places
(keyed acceptance), so the ids are those of plain decoding, whatever was drafted.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rslm.infer.options import EngineOptions
from rslm.infer.requests import SequenceState
from rslm.model import Transformer


class Speculator(Protocol):
    """What drafts."""

    n_draft: int

    def propose(self, sequences: Sequence[SequenceState], room: Sequence[int]) -> list[list[int]]:
        """Ids that may follow each sequence, at most `room` of each."""
        ...


def make_speculator(
    options: EngineOptions,
    model: Transformer,
    *,
    n_blocks: int,
    make_runner: Callable[..., Any],
) -> Speculator | None:
    """What `options.speculation` asks for."""
    return None
