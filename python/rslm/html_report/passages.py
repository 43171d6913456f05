"""Texts from outside as HTML: in groups that open, whatever the texts hold."""

import html
from collections.abc import Sequence

from rslm.html_report import blocks
from rslm.html_report.escaping import attribute, clean_lines, escape


def passages(block: blocks.Passages) -> str:
    """The HTML of groups of passages."""
    groups = "".join(map(_group, block.groups))
    return f'<div class="passages">\n<p>{escape(block.caption)}</p>\n{groups}</div>\n'


def _group(group: blocks.PassageGroup) -> str:
    note = f"<span>{escape(group.note)}</span>" if group.note else ""
    inside = "".join(map(_passage, group.passages))
    return (
        f"<details><summary>{escape(group.title)}{note}</summary>\n"
        f'<div class="columns">\n{inside}</div></details>\n'
    )


def _passage(passage: blocks.Passage) -> str:
    # A text turns its own direction only; the parser drops a line's end right behind the tag.
    return (
        f'<article><h4 dir="auto">{escape(passage.title)}</h4><p dir="auto">'
        f'{escape(passage.note)}</p><pre dir="auto" tabindex="0"'
        f"{attribute('aria-label', passage.title)}>\n"
        f"{_marked(passage.text, passage.marks)}</pre></article>\n"
    )


def _marked(text: str, marks: Sequence[tuple[int, int]]) -> str:
    pieces, end = [], 0
    for start, stop in marks:
        pieces += [_lines(text[end:start]), f"<mark>{_lines(text[start:stop])}</mark>"]
        end = stop
    return "".join([*pieces, _lines(text[end:])])


def _lines(text: str) -> str:
    return html.escape(clean_lines(text))
