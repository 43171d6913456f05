"""A report in a real browser: it loads alone, draws, zooms, switches, sorts, and runs no text."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from rslm.architecture import TransformerConfig
from rslm.experiment.report import write_report

MODEL = TransformerConfig(vocab_size=512)
HOSTILE = "<img src=x onerror=window.hacked=1>&amp;"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three runs, one of them hostile in name, samples and options."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "runs" / "first", model=MODEL)
    write_run(folder / "runs" / "second", model=MODEL, seed=1, n_steps=6000)
    hostile = write_run(
        folder / "runs" / HOSTILE, model=MODEL, batch_size=8, sample_prompts=(HOSTILE,)
    )
    script = "    </pre><script>window.hacked=1</script>\n\n"
    with (hostile / "samples.md").open("a") as file:
        file.write(f"## Step 300\n\n{script}")
    write_report([folder / "runs"], folder / "report.html", title=HOSTILE)
    return folder / "report.html"


class Windows:
    """Windows that show the report, and all that went wrong in them."""

    def __init__(self, browser: Any, report: Path) -> None:
        self._browser, self._report = browser, report
        self._pages: list[Any] = []
        self._problems: list[str] = []

    def open(self, **options: Any) -> Any:
        """The report in a window of its own."""
        options = {"viewport": {"width": 1280, "height": 900}} | options
        page = self._browser.new_context(**options).new_page()
        # On a machine that is busy with other things loading alone has taken 15 s.
        page.set_default_timeout(120_000)
        self._pages.append(page)
        page.on("console", lambda message: self._problems.append(message.text))
        page.on("pageerror", lambda error: self._problems.append(str(error)))
        page.on("request", lambda request: self._problems.append(request.url))
        page.goto(self._report.as_uri())
        page.wait_for_selector(".plot .main-svg")
        return page

    def check(self) -> None:
        """Nothing was asked for but the page itself, and no text of it was run."""
        assert self._problems == [self._report.as_uri()] * len(self._pages)
        assert [page.evaluate("window.hacked") for page in self._pages] == [None] * len(self._pages)


@pytest.fixture(scope="module")
def all_windows(browser: Any, report: Path) -> Windows:
    return Windows(browser, report)


@pytest.fixture
def windows(all_windows: Windows) -> Iterator[Windows]:
    yield all_windows
    all_windows.check()


@pytest.fixture(scope="module")
def shared_page(all_windows: Windows) -> Any:
    """A window for all tests that change nothing that another looks at: opening one takes long."""
    return all_windows.open()


@pytest.fixture
def page(shared_page: Any, windows: Windows) -> Any:
    return shared_page


def wait_until(page: Any, expression: str) -> None:
    """Waits for an expression to hold, in a page whose policy forbids to look from within."""
    end = time.monotonic() + 120
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def x_axis(page: Any) -> Any:
    return page.evaluate("document.querySelector('.plot').layout.xaxis")


def drawing_area(page: Any) -> Any:
    """Where the first plot is in the window, once it is in there."""
    area = page.locator(".plot .nsewdrag").first
    area.scroll_into_view_if_needed()
    return area.bounding_box()


def title_of_x(page: Any) -> str:
    return str(page.locator(".plot .xtitle").first.text_content())


def test_page_draws_every_line_and_shows_names_as_they_are(page: Any) -> None:
    assert page.title() == HOSTILE
    assert page.locator(".plot").first.locator("path.js-line").count() == 3
    legend = page.locator(".legend button").all_text_contents()
    assert legend == [HOSTILE, "first", "second"]
    assert page.locator("img").count() == 0
    assert page.locator("table").first.locator("tbody th", has_text="<img src=x").count() == 1


def test_hovering_shows_values_and_names_as_text(page: Any) -> None:
    box = drawing_area(page)
    page.mouse.move(box["x"] + box["width"] * 0.02, box["y"] + box["height"] * 0.5)
    page.wait_for_selector(".hoverlayer text")
    shown = page.locator(".hoverlayer").first.text_content()
    assert "<img src=x" in shown
    assert re.search(r"\d\.\d", shown)
    assert page.locator(".hoverlayer img, .hoverlayer image").count() == 0


def test_dragging_zooms_and_the_view_is_reset(windows: Windows) -> None:
    page = windows.open()
    whole = x_axis(page)["range"]
    box = drawing_area(page)
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.7, steps=5)
    page.mouse.up()
    wait_until(page, "!document.querySelector('.plot').layout.xaxis.autorange")
    zoomed = x_axis(page)["range"]
    width = whole[1] - whole[0]
    assert zoomed[0] == pytest.approx(whole[0] + 0.3 * width, abs=0.02 * width)
    assert zoomed[1] == pytest.approx(whole[0] + 0.6 * width, abs=0.02 * width)
    # Other colours leave the zoom alone.
    page.get_by_text("Dark", exact=True).click()
    assert x_axis(page)["range"] == zoomed
    page.get_by_role("button", name="Reset view").click()
    wait_until(page, "document.querySelector('.plot').layout.xaxis.autorange")
    assert x_axis(page)["range"] == pytest.approx(whole)


def test_axes_metrics_and_smoothing_are_switched(windows: Windows) -> None:
    page = windows.open()
    assert title_of_x(page) == "tokens"
    for title in ("step", "FLOPs", "seconds"):
        page.locator("figure").first.get_by_text(title, exact=True).first.click()
        assert title_of_x(page) == title
    page.get_by_label("log x").check()
    assert x_axis(page)["type"] == "log"
    page.get_by_label("show").select_option("training loss (nats)")
    drawn = "document.querySelector('.plot').data.filter((t) => t.name === 'second')"
    rough, smooth = page.evaluate(drawn)
    # Of 6,000 steps the lowest and highest of each stretch are drawn, and the means.
    assert 1000 < len(rough["x"]) <= 2000
    assert len(smooth["x"]) == 999
    page.get_by_label("smoothing").fill("0")
    (only,) = page.evaluate(drawn)
    assert len(only["x"]) == len(rough["x"])
    page.get_by_label("skip start").check()
    (late,) = page.evaluate(drawn)
    assert min(late["x"]) >= max(late["x"]) / 10
    page.locator(".legend button", has_text="second").click()
    assert page.evaluate(drawn) == []


def test_colours_follow_the_system_and_the_switch(windows: Windows) -> None:
    colours = "[getComputedStyle(document.body).backgroundColor, " + (
        "document.querySelector('.plot').layout.font.color]"
    )
    light, dark = (windows.open(color_scheme=scheme) for scheme in ("light", "dark"))
    on_light, on_dark = (page.evaluate(colours) for page in (light, dark))
    assert on_light[0] == "rgb(255, 255, 255)"
    assert on_dark[0] == "rgb(20, 24, 29)"
    light.get_by_text("Dark", exact=True).click()
    assert light.evaluate(colours) == on_dark
    dark.get_by_text("Light", exact=True).click()
    assert dark.evaluate(colours) == on_light
    # On paper it is light, whatever the screen is.
    dark.get_by_text("Dark", exact=True).click()
    dark.emulate_media(media="print")
    wait_until(dark, f"{colours}.join() === '{','.join(on_light)}'")


def test_headings_sort_and_say_so(page: Any) -> None:
    table = page.locator("table").first
    column = table.locator("tbody td:nth-child(4)")
    head = table.get_by_role("columnheader", name="tokens", exact=True)
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(cell.get_attribute("data-value")) for cell in column.all()]
    assert values == sorted(values)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(cell.get_attribute("data-value")) for cell in column.all()]
    assert values == sorted(values, reverse=True)


def test_samples_are_those_of_the_chosen_step(page: Any) -> None:
    texts = page.locator(".texts")
    shown = lambda name: texts.locator("article", has=page.get_by_text(name, exact=True))  # noqa: E731
    assert "</pre><script>" in shown(HOSTILE).locator("pre").text_content()
    texts.locator("select").select_option("100")
    assert shown("first").locator("pre").text_content().startswith("sample at 100\n")
    assert shown("second").locator("pre").text_content() == ""
    assert shown("second").locator("p span").text_content() == "-"


def test_nothing_sticks_out_of_a_narrow_window(page: Any) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    # Plots follow the window a moment later.
    wait_until(page, "document.documentElement.scrollWidth <= 380")
