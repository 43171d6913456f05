"""What an engine refuses, what waits, and in which order it is served."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engines import (
    GREEDY,
    block_bytes,
    check_at_rest,
    make_engine,
    tiny_model,
)

from rslm.infer import QueueFull, SamplingParameters
from rslm.infer.paged_cache import StepBatch
from rslm.model import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def test_the_queue_is_bounded(model: Transformer):
    engine = make_engine(model, max_queued=5, max_sequences=1)
    for _ in range(5):
        engine.submit([1], GREEDY)
    with pytest.raises(QueueFull, match=r"at most 5 sequences may wait \(max_queued\), got 5 and"):
        engine.submit([1], GREEDY)
    with pytest.raises(QueueFull):
        engine.stream([1], GREEDY)
    engine.step()
    engine.submit([1], GREEDY)
    assert engine.statistics().n_waiting == 5
    # More prompts than may wait are no hindrance where one call has them all.
    assert len(engine.generate([[2]] * 12, replace(GREEDY, max_new_tokens=1))) == 12


def test_five_hundred_queued_requests_run_in_the_blocks_there_are(model: Transformer):
    engine = make_engine(
        model, block_size=4, cache_bytes=32 * block_bytes(model, 4), max_sequences=8
    )
    draw = random.Random(0)
    parameters = SamplingParameters(max_new_tokens=6, temperature=0)
    requests = [
        engine.submit([draw.randrange(256) for _ in range(draw.randint(1, 30))], parameters)
        for _ in range(500)
    ]
    most_held, finished = 0, []
    while engine.has_work:
        for request, chunk in engine.step():
            if chunk.completion is not None:
                finished.append(request)
        statistics = engine.statistics()
        assert statistics.n_running <= 8
        most_held = max(most_held, statistics.n_blocks - statistics.n_free_blocks)
        running = engine._scheduler.running
        assert sum(len(sequence.blocks) for sequence in running) <= 32
    assert most_held <= 32
    check_at_rest(engine)
    # In turn: none ends before one that was submitted eight or more earlier has begun.
    number = {request: i for i, request in enumerate(requests)}
    places = [number[request] for request in finished]
    assert sorted(places) == list(range(500))
    assert max(abs(place - i) for i, place in enumerate(places)) <= 16


def test_a_step_reads_no_more_of_prompts_than_it_may(model: Transformer):
    """Also beside a scored prompt, which is read in pieces of its own size."""
    engine = make_engine(model, max_step_tokens=7)
    engine._scheduler._max_scored_tokens = 3
    forward, sizes = engine._runner.forward, []

    def counted(batch: StepBatch) -> torch.Tensor:
        sizes.append(sum(length for length in batch.lengths if length > 1))
        return forward(batch)

    engine._runner.forward = counted  # type: ignore[method-assign]
    scored = SamplingParameters(max_new_tokens=2, prompt_log_probs=True)
    parameters = [scored, GREEDY, GREEDY, scored, GREEDY]
    engine.generate([[i] * (20 + i) for i in range(5)], parameters)
    assert max(sizes) == 7


def test_a_long_prompt_does_not_hold_up_what_runs(model: Transformer):
    engine = make_engine(model, max_step_tokens=4)
    first = engine.submit([1], replace(GREEDY, max_new_tokens=20, ignore_end=True))
    engine.step()
    engine.submit(list(range(60)), replace(GREEDY, max_new_tokens=2))
    for _ in range(10):
        assert first in [request for request, _ in engine.step()]


@pytest.mark.parametrize(
    ("prompt", "parameters", "message"),
    [
        ([], GREEDY, "a prompt must hold at least one token id"),
        ("", GREEDY, "a prompt must hold at least one token id"),
        ([1, 257], GREEDY, r"a prompt's token ids must lie in \[0, 257\), got 1 to 257"),
        ([-1], GREEDY, r"must lie in \[0, 257\), got -1 to -1"),
        ([1] * 64, GREEDY, "at most 63 tokens to be continued .* context_length 64, got 64"),
        ([1] * 65, SamplingParameters(max_new_tokens=0), "at most 64 tokens"),
        ([1], replace(GREEDY, n=9), "n must be at most max_queued 8, got 9"),
        (
            [1] * 20,
            replace(GREEDY, max_new_tokens=30),
            "must fit into a cache of 32 tokens, got 49",
        ),
        ([1] * 33, SamplingParameters(max_new_tokens=0), "must fit into a cache of 32 tokens"),
        ([True], GREEDY, r"a text or a list of token ids, got \[True\]"),
        ([1.5], GREEDY, r"a text or a list of token ids, got \[1\.5\]"),
        (b"ab", GREEDY, "a text or a list of token ids, got b'ab'"),
        (None, GREEDY, "a text or a list of token ids, got None"),
        ([1], {"n": 1}, r"parameters must be SamplingParameters, got \{'n': 1\}"),
    ],
)
def test_what_can_never_be_served_is_refused(
    model: Transformer, prompt: Any, parameters: Any, message: str
):
    engine = make_engine(model, max_queued=8, block_size=4, cache_bytes=8 * block_bytes(model, 4))
    calls: list[Callable[[], object]] = [
        lambda: engine.generate([[1], prompt], [GREEDY, parameters]),
        lambda: engine.stream(prompt, parameters),
    ]
    if not isinstance(prompt, str):
        calls.append(lambda: engine.submit(prompt, parameters))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    check_at_rest(engine)


def test_ids_of_arrays_and_tensors_become_numbers(model: Transformer):
    engine = make_engine(model)
    prompts: list[Any] = [np.array([1, 2]), torch.tensor([1, 2]), range(1, 3), (1, 2)]
    found = engine.generate(prompts, GREEDY)
    assert len({completion.token_ids for completion in found}) == 1
    assert all(type(each) is int for completion in found for each in completion.prompt_ids)


def test_what_just_fits_is_served(model: Transformer):
    engine = make_engine(model, block_size=4, cache_bytes=8 * block_bytes(model, 4))
    (found,) = engine.generate([[1] * 20], replace(GREEDY, max_new_tokens=13, ignore_end=True))
    assert len(found.token_ids) == 13


def test_a_string_is_no_list_of_prompts_and_parameters_are_as_many(model: Transformer):
    engine = make_engine(model)
    with pytest.raises(ValueError, match="prompts must be a sequence of prompts, got the string"):
        engine.generate("hello", GREEDY)
    with pytest.raises(ValueError, match="parameters must be as many as prompts, got 1 and 2"):
        engine.generate(["a", "b"], [GREEDY])
    assert engine.generate([], GREEDY) == []


def test_special_tokens_in_a_prompt_are_text(model: Transformer):
    (found,) = make_engine(model).generate(["a<|endoftext|>"], GREEDY)
    assert found.prompt_ids == tuple(b"a<|endoftext|>")
