"""The server's page for everybody: keys alone, screen readers, narrow windows, both colours."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_openai import FakeServer, Script
from hypothesis import example, given
from hypothesis import strategies as st
from test_page import Window, say, wait_until

from rslm.infer.page import page_and_csp

# Ratios of contrast as in WCAG 2.2, 1.4.3 and 1.4.11, of every text and every field in sight.
CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const groundOf = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const ground = rgba(getComputedStyle(at).backgroundColor);
      if (ground[3] === 255) return ground;
    }
    return [255, 255, 255, 255];
  };
  const isSeen = (element) => element.checkVisibility({ visibilityProperty: true }) &&
    !element.closest(".unseen, .skip");
  const nameOf = (element) => `${element.tagName}.${element.className}#${element.id}`;
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !isSeen(element) || element.closest("script, style, option")) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const contrast = ratio(rgba(style.color), groundOf(element));
    found.push([`text of ${nameOf(element)}`, contrast, isLarge ? 3 : 4.5]);
  }
  for (const field of document.querySelectorAll("input, select, textarea")) {
    if (!isSeen(field)) continue;
    const holder = field.closest(".composer") ?? field;
    const style = getComputedStyle(field);
    const hint = ratio(rgba(getComputedStyle(field, "::placeholder").color), groundOf(field));
    if (field.placeholder) found.push([`placeholder of ${nameOf(field)}`, hint, 4.5]);
    if (["range", "radio"].includes(field.type)) continue;
    const border = rgba(getComputedStyle(holder).borderTopColor);
    found.push([`border of ${nameOf(field)}`, ratio(border, groundOf(holder.parentElement)), 3]);
    if (field.type === "checkbox") continue;
    found.push([`text in ${nameOf(field)}`, ratio(rgba(style.color), groundOf(field)), 4.5]);
  }
  return found;
}"""

# What an accessible name comes from, for the kinds of elements that this page has.
CONTROLS = """() => {
  const text = (element) => element.textContent.trim();
  const byIds = (ids) => (ids ?? "").split(" ").map((id) => document.getElementById(id))
    .filter(Boolean).map(text).join(" ");
  const kinds = "button, input, select, textarea, dialog, [role=tab], [role=tabpanel], " +
    "[role=region], [role=group], [role=listbox], [role=tablist], fieldset, pre[tabindex]";
  return [...document.querySelectorAll(kinds)].map((element) => [
    `${element.tagName}#${element.id}.${element.className}`,
    element.getAttribute("aria-label") || byIds(element.getAttribute("aria-labelledby")) ||
      [...(element.labels ?? [])].map(text).join(" ") ||
      (element.tagName === "FIELDSET" && text(element.querySelector("legend"))) ||
      (element.tagName === "BUTTON" && text(element)) || "",
  ]);
}"""

REFERENCES = """() => {
  const names = ["labelledby", "describedby", "controls", "activedescendant"]
    .map((name) => `aria-${name}`).concat("for");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  return {
    twice: ids.filter((id, n) => ids.indexOf(id) !== n),
    dangling: names.flatMap((name) => [...document.querySelectorAll(`[${name}]`)]
      .flatMap((element) => element.getAttribute(name).split(" ")))
      .filter((id) => id && !ids.includes(id)),
    headings: document.querySelectorAll("h1").length,
    mains: document.querySelectorAll("main").length,
    language: document.documentElement.lang,
    ordered: [...document.querySelectorAll("[tabindex]")].filter((one) => one.tabIndex > 0).length,
  };
}"""

FOCUS = """() => {
  const element = document.activeElement;
  const shown = element.matches("[type=radio]") ? element.nextElementSibling : element;
  const holder = element.closest(".composer");
  const style = getComputedStyle(shown);
  const token = element.querySelector("[aria-selected=true].token");
  const box = shown.getBoundingClientRect();
  return {
    name: element.id || element.textContent.trim() || element.getAttribute("aria-label") ||
      element.value,
    isMarked: style.outlineStyle === "solid" ||
      (holder !== null && getComputedStyle(holder).boxShadow !== "none") ||
      (token !== null && getComputedStyle(token).outlineStyle === "solid"),
    isInView: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
  };
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    """One for all tests here, which leave its script as it is."""
    with FakeServer(*page_and_csp()).running() as server:
        log_probs = [-0.01, -0.3, -0.8, -1.5, -2.5, -4.0, -6.0, -9.0]
        words = [f" word{n}".encode() for n in range(len(log_probs))]
        server.script = Script(pieces=words, log_probs=log_probs)
        yield server


@pytest.fixture
def open_window(browser: Any, server: FakeServer) -> Iterator[Callable[..., Any]]:
    windows: list[Window] = []

    def open_one(**options: Any) -> Any:
        windows.append(Window(browser, server, **options))
        return windows[-1].page

    yield open_one
    for window in windows:
        window.check(server)
        window.context.close()


def fill_views(page: Any) -> Iterator[str]:
    """Shows each view with something in it, one after the other."""
    page.locator(".show-heat").first.check()
    say(page, "Go")
    page.locator(".answer .token.h7").hover()
    yield "chat"
    page.locator(".show-heat").first.uncheck()
    yield "chat as prose"
    page.get_by_role("tab", name="Complete").click()
    page.fill("#prompt", "Once")
    page.locator("#continue").click()
    page.locator("#continuation .figures").wait_for()
    yield "complete"
    page.get_by_role("tab", name="Tokens").click()
    page.fill("#text", "some text é")
    page.locator(".chip").nth(3).wait_for()
    yield "tokens"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_from_its_ground(
    open_window: Callable[..., Any], scheme: str
) -> None:
    page = open_window(color_scheme=scheme, reduced_motion="reduce")
    for view in fill_views(page):
        found = page.evaluate(CONTRASTS)
        assert len(found) > 20
        faint = [(name, ratio) for name, ratio, least in found if ratio < least]
        assert faint == [], view


def test_every_control_has_a_name_and_every_reference_an_end(
    open_window: Callable[..., Any],
) -> None:
    page = open_window()
    for view in fill_views(page):
        nameless = [control for control, name in page.evaluate(CONTROLS) if not name]
        assert nameless == [], view
        assert page.evaluate(REFERENCES) == {
            "twice": [],
            "dangling": [],
            "headings": 1,
            "mains": 1,
            "language": "en",
            "ordered": 0,
        }, view


def test_page_is_walked_with_the_keys_alone(open_window: Callable[..., Any]) -> None:
    page = open_window()
    page.locator(".show-heat").first.check()
    say(page, "Go")
    page.locator(".skip").focus()
    seen = []
    for _ in range(60):
        focus = page.evaluate(FOCUS)
        page.keyboard.press("Tab")
        assert focus["isMarked"], focus
        assert focus["isInView"], focus
        # Some versions of Chromium stop at what can be scrolled, too.
        seen += [focus["name"]] * (focus["name"] != "settings")
        if focus["name"] == "auto":
            break
    bar = ["Skip to the content", "tab-chat", "model", "open-settings"]
    tools = ["on", "export", "new-chat", "conversation"]
    talk = ["Copy", "Edit", "".join(f" word{n}" for n in range(8)).strip(), "Copy", "Regenerate"]
    sampling = ["temperature", "top_p", "min_p", "repetition_penalty", "top_k", "max_tokens"]
    settings = ["close-settings", "system", *sampling, "seed", "reset", "token", "auto"]
    assert seen == [*bar, *tools, *talk, "message", "send", *settings]
    # Tabs are one stop, walked with arrows.
    page.locator("#tab-chat").focus()
    for name in ("tab-complete", "tab-tokens", "tab-chat"):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == name
        assert page.locator(f"#{name}").get_attribute("aria-selected") == "true"
        assert page.locator("[role=tabpanel]").filter(visible=True).count() == 1


def test_narrow_window_scrolls_in_one_direction_only(open_window: Callable[..., Any]) -> None:
    page = open_window(viewport={"width": 320, "height": 640}, has_touch=True)
    for view in fill_views(page):
        widths = page.evaluate(
            "[document.documentElement, ...document.querySelectorAll('.scroller')]"
            ".filter((one) => one.checkVisibility())"
            ".map((one) => one.scrollWidth - one.clientWidth)"
        )
        assert widths == [0, 0], view
    page.get_by_role("tab", name="Chat").click()
    say(page, "long" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    # Nor is anything cut off.
    cut = "(all) => all.filter((one) => one.scrollWidth > one.clientWidth).length"
    assert page.locator("#messages > li, .user-text, .prose").evaluate_all(cut) == 0
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 320
    assert box["y"] + box["height"] <= 640


def test_token_is_touched_and_left(open_window: Callable[..., Any]) -> None:
    page = open_window(viewport={"width": 390, "height": 844}, has_touch=True)
    page.locator(".show-heat").first.check()
    say(page, "Go")
    detail = page.get_by_role("tooltip")
    page.locator(".token").nth(2).tap()
    assert detail.locator(".name").text_content() == "␣word2"
    page.wait_for_timeout(300)
    assert detail.is_visible()
    box = detail.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.locator(".who").first.tap()
    detail.wait_for(state="hidden")


def test_settings_lie_over_a_narrow_window(open_window: Callable[..., Any]) -> None:
    page = open_window(viewport={"width": 390, "height": 844})
    assert not page.locator("#settings").is_visible()
    opener = page.get_by_role("button", name="Settings")
    assert opener.get_attribute("aria-expanded") == "false"
    opener.focus()
    page.keyboard.press("Enter")
    page.locator("#settings:modal").wait_for()
    page.keyboard.press("Escape")
    page.locator("#settings").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.id") == "open-settings"
    assert opener.get_attribute("aria-expanded") == "false"
    # Where there is room they stand beside the conversation.
    page.set_viewport_size({"width": 1280, "height": 800})
    page.locator("#settings:not(:modal)").wait_for()
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#settings").is_visible()
    assert page.evaluate("document.activeElement.id") == "open-settings"


def test_colours_follow_the_system_and_the_switch(open_window: Callable[..., Any]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = open_window(color_scheme="dark")
    assert page.evaluate(ground) == "rgb(20, 24, 29)"
    page.get_by_text("Light", exact=True).click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.get_by_text("Auto", exact=True).click()
    assert page.evaluate(ground) == "rgb(20, 24, 29)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_nothing_moves_for_those_who_want_no_motion(open_window: Callable[..., Any]) -> None:
    page = open_window(reduced_motion="reduce")
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].map((one) => getComputedStyle(one))"
        ".filter((style) => style.animationName !== 'none' || "
        "style.transitionProperty !== 'none' && style.transitionDuration !== '0s').length"
    )
    assert moving == 0


# -- functions of the script, by what Python makes of the same ----------------------------------


@pytest.fixture(scope="module")
def script_page(browser: Any, server: FakeServer) -> Iterator[Any]:
    window = Window(browser, server)
    yield window.page
    window.check(server)
    window.context.close()


def pieces_of(data: bytes) -> list[dict[str, str]]:
    """Characters and single bytes; what Python replaces byte by byte is no character."""
    pieces: list[dict[str, str]] = []
    at = 0
    while at < len(data):
        for end in range(at + 1, min(at + 4, len(data)) + 1):
            try:
                text = data[at:end].decode()
            except UnicodeDecodeError:
                continue
            if pieces and "text" in pieces[-1]:
                pieces[-1]["text"] += text
            else:
                pieces.append({"text": text})
            at = end
            break
        else:
            pieces.append({"byte": f"{data[at]:02X}"})
            at += 1
    return pieces


@given(
    data=st.lists(
        st.sampled_from([*"aé€😀".encode(), 0xED, 0xA0, 0xC0, 0xFF, 0xFE, 0xEF, 0xBB, 0xBF]),
        max_size=12,
    )
)
@example(data=[*b"a\xef\xbb\xbfb"])
def test_bytes_of_a_token_are_cut_into_characters(script_page: Any, data: list[int]) -> None:
    found = script_page.evaluate("(data) => piecesOf(Uint8Array.from(data))", data)
    assert found == pieces_of(bytes(data))


def blocks_of(text: str) -> list[list[str]]:
    """Paragraphs and fenced code, as the page shows them; a plain reading line by line."""
    blocks: list[list[str]] = []
    fence, lines = "", text.split("\n")
    for n, line in enumerate(lines):
        stripped = line.lstrip(" ")
        mark = stripped[:1] if stripped[:1] in ("`", "~") else "`"
        rest = stripped.lstrip(mark)
        ticks = len(stripped) - len(rest)
        is_fence = (
            ticks >= 3 and len(line) - len(stripped) <= 3 and (mark == "~" or mark not in rest)
        )
        is_last = n == len(lines) - 1
        if fence and is_fence and (mark * ticks).startswith(fence) and not rest.strip():
            blocks.append(["p", ""])
            fence = ""
            continue
        if not fence and is_fence and not is_last:
            blocks.append(["pre", ""])
            fence = mark * ticks
            continue
        if not blocks:
            blocks.append(["p", ""])
        blocks[-1][1] += line if is_last else f"{line}\n"
    texts = [[kind, text if kind == "pre" else text.lstrip("\n")] for kind, text in blocks]
    for one, other in itertools.pairwise(texts):
        if one[0] == "p" and other[0] == "pre":
            one[1] = one[1].rstrip("\n")
    return [block for block in texts if block[0] == "pre" or block[1]]


@given(
    parts=st.lists(
        st.sampled_from(["`", "``", "```", "~~~", "~", "\n", "\n\n", " ", "a", "<b>"]), max_size=14
    )
)
def test_prose_is_the_same_however_it_comes(script_page: Any, parts: list[str]) -> None:
    show = """(parts) => {
      const view = proseView();
      for (const part of parts) view.add(part);
      view.finish();
      return [...view.element.children].map((one) => [one.tagName.toLowerCase(), one.textContent]);
    }"""
    text = "".join(parts)
    whole = script_page.evaluate(show, [text])
    assert whole == blocks_of(text)
    assert script_page.evaluate(show, parts) == whole
    assert script_page.evaluate(show, list(text)) == whole


@pytest.mark.slow
def test_long_conversation_is_shown_whole(
    open_window: Callable[..., Any], server: FakeServer
) -> None:
    """200 messages, and an answer of 10,000 tokens, token by token."""
    page = open_window()
    before = server.script
    draw = random.Random(0)
    try:
        for n in range(100):
            say(page, f"question {n}")
        assert page.locator("#messages > li").count() == 200
        pieces = [b"\n" if n % 40 == 39 else f" word{n}".encode() for n in range(10_000)]
        server.script = Script(pieces=pieces, log_probs=[-draw.random() * 8 for _ in pieces])
        page.locator(".show-heat").first.check()
        say(page, "at length")
        assert page.locator(".answer").last.locator(".token").count() == 10_000
        wait_until(
            page,
            lambda: page.evaluate(
                "(() => { const one = document.getElementById('conversation'); "
                "return one.scrollHeight - one.scrollTop - one.clientHeight < 80 })()"
            ),
        )
        page.locator(".show-heat").first.uncheck()
        say(page, "and then")
        assert page.locator(".answer").count() == 102
    finally:
        server.script = before
