"""The text of web pages: all of it, or the main text without menus, notes and advertisements.

Pages are measured before they are parsed. On pages made for it, parsers take time in proportion
to the square of the page's size, overflow their stack, or make a thousand elements of each tag;
such pages are refused by the rules that tell the tree builder what to open and to close, followed
over the page's bytes without a tree (`rust/web/extract/nesting.rs`). The worst page found within
the limits takes some seconds. What still hangs can only be stopped from outside the process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rslm import _rslm
from rslm.data.decoding import clean_text, decode_page

Extractor = Literal["readability", "resiliparse", "resiliparse-main"]

# Beyond it recursion over a page could reach the end of a stack.
_MOST_DEPTH = 2048


@dataclass(frozen=True, kw_only=True)
class ExtractLimits:
    """What extraction of one page may cost; more is a problem of the page."""

    max_page_bytes: int = 10_000_000
    """Of the page as UTF-8: `too_large`."""
    max_depth: int = 512
    """Elements within each other, as browsers nest them: `too_deep`. So is a page that keeps
    many elements open over many tags."""
    max_nodes: int = 250_000
    """Elements, texts and comments: `too_large`. So is a page with more than 256 attributes in
    one tag."""
    max_text_bytes: int = 1_000_000
    """Of the text as UTF-8: `too_large`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")
        if self.max_depth > _MOST_DEPTH:
            raise ValueError(f"max_depth must be at most {_MOST_DEPTH}, got {self.max_depth}")


@dataclass(frozen=True)
class Extracted:
    """The text of a page, or the problem with it."""

    text: str
    """Stripped, with `\\n` as its only line end; empty with a problem."""
    problem: str = ""
    """`too_large`, `too_deep`, `extract_error` (the extractor failed on the page), `empty` (it
    found no text), or "" for a text."""


def extract_text(html: bytes | str, *, extractor: Extractor = "readability") -> str:
    """The text of one page; "" if it has none within `ExtractLimits`.

    Bytes are decoded by `decode_page` first. See `extract_batch` for the extractors.

    Raises:
        ValueError: the extractor is unknown, or resiliparse is not installed.
    """
    page = decode_page(html)[0] if isinstance(html, bytes) else html
    return extract_batch([page], extractor=extractor)[0].text


def extract_batch(
    pages: Sequence[str],
    *,
    extractor: Extractor = "readability",
    limits: ExtractLimits | None = None,
    n_threads: int = 1,
) -> list[Extracted]:
    """The text of each page, in order, or the problem with it; no page fails the others.

    "readability" is the main text by Mozilla's Readability algorithm, in Rust, outside the
    interpreter's lock and over `n_threads` pages at a time. "resiliparse" is all text, and
    "resiliparse-main" the main text without links, alternative texts and forms, both as the
    package of that name gives them; it keeps the lock, so these take one page at a time.
    The text does not depend on the number of threads.

    Raises:
        ValueError: the extractor is unknown, `n_threads` is below 1, or resiliparse is not
            installed.

    Source: Mozilla, Readability.js, in its Rust port dom_smoothie; Bevendorff et al. 2018,
    Elastic ChatNoir, for resiliparse.
    """
    if extractor not in get_args(Extractor):
        names = ", ".join(get_args(Extractor))
        raise ValueError(f"extractor must be one of {names}, got {extractor!r}")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    limits = limits or ExtractLimits()
    if extractor == "readability":
        texts = _rslm.extract_readable(pages, _values(limits), n_threads)
        return [Extracted(text, problem) for text, problem in texts]
    extract = _resiliparse(main=extractor == "resiliparse-main")
    return [_extract(page, extract, limits) for page in pages]


def _values(limits: ExtractLimits) -> tuple[int, int, int, int]:
    return limits.max_page_bytes, limits.max_depth, limits.max_nodes, limits.max_text_bytes


def _resiliparse(*, main: bool) -> Callable[[str], str]:
    try:
        module: Any = importlib.import_module("resiliparse.extract.html2text")
    except ModuleNotFoundError as error:
        raise ValueError(
            "this extractor needs resiliparse, which is not installed: pip install 'rslm[data]'"
        ) from error
    if not main:
        return module.extract_plain_text  # type: ignore[no-any-return]
    return lambda page: module.extract_plain_text(
        page, main_content=True, links=False, alt_texts=False, form_fields=False
    )


def _extract(page: str, extract: Callable[[str], str], limits: ExtractLimits) -> Extracted:
    page = clean_text(page)
    if problem := _rslm.page_problem(page, _values(limits)):
        return Extracted("", problem)
    try:
        text = clean_text(extract(page)).strip()
    except Exception:
        # Whatever it is that a page makes the library raise is counted.
        return Extracted("", "extract_error")
    if not text:
        return Extracted("", "empty")
    too_large = len(text.encode()) > limits.max_text_bytes
    return Extracted("", "too_large") if too_large else Extracted(text)
