"""Lines of JSON that anybody may have written, each with its place for messages."""

import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from rslm.errors import one_line

MAX_LINE_BYTES = 16 << 20
"""Longest line that is read, far above any conversation; empty lists take 28 times its bytes."""


def read_json_lines(file: BinaryIO, source: object) -> Iterator[tuple[str, Any]]:
    """The place and the value of each line; blank lines are none.

    Raises:
        ValueError: a line is too long or no JSON; the message begins with its place.
    """
    for number in itertools.count(1):
        if not (line := file.readline(MAX_LINE_BYTES + 1)):
            return
        place = f"{source}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{place}: a line must have at most {MAX_LINE_BYTES} bytes")
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: must be JSON: {one_line(str(error)):.200}") from None
            yield place, value
