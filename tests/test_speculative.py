from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import (
    TOKENIZER,
    block_bytes,
    check_at_rest,
    make_engine,
    plain_ids,
    read_back_runner,
    reference_runner,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st

from rslm.infer import DraftModel, Engine, EngineOptions, PromptLookup, SamplingParameters
from rslm.infer.parameters import Completion
from rslm.infer.speculative import lookup_draft
from rslm.model import Transformer

PROMPTS = [b"the cat and the dog and the cat", b"abababab", b"x", b"once upon a time, once upon"]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.3},
    {"repetition_penalty": 1.4, "temperature": 0.5},
    {"top_p": 0.5, "stop": ("e", "\n")},
    {"top_k": 2, "n": 3, "log_probs": 2},
]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.fixture(scope="module")
def near_model() -> Transformer:
    """The model with a little noise on its weights: most of its drafts are right."""
    near = tiny_model()
    generator = torch.Generator().manual_seed(1)
    for parameter in near.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    return near


def comparable(completions: list[Completion]) -> list[Any]:
    return [(c.token_ids, c.text, c.finish_reason, c.stop_reason, c.log_probs) for c in completions]


@pytest.mark.parametrize("options", KINDS)
def test_look_up_changes_no_id(model: Transformer, options: dict[str, Any]):
    parameters = SamplingParameters(seed=3, max_new_tokens=30, **options)
    prompts = [list(prompt) for prompt in PROMPTS]
    expected = make_engine(model).generate(prompts, parameters)
    for tight in ({}, {"block_size": 4, "cache_bytes": 25 * block_bytes(model, 4)}):
        engine = make_engine(model, speculation=PromptLookup(n_draft=4), **tight)
        assert comparable(engine.generate(prompts, parameters)) == comparable(expected)
        check_at_rest(engine)


@pytest.mark.parametrize("options", KINDS)
def test_a_draft_model_changes_no_id(
    model: Transformer, near_model: Transformer, options: dict[str, Any]
):
    parameters = SamplingParameters(seed=3, max_new_tokens=6, **options)
    prompts = [list(prompt) for prompt in PROMPTS[1:2]]
    expected = make_engine(model, make_runner=reference_runner).generate(prompts, parameters)
    engine = make_engine(
        model, make_runner=reference_runner, speculation=DraftModel(near_model, 3), block_size=4
    )
    assert comparable(engine.generate(prompts, parameters)) == comparable(expected)
    assert engine.statistics().draft_accepted > 0
    check_at_rest(engine)


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS)
def test_speculation_changes_no_id_in_exact_mode(
    model: Transformer, near_model: Transformer, options: dict[str, Any]
):
    parameters = SamplingParameters(seed=3, max_new_tokens=30, **options)
    prompts = [list(prompt) for prompt in PROMPTS]
    expected = Engine(model, TOKENIZER, EngineOptions(exact=True)).generate(prompts, parameters)
    for speculation in (PromptLookup(), DraftModel(near_model), DraftModel(model, 2)):
        for tight in ({}, {"block_size": 4, "cache_bytes": 50 * block_bytes(model, 4)}):
            options_ = EngineOptions(exact=True, speculation=speculation, **tight)
            found = Engine(model, TOKENIZER, options_).generate(prompts, parameters)
            assert comparable(found) == comparable(expected)


def test_a_model_that_drafts_for_itself_is_always_right(model: Transformer):
    """Greedy and sampled: what it draws with the key is what it will draw."""
    engine = make_engine(model, speculation=DraftModel(model, 3), block_size=4)
    forward, sizes = engine._runner.forward, []

    def counted(batch: Any) -> torch.Tensor:
        sizes.append(len(batch.token_ids))
        return forward(batch)

    engine._runner.forward = counted  # type: ignore[method-assign]
    parameters = SamplingParameters(max_new_tokens=17, seed=1, ignore_end=True)
    found = engine.generate([[1, 2, 3], [4] * 9], [parameters, replace(parameters, temperature=0)])
    # The prompts once, then of each sequence the last id and three drafted: none twice.
    assert sizes == [3 + 9 + 6, 8, 8, 8, 2]
    statistics = engine.statistics()
    assert [len(completion.token_ids) for completion in found] == [17, 17]
    assert statistics.draft_accepted == statistics.draft_proposed
    # Four ids in every step but the last.
    assert statistics.steps == 5


def test_drafts_stay_right_when_sequences_lose_their_blocks(model: Transformer):
    """What the drafting model had read is gone with the blocks."""
    engine = make_engine(
        model,
        speculation=DraftModel(model, 3),
        block_size=4,
        cache_bytes=2 * 20 * block_bytes(model, 4),
    )
    parameters = SamplingParameters(max_new_tokens=25, seed=1, ignore_end=True)
    engine.generate([[i] * 12 for i in range(6)], parameters)
    statistics = engine.statistics()
    assert statistics.preemptions > 0
    assert statistics.draft_accepted == statistics.draft_proposed


def test_a_sequence_that_repeats_is_drafted_right(model: Transformer):
    """A model that counts to five again and again, in a third of the steps."""

    class Counting:
        def __init__(self, **_: Any) -> None: ...

        def forward(self, batch: Any) -> torch.Tensor:
            logits = torch.zeros(len(batch.rows), 257)
            for row, at in zip(logits, batch.rows, strict=True):
                row[(batch.token_ids[at] + 1) % 5] = 20.0
            return logits

    options = EngineOptions(speculation=PromptLookup(n_draft=6))
    engine = Engine(model, TOKENIZER, options, make_runner=lambda model, **_: Counting())
    parameters = SamplingParameters(max_new_tokens=50, temperature=0)
    (found,) = engine.generate([[0]], parameters)
    assert list(found.token_ids) == [(i + 1) % 5 for i in range(50)]
    assert engine.statistics().steps < 15


def test_no_draft_goes_beyond_the_end(model: Transformer):
    engine = make_engine(model, speculation=DraftModel(model, 8))
    parameters = SamplingParameters(max_new_tokens=5, seed=1, ignore_end=True)
    (found,) = engine.generate([[1, 2]], parameters)
    assert len(found.token_ids) == 5
    assert engine.statistics().draft_proposed == 4
    (last,) = engine.generate([[3] * 60], replace(parameters, max_new_tokens=50))
    assert len(last.token_ids) == 4


def test_a_draft_model_of_shorter_context_drafts_as_far_as_it_can(model: Transformer):
    short = tiny_model(context_length=16)
    parameters = SamplingParameters(max_new_tokens=10, seed=1, ignore_end=True)
    for runner in (read_back_runner, reference_runner):
        plain = make_engine(model, make_runner=runner)
        engine = make_engine(model, make_runner=runner, speculation=DraftModel(short, 3))
        for prompt in ([1] * 12, [2] * 20):
            (expected,) = plain.generate([prompt], parameters)
            (found,) = engine.generate([prompt], parameters)
            assert found.token_ids == expected.token_ids
        assert 0 < engine.statistics().draft_proposed < 10


def test_chunks_carry_all_ids_of_a_step(model: Transformer):
    engine = make_engine(model, speculation=DraftModel(model, 3))
    parameters = SamplingParameters(max_new_tokens=9, seed=2, log_probs=0, ignore_end=True)
    chunks = list(engine.stream([5, 6], parameters))
    assert [len(chunk.token_ids) for chunk in chunks] == [4, 4, 1]
    assert [len(chunk.log_probs or ()) for chunk in chunks] == [4, 4, 1]
    assert [t for chunk in chunks for t in chunk.token_ids] == plain_ids([5, 6], parameters)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 4))
def test_look_up_finds_what_followed_last_time(token_ids: list[int], n: int, max_ngram: int):
    expected: list[int] = []
    for length in range(min(max_ngram, len(token_ids) - 1), 0, -1):
        starts = [
            start
            for start in range(len(token_ids) - length)
            if token_ids[start : start + length] == token_ids[-length:]
        ]
        if starts:
            sequence = list(token_ids)
            at = starts[-1] + length
            while len(expected) < n:
                sequence.append(sequence[at])
                expected.append(sequence[at])
                at += 1
            break
    assert lookup_draft(token_ids, n, max_ngram) == expected


def test_look_up_is_not_fooled_by_ids_that_meet_in_the_middle():
    # 256 is 0 1 0 0 in bytes, which also stand across 7 and 1: 7 0 0 0 1 0 0 0.
    assert lookup_draft([256, 5, 7, 1, 9, 256], 1, 1) == [5]
    assert lookup_draft([7, 1, 9, 256], 3, 3) == []


def test_other_vocabularies_cannot_draft(model: Transformer):
    from rslm.architecture import TransformerConfig

    other = Transformer(
        TransformerConfig(vocab_size=99, d_model=16, n_layers=1, n_heads=2), device="cpu"
    )
    with pytest.raises(ValueError, match="must have the model's vocab_size 257, got 99"):
        make_engine(model, speculation=DraftModel(other))


@pytest.mark.parametrize(
    "make", [lambda: PromptLookup(n_draft=0), lambda: PromptLookup(max_ngram=0)]
)
def test_options_that_draft_nothing_are_refused(make: Any):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        make()
