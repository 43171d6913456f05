"""The server's page in a real browser, against a server that answers as it is told.

Each window notes what was asked for, and what went wrong in it: nothing may leave the machine,
and no text of a model may run or become markup.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeServer, Script

from rslm.infer.page import page_and_csp

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp;"
# Asked for on purpose, and refused: the browser says so in its console, too.
REFUSED = "Failed to load resource"


class Window:
    """A window that shows the page, with what it asked for and what it complained about."""

    def __init__(self, browser: Any, server: FakeServer, **options: Any) -> None:
        options = {"viewport": {"width": 1280, "height": 800}} | options
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        # On a machine that is busy with other things loading alone has taken 15 s.
        self.page.set_default_timeout(120_000)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.load(server)

    def load(self, server: FakeServer) -> None:
        """Opens the page, and waits until it knows the models or that it may not."""
        self.page.goto(server.url)
        self.page.locator("#model:not([disabled]), #server-problem:not([hidden])").wait_for()

    def check(self, server: FakeServer) -> None:
        """Nothing was asked for elsewhere, nothing failed, no text was run."""
        outside = [
            url
            for url in self.requests
            if not url.startswith((f"{server.url}/", f"blob:{server.url}/", "data:"))
        ]
        assert outside == []
        assert [text for text in self.problems if not text.startswith(REFUSED)] == []
        assert self.page.evaluate("window.hacked") is None


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeServer]:
    with FakeServer(*page_and_csp()).running() as server:
        yield server


@pytest.fixture
def server(running_server: FakeServer) -> Iterator[FakeServer]:
    """The server, with a script of the test's own."""
    running_server.script = Script()
    running_server.asked.clear()
    running_server.n_gone = 0
    yield running_server
    running_server.script.released.set()


@pytest.fixture
def open_window(browser: Any, server: FakeServer) -> Iterator[Callable[..., Any]]:
    """`open_window(**options)`: the page in a window of its own, checked at the end."""
    windows: list[Window] = []

    def open_one(**options: Any) -> Any:
        windows.append(Window(browser, server, **options))
        return windows[-1].page

    yield open_one
    for window in windows:
        window.check(server)
        window.context.close()


@pytest.fixture(scope="module")
def shared_window(browser: Any, running_server: FakeServer) -> Iterator[Window]:
    window = Window(browser, running_server)
    yield window
    window.context.close()


@pytest.fixture
def page(shared_window: Window, server: FakeServer) -> Iterator[Any]:
    """The page as somebody sees it who has never been there, in a window that others had before."""
    window = shared_window
    window.page.evaluate("localStorage.clear(), sessionStorage.clear()")
    window.load(server)
    yield window.page
    window.check(server)
    window.context.set_offline(False)


def wait_until(page: Any, holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        page.wait_for_timeout(10)


def say(page: Any, text: str) -> None:
    """Sends a message and waits for the answer's end."""
    n_answers = page.locator("#messages .answer").count()
    page.fill("#message", text)
    page.keyboard.press("Enter")
    answer = page.locator("#messages .answer").nth(n_answers)
    answer.locator(".foot-line, .problem").first.wait_for()


def answers(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".answer-body").all_text_contents()]


def chats(server: FakeServer) -> list[Any]:
    return server.bodies("/v1/chat/completions")


# -- without a browser --------------------------------------------------------------------------


def test_policy_names_the_one_script_and_the_one_style() -> None:
    data, policy = page_and_csp()
    html = data.decode()
    for tag in ("script", "style"):
        (source,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_page_holds_no_handler_no_style_attribute_and_no_address() -> None:
    html = page_and_csp()[0].decode()
    markup = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\s(on\w+|style)=", markup)
    assert set(re.findall(r"https?://[^'\"\s)]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", html)


# -- the conversation ---------------------------------------------------------------------------


def test_answer_streams_and_is_read_out_once_it_has_ended(page: Any, server: FakeServer) -> None:
    server.script.hold_after = 2
    page.fill("#system", "Be brief.")
    page.fill("#message", "Which animal?")
    page.keyboard.press("Enter")
    page.get_by_text("The quick").wait_for()
    assert page.locator(".answer").get_attribute("aria-busy") == "true"
    assert page.locator("#status").text_content() == ""
    assert page.locator("#message").input_value() == ""
    server.script.released.set()
    page.locator(".answer .figures").wait_for()
    assert answers(page) == ["The quick fox."]
    wait_until(page, lambda: page.locator("#status").text_content() == "The quick fox.")
    assert page.locator(".answer").get_attribute("aria-busy") is None
    figures = page.locator(".answer .figures").text_content()
    assert re.fullmatch(r"4 tokens · [\d.,]+ tokens/s · first after \d+ ms", figures)
    (asked,) = chats(server)
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which animal?"},
    ]
    fields = {"model", "messages", "max_tokens", "temperature", "seed", "logprobs"}
    assert asked.keys() == fields | {"top_logprobs", "stream", "stream_options"}


def test_stopping_keeps_what_came_and_tells_the_server(page: Any, server: FakeServer) -> None:
    server.script.hold_after = 2
    page.fill("#message", "Go")
    page.keyboard.press("Enter")
    page.get_by_text("The quick").wait_for()
    assert not page.locator("#send").is_visible()
    page.keyboard.press("Escape")
    page.locator(".answer .figures", has_text="stopped").wait_for()
    assert answers(page) == ["The quick"]
    assert page.locator(".problem").filter(visible=True).count() == 0
    wait_until(page, lambda: server.n_gone == 1)
    # The conversation goes on from there, also by the button.
    server.script.hold_after = 1
    page.fill("#message", "Again")
    page.keyboard.press("Enter")
    page.locator(".answer").nth(1).get_by_text("The").wait_for()
    page.locator("#stop").click()
    page.locator(".answer").nth(1).locator(".figures", has_text="stopped").wait_for()
    assert [message["content"] for message in chats(server)[1]["messages"]] == [
        *["Go", "The quick", "Again"]
    ]
    assert page.evaluate("document.activeElement.id") == "message"


def test_last_answer_is_asked_for_again(page: Any, server: FakeServer) -> None:
    page.fill("#seed", "7")
    say(page, "First")
    say(page, "Second")
    assert page.locator(".answer button", has_text="Regenerate").filter(visible=True).count() == 1
    server.script.pieces, server.script.log_probs = [b"Another"], [-1.0]
    page.get_by_role("button", name="Regenerate").click()
    wait_until(page, lambda: answers(page) == ["The quick fox.", "Another"])
    first, second, third = chats(server)
    assert third["messages"] == second["messages"]
    # The same seed would give the same answer.
    assert [first["seed"], second["seed"], third["seed"]] == [7, 7, 8]


def test_last_message_is_edited(page: Any, server: FakeServer) -> None:
    say(page, "First")
    say(page, "Secnd")
    page.locator("#message").press("ArrowUp")
    area = page.get_by_label("Edited message")
    assert area.input_value() == "Secnd"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "message"
    page.get_by_role("button", name="Edit").filter(visible=True).click()
    area.fill("Second")
    area.press("Enter")
    wait_until(page, lambda: len(chats(server)) == 3)
    page.locator(".answer .figures").nth(1).wait_for()
    contents = [message["content"] for message in chats(server)[-1]["messages"]]
    assert contents == ["First", "The quick fox.", "Second"]
    assert page.locator(".user-text").all_text_contents() == ["First", "Second"]


def test_enter_sends_and_shift_enter_breaks_the_line(page: Any, server: FakeServer) -> None:
    page.locator("#message").press_sequentially("a")
    page.keyboard.press("Shift+Enter")
    page.locator("#message").press_sequentially("b")
    # Enter that only ends what an input method composes is none.
    page.evaluate(
        "document.getElementById('message').dispatchEvent(new KeyboardEvent('keydown', "
        "{ key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"
    )
    assert chats(server) == []
    page.keyboard.press("Enter")
    page.locator(".answer .figures").wait_for()
    assert chats(server)[0]["messages"][0]["content"] == "a\nb"
    page.locator("#message").press("Enter")
    assert len(chats(server)) == 1, "there is nothing to send"


def test_slash_goes_to_the_field_but_can_be_typed(page: Any) -> None:
    page.locator("#export").focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.press("/")
    assert page.locator("#message").input_value() == "/"


def test_settings_are_sent_and_neutral_ones_are_not(page: Any, server: FakeServer) -> None:
    say(page, "a")
    values = {"temperature": "0", "top_p": "0.9", "min_p": "0.05", "repetition_penalty": "1.2"}
    for name, value in {**values, "top_k": "40", "max_tokens": "9", "seed": "3"}.items():
        page.fill(f"#{name}", value)
    say(page, "b")
    first, second = chats(server)
    assert first.keys().isdisjoint({"top_p", "min_p", "repetition_penalty", "top_k"})
    assert (first["temperature"], first["max_tokens"]) == (0.8, 512)
    assert {name: second[name] for name in values} == {k: float(v) for k, v in values.items()}
    assert (second["top_k"], second["max_tokens"], second["seed"]) == (40, 9, 3)
    page.reload()
    assert page.locator("#top_k").input_value() == "40"
    page.get_by_role("button", name="Reset").click()
    assert page.locator("#top_k").input_value() == ""
    assert page.locator('output[for="temperature"]').text_content() == "0.80"


def test_conversation_is_exported(page: Any, server: FakeServer, tmp_path: Path) -> None:
    say(page, "Which animal?")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "chat.json")
    record = json.loads((tmp_path / "chat.json").read_text())
    assert record["format"] == "rslm conversation"
    question, answer = record["messages"]
    assert question == {"role": "user", "content": "Which animal?"}
    assert answer["content"] == "The quick fox."
    assert answer["model"] == "demo"
    assert answer["parameters"]["seed"] == chats(server)[0]["seed"]
    assert [token["token"] for token in answer["tokens"]] == ["The", " quick", " fox", "."]
    assert [token["log_prob"] for token in answer["tokens"]] == list(server.script.log_probs)


def test_answer_is_copied_as_it_came(open_window: Callable[..., Any], server: FakeServer) -> None:
    server.script.pieces = [b"``", b"`py\nx", b" = 1\n```", b"\nend"]
    page = open_window(permissions=["clipboard-read", "clipboard-write"])
    say(page, "Go")
    page.locator(".answer button", has_text="Copy").click()
    # The button says it, too, but for a second and a half only.
    wait_until(page, lambda: page.locator("#status").text_content() == "Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "```py\nx = 1\n```\nend"
    # Shown is the code itself, in a block of its own.
    assert page.locator(".answer pre code").text_content() == "x = 1\n"
    assert page.locator(".answer .prose p").all_text_contents() == ["end"]


# -- what goes wrong ----------------------------------------------------------------------------


def test_lost_connection_keeps_the_part_and_offers_another_try(
    page: Any, server: FakeServer
) -> None:
    server.script.drop_after = 2
    say(page, "Go")
    assert answers(page) == ["The quick"]
    problem = page.locator(".answer .problem")
    assert "connection was lost" in problem.text_content()
    assert problem.get_attribute("role") == "alert"
    server.script.drop_after = None
    page.get_by_role("button", name="Try again").click()
    wait_until(page, lambda: answers(page) == ["The quick fox."])
    assert page.locator(".answer .problem").count() == 0
    first, second = chats(server)
    assert first["messages"] == second["messages"]


def test_refusals_and_errors_in_the_stream_are_shown_as_text(page: Any, server: FakeServer) -> None:
    server.script.refuse = (503, f"the queue is full {HOSTILE}")
    say(page, "Go")
    assert f"the queue is full {HOSTILE}" in page.locator(".answer .problem p").text_content()
    server.script.refuse, server.script.error_event = None, f"the engine failed {HOSTILE}"
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("the engine failed").wait_for()
    assert answers(page) == ["The quick fox."]
    page.context.set_offline(True)
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("cannot be reached").wait_for()


def test_token_is_asked_for_kept_in_the_session_and_sent(
    open_window: Callable[..., Any], server: FakeServer
) -> None:
    server.script.token = "s3cret"
    page = open_window()
    page.locator("#server-problem", has_text="bearer token").wait_for()
    assert page.evaluate("document.activeElement.id") == "token"
    page.keyboard.type("s3cret")
    page.keyboard.press("Enter")
    page.locator("#model:not([disabled])").wait_for()
    assert not page.locator("#server-problem").is_visible()
    assert page.evaluate("document.activeElement.id") == "message"
    stored = page.evaluate("[sessionStorage, localStorage].map((one) => JSON.stringify(one))")
    assert ["s3cret" in text for text in stored] == [True, False]
    # A token that has become invalid is noticed while one talks, and the question is kept.
    server.script.token = "other"
    say(page, "Go")
    assert page.evaluate("document.activeElement.id") == "token"
    page.fill("#token", "other")
    page.keyboard.press("Enter")
    page.locator(".answer .figures").wait_for()
    assert answers(page) == ["The quick fox."]


@pytest.mark.parametrize("with_heat", [False, True])
def test_text_of_the_model_stays_text(page: Any, server: FakeServer, with_heat: bool) -> None:
    texts = [HOSTILE, f"\n```{HOSTILE}\n{HOSTILE}\n```\n", "\u202e\x00\x1b[31m<b>"]
    server.script.pieces = [text.encode() for text in texts]
    server.script.log_probs = [-1.0] * 3
    page.locator(".show-heat").first.set_checked(with_heat)
    say(page, HOSTILE)
    assert page.locator("img, iframe, object, b, a[href^=javascript]").count() == 0
    assert page.locator("script").count() == 1
    assert answers(page)[0].count(HOSTILE) >= 2
    assert page.locator(".user-text").text_content() == HOSTILE
    page.locator("#tab-tokens").click()
    page.fill("#text", HOSTILE)
    page.locator(".chip").first.wait_for()
    assert page.locator("img, #chips script").count() == 0


def test_name_of_a_model_stays_text(open_window: Callable[..., Any], server: FakeServer) -> None:
    server.script.models = (HOSTILE,)
    page = open_window()
    say(page, "Go")
    assert page.locator(".assistant .who").text_content() == HOSTILE
    assert chats(server)[0]["model"] == HOSTILE


# -- token by token -----------------------------------------------------------------------------


def test_heat_map_shades_by_probability(page: Any, server: FakeServer) -> None:
    server.script.pieces = [b"The", b" \xe2\x82", b"\xac", b" fox\n"]
    say(page, "Go")
    assert answers(page) == ["The € fox\n"]
    page.locator(".show-heat").first.check()
    tokens = page.locator(".answer .token")
    assert tokens.all_text_contents() == ["The", " E282", "AC", " fox↵\n"]
    shades = [token.get_attribute("class") for token in tokens.all()]
    assert shades == ["token h0", "token h3", "token h5", "token h1"]
    tokens.nth(2).hover()
    detail = page.get_by_role("tooltip")
    assert detail.locator(".name").text_content() == r"\xAC"
    assert "probability 1.83 %" in detail.text_content()
    assert detail.locator("li code").all_text_contents() == [
        *["␣slow", "␣<b>brown</b>", r"\xAC", "↵", r"\xE2\x82"]
    ]
    assert detail.locator("li.chosen").text_content() == r"\xAC1.83 %"
    page.locator("#message").hover()
    detail.wait_for(state="hidden")
    page.locator(".show-heat").first.uncheck()
    assert page.locator(".answer .token").count() == 0


def test_heat_map_grows_while_the_answer_streams(page: Any, server: FakeServer) -> None:
    server.script.hold_after = 2
    page.locator(".show-heat").first.check()
    page.fill("#message", "Go")
    page.keyboard.press("Enter")
    page.locator(".answer .token").nth(1).wait_for()
    assert page.locator(".answer .token").count() == 2
    server.script.released.set()
    page.locator(".answer .figures").wait_for()
    assert page.locator(".answer .token").count() == 4


def test_tokens_are_walked_with_the_keys(page: Any) -> None:
    page.locator(".show-heat").first.check()
    say(page, "Go")
    tokens = page.locator(".answer [role=listbox]")
    page.locator("#message").focus()
    while not tokens.evaluate("(one) => one === document.activeElement"):
        page.keyboard.press("Shift+Tab")
    detail = page.get_by_role("tooltip")
    assert detail.locator(".name").text_content() == "The"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    chosen = page.locator(f"#{tokens.get_attribute('aria-activedescendant')}")
    assert chosen.text_content() == " fox"
    label = chosen.get_attribute("aria-label")
    assert label.startswith("space fox: 1.83 %, space slow 36.8 %")
    assert chosen.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    detail.wait_for(state="hidden")
    page.keyboard.press("End")
    assert detail.locator(".name").text_content() == "."
    page.keyboard.press("Tab")
    detail.wait_for(state="hidden")
    assert tokens.get_attribute("aria-activedescendant") is None


def test_view_of_tokens_shows_ids_and_bytes(page: Any, server: FakeServer) -> None:
    page.get_by_role("tab", name="Tokens").click()
    page.fill("#text", "Hi you\né")
    chips = page.locator(".chip")
    chips.nth(3).wait_for()
    assert chips.locator("code").all_text_contents() == ["Hi", "␣you", "↵", "C3", "A9"]
    assert chips.locator(".byte").count() == 2
    assert chips.nth(3).locator("small").text_content() == str(0xC3)
    assert len({chip.get_attribute("class") for chip in chips.all()[:4]}) == 4
    counts = page.locator("#token-counts").text_content()
    assert re.fullmatch(r"5 tokens *9 bytes *8 characters *1\.80 bytes per token", counts)
    chips.nth(1).hover()
    assert "4 bytes: 20 79 6F 75" in page.get_by_role("tooltip").text_content()
    page.locator("#model").select_option("tinystories-33m")
    wait_until(page, lambda: server.bodies("/tokenize")[-1]["model"] == "tinystories-33m")
    server.script.refuse = (413, "the text is too long")
    page.fill("#text", "more")
    page.locator("#tokens-problem", has_text="the text is too long").wait_for()
    assert chips.count() == 0


def test_models_are_switched(page: Any, server: FakeServer) -> None:
    say(page, "a")
    page.locator("#model").select_option("tinystories-33m")
    say(page, "b")
    assert [asked["model"] for asked in chats(server)] == ["demo", "tinystories-33m"]
    assert page.locator(".assistant .who").all_text_contents() == ["demo", "tinystories-33m"]
    assert page.title() == "tinystories-33m · rslm"


def test_text_is_continued_scored_and_appended_to(page: Any, server: FakeServer) -> None:
    server.script.pieces = [b" time", b" \xe2\x82", b"\xac", b"."]
    page.get_by_role("tab", name="Complete").click()
    page.fill("#prompt", "Once upon a")
    page.locator("#prompt").press("Control+Enter")
    page.locator("#continuation .figures").wait_for()
    assert answers(page) == [" time €."]
    (asked,) = server.bodies("/v1/completions")
    assert (asked["prompt"], asked["logprobs"], asked["stream"]) == ("Once upon a", 5, True)
    page.locator("#view-complete .show-heat").check()
    assert page.locator(".token").all_text_contents() == [" time", " E282", "AC", "."]
    page.get_by_role("button", name="Append to the text").click()
    assert page.locator("#prompt").input_value() == "Once upon a time €."
    page.get_by_role("button", name="Score the text").click()
    page.get_by_text("The text, scored: 1.250 nats per token").wait_for()
    shown = page.locator("#continuation .token")
    assert shown.all_text_contents() == ["Once", " upon", " a", " time", " €."]
    shown.first.hover()
    assert "nothing stands before it" in page.get_by_role("tooltip").text_content()
