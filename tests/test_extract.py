"""Text of web pages: quality on real ones, the library that must be equalled, hostile ones."""

import gzip
import importlib.util
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import seconds

from rslm.data.decoding import decode_page
from rslm.data.documents import read_documents
from rslm.data.extract import Extracted, ExtractLimits, Extractor, extract_batch, extract_text

resiliparse = pytest.importorskip("resiliparse")
from resiliparse.extract.html2text import extract_plain_text  # noqa: E402
from resiliparse.parse.html import HTMLTree  # noqa: E402

EXTRACTORS: list[Extractor] = ["readability", "resiliparse", "resiliparse-main"]
SENTENCE = "A sentence of some words, which is long enough to count as text of an article. "
ARTICLE = (
    "<html><head><title>Of rivers</title><script>var a = '<p>x</p>';</script></head><body>"
    "<nav><ul><li><a href=/>Home</a><li><a href=/news>News</a></ul></nav><article>"
    f"<p>{SENTENCE * 3}</p><figure><img src=a.png><figcaption>A photo by A. Person</figcaption>"
    f"</figure><p>{SENTENCE * 3}</p><div class='wp-caption'>Another photo</div>"
    f"<p>{SENTENCE * 3}</p></article><footer>Copyright, all rights reserved</footer></body></html>"
)


def bench():
    """`benches/extraction.py`, which scores."""
    path = Path(__file__).parents[1] / "benches" / "extraction.py"
    spec = importlib.util.spec_from_file_location("extraction", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["extraction"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def articles(test_data: Path):
    return bench().read_pages(test_data)


# Of every fourth article, with what a sample of that size may differ by, and of all.
@pytest.mark.parametrize(
    ("step", "margin"), [(4, 0.02), pytest.param(1, 0.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("extractor", "least"),
    [("readability", 0.96), ("resiliparse-main", 0.91), ("resiliparse", 0.65)],
)
def test_f1_on_articles(articles, extractor: Extractor, least: float, step: int, margin: float):
    score = bench()
    pages = articles[::step]
    found = extract_batch([page.html for page in pages], extractor=extractor)
    assert not any(text.problem for text in found)
    counts = [score.compare(page.gold, text.text) for page, text in zip(pages, found, strict=True)]
    assert score.precision_recall_f1(counts)[2] >= least - margin


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_all_text_equals_resiliparse(articles, step: int):
    pages = [page.html for page in articles[::step]]
    for page, found in zip(pages, extract_batch(pages, extractor="resiliparse"), strict=True):
        assert found.text == extract_plain_text(page).strip()


def test_main_text_leaves_captions_and_menus_out():
    text = extract_text(ARTICLE)
    assert text.split("\n\n") == [(SENTENCE * 3).strip()] * 3
    for extractor in EXTRACTORS:
        assert extract_text(ARTICLE, extractor=extractor).count(SENTENCE.strip()) == 9
    assert "Home" in extract_text(ARTICLE, extractor="resiliparse")


def test_bytes_are_decoded_as_pages():
    russian = "<meta charset=windows-1251><p>" + "Это предложение на русском языке. " * 20
    text = extract_text(russian.encode("cp1251"))
    assert text == extract_text(russian)
    assert text.startswith("Это предложение")


def test_threads_and_batches_change_nothing():
    chosen = random.Random(0)
    pages = [ARTICLE.replace("words", str(chosen.random())) for _ in range(40)]
    pages[7], pages[8] = "", "<div>" * 2000
    expected = [extract_batch([page])[0] for page in pages]
    assert extract_batch(pages, n_threads=1) == expected
    assert extract_batch(pages, n_threads=4) == expected
    assert expected[7] == Extracted("", "empty")
    assert expected[8] == Extracted("", "too_deep")
    assert extract_batch([]) == []


def test_output_is_clean_text():
    page = ARTICLE.replace("words", "w\x00o\x0br\r\nds\ud800").replace("long", "l&#1;&#x7f;ong")
    for extractor in EXTRACTORS:
        text = extract_text(page, extractor=extractor)
        text.encode()
        assert text
        assert text == text.strip()
        assert not any(ord(c) < 32 and c not in "\n\t" for c in text)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_limits_name_the_problem(extractor: Extractor):
    def problem(page: str, **limits: int) -> str:
        (found,) = extract_batch([page], extractor=extractor, limits=ExtractLimits(**limits))
        assert bool(found.text) == (not found.problem)
        return found.problem

    assert problem(ARTICLE) == ""
    assert problem(ARTICLE, max_page_bytes=100) == "too_large"
    assert problem(ARTICLE, max_text_bytes=100) == "too_large"
    assert problem(ARTICLE, max_nodes=10) == "too_large"
    assert problem(ARTICLE, max_depth=4) == "too_deep"
    assert problem(" \n") == "empty"


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="extractor must be one of readability, resiliparse"):
        extract_text("", extractor="lynx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        extract_batch([], n_threads=0)
    with pytest.raises(ValueError, match="max_nodes must be at least 1, got 0"):
        ExtractLimits(max_nodes=0)
    with pytest.raises(ValueError, match="max_depth must be at most 2048, got 4000"):
        ExtractLimits(max_depth=4000)


def test_missing_resiliparse_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "resiliparse.extract.html2text", None)
    with pytest.raises(ValueError, match=r"pip install 'rslm\[data\]'"):
        extract_text(ARTICLE, extractor="resiliparse")
    assert extract_text(ARTICLE)


def test_a_panic_is_the_problem_of_its_page(capfd: pytest.CaptureFixture[str]):
    # dom_smoothie, which reads pages with an object, cuts the address within a character.
    embeds = "<object></object><iframe src='éayoutube.com'></iframe>"
    page = ARTICLE.replace("</article>", f"{embeds}</article>")
    found = extract_batch([ARTICLE, page, ARTICLE])
    assert [one.problem for one in found] == ["", "extract_error", ""]
    assert capfd.readouterr().err == ""


# A page may nest as deep as the limit in all of these ways.
@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "tag", ["div", "span", "ul><li", "table><tr><td", "b", "blockquote", "svg><g"]
)
def test_deepest_allowed_page_is_read(extractor: Extractor, tag: str):
    limits = ExtractLimits(max_depth=2048)
    n_levels = 2000 // (1 + tag.count(">") + (1 if "tr" in tag else 0)) - 4
    page = f"<{tag}>" * n_levels + SENTENCE * 10
    (found,) = extract_batch([page], extractor=extractor, limits=limits)
    assert found.problem in ("", "empty", "too_deep")


TAGS = (
    *("a", "b", "i", "font", "p", "div", "span", "ul", "ol", "li", "table", "tr", "td", "th"),
    *("tbody", "caption", "col", "h1", "button", "form", "option", "optgroup", "dl", "dd", "rt"),
    *("ruby", "svg", "g", "path", "foreignObject", "title", "mi", "math", "object", "template"),
    *("script", "style", "textarea", "br", "img", "hr", "input", "pre", "nobr", "section"),
    *("html", "body", "em", "xmp", "noscript", "annotation-xml", "desc", "frameset"),
)


def open_depth(page: str) -> tuple[int, int]:
    """How deep elements of a page nest, and how many nodes it has, by a browser's parser."""
    deepest, n_nodes = 0, 0
    left = [(HTMLTree.parse(page).document, 0)]
    while left:
        node, depth = left.pop()
        n_nodes += 1
        deepest = max(deepest, depth)
        child = node.first_child
        while child is not None:
            left.append((child, depth + (child.tag is not None and child.tag[:1] != "#")))
            child = child.next
    return deepest, n_nodes


@st.composite
def soups(draw: st.DrawFn) -> str:
    names = draw(st.lists(st.sampled_from(TAGS), min_size=1, max_size=6))
    start = st.builds(
        "<{}{}{}>".format,
        st.sampled_from(names),
        st.sampled_from(["", "", " class=x", " color='1'"]),
        st.sampled_from(["", "", "", "/"]),
    )
    end = st.sampled_from(names).map("</{}>".format)
    other = st.sampled_from(["x", " ", "&", "<!-- c -->", "</>", "<"])
    return "".join(draw(st.lists(start | start | end | other, max_size=60)))


@given(soups())
def test_no_page_is_deeper_than_measured(page: str):
    depth, n_nodes = open_depth(page)
    # An element that cannot hold others is not counted where it stands deepest, and a group that
    # is made around a column.
    if depth > 4:
        limits = ExtractLimits(max_depth=depth - 3)
        assert extract_batch([page], limits=limits)[0].problem == "too_deep"
    if n_nodes > 40:
        limits = ExtractLimits(max_nodes=n_nodes * 3 // 4)
        assert extract_batch([page], limits=limits)[0].problem in ("too_large", "too_deep")


@pytest.mark.parametrize(
    "piece",
    [
        *("<li><ul></li>", "<rt>", "<optgroup>", "<g><noscript></g>", "<span><div></span>"),
        *("<math><mtext><rb></mtext>", "<svg><thead></thead><title>", "<form><i></form>"),
        *("<svg><font><g/>", "<b><div></b>", "<table><td>", "<button><table><td>"),
    ],
)
def test_end_tags_that_close_nothing_hide_no_depth(piece: str):
    page = piece * 100
    depth, _ = open_depth(page)
    assert depth > 100
    limits = ExtractLimits(max_depth=depth - 3)
    assert extract_batch([page], limits=limits)[0].problem == "too_deep"


def test_drawings_and_forms_that_end_are_not_deep():
    page = "<div><svg><title>a</title><g><path/></g></svg><form><b>b</form></b></div>" * 2000
    (found,) = extract_batch([page], limits=ExtractLimits(max_depth=20))
    assert found.problem in ("", "empty")


@given(st.text() | soups(), st.sampled_from(EXTRACTORS))
def test_no_page_fails(page: str, extractor: Extractor):
    (found,) = extract_batch([page], extractor=extractor)
    assert found.problem in ("", "empty", "extract_error")


MEGABYTES = 10_000_000
HOSTILE = {
    "div": "<div>",
    "tables": "<table><tr><td>",
    "links": "<a href=",
    "linked": "<a href=x>",
    "ampersands": "&",
    "entities": "&amp;&lt;&notit;",
    "less": "<",
    "comments": "<!-- ",
    "nuls": "\0",
    "bold": "<b>",
    "bold blocks": "<b><div></b>",
    "paragraphs": "<p>x",
    "ends": "</p>",
    "lists": "<ul><li>",
    "breaks": "<br>x",
    "scripts": "<script>",
    "cells": "<td>x",
    "quotes": '<p a="',
    "attributes": "<p " + " ".join(f"a{i}" for i in range(250)) + ">x",
    "drawings": "<svg><g>",
    "templates": "<template>",
    "headings": "<h1>a</h1><h2>b</h2>",
    "commas": ",",
    "words": "word ",
    "blank": " ",
    "lines": "a\n",
    "no-break": "\xa0",
    "carriage": "\r",
}


@pytest.mark.slow
@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_are_bounded(name: str, extractor: Extractor):
    piece = HOSTILE[name]
    page = piece * (MEGABYTES // len(piece.encode()))
    assert seconds(lambda: extract_batch([page], extractor=extractor)) < 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["divisions", "nested", "paragraphs", "ampersands", "title"])
def test_worst_pages_within_the_limits_take_seconds(name: str):
    pages = {
        "divisions": lambda n: "<div>" * 500 + "<p>x</p>" * n,
        "nested": lambda n: ("<div>" * 200 + SENTENCE + "</div>" * 200) * (n // 400 + 1),
        "paragraphs": lambda n: f"<p>{SENTENCE}</p>" * n,
        "ampersands": lambda n: "& " * n,
        "title": lambda n: f"<title>{'a b ' * 5000}</title>" + "<h1>a b c d</h1>" * n,
    }
    # The largest that is not refused.
    least, most = 1, 1_000_000
    while most - least > least // 20 + 1:
        n = (least + most) // 2
        (found,) = extract_batch([pages[name](n)], limits=ExtractLimits(max_text_bytes=10**8))
        refused = found.problem in ("too_large", "too_deep")
        least, most = (least, n) if refused else (n, most)
    assert least > 10
    assert seconds(lambda: extract_batch([pages[name](least)])) < 6


@pytest.mark.slow
def test_memory_is_flat_over_many_pages(articles):
    def resident_bytes() -> int:
        n_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return n_pages * os.sysconf("SC_PAGE_SIZE")

    pages = [page.html for page in articles][:60]
    for _ in range(5):
        extract_batch(pages)
    before = resident_bytes()
    for _ in range(60):
        extract_batch(pages)
    assert resident_bytes() - before < 50_000_000


@pytest.mark.parametrize("start", ["<div", "</p", "<script>x</script", "<title>x</title"])
@pytest.mark.parametrize("end", [">text", ""])
def test_tags_of_many_attributes_are_refused_wherever_they_stand(start: str, end: str):
    # Each is compared with all before it, in a tag that the page ends in as well.
    names = " ".join(f"a{number}" for number in range(30_000))
    page = f"<p>some words</p>{start} {names}{end}"
    for extractor in EXTRACTORS:
        assert extract_batch([page], extractor=extractor)[0].problem == "too_large"


@pytest.mark.parametrize("seed", range(3))
def test_binary_junk_is_bounded(seed: int):
    junk = random.Random(seed).randbytes(300_000)
    for page in (junk, gzip.compress(junk), b"<html><p>" + junk, junk.replace(b"\0", b"<div>")):
        text, _ = decode_page(page)
        assert seconds(lambda text=text: extract_batch([text])) < 3
        for label in ("utf-16", "shift_jis", "gb18030", "iso-2022-jp", "euc-kr"):
            text, _ = decode_page(page, f"text/html; charset={label}")
            assert extract_batch([text])[0].problem in ("", "empty", "too_deep", "too_large")


@pytest.mark.slow
def test_a_line_of_64_megabytes_is_counted(tmp_path: Path):
    line = b'{"text": "' + b"word " * 13_000_000 + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(line + b'{"text": "next"}\n')
    (tmp_path / "b.html").write_bytes(b"<p>" + b"word " * 13_000_000)
    (tmp_path / "c.warc").write_bytes(b"WARC/1.0\r\nContent-Length: 65000000\r\n\r\n" + line[:-1])
    skipped: Counter[str] = Counter()
    taken = seconds(lambda: list(read_documents(tmp_path, skipped=skipped)))
    assert [document.text for document in read_documents(tmp_path)] == ["next"]
    assert skipped == {"too_large": 6}
    assert taken < 5
