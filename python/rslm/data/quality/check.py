"""The recipes as callers have them: in Rust, by the page or by the batch, or the reference."""

from collections.abc import Callable, Sequence
from typing import Literal

from rslm import _rslm
from rslm.data.quality.page import Verdict
from rslm.data.quality.presets import Preset, check_quality_reference
from rslm.data.quality.segment import unicode_words

Implementation = Literal["rust", "reference"]


def check_quality(
    text: str,
    preset: Preset,
    *,
    tokenize: Callable[[str], list[str]] | None = None,
    implementation: Implementation = "rust",
) -> Verdict:
    """Whether a page is kept, edited or dropped by a published recipe, and why.

    The first rule that hits is the reason. Time and memory are linear in the text, whatever it
    holds. Lengths are code points; letters, capitals and words are those of Unicode 16.0.0. Both
    implementations give the same on any text; the reference judges pages with lone surrogates,
    which are no UTF-8, and those whose words the caller cuts.

    Args:
        tokenize: words and marks for FineWeb's and DCLM's rules; UAX #29 unless given. FineWeb's
            own are spaCy's, which keeps `...` and web addresses whole where UAX #29 cuts them
            into marks.
        implementation: "rust", or "reference", the readable rules that specify it.

    Raises:
        ValueError: `preset` or `implementation` is not one of the names, or the text has 512 MiB
            or more of UTF-8 (only "rust").
    """
    if implementation not in ("rust", "reference"):
        raise ValueError(f"implementation must be rust or reference, got {implementation!r}")
    if tokenize is not None or implementation == "reference":
        return check_quality_reference(text, preset, tokenize=tokenize or unicode_words)
    return check_quality_batch([text], preset)[0]


def check_quality_batch(
    texts: Sequence[str], preset: Preset, *, n_threads: int = 1
) -> list[Verdict]:
    """The verdict on each page, as `check_quality` gives it; without the interpreter's lock.

    Raises:
        ValueError: as `check_quality`, or `n_threads` is below 1.
    """
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    rows = _rslm.check_quality(list(texts), preset, n_threads)
    return [
        check_quality_reference(text, preset) if row is None else _verdict(text, *row)
        for text, row in zip(texts, rows, strict=True)
    ]


def _verdict(
    text: str, reason: str, edited: str | None, lines_removed: list[tuple[str, int]]
) -> Verdict:
    removed = dict(lines_removed)
    if reason:
        return Verdict(decision="drop", text="", reason=reason, lines_removed=removed)
    if edited is None:
        return Verdict(decision="keep", text=text, lines_removed=removed)
    return Verdict(decision="edit", text=edited, lines_removed=removed)
