"""A page is one file that needs nothing, and text from outside stays text in it."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.html_report import page as page_module
from rslm.html_report.blocks import (
    Bar,
    Bars,
    Cell,
    Curves,
    Effect,
    Fact,
    Facts,
    Forest,
    Line,
    Notes,
    Page,
    Passage,
    PassageGroup,
    Passages,
    Plot,
    ScoredToken,
    Section,
    Table,
    Texts,
    Tokens,
    Trace,
)
from rslm.html_report.escaping import clean, clean_lines, to_json
from rslm.html_report.page import render
from rslm.html_report.thinning import MAX_POINTS, points_per_curve, thin

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    '"><img src=x onerror="window.hacked = 1">',
    "' onmouseover='window.hacked = 1",
    "</title></style></textarea></pre><svg onload=window.hacked=1>",
    "&lt;b&gt; &amp; &#60;i&#62;",
    '<a href="https://example.com">name</a>',
    "$title ${data} $$ %{y} {0}",
    "\u2028\u2029\u202e\x00\x1b[31m\r\n",
    "\udcff\ud800",
]
VOID = {"meta", "link", "input", "img", "br"}


class Parsed(HTMLParser):
    """What a page holds: tags in order, attributes, texts by tag; nesting must be right."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(data.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]

    def text(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def make_page(text: str) -> Page:
    """A page of every kind of block, with one text wherever text can be."""
    x = {"step": np.arange(1.0, 4.0), "n_tokens": np.arange(1.0, 4.0) * 64}
    series = {"loss": thin(x, np.array([3.0, math.nan, 2.0]), 100)}
    cell = Cell(value=text, text=text, tone="good", colour=3)
    traces = [
        Trace(name=text, kind=kind, x=[1, 2], y=[1, 2], high=[2, 3], labels=[text, text])
        for kind in ("points", "line", "band")
    ]
    blocks = [
        Facts(facts=[Fact(label=text, value=text, note=text)]),
        Table(caption=text, columns=[(text, "help"), ("n", text)], rows=[[cell, cell]]),
        Curves(
            caption=text,
            axes={"step": text, "n_tokens": "tokens"},
            metrics={text: ["loss"]},
            axis="step",
            rough=["loss"],
            lines=[Line(name=text, group=text, series=series)],
        ),
        Plot(caption=text, x_title=text, y_title=text, traces=traces),
        Forest(
            caption=text,
            x_title=text,
            effects=[Effect(name=text, estimate=0.1, low=-0.1, high=0.3, note=text)],
        ),
        Notes(title=text, notes=[text, text]),
        Texts(caption=text, choice=text, columns={text: {10: text, 20: f"a\n{text}"}}),
        Bars(
            caption=text,
            name=text,
            parts=[text, text],
            columns=[text],
            bars=[Bar(name=text, parts=[2, 0], texts=[text], note=text)],
        ),
        Passages(
            caption=text,
            groups=[
                PassageGroup(
                    title=text,
                    note=text,
                    passages=[
                        Passage(title=text, note=text, text=text),
                        Passage(title=text, note="", text=f"a{text}b", marks=[(1, 1 + len(text))]),
                    ],
                )
            ],
        ),
        Tokens(
            caption=text,
            vocab={0: text.encode("utf-8", "surrogatepass"), 1: b"\xe2"},
            tokens=[ScoredToken(token_id=0), ScoredToken(token_id=1, log_prob=-1.0, rank=2)],
        ),
    ]
    sections = [Section(title=text, lead=text, blocks=blocks), Section(title="end")]
    return Page(title=text, lead=text, sections=sections, footer=text)


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    return Parsed(render(make_page("a text")))


def test_page_asks_for_nothing_from_outside(parsed: Parsed) -> None:
    assert {tag for tag in parsed.tags if tag in ("img", "iframe", "object", "embed", "base")} == (
        set()
    )
    assert parsed.values("src") == []
    assert all(re.match(r"#[\w-]+$|data:,$", target) for target in parsed.values("href"))
    styles = "".join(parsed.text("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def test_policy_names_the_scripts_and_nothing_else(parsed: Parsed) -> None:
    policies = [v for v in parsed.values("content") if v.startswith("default-src")]
    (policy,) = policies
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    # The browser hashes what stands between the tags.
    _, tokens, plotly, script = parsed.text("script")
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (tokens, plotly, script)
    ]
    assert rules["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    assert rules["img-src"] == "data: blob:"


def test_page_is_told_by_headings_captions_and_labels(parsed: Parsed) -> None:
    assert parsed.tags.count("h1") == 1
    assert ("html", "lang", "en") in parsed.attributes
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert set(parsed.values("aria-labelledby")) <= set(ids)
    assert {target[1:] for target in parsed.values("href") if target[0] == "#"} <= set(ids)
    assert parsed.tags.count("table") == parsed.tags.count("caption")
    assert parsed.tags.count("figure") == parsed.tags.count("figcaption") == 3
    assert set(parsed.values("scope")) == {"col", "row"}
    named = {tag for tag, name, _ in parsed.attributes if name == "aria-label"}
    assert {"nav", "pre", "div", "ul"} <= named
    # Each control stands in a label, and each group of them has a legend.
    n_controls = len(re.findall("<label", render(make_page("a")).decode()))
    assert n_controls >= parsed.tags.count("input") + parsed.tags.count("select")
    assert parsed.tags.count("fieldset") == parsed.tags.count("legend")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, parsed: Parsed) -> None:
    hostile = Parsed(render(make_page(text)))
    assert hostile.tags == parsed.tags
    assert [a[:2] for a in hostile.attributes] == [a[:2] for a in parsed.attributes]
    assert hostile.text("h1") == [clean(text)]
    first, *_ = pres = hostile.text("pre")
    assert first == f"\na\n{clean_lines(text)}"
    encoded = text.encode("utf-8", "surrogatepass")
    as_tokens = clean_lines((encoded + b"\xe2").decode("utf-8", "replace"))
    assert pres[1:] == [f"\n{clean_lines(text)}", "\na", "b", f"\n{as_tokens}"]
    assert hostile.text("mark") == [clean_lines(text)]
    data = json.loads(hostile.text("script")[0])
    vocab = data["tokens-4"]["vocab"]
    assert vocab["1"] == [0xE2]
    assert vocab["0"] in (text, list(encoded))
    assert data["figure-0"]["lines"][0]["name"] == clean(text)
    assert data["texts-3"]["texts"][0]["10"] == clean_lines(text)


@given(st.text(st.characters(), min_size=1))
def test_any_text_leaves_the_structure_alone(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "_plotly", lambda: "0")
        plain, other = (Parsed(render(make_page(t))) for t in ("a text", text))
    assert other.tags == plain.tags
    assert [a[:2] for a in other.attributes] == [a[:2] for a in plain.attributes]
    assert other.text("h1") == [clean(text)]


def test_page_without_plots_needs_no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars(
        caption="c", name="n", parts=["in", "out"], columns=["all"],
        bars=[
            Bar(name="long", parts=[30.0, 10.0], texts=["40"]),
            Bar(name="short", parts=[0.0, 1.0], texts=["1"]),
            Bar(name="none", parts=[0.0, 0.0], texts=["0"]),
        ],
    )  # fmt: skip
    monkeypatch.setattr(page_module, "_plotly", None)
    data = render(Page(title="", lead="", sections=[Section(title="", blocks=[bars])]))
    assert len(data) < 60_000
    page = Parsed(data)
    assert len(page.text("script")) == 2
    # Of the whole width, which is that of the longest; nothing is drawn of nothing.
    assert page.values("style") == ["width:75.00%", "width:25.00%", "width:2.50%"]


def test_json_in_a_script_holds_nothing_that_ends_it() -> None:
    values = ["</script>", "<!--", "&amp;", "\u2028"]
    assert not set(to_json(values)) & set("<>&\u2028")
    assert json.loads(to_json(values)) == values


def test_curve_that_is_short_stays_as_it_is() -> None:
    x = {"step": np.arange(1.0, 101.0), "n_tokens": np.arange(1.0, 101.0) * 3}
    y = np.sin(x["step"])
    series = thin(x, y, 100)
    assert series.mean_y is None
    assert np.array_equal(series.y, y)
    assert np.array_equal(series.x["step"], x["step"])
    assert series.x["n_tokens"] == 3.0


@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=300),
    st.integers(4, 60),
)
def test_thinned_curve_keeps_ends_lowest_and_highest(values: list[float], n_points: int) -> None:
    y = np.array(values)
    x = {"step": np.arange(len(y)) + 1.0, "seconds": np.arange(len(y)) ** 1.5}
    series = thin(x, y, n_points)
    places = series.x["step"]
    assert isinstance(places, np.ndarray)
    assert len(places) == len(series.y) <= max(n_points, 1)
    assert (np.diff(places) > 0).all()
    assert (places[0], places[-1]) == (1, len(y))
    assert np.array_equal(series.y, y[places.astype(int) - 1], equal_nan=True)
    if np.isfinite(y).any():
        assert np.nanmin(series.y) == np.nanmin(y)
        assert np.nanmax(series.y) == np.nanmax(y)


def test_means_of_a_thinned_curve_are_those_of_its_stretches() -> None:
    y = np.random.default_rng(0).normal(size=10_000)
    y[5000:5030] = math.inf
    series = thin({"step": np.arange(10_000.0)}, y, 202)
    assert series.mean_y is not None
    expected = [np.ma.masked_invalid(part).mean() for part in y.reshape(100, 100)]
    assert np.allclose(series.mean_y, expected)
    assert np.array_equal(series.mean_x["step"], np.arange(100) * 100.0 + 50)


@pytest.mark.parametrize("n_curves", [0, 1, 30, 50, 150, 1000])
def test_points_of_all_curves_together_are_bounded(n_curves: int) -> None:
    n_points = points_per_curve(n_curves)
    assert 400 <= n_points <= 2000
    assert n_points == 400 or n_points * n_curves <= MAX_POINTS


def test_page_of_50_curves_of_100_000_rows_stays_small(
    record_property: Callable[[str, object], None],
) -> None:
    draw = np.random.default_rng(0)
    steps = np.arange(1.0, 100_001.0)
    seconds = np.cumsum(draw.uniform(0.1, 0.2, len(steps)))
    x = {"step": steps, "n_tokens": steps * 4096, "train_flops": steps * 4096 * 7.7e6}
    n_points = points_per_curve(50)
    series = {
        name: thin(x | {"elapsed_seconds": seconds}, draw.normal(3, 0.1, len(steps)), points)
        for name, points in (("loss", n_points), ("grad_norm", n_points // 4))
    }
    lines = [Line(name=f"run {n}", group=f"run {n}", series=series) for n in range(50)]
    block = Curves(
        caption="", axes=dict.fromkeys([*x, "elapsed_seconds"], ""), metrics={}, axis="step",
        lines=lines,
    )  # fmt: skip
    nothing = Plot(caption="", x_title="", y_title="", traces=[])
    empty = len(render(Page(title="", lead="", sections=[Section(title="", blocks=[nothing])])))
    whole = len(render(Page(title="", lead="", sections=[Section(title="", blocks=[block])])))
    record_property("n_bytes", whole)
    assert empty < 5.5e6
    assert whole - empty < 4e6


def test_assets_hold_no_names_that_the_page_does_not_have() -> None:
    folder = Path(page_module.__file__).parent
    script = "".join((folder / f"{name}.js").read_text() for name in ("page", "tokens"))
    style = "".join((folder / name).read_text() for name in page_module.STYLES)
    assert "innerHTML" not in script
    assert "eval" not in script
    used = set(re.findall(r"var\((--[\w-]+)\)", style)) | set(
        re.findall(r'style\("(--\w+)', script)
    )
    assert used <= set(re.findall(r"(--[\w-]+):", style))
