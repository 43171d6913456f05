"""A text token by token: plain text for want of a script, data for the one that shades it."""

import html
import math
from typing import Any

from rslm.html_report import blocks
from rslm.html_report.escaping import clean_lines, escape
from rslm.html_report.figures import Figures

_DIGITS = 4


def scored_tokens(block: blocks.Tokens, figures: Figures) -> str:
    """The HTML of a text's tokens; adds their data to `figures`."""
    name = f"tokens-{len(figures)}"
    figures[name] = {
        "kind": "tokens",
        "vocab": {str(token_id): shown(data) for token_id, data in block.vocab.items()},
        "tokens": [_row(token) for token in block.tokens],
    }
    text = b"".join(block.vocab[token.token_id] for token in block.tokens)
    lines = html.escape(clean_lines(text.decode("utf-8", "replace")))
    return (
        f'<div class="token-text" id="{name}">\n<p class="caption">{escape(block.caption)}</p>\n'
        # The parser drops a line's end right behind the tag.
        f'<pre tabindex="0" dir="auto" aria-label="Text">\n{lines}</pre></div>\n'
    )


def shown(data: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _row(token: blocks.ScoredToken) -> list[Any]:
    pairs = [[token_id, _rounded(log_prob)] for token_id, log_prob in token.top]
    return [token.token_id, _rounded(token.log_prob), token.rank, *pairs]


def _rounded(log_prob: float | None) -> float | None:
    """JSON has no infinities; a probability of 0 and one that is not known show alike."""
    if log_prob is None or not math.isfinite(log_prob):
        return None
    return round(log_prob, _DIGITS)
