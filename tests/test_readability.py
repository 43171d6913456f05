"""The extractor `readability` of ours gives what `dom_smoothie`, its reference, does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rslm import _rslm

LIMITS = (10_000_000, 512, 1_000_000, 1_000_000)
SENTENCE = "Some words, of a sentence, that is long enough to count, has commas. "
LINKS = "<a href='/a'>a link to some page</a> "
VIDEO = "https://www.youtube.com/embed/x"

# Everything that the algorithm looks at; what it does not stands for the rest.
# fmt: off
TAGS = st.sampled_from([
    "a", "abbr", "article", "aside", "b", "blockquote", "body", "br", "button", "caption", "center",
    "code", "col", "dd", "del", "dialog", "div", "dl", "embed", "fieldset", "figure", "font",
    "footer", "form", "frameset", "h1", "h2", "h3", "head", "header", "hr", "html", "i", "iframe",
    "img", "input", "ins", "label", "li", "link", "math", "meta", "nav", "noscript", "ol", "option",
    "p", "picture", "pre", "ruby", "script", "section", "select", "span", "style", "svg", "table",
    "tbody", "td", "template", "textarea", "th", "title", "tr", "ul", "x-y",
])
SIGNS = st.sampled_from([
    "sidebar", "content", "comment main", "Footer", "article", "hid", "hidden", "share",
    "sharedaddy_x", "byline", "author", "banner", "lazy", "fallback-image", "caption", "media",
    "post text", "-ad-", "mathjax", "x", "a.jpg",
])
VALUES = st.sampled_from([
    "", "0", "2", "999999999999999999999", "-1", "true", "dialog", "navigation", "presentation",
    "display:none", "visibility : hidden", "color:red", "author", "Author", "x author", "#", "#abc",
    "javascript:x()", "/x", "a.jpg", "b.png 2x", "data:image/gif;base64,AAAA",
    "data:image/svg+xml;base64,AAAA", VIDEO, "https://m.youtube.com", "title", "og:title",
    "dc.creator", "article:author", "dc:title title", "Of rivers: a story of words", "a &amp; b",
])
NAMES = st.sampled_from([
    "alt", "aria-hidden", "aria-modal", "colspan", "content", "data-src", "datatable", "hidden",
    "href", "itemprop", "name", "property", "rel", "role", "src", "srcset", "style", "summary",
    "xlink:href",
])
WORDS = st.sampled_from([
    SENTENCE, SENTENCE * 3, SENTENCE * 9, "a sentence. And another ", "word", " ", "\n  ", "\xa0",
    "\u3000", "a, b, c, d, e, f, g, h, i, j, k, l", "，，，", "Loading...", "advertisement", "广告",
    "Of rivers", "Of rivers: a story of words", "& &amp; &lt; &amp;amp;", "été", LINKS, LINKS * 9,
    "<br><br>", "<br> <br/>x", "<li>x", "<!-- x -->", "<p>x</p>", "<td>x",
    "<noscript><img src=b.png></noscript>", "<figure data-src='a.jpg'></figure>",
])
# fmt: on
ATTRIBUTES = st.one_of(
    st.tuples(st.sampled_from(["class", "id"]), SIGNS),
    st.tuples(NAMES, VALUES),
    st.tuples(st.sampled_from(["class", "id"]), VALUES),
)


def start_tag(tag: str, attributes: list[tuple[str, str]]) -> str:
    parts = [tag, *(f'{name}="{value}"' for name, value in attributes)]
    return f"<{' '.join(parts)}>"


STARTS = st.builds(start_tag, TAGS, st.lists(ATTRIBUTES, max_size=3))
SOUP = st.lists(st.one_of(STARTS, TAGS.map("</{}>".format), WORDS), max_size=60).map("".join)
# Well nested, so that there is depth.
NESTED = st.recursive(
    WORDS,
    lambda inner: st.builds(
        lambda tag, attributes, held: start_tag(tag, attributes) + "".join(held) + f"</{tag}>",
        TAGS,
        st.lists(ATTRIBUTES, max_size=2),
        st.lists(inner, max_size=6),
    ),
    max_leaves=40,
)
TITLES = st.sampled_from([
    "", "Of rivers", "Of rivers - A site", "A site: of rivers and of hills", "a » b / c - d e f",
    SENTENCE, "One: two: three four", "One | Two three four five", "Of &amp;amp; rivers",
])  # fmt: skip
PAGES = st.one_of(
    SOUP,
    NESTED,
    st.builds(
        lambda title, head, body: f"<title>{title}</title>{''.join(head)}<body>{''.join(body)}",
        TITLES,
        st.lists(
            st.lists(ATTRIBUTES, max_size=3).map(lambda given: start_tag("meta", given)), max_size=3
        ),
        st.lists(SOUP | NESTED, max_size=3),
    ),
)


def assert_same(pages: list[str]) -> None:
    found = _rslm.extract_readable(pages, LIMITS, 1)
    expected = _rslm.extract_readable(pages, LIMITS, 1, reference=True)
    for page, ours, theirs in zip(pages, found, expected, strict=True):
        # Where the reference panics there is nothing to be equal to.
        assert theirs[1] == "extract_error" or ours == theirs, page


@given(PAGES)
# The whole body is a menu; a block for sharing is all; a link within a lost cell.
@example(f"été<form><button id=banner><p id=text>{SENTENCE}")
@example(f"x<div id=share><br>{SENTENCE}")
@example(f"<div><p>{SENTENCE * 9}<table><a href='javascript:x'></a><td><p>x</table><p>{SENTENCE}")
@example(f"<title>a: {SENTENCE}</title><h1>{SENTENCE}</h1><h2>{SENTENCE}</h2><p>{SENTENCE * 9}")
def test_texts_are_those_of_the_reference(page: str):
    assert_same([page])


@pytest.mark.parametrize(
    "page",
    [
        f"<p>{SENTENCE * 9}<object data='//youtube.com'></object>",
        f"<div id=readability-page-1>x</div><p>{SENTENCE * 9}",
        f"<div data-readability-score=9>x</div><p>{SENTENCE * 9}",
        f"<p>{SENTENCE * 9}<body data-readability-table>",
    ],
)
def test_unusual_pages_are_left_to_the_reference(page: str):
    assert_same([page])


def test_pages_that_the_reference_panics_on_have_texts():
    page = f"<article><p>{SENTENCE * 9}</p><iframe src='éayoutube.com'></iframe></article>"
    assert _rslm.extract_readable([page], LIMITS, 1, reference=True) == [("", "extract_error")]
    assert _rslm.extract_readable([page], LIMITS, 1) == [((SENTENCE * 9).strip(), "")]


# Of every sixth article, and of all.
@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_articles_are_those_of_the_reference(test_data: Path, step: int):
    path = Path(__file__).parents[1] / "benches" / "extraction.py"
    spec = importlib.util.spec_from_file_location("extraction", path)
    assert spec
    assert spec.loader
    extraction = importlib.util.module_from_spec(spec)
    sys.modules["extraction"] = extraction
    spec.loader.exec_module(extraction)
    assert_same([page.html for page in extraction.read_pages(test_data)[::step]])
