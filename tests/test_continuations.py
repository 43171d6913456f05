"""Scores of continuations: the fast way to the bits of the plain one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer

from rslm.evaluate.continuations import Continuation, ContinuationScorer, score_plainly

TOKENIZER = tiny_tokenizer(has_chat=False)
MODEL = tiny_model(TOKENIZER, context_length=32)


@st.composite
def continuations(draw: st.DrawFn) -> list[Continuation]:
    """Sequences of few ids, so that they often begin alike."""
    token = st.integers(0, 2)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=20), min_size=1, max_size=4))
    found = []
    for prompt in draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=8)):
        own = draw(st.lists(token, min_size=1, max_size=12))
        found.append(Continuation((*prompt, *own), len(prompt)))
    return found


@given(
    continuations(),
    st.sampled_from([1, 2, 5, 16]),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([1, 1 << 16]),
)
def test_scores_are_the_bits_of_the_plain_way(
    wanted: list[Continuation], block_size: int, batch_size: int, max_step_tokens: int, cache: int
):
    scorer = ContinuationScorer(
        MODEL,
        block_size=block_size,
        batch_size=batch_size,
        max_step_tokens=max_step_tokens,
        cache_bytes=cache,
    )
    plain = score_plainly(MODEL, wanted)
    assert scorer.score(wanted) == plain
    # Again, from what it has kept.
    assert scorer.score(wanted[::-1]) == plain[::-1]


def test_long_continuations_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rslm.evaluate.continuations._MAX_LOGITS", 3 * TOKENIZER.vocab_size)
    wanted = [Continuation(tuple(range(30)), 1), Continuation(tuple(range(20)), 10)]
    assert ContinuationScorer(MODEL).score(wanted) == score_plainly(MODEL, wanted)


def test_other_dtypes_give_nearly_the_plain_scores():
    model = tiny_model(TOKENIZER, context_length=32).to(torch.bfloat16)
    wanted = [Continuation((1, 2, 3, 4, i), 2) for i in range(6)]
    plain, fast = score_plainly(model, wanted), ContinuationScorer(model).score(wanted)
    for a, b in zip(plain, fast, strict=True):
        # bfloat16 has 8 bits, and logits of this model are below 1.
        assert a.log_probs == pytest.approx(b.log_probs, abs=2**-6)


def test_options_share_their_prompt(monkeypatch: pytest.MonkeyPatch):
    scorer = ContinuationScorer(MODEL)
    n_read = []
    forward = scorer._runner.forward

    def counted(batch):
        n_read.append(len(batch.token_ids))
        return forward(batch)

    monkeypatch.setattr(scorer._runner, "forward", counted)
    prompt = tuple(range(20))
    scorer.score([Continuation((*prompt, 200 + i, 210), 20) for i in range(4)])
    # Nineteen ids once, and of each option the last id of the prompt and its own first.
    assert n_read == [19 + 4 * 2]
    scorer.score([Continuation((*prompt, 200 + i), 20) for i in range(4)])
    assert n_read == [27, 1], "options of one token read the same"


def test_a_step_that_failed_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    scorer = ContinuationScorer(MODEL)
    wanted = [Continuation(tuple(range(20)), 15)]
    with monkeypatch.context() as patch:

        def fail(batch: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(scorer._runner, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            scorer.score(wanted)
    assert scorer.score(wanted) == score_plainly(MODEL, wanted)


def test_progress_counts_continuations():
    seen: list[int] = []
    wanted = [Continuation((i, 1, 2), 1) for i in range(7)]
    ContinuationScorer(MODEL, batch_size=3).score(wanted, progress=seen.append)
    assert seen == [3, 6, 7]


@pytest.mark.parametrize("first", [0, 3, -1])
def test_a_continuation_must_follow_something(first: int):
    with pytest.raises(ValueError, match="first must be from 1 to 2"):
        ContinuationScorer(MODEL).score([Continuation((1, 2, 3), first)])


def test_a_continuation_must_fit_the_context():
    with pytest.raises(ValueError, match="context of 32 tokens, got 33"):
        ContinuationScorer(MODEL).score([Continuation((1,) * 34, 1)])
    assert ContinuationScorer(MODEL).score([Continuation((1,) * 33, 32)])


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ContinuationScorer(MODEL, batch_size=0)
