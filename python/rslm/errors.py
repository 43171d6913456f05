"""The one exception type of rslm's own, and how messages of several lines become one."""

from collections.abc import Iterable


class FormatError(ValueError):
    """A token file, tokenizer file or checkpoint does not hold what its format requires.

    The message names the path, the offset where one is known, what must hold and
    what was found.
    """


def one_line(message: str) -> str:
    r"""A message whose further lines say what to do, in one.

    >>> one_line("out must be new, got runs\nname another")
    'out must be new, got runs; name another'
    >>> one_line("")
    ''
    """
    lines = [line.strip() for line in message.split("\n") if line.strip()]
    ends = [" " if line.endswith((".", ":", ";", ",")) else "; " for line in lines]
    return "".join(map("".join, zip(lines, [*ends[:-1], ""], strict=False)))


def hint_at_closest(given: str, known: Iterable[str]) -> str:
    r"""A further line of a message that refuses a word; empty where no known one is like it.

    >>> hint_at_closest("revers", ["reverse", "sort"])
    '\ndid you mean reverse?'
    """
    # Imported here: whoever makes no mistake should not pay for it.
    import difflib

    close = difflib.get_close_matches(given, known, n=1)
    return f"\ndid you mean {close[0]}?" if close else ""
