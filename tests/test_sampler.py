from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rslm.architecture import TransformerConfig
from rslm.infer.sampler import decode_until, generate, generate_text, sample_token
from rslm.model import Transformer

CONFIG = TransformerConfig(
    vocab_size=40, context_length=8, d_model=16, n_layers=1, n_heads=2, d_ff=16
)
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


class LetterDecoder:
    """Ids as letters; an odd one waits for the next, as half a character does."""

    def __init__(self) -> None:
        self.waiting = ""

    def add(self, token_id: int) -> str:
        text = self.waiting + chr(97 + token_id % 26)
        self.waiting = text if token_id % 2 else ""
        return "" if self.waiting else text

    def finish(self) -> str:
        return self.waiting


class PlainDecoder:
    """The ids are the strings themselves."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, token_id: int) -> str:
        return self.pieces[token_id]

    def finish(self) -> str:
        return ""


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(0))


def draws(logits: torch.Tensor, n: int = 400, **options: object) -> set[int]:
    generator = torch.Generator().manual_seed(5)
    return set(sample_token(logits.expand(n, -1), generator=generator, **options).tolist())


@given(LOGITS)
def test_temperature_zero_and_top_k_one_are_argmax(values: list[float]):
    logits = torch.tensor(values)
    assert sample_token(logits, temperature=0).item() == logits.argmax().item()
    assert values[sample_token(logits, top_k=1).item()] == max(values)
    assert values[sample_token(logits, top_p=1e-9).item()] == max(values)


def test_frequencies_follow_softmax_of_logits_over_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(1)
    ids = sample_token(logits.expand(40_000, 3), temperature=2.0, generator=generator)
    shares = torch.bincount(ids, minlength=3) / 40_000
    # Four standard deviations of a share are at most 4 · sqrt(1/4 / 40000) = 0.01.
    torch.testing.assert_close(shares, (logits / 2).softmax(0), rtol=0, atol=0.01)


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=12, unique=True), st.integers(1, 14))
def test_top_k_draws_only_the_k_largest(values: list[int], k: int):
    logits = torch.tensor(values) / 4
    assert draws(logits, n=50, top_k=k) <= set(logits.argsort(descending=True)[:k].tolist())


@given(LOGITS, st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(values: list[float], p: float):
    probabilities = torch.tensor(values).softmax(0)
    largest = probabilities.sort(descending=True).values
    n_kept = min(int((largest.cumsum(0) < p - 1e-6).sum()) + 1, len(values))
    drawn = draws(torch.tensor(values), n=100, top_p=p)
    assert probabilities[list(drawn)].min() >= largest[n_kept - 1] - 1e-6


def test_top_p_keeps_the_token_that_crosses_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert draws(logits, top_p=0.5) == {0}
    assert draws(logits, top_p=0.6) == {0, 1}
    assert draws(logits, top_p=0.9) == {0, 1, 2}
    assert draws(logits, top_p=1.0) == {0, 1, 2, 3}
    # After top_k the masses are those of what it left: 0.625 and 0.375.
    assert draws(logits, top_k=2, top_p=0.6) == {0}


def test_extreme_logits_and_temperatures_draw_the_largest():
    logits = torch.tensor([-1e30, 1e30, 0.0])
    assert draws(logits) == {1}
    assert draws(torch.tensor([1.0, 2.0, 3.0]), temperature=1e-30) == {2}
    assert draws(torch.tensor([0.0, -float("inf")])) == {0}


def test_leading_dimensions_are_kept():
    logits = torch.randn(2, 3, 7)
    assert sample_token(logits).shape == (2, 3)
    assert sample_token(logits, top_k=2, top_p=0.5).shape == (2, 3)
    assert sample_token(logits[0, 0]).shape == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be at least 0 and finite, got -0\.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and finite, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, got 0\.0"),
        ({"top_p": 1.5}, r"top_p must be above 0 and at most 1, got 1\.5"),
    ],
)
def test_bad_options_are_refused_at_once(
    model: Transformer, options: dict[str, float], message: str
):
    with pytest.raises(ValueError, match=message):
        sample_token(torch.zeros(3), **options)
    with pytest.raises(ValueError, match=message):
        generate(model, [1], max_new_tokens=1, **options)


@pytest.mark.parametrize(
    ("token_ids", "max_new_tokens", "message"),
    [
        ([], 1, "token_ids must hold at least one id"),
        ([3, 40], 1, r"token_ids must lie in \[0, 40\), got 3 to 40"),
        ([-1], 1, r"token_ids must lie in \[0, 40\), got -1 to -1"),
        ([1], -1, "max_new_tokens must be at least 0, got -1"),
    ],
)
def test_bad_prompts_are_refused_at_once(
    model: Transformer, token_ids: list[int], max_new_tokens: int, message: str
):
    with pytest.raises(ValueError, match=message):
        generate(model, token_ids, max_new_tokens=max_new_tokens)


def test_greedy_generation_is_the_argmax_of_the_last_window(model: Transformer):
    expected = [1, 2, 3]
    for _ in range(12):  # Beyond the context of 8.
        expected.append(model(torch.tensor(expected[-8:]))[-1].argmax().item())
    assert list(generate(model, [1, 2, 3], max_new_tokens=12, temperature=0)) == expected[3:]


def test_seed_fixes_the_ids(model: Transformer):
    options = {"max_new_tokens": 20, "top_p": 0.95, "top_k": 30}
    first = list(generate(model, [1], seed=7, **options))
    assert first == list(generate(model, [1], seed=7, **options))
    assert first != list(generate(model, [1], seed=8, **options))
    assert len(first) == 20


def test_generation_is_lazy_and_leaves_the_caller_s_gradients_on(model: Transformer):
    ids = generate(model, [1], max_new_tokens=10**9, seed=0)
    assert isinstance(next(ids), int)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert list(generate(model, [1], max_new_tokens=0)) == []


def test_stop_token_ends_generation_and_is_not_yielded(model: Transformer):
    ids = list(generate(model, [1], max_new_tokens=30, seed=3))
    stop = ids[10]
    stopped = list(generate(model, [1], max_new_tokens=30, seed=3, stop_token_ids=[99, stop]))
    assert stopped == ids[: ids.index(stop)]


def test_generate_text_is_the_decoded_ids_up_to_a_stop_string(model: Transformer):
    options = {"max_new_tokens": 40, "seed": 2}
    text = "".join(chr(97 + i % 26) for i in generate(model, [1], **options))
    assert "".join(generate_text(model, [1], LetterDecoder(), **options)) == text
    stop = text[11:13]
    stopped = "".join(generate_text(model, [1], LetterDecoder(), stop_strings=[stop], **options))
    assert stopped == text[: text.index(stop)]


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_decode_until_equals_cutting_the_whole_text(pieces: list[str], stops: list[str]):
    whole = "".join(pieces)
    # The first that completes ends the text, even where a longer one has begun before it.
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    end = min(ends)[1] if ends else len(whole)
    shown = list(decode_until(range(len(pieces)), PlainDecoder(pieces), stops))
    assert "".join(shown) == whole[:end]
    assert "" not in shown


def test_decode_until_shows_text_as_soon_as_no_stop_string_can_begin_in_it():
    taken = []

    def ids() -> Iterator[int]:
        for i in range(4):
            taken.append(i)
            yield i

    pieces = decode_until(ids(), PlainDecoder(["abc<", "/x", "y</", "s>z"]), ["</s>"])
    assert (next(pieces), taken) == ("abc", [0])
    assert (next(pieces), taken) == ("</x", [0, 1])
    assert (next(pieces), taken) == ("y", [0, 1, 2])
    assert list(pieces) == []


def test_decode_until_takes_no_id_after_a_stop_string():
    ids = iter(range(3))
    assert list(decode_until(ids, PlainDecoder(["a", "b", "c"]), ["b"])) == ["a"]
    assert list(ids) == [2]
    with pytest.raises(ValueError, match="stop_strings must not hold an empty string"):
        decode_until([], PlainDecoder([]), ["x", ""])
