"""The page as the server itself serves it: their two sides of each request agree."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Faults
from servers import Running, fake_loader, running
from test_page import Window, answers, say, wait_until

from rslm.tokenizer import Tokenizer

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def served(byte_tokenizer: Tokenizer, faults: Faults) -> Iterator[Running]:
    # A conversation in bytes takes many tokens.
    load = fake_loader(byte_tokenizer, faults, context=2000)
    models = {"first": Path(), "second": Path()}
    with running(lambda: models, load, token=TOKEN) as server:
        yield server


@pytest.fixture
def page(browser: Any, served: Running) -> Iterator[Any]:
    window = Window(browser, served)
    window.page.locator("#token").fill(TOKEN)
    window.page.locator("#token").press("Enter")
    window.page.locator("#model:not([disabled])").wait_for()
    # With the seed 0 the engine says the alphabet from its begin.
    window.page.fill("#seed", "0")
    window.page.fill("#max_tokens", "5")
    yield window.page
    window.check(served)
    window.context.close()


def test_page_asks_for_the_token_and_lists_the_models(browser: Any, served: Running) -> None:
    window = Window(browser, served)
    assert window.page.evaluate("document.activeElement.id") == "token"
    window.page.keyboard.type("another-token-altogether\n")
    window.page.locator("#server-problem", has_text="bearer token").wait_for()
    window.page.locator("#token").fill(TOKEN)
    window.page.keyboard.press("Enter")
    window.page.locator("#model:not([disabled])").wait_for()
    assert window.page.locator("#model option").all_text_contents() == ["first", "second"]
    window.check(served)
    window.context.close()


def test_conversation_streams_from_the_server(page: Any) -> None:
    say(page, "hi")
    assert answers(page) == ["abcde"]
    figures = page.locator(".answer .figures").text_content()
    assert re.fullmatch(
        r"5 tokens · [\d.,]+ tokens/s · first after \d+ ms · cut at the limit", figures
    )
    page.locator(".show-heat").first.check()
    assert page.locator(".answer .token").all_text_contents() == list("abcde")
    page.locator(".answer .token").nth(4).hover()
    rows = page.get_by_role("tooltip").locator("li code").all_text_contents()
    assert rows == ["a", "b", "c", "d", "e"]
    page.get_by_role("button", name="Regenerate").click()
    wait_until(page, lambda: page.locator(".answer .token").all_text_contents() == list("bcdef"))
    page.locator("#model").select_option("second")
    page.locator(".show-heat").first.uncheck()
    say(page, "again")
    assert answers(page) == ["bcdef", "abcde"]
    assert page.locator(".assistant .who").all_text_contents() == ["first", "second"]


def n_running(served: Running) -> int:
    _, data = served.ask("GET", "/metrics", authorization=f"Bearer {TOKEN}")
    (line,) = re.findall(rb'^rslm_running\{model="first"\} (.*)$', data, re.MULTILINE)
    return int(float(line))


def test_stopping_ends_the_work_of_the_engine(page: Any, served: Running, faults: Faults) -> None:
    faults.step_seconds = 0.02
    try:
        page.fill("#max_tokens", "1500")
        page.fill("#message", "go on")
        page.keyboard.press("Enter")
        page.get_by_text("abcd").wait_for()
        page.keyboard.press("Escape")
        page.locator(".answer .figures", has_text="stopped").wait_for()
        wait_until(page, lambda: n_running(served) == 0)
    finally:
        faults.step_seconds = 0.0


def test_text_is_continued_scored_and_cut(page: Any) -> None:
    page.get_by_role("tab", name="Complete").click()
    page.fill("#prompt", "é!")
    page.locator("#prompt").press("Control+Enter")
    page.locator("#continuation .figures").wait_for()
    assert answers(page) == ["abcde"]
    page.get_by_role("button", name="Score the text").click()
    page.get_by_text("The text, scored: 0.250 nats per token").wait_for()
    assert page.locator("#continuation .token").all_text_contents() == ["C3", "A9", "!"]
    page.get_by_role("tab", name="Tokens").click()
    page.fill("#text", "é<|endoftext|>")
    page.locator(".chip").nth(14).wait_for()
    # What looks like a special token is text.
    assert "".join(page.locator(".chip code").all_text_contents()) == "C3A9<|endoftext|>"
    assert page.locator(".chip small").first.text_content() == str(0xC3)


def test_what_the_server_refuses_is_shown(page: Any) -> None:
    page.fill("#max_tokens", "5")
    say(page, "x" * 3000)
    assert re.search(r"3\d{3}|2000", page.locator(".answer .problem p").text_content())


@pytest.mark.slow
def test_page_shows_what_a_trained_model_says(
    browser: Any, tiny_config: Callable[..., Any], quick: None
) -> None:
    """Greedy text and scores in the page are those of the engine and of a forward pass."""
    from rslm.evaluate.text_scores import score_text
    from rslm.infer.engine import Engine, EngineOptions
    from rslm.infer.load import load_run
    from rslm.infer.parameters import SamplingParameters
    from rslm.infer.serving import model_loader
    from rslm.train import train

    config = tiny_config()
    train(config)
    model, tokenizer = load_run(config.out, device="cpu")
    greedy = SamplingParameters(temperature=0, max_new_tokens=8)
    (expected,) = Engine(model, tokenizer, EngineOptions()).generate(["the ca"], greedy)
    with running(lambda: {"run": config.out}, model_loader("cpu", EngineOptions())) as server:
        window = Window(browser, server)
        page = window.page
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "8")
        page.get_by_role("tab", name="Complete").click()
        page.fill("#prompt", "the ca")
        page.locator("#continue").click()
        page.locator("#continuation .figures").wait_for()
        assert answers(page) == [expected.text]
        page.locator("#score").click()
        title = page.locator("#continuation h2", has_text="scored").text_content()
        window.check(server)
        window.context.close()
    # The server scores what it is given, without a token before the first.
    alone = Tokenizer(tokenizer.vocab, [], ["<|pad|>"])
    scores = score_text(model, alone, tokenizer.encode("the ca"))
    assert float(title.split()[3]) == pytest.approx(scores.loss, abs=1e-3)
