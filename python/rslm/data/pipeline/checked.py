"""Records of JSON that tell whether they were changed since they were written."""

from __future__ import annotations

import json
from typing import Any

from rslm.data.pipeline.ingredients import digest

_NAME = "checksum"


def checked_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a checksum of its values."""
    return record | {_NAME: _checksum(record)}


def unchecked_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record that `checked_record` was given.

    Raises:
        ValueError: its checksum is another.
    """
    values = {name: value for name, value in record.items() if name != _NAME}
    if record.get(_NAME) != _checksum(values):
        raise ValueError("its checksum is another, so it was changed or damaged")
    return values


def _checksum(record: dict[str, Any]) -> str:
    # As it is read back, where tuples are lists and all names strings.
    return digest(json.loads(json.dumps(record)))
