"""Lying bars as HTML: a table whose second column is drawn, for eyes alone."""

import math

from rslm.html_report import blocks
from rslm.html_report.escaping import escape


def bars(block: blocks.Bars) -> str:
    """The HTML of bars; the longest takes the whole width."""
    longest = max((math.fsum(bar.parts) for bar in block.bars), default=0.0)
    legend = "".join(
        f'<span><i class="part part-{number}"></i>{escape(name)}</span>'
        for number, name in enumerate(block.parts)
    )
    heads = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in block.columns)
    rows = "".join(_row(bar, longest) for bar in block.bars)
    caption = escape(block.caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n'
        f'<table class="bars"><caption>{caption}</caption>\n<thead><tr>'
        f'<th scope="col">{escape(block.name)}</th><td class="key" aria-hidden="true">{legend}</td>'
        f"{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )


def _row(bar: blocks.Bar, longest: float) -> str:
    drawn = "".join(
        f'<i class="part part-{number}" style="width:{100 * length / longest:.2f}%"></i>'
        for number, length in enumerate(bar.parts)
        if length > 0
    )
    texts = "".join(f'<td class="number">{escape(text)}</td>' for text in bar.texts)
    note = f"<small>{escape(bar.note)}</small>" if bar.note else ""
    return (
        f'<tr><th scope="row">{escape(bar.name)}{note}</th>'
        f'<td aria-hidden="true"><span class="bar">{drawn}</span></td>{texts}</tr>\n'
    )
