"""What every step of the data pipeline takes and gives: one text and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text of a corpus.

    A step that changes something makes another document (`dataclasses.replace`); `metadata`
    is shared between the two, so whoever adds to it makes a new dict.
    """

    text: str
    """Holds no lone surrogates, so it always has UTF-8."""
    id: str
    """Unique within its source and the same at every reading of it."""
    url: str = ""
    source: str = ""
    """The file or data set the document was read from, by name without folders."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the source says beside, as JSON can hold it."""
