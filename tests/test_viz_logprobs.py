"""Scores of a text's tokens are those of a plain forward pass; its page shows them as they are."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rslm import cli
from rslm.architecture import TransformerConfig
from rslm.evaluate.loss import evaluate_loss
from rslm.evaluate.text_scores import TextScores, TokenScore, score_text, windows
from rslm.evaluate.text_scores_page import make_page, name_of
from rslm.html_report.page import render
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer
from rslm.train import train

HOSTILE = "</pre></script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u202e"
MakeConfig = Callable[..., Any]


def make_model(vocab_size: int = 257, context_length: int = 8) -> Transformer:
    config = TransformerConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        d_model=16,
        n_layers=2,
        n_heads=2,
        d_ff=32,
    )
    generator = torch.Generator().manual_seed(0)
    return Transformer(config, generator=generator).eval()


@torch.inference_mode()
def plain_scores(model: Transformer, sequence: list[int]) -> list[float]:
    """The log-probability of each id but the first, each from a pass of its own."""
    length, found = model.config.context_length, []
    step = max(1, length // 2)
    for target in range(1, len(sequence)):
        # The window that first reaches this token, see `windows`.
        n_more = max(0, -(-(target - length) // step))
        stop = min(length + n_more * step, len(sequence) - 1)
        logits = model(torch.tensor([sequence[max(0, stop - length) : target]]))[0, -1]
        found.append(float(logits.double().log_softmax(-1)[sequence[target]]))
    return found


@given(n_inputs=st.integers(1, 60), length=st.integers(1, 12))
def test_windows_count_every_input_once_with_half_a_context_before_it(
    n_inputs: int, length: int
) -> None:
    counted = []
    for start, first, stop in windows(n_inputs, length):
        assert 0 <= start <= first < stop <= n_inputs
        assert stop - start <= length
        assert start == 0 or first - start >= length // 2
        counted += range(first, stop)
    assert counted == list(range(n_inputs))


@pytest.mark.parametrize("n_characters", [1, 7, 8, 9, 12, 13, 40])
def test_scores_equal_those_of_a_plain_forward_pass(
    byte_tokenizer: Tokenizer, n_characters: int
) -> None:
    model = make_model()
    text = "the cat sees a dog and hears the moon, twice"[:n_characters]
    token_ids = byte_tokenizer.encode_ordinary(text)
    scores = score_text(model, byte_tokenizer, token_ids, n_top=3)
    expected = plain_scores(model, [256, *token_ids])
    assert [token.token_id for token in scores.tokens] == token_ids
    assert [token.log_prob for token in scores.tokens] == pytest.approx(expected, abs=1e-5)
    for token in scores.tokens:
        assert token.rank is not None
        assert len(token.top) == 3
        values = [log_prob for _, log_prob in token.top]
        assert values == sorted(values, reverse=True)
        assert (token.rank <= 3) == (token.token_id in dict(token.top))
        if token.rank <= 3:
            assert token.top[token.rank - 1] == (token.token_id, token.log_prob)
    assert scores.n_bytes == n_characters
    assert scores.loss == pytest.approx(-math.fsum(expected) / n_characters, abs=1e-5)


def test_bits_per_byte_are_those_of_validation(
    byte_tokenizer: Tokenizer, token_files: tuple[Path, Path]
) -> None:
    from rslm.token_file import TokenFile

    model = make_model(context_length=64)
    valid = TokenFile.open(token_files[1])
    lengths = byte_tokenizer.token_byte_lengths
    # Both see one window; the file's first token is what stands before the text.
    expected = evaluate_loss(model, valid, batch_size=1, n_tokens=64, token_byte_lengths=lengths)
    assert expected is not None
    ids = valid.read(0, 65).tolist()
    without_end = Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|pad|>"])
    scores = score_text(model, without_end, ids)
    assert scores.tokens[0].log_prob is None
    assert scores.loss == pytest.approx(expected.loss, abs=1e-5)
    assert scores.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-5)


def test_ids_without_text_are_scored_among_the_others(byte_tokenizer: Tokenizer) -> None:
    model = make_model(vocab_size=300)
    scores = score_text(model, byte_tokenizer, [104, 105], n_top=300)
    assert scores.vocab[299] == b""
    first = scores.tokens[0]
    assert len(first.top) == 300
    assert first.rank is not None
    assert first.top[first.rank - 1][0] == 104
    total = math.fsum(math.exp(log_prob) for _, log_prob in first.top)
    assert total == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_scored_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="must have a token to predict, got 0 tokens"):
        score_text(make_model(), byte_tokenizer, [])
    with pytest.raises(ValueError, match=r"below the model's 100, got 256"):
        score_text(make_model(vocab_size=100), byte_tokenizer, [1])
    model = make_model()
    with torch.no_grad():
        model.token_embeddings.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="got NaN from the model"):
        score_text(model, byte_tokenizer, [1, 2])


def scores_of(data: bytes, log_prob: float = -1.0) -> TextScores:
    top = ((ord("<"), -0.5), (256, -2.0))
    tokens = [TokenScore(token_id=i, log_prob=log_prob, rank=2, top=top) for i in data]
    vocab = {i: bytes([i]) for i in [*data, ord("<")]} | {256: b""}
    return TextScores(tokens=tokens, vocab=vocab, n_bytes=len(data))


@given(data=st.binary(min_size=1, max_size=60), log_prob=st.sampled_from([-0.0, -1.0, -math.inf]))
def test_page_holds_any_text_as_text(data: bytes, log_prob: float) -> None:
    scores = scores_of(HOSTILE.encode() + data, log_prob)
    html = render(make_page(scores, text_name=HOSTILE, model_name=HOSTILE)).decode()
    assert html.count("<script") == html.count("</script>") == 3
    assert "<img" not in html
    json.dumps(scores.record(), allow_nan=False)


@pytest.fixture
def run_folder(tiny_config: MakeConfig, quick: None) -> Path:
    config = tiny_config()
    train(config)
    folder: Path = config.out
    return folder


def test_command_writes_a_page_or_json(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    arguments = ["viz", "logprobs", str(run_folder), "--prompt", "the cat é", "--device", "cpu"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    assert re.search(r"wrote .*page\.html", capsys.readouterr().err)
    assert "the cat é" in out.read_text()
    assert cli.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n_tokens"], record["n_predicted"], record["n_bytes"]) == (10, 10, 10)
    assert record["loss"] == pytest.approx(
        -sum(token["log_prob"] for token in record["tokens"]) / 10
    )
    assert record["tokens"][-1]["bytes"] == [0xA9]
    assert len(record["tokens"][0]["top"]) == 5
    # Of a file only so much as is asked for.
    (tmp_path / "text.txt").write_text("é<|endoftext|>" * 100)
    arguments[3:5] = ["--text", str(tmp_path / "text.txt")]
    assert cli.main([*arguments, "--json", "--max-tokens", "3", "--special-tokens"]) == 0
    captured = capsys.readouterr()
    assert [token["id"] for token in json.loads(captured.out)["tokens"]] == [0xC3, 0xA9, 256]
    assert "scored the first 3 tokens" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of text and prompt must be given"),
        (["--prompt", "a", "--text", "b"], "one of text and prompt must be given"),
        (["--prompt", "a", "--n-top", "0"], "n_top must be from 1 to 100, got 0"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be from 1 to 1000000, got 0"),
        (["--text", "absent"], "absent: No such file or directory"),
        (["--prompt", "a"], "config.toml"),
        (["--prompt", "a", "--out", "-"], "out must name a file"),
    ],
)
def test_command_refuses_in_a_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["viz", "logprobs", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_names_of_tokens_are_seen() -> None:
    assert name_of(b" a\n\t") == "␣a↵⇥"
    assert name_of(b"\xe2\x82") == r"\xe2\x82"
    assert name_of(b"") == "(no text)"


def test_page_is_read_with_pointer_and_keys(browser: Any, tmp_path: Path) -> None:
    page_file = tmp_path / "page.html"
    data = render(make_page(scores_of(f"{HOSTILE} é".encode()), text_name="t", model_name="m"))
    page_file.write_bytes(data)
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.set_default_timeout(120_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(page_file.as_uri())
    tokens = page.locator(".token")
    assert tokens.count() == len(f"{HOSTILE} é".encode())
    assert "".join(tokens.all_text_contents()).startswith(HOSTILE[:-1])
    tokens.first.hover()
    detail = page.get_by_role("tooltip")
    assert "place 2 of all tokens" in detail.text_content()
    page.get_by_role("listbox").focus()
    page.keyboard.press("End")
    assert detail.locator(".name").text_content() == r"\xA9"
    assert detail.locator("li").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("window.hacked") is None
    assert problems == [page_file.as_uri()]
    page.context.close()
