"""A page as one HTML file that needs no network and forbids itself any.

Styles and script stand in the file, and plotly.js where anything is plotted. Its
Content-Security-Policy runs the scripts whose hashes it names and nothing else, and loads nothing;
whatever comes from outside is escaped in HTML, in the data that the script reads, and by
the script in what plotly draws.
"""

import base64
import hashlib
import html
import math
import re
from importlib.resources import files
from string import Template

from rslm.html_report import blocks
from rslm.html_report.bars import bars
from rslm.html_report.escaping import attribute, clean_lines, escape, to_json
from rslm.html_report.figures import COLOURS, Figures, figure, palette
from rslm.html_report.passages import passages
from rslm.html_report.tokens import scored_tokens

LONG_NAME = 40
"""Characters from which on the name of a row is broken into lines."""

STYLES = ("theme.css", "page.css", "tokens.css")

_WITHOUT_SCRIPTS = (
    '<noscript><p class="lead">The plots need JavaScript; tables and texts do not.</p></noscript>'
)


def render(page: blocks.Page) -> bytes:
    """The page as the bytes of an HTML file.

    Raises:
        ModuleNotFoundError: something is plotted, and plotly is not installed.
    """
    figures: Figures = {}
    sections = [
        _section(section, f"section-{n}", figures) for n, section in enumerate(page.sections)
    ]
    contents = "".join(
        f'<li><a href="#section-{n}">{escape(section.title)}</a></li>'
        for n, section in enumerate(page.sections)
    )
    kinds = {figure["kind"] for figure in figures.values()}
    has_plots = bool(kinds - {"texts", "tokens"})
    scripts = [_script(_asset("page.js"))]
    if "tokens" in kinds:
        scripts.insert(0, _script(_asset("tokens.js")))
    if has_plots:
        scripts.insert(0, _script(_plotly()))
    return (
        Template(_asset("page.html"))
        .substitute(
            hashes=" ".join(map(hash_of, scripts)),
            title=escape(page.title),
            style="".join(map(_asset, STYLES)) + palette(),
            lead=escape(page.lead),
            without_scripts=_WITHOUT_SCRIPTS * has_plots,
            contents=contents,
            sections="".join(sections),
            footer=escape(page.footer),
            data=to_json(figures),
            scripts="\n".join(f"<script>{script}</script>" for script in scripts),
        )
        .encode()
    )


def hash_of(script: str) -> str:
    """The source expression of an inline script in a Content-Security-Policy."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _script(text: str) -> str:
    """The text as the parser of HTML hands it on, which is what is hashed."""
    text = re.sub("\r\n?", "\n", text)
    assert not re.search("</script|<!--", text, re.IGNORECASE), "it would end its element"
    return text


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text


def _asset(name: str) -> str:
    return files("rslm.html_report").joinpath(name).read_text(encoding="utf-8")


def _section(section: blocks.Section, name: str, figures: Figures) -> str:
    lead = f"<p>{escape(section.lead)}</p>\n" if section.lead else ""
    inside = "".join(_block(block, figures) for block in section.blocks)
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(section.title)}</h2>\n'
        f"{lead}{inside}</section>\n"
    )


def _block(block: blocks.Block, figures: Figures) -> str:
    match block:
        case blocks.Facts():
            return _facts(block)
        case blocks.Table():
            return _table(block)
        case blocks.Texts():
            return _texts(block, figures)
        case blocks.Notes():
            return _notes(block)
        case blocks.Bars():
            return bars(block)
        case blocks.Passages():
            return passages(block)
        case blocks.Tokens():
            return scored_tokens(block, figures)
        case blocks.Curves() | blocks.Plot() | blocks.Forest():
            return figure(block, figures)


def _facts(block: blocks.Facts) -> str:
    facts = "".join(
        f"<div><dt>{escape(fact.label)}</dt><dd><strong>{escape(fact.value)}</strong>"
        f"<span>{escape(fact.note)}</span></dd></div>"
        for fact in block.facts
    )
    return f'<dl class="facts">{facts}</dl>\n'


def _notes(block: blocks.Notes) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in block.notes)
    return f'<div class="notes"><h3>{escape(block.title)}</h3><ul>{notes}</ul></div>\n'


def _table(block: blocks.Table) -> str:
    # What stands under a heading is aligned alike, heading included.
    numeric = [
        all(cell.value is None or _is_number(cell) for cell in column)
        for column in zip(*block.rows, strict=True)
    ] or [False] * len(block.columns)
    numeric[0] = False
    heads = "".join(
        f'<th scope="col"{attribute("class", "number" * is_numeric)}'
        f"{attribute('title', meaning)}>{escape(title)}</th>"
        for (title, meaning), is_numeric in zip(block.columns, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + _cell(row[0], "th", "long" * (len(row[0].text) > LONG_NAME))
        + "".join(
            _cell(cell, "td", "number" * is_numeric)
            for cell, is_numeric in zip(row[1:], numeric[1:], strict=True)
        )
        + "</tr>\n"
        for row in block.rows
    )
    sortable = attribute("class", "sortable" * block.is_sortable)
    caption = escape(block.caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n'
        f"<table{sortable}><caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def _is_number(cell: blocks.Cell) -> bool:
    return isinstance(cell.value, int | float) and math.isfinite(cell.value)


def _cell(cell: blocks.Cell, tag: str, kind: str) -> str:
    names = " ".join(filter(None, [kind, cell.tone]))
    value = "" if cell.value is None else str(cell.value)
    attributes = attribute("class", names) + attribute("data-value", value)
    swatch = "" if cell.colour is None else f'<i class="swatch c{cell.colour % len(COLOURS)}"></i>'
    scope = ' scope="row"' if tag == "th" else ""
    return f"<{tag}{scope}{attributes}>{swatch}{escape(cell.text)}</{tag}>"


def _texts(block: blocks.Texts, figures: Figures) -> str:
    name = f"texts-{len(figures)}"
    moments = sorted({moment for texts in block.columns.values() for moment in texts})
    figures[name] = {
        "kind": "texts",
        "texts": [
            {str(moment): clean_lines(text) for moment, text in texts.items()}
            for texts in block.columns.values()
        ],
    }
    options = "".join(
        f'<option value="{moment}"{" selected" * (moment == moments[-1])}>{moment:,}</option>'
        for moment in moments
    )
    columns = "".join(
        f"<article><h3>{escape(title)}</h3><p>{escape(block.choice)} "
        f"<span>{max(texts):,}</span></p>"
        # The parser drops a line's end right behind the tag.
        f'<pre tabindex="0" aria-label="{escape(title)}">\n'
        f"{html.escape(clean_lines(texts[max(texts)]))}</pre></article>\n"
        for title, texts in block.columns.items()
    )
    return (
        f'<div class="texts" id="{name}">\n<p>{escape(block.caption)}</p>\n'
        f'<p class="controls"><label>{escape(block.choice)} '
        f"<select>{options}</select></label></p>\n"
        f'<div class="columns">\n{columns}</div></div>\n'
    )
