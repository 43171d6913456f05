"""Text out of ids, as soon as it is certain: whole characters, and no stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rslm.tokenizer import StreamDecoder


class StoppedText:
    """The text of ids that come one by one, which ends at a stop string.

    The stop string that counts is the one that completes first, the longest of those that
    complete together, however tokens cut it. Only an end of the text that may begin a stop
    string is held back, and only half a character is held by the decoder.

    Attributes:
        stopped_by: the stop string that has ended the text; None while it goes on.

    Args:
        decoder: gives the text that each id completes.
        stop: the stop strings, none of them empty.
        keep_stop: the text ends after the stop string instead of before it.
    """

    def __init__(
        self, decoder: "StreamDecoder", stop: Sequence[str] = (), *, keep_stop: bool = False
    ) -> None:
        self.stopped_by: str | None = None
        self._decoder, self._stop, self._keep_stop = decoder, stop, keep_stop
        self._held = ""

    def add(self, token_id: int) -> str:
        """The text that has become certain with this id: perhaps none."""
        text = self._decoder.add(token_id)
        if not self._stop:
            return text
        self._held += text
        return self._take()

    def finish(self) -> str:
        """What was held back, of a text that no stop string has ended."""
        self._held += self._decoder.finish()
        text = self._take() if self._stop else ""
        if self.stopped_by is None:
            text, self._held = text + self._held, ""
        return text

    def _take(self) -> str:
        """What of the held text is certain."""
        found = first_stop(self._held, self._stop)
        if found is None:
            end = len(self._held) - _n_undecided(self._held, self._stop)
        else:
            end, self.stopped_by = found
            end += len(self.stopped_by) if self._keep_stop else 0
        text, self._held = self._held[:end], self._held[end:]
        return text


def first_stop(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """(where it begins, the stop string) of the one that ends first, then begins first."""
    found = [(at, string) for string in stop if (at := text.find(string)) >= 0]
    return min(found, key=lambda stop: (stop[0] + len(stop[1]), stop[0]), default=None)


def _n_undecided(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max(
        (
            n
            for string in stop
            for n in range(1, min(len(string), len(text) + 1))
            if text.endswith(string[:n])
        ),
        default=0,
    )
