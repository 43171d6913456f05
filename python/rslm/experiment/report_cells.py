"""Cells of a report's tables, and numbers as they show them."""

import math
from collections.abc import Callable
from typing import Any

from rslm.html_report.blocks import Cell, Tone
from rslm.terminal import with_prefix

MISSING = Cell(value=None, text="–", tone="muted")


def text_cell(text: str, tone: Tone = "", colour: int | None = None) -> Cell:
    """A cell that is sorted by what it shows."""
    return Cell(value=text, text=text, tone=tone, colour=colour)


def number_cell(value: float | None, shown: Callable[[Any], str], tone: Tone = "") -> Cell:
    """A number as `shown` writes it, or that it is missing."""
    known = value is not None and math.isfinite(value)
    return Cell(value=value, text=shown(value), tone=tone) if known else MISSING


def four_digits(value: float) -> str:
    """A loss: seeds differ from the third digit on; one that blew up needs none of them."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def amount(value: float) -> str:
    """A count with a prefix: 1.64 M."""
    return with_prefix(value, "").strip()


def flops(value: float) -> str:
    """FLOPs with a prefix: 855 TFLOP."""
    return with_prefix(value, "FLOP")


def whole(value: float) -> str:
    """A count with separators: 12,800."""
    return f"{value:,.0f}"
