"""The report on a pipeline in a real browser: it loads alone, runs no text, reads anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_folders import Scripted, make_pipeline, run_stages

from rslm.data_report.page import write_page
from rslm.data_report.view import read_view

HOSTILE = "<img src=x onerror=window.hacked=1></pre><script>window.hacked=1</script>"
SHARDS = [
    [
        Scripted(text=HOSTILE, url=f"javascript:{HOSTILE}"),
        Scripted(text=f"{HOSTILE} \u202eturned \x1b[31m \x00", drops={"language": HOSTILE}),
        Scripted(text="x" * 1_000_000, language=HOSTILE),
        Scripted(text="سلام " * 200, drops={"quality.course": "gopher_short_words"}),
        Scripted(text="a\u0301" + "\u0301" * 500, drops={"quality.course": "gopher_short_words"}),
    ],
    [Scripted(text="The same text.\n" * 9), Scripted(text="The same text.\n" * 9)],
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    plan = make_pipeline(folder, SHARDS)
    run_stages(plan, SHARDS)
    write_page(read_view(plan.folder), folder / "page.html", None)
    return folder / "page.html"


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page in a window of its own; at the end nothing was asked for, and no text was run."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    # On a machine that is busy with other things loading alone has taken 15 s.
    page.set_default_timeout(120_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    assert problems == [page_file.as_uri()]
    assert page.evaluate("window.hacked") is None
    page.context.close()


def test_texts_stay_texts(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.locator("img, iframe, object, embed").count() == 0
    texts = page.locator("pre").all_text_contents()
    assert HOSTILE in texts
    assert rf"{HOSTILE} \u202eturned \x1b[31m \x00" in texts
    assert page.locator("h4", has_text="javascript:<img").count() > 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert page.locator("tbody th", has_text="<img src=x onerror").count() > 0
    # A text that runs from right to left does so alone.
    arabic = page.locator("pre", has_text="سلام").first
    assert arabic.evaluate("(one) => getComputedStyle(one).direction") == "rtl"
    assert page.locator("body").evaluate("(one) => getComputedStyle(one).direction") == "ltr"


def test_groups_open_with_keys_alone(page: Any) -> None:
    group = page.locator("details", has_text="quality.course: gopher_short_words").first
    assert not group.locator("pre").first.is_visible()
    group.locator("summary").focus()
    page.keyboard.press("Enter")
    assert group.locator("pre").first.is_visible()
    page.keyboard.press("Enter")
    assert not group.locator("pre").first.is_visible()


def test_bars_are_tables_whose_numbers_are_read_out(page: Any) -> None:
    table = page.locator("table.bars").first
    assert table.locator("caption").text_content() == "Documents"
    row = table.locator("tbody tr", has_text="language")
    assert row.locator("td.number").all_text_contents() == ["7", "1", "14.3", "14.3", "85.7"]
    # Of six in seven, and the seventh hatched behind them.
    widths = row.locator(".part").evaluate_all(
        "(parts) => parts.map((part) => part.getBoundingClientRect().width)"
    )
    assert widths[0] / widths[1] == pytest.approx(6, rel=0.02)
    assert table.locator("[aria-hidden=true] .part").count() == table.locator(".part").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    contrast = """(selector) => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
                const part = value / 255;
                return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        let ground = document.querySelector(selector);
        const ink = light(getComputedStyle(ground).color);
        while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") {
            ground = ground.parentElement;
        }
        const paper = light(getComputedStyle(ground).backgroundColor);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }"""
    for selector in ("pre", ".bars small", ".passages > p", "summary span", "tbody th", "mark"):
        if page.locator(selector).count():
            assert page.evaluate(contrast, selector) > 4.5, selector


def test_nothing_sticks_out_of_a_narrow_window(page: Any) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
