import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import (
    END,
    TOKENIZER,
    block_bytes,
    check_at_rest,
    lookup_logits,
    make_engine,
    plain_ids,
    reference_runner,
    tiny_model,
)

from rslm.infer import Engine, EngineOptions, QueueFull, SamplingParameters
from rslm.infer.parameters import Chunk, Completion
from rslm.infer.requests import SequenceState
from rslm.infer.runner import Runner, score
from rslm.model import Transformer

GREEDY = SamplingParameters(max_new_tokens=12, temperature=0)
SEEDED = SamplingParameters(max_new_tokens=12, seed=5)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def ragged(n: int) -> tuple[list[list[int]], list[SamplingParameters]]:
    """Prompts of 1 to 40 ids, some with a common beginning, and parameters of every kind."""
    draw = random.Random(3)
    beginning = [draw.randrange(256) for _ in range(20)]
    prompts = [
        beginning[: draw.randrange(21)] + [draw.randrange(256) for _ in range(draw.randint(1, 20))]
        for _ in range(n)
    ]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {},
        {"top_k": 5},
        {"top_p": 0.7, "temperature": 0.8},
        {"min_p": 0.1, "repetition_penalty": 1.5},
        {"temperature": 0, "repetition_penalty": 3.0},
    ]
    parameters = [
        SamplingParameters(seed=i % 7, max_new_tokens=draw.randint(1, 30), **kinds[i % len(kinds)])
        for i in range(n)
    ]
    return prompts, parameters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_sequences": 1},
        {"max_sequences": 3, "block_size": 4, "max_step_tokens": 7},
        {"max_step_tokens": 1, "block_size": 1},
        {"prefix_cache": False, "block_size": 5, "max_step_tokens": 16},
        {"max_queued": 2, "max_sequences": 5},
    ],
)
def test_ids_are_those_of_plain_decoding_however_requests_share_steps(
    model: Transformer, options: dict[str, Any]
):
    prompts, parameters = ragged(16)
    engine = make_engine(model, **options)
    completions = engine.generate(prompts, parameters)
    assert [list(found) for found in ids(completions)] == [
        plain_ids(*both) for both in zip(prompts, parameters, strict=True)
    ]
    assert [completion.prompt_index for completion in completions] == list(range(16))
    check_at_rest(engine)


def test_ids_do_not_change_when_sequences_lose_their_blocks(model: Transformer):
    prompts, parameters = ragged(24)
    engine = make_engine(model, block_size=4, cache_bytes=20 * block_bytes(model, 4))
    assert engine.statistics().n_blocks == 20
    completions = engine.generate(prompts, parameters)
    assert engine.statistics().preemptions > 5
    assert [list(found) for found in ids(completions)] == [
        plain_ids(*both) for both in zip(prompts, parameters, strict=True)
    ]
    check_at_rest(engine)


def test_sixty_four_requests_join_and_leave_in_the_middle(model: Transformer):
    """In any order, a few a step, against the ids of each alone."""
    prompts, parameters = ragged(64)
    parameters = [replace(each, max_new_tokens=min(each.max_new_tokens, 12)) for each in parameters]
    expected = [plain_ids(*both) for both in zip(prompts, parameters, strict=True)]
    engine = make_engine(model, block_size=4, max_sequences=16, max_step_tokens=32)
    order = random.Random(1).sample(range(64), 64)
    requests: dict[Any, int] = {}
    chunks: dict[int, list[Chunk]] = {i: [] for i in range(64)}
    while order or engine.has_work:
        for _ in range(3):
            if order:
                i = order.pop()
                requests[engine.submit(prompts[i], parameters[i])] = i
        for request, chunk in engine.step():
            chunks[requests[request]].append(chunk)
    for i, of_one in chunks.items():
        assert [token_id for chunk in of_one for token_id in chunk.token_ids] == expected[i]
        *before, last = of_one
        assert last.completion is not None
        assert all(chunk.completion is None for chunk in before)
        assert list(last.completion.token_ids) == expected[i]
        assert "".join(chunk.text for chunk in of_one) == last.completion.text
    check_at_rest(engine)


@pytest.mark.slow  # Whole sequences for every id, and shapes checked in every call.
@pytest.mark.parametrize("exact", [False, True])
def test_paged_runner_gives_the_ids_of_the_plain_one(model: Transformer, exact: bool):
    prompts, parameters = ragged(24)
    expected = make_engine(model, make_runner=reference_runner).generate(prompts, parameters)
    for options in ({}, {"block_size": 4, "max_step_tokens": 9, "max_sequences": 5}):
        engine = make_engine(model, make_runner=Runner, exact=exact, **options)
        assert ids(engine.generate(prompts, parameters)) == ids(expected)
        check_at_rest(engine)


def test_paged_runner_gives_the_ids_of_the_plain_one_on_few_requests(model: Transformer):
    prompts, parameters = ragged(3)
    parameters = [replace(each, max_new_tokens=4) for each in parameters]
    expected = make_engine(model, make_runner=reference_runner).generate(prompts, parameters)
    engine = make_engine(model, make_runner=Runner, block_size=4, max_step_tokens=9)
    assert ids(engine.generate(prompts, parameters)) == ids(expected)


def test_log_probs_in_exact_mode_are_those_of_a_whole_pass_bit_for_bit(model: Transformer):
    prompts, parameters = ragged(6)
    parameters = [
        replace(each, log_probs=0, prompt_log_probs=True, max_new_tokens=9) for each in parameters
    ]
    engine = make_engine(
        model, make_runner=Runner, exact=True, block_size=4, max_step_tokens=11, max_sequences=4
    )
    for found in engine.generate(prompts, parameters):
        sequence = torch.tensor([*found.prompt_ids, *found.token_ids])
        expected = score(model, sequence, exact=True)[:-1].gather(-1, sequence[1:, None])[:, 0]
        told = [*(found.prompt_log_probs or ())[1:], *(found.log_probs or ())]
        assert [each.log_prob for each in told if each is not None] == expected.tolist()


def test_prompts_that_begin_alike_share_blocks(model: Transformer):
    engine = make_engine(model, block_size=4)
    prompt = list(range(22))
    (first,) = engine.generate([prompt], GREEDY)
    (again,) = engine.generate([prompt], GREEDY)
    (shorter,) = engine.generate([prompt[:20]], GREEDY)
    assert (first.n_cached_tokens, again.n_cached_tokens) == (0, 20)
    # All five blocks are known, but the logits after the last token must be computed.
    assert shorter.n_cached_tokens == 16
    assert first.token_ids == again.token_ids
    statistics = engine.statistics()
    assert (statistics.prefix_lookups, statistics.prefix_hits) == (64, 36)
    (other,) = engine.generate([[99, *prompt]], GREEDY)
    assert other.n_cached_tokens == 0


def test_what_was_generated_is_a_prefix_of_the_next_turn(model: Transformer):
    engine = make_engine(model, block_size=4)
    (first,) = engine.generate([[1, 2, 3]], SamplingParameters(max_new_tokens=14, temperature=0))
    assert len(first.token_ids) == 14
    (second,) = engine.generate([[1, 2, 3, *first.token_ids, 7]], GREEDY)
    # 17 tokens, of which the last was never fed.
    assert second.n_cached_tokens == 16


def test_completions_of_one_prompt_differ_and_share_its_blocks(model: Transformer):
    for prefix_cache in (True, False):
        engine = make_engine(model, block_size=4, prefix_cache=prefix_cache)
        parameters = replace(SEEDED, n=8)
        completions = engine.generate([list(range(30))], parameters)
        assert [completion.index for completion in completions] == list(range(8))
        assert len(set(ids(completions))) == 8
        assert [completion.n_cached_tokens for completion in completions] == [0, *[28] * 7]
        assert [list(found) for found in ids(completions)] == [
            plain_ids(list(range(30)), parameters, index) for index in range(8)
        ]
        check_at_rest(engine)
        (later,) = engine.generate([list(range(30))], SEEDED)
        assert later.n_cached_tokens == (28 if prefix_cache else 0)


def test_a_fresh_seed_is_told_and_gives_the_same_again(model: Transformer):
    engine = make_engine(model)
    first, second = engine.generate(["abc", "abc"], SamplingParameters(max_new_tokens=20))
    assert first.seed != second.seed
    assert first.token_ids != second.token_ids
    assert 0 <= first.seed < 2**53
    (again,) = engine.generate(["abc"], SamplingParameters(max_new_tokens=20, seed=first.seed))
    assert again.token_ids == first.token_ids


def test_stream_gives_what_generate_gives(model: Transformer):
    engine = make_engine(model)
    parameters = replace(SEEDED, n=3, log_probs=1)
    expected = engine.generate(["hello"], parameters)
    chunks = list(engine.stream("hello", parameters))
    for index, completion in enumerate(expected):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert "".join(chunk.text for chunk in own) == completion.text
        assert [t for chunk in own for t in chunk.token_ids] == list(completion.token_ids)
        assert [p for chunk in own for p in chunk.log_probs or ()] == list(completion.log_probs)
        assert own[-1].completion is not None
        assert own[-1].completion.text == completion.text
    check_at_rest(engine)


def test_closing_a_stream_cancels_it(model: Transformer):
    engine = make_engine(model)
    stream = engine.stream("hello", replace(SEEDED, n=2))
    next(stream)
    assert engine.statistics().n_running > 0
    stream.close()
    check_at_rest(engine)
    # One that was never read never ran.
    engine.stream("hello", SEEDED)
    check_at_rest(engine)


def test_streams_and_submitted_requests_lose_no_chunk_to_each_other(model: Transformer):
    engine = make_engine(model)
    request = engine.submit(list(b"submitted"), SEEDED)
    one, two = engine.stream("one", SEEDED), engine.stream("two", SEEDED)
    streamed = {"one": [next(one)], "two": [next(two)]}
    engine.generate(["generated"], GREEDY)
    streamed["two"] += two
    streamed["one"] += one
    stepped = []
    while engine.has_work:
        stepped += engine.step()
    assert {each for each, _ in stepped} == {request}
    for prompt, chunks in [*streamed.items(), ("submitted", [chunk for _, chunk in stepped])]:
        assert [t for chunk in chunks for t in chunk.token_ids] == plain_ids(
            list(prompt.encode()), SEEDED
        )


def test_cancelling_frees_all_blocks_at_once(model: Transformer):
    engine = make_engine(model, max_sequences=3, block_size=4)
    requests = [engine.submit(list(range(10 + i)), replace(SEEDED, n=2)) for i in range(4)]
    for _ in range(3):
        engine.step()
    for request in requests:
        engine.cancel(request)
        engine.cancel(request)
    check_at_rest(engine)
    assert all(request.is_done for request in requests)
    reasons = {c.finish_reason for request in requests for c in request.completions}
    assert reasons == {"cancelled"}
    assert engine.step() == []


def test_cancelling_the_first_of_siblings_lets_the_others_start(model: Transformer):
    engine = make_engine(model, max_step_tokens=4)
    request = engine.submit(list(range(20)), replace(SEEDED, n=3))
    other = engine.submit([1, 2], SEEDED)
    engine.step()
    engine.cancel(request)
    while engine.has_work:
        engine.step()
    assert other.completions[0].finish_reason in ("length", "stop")
    check_at_rest(engine)


def test_an_end_id_ends_and_is_the_last_of_the_ids(model: Transformer):
    engine = make_engine(model)
    (long,) = engine.generate([[1, 2, 3]], replace(GREEDY, max_new_tokens=40, ignore_end=True))
    stop = long.token_ids[7]
    n = long.token_ids.index(stop) + 1
    (found,) = engine.generate([[1, 2, 3]], replace(GREEDY, stop_token_ids=(stop,)))
    assert found.token_ids == long.token_ids[:n]
    assert (found.finish_reason, found.stop_reason) == ("stop", stop)
    assert found.text == TOKENIZER.decode(long.token_ids[: n - 1])
    (by_engine,) = Engine(
        model,
        TOKENIZER,
        EngineOptions(),
        end_ids={stop},
        make_runner=lambda *args, **options: make_engine(model)._runner,
    ).generate([[1, 2, 3]], GREEDY)
    assert by_engine.token_ids == found.token_ids


def test_ids_of_no_text_end_whatever_is_ignored():
    """A vocabulary padded to 300: there is nothing to show for the ids beyond."""
    config = replace(tiny_model().config, vocab_size=300)
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).eval()
    for end_ids in (None, {5}):
        engine = Engine(model, TOKENIZER, end_ids=end_ids)
        parameters = SamplingParameters(max_new_tokens=60, seed=0, n=8, ignore_end=True)
        found = engine.generate(["hello"], parameters)
        padded = [completion for completion in found if completion.stop_reason is not None]
        assert padded
        for completion in padded:
            assert completion.stop_reason == completion.token_ids[-1] >= 257


@pytest.mark.parametrize("after", range(0, 60, 7))
def test_an_interrupt_at_any_step_leaves_nothing_behind(model: Transformer, after: int):
    engine = make_engine(model, max_sequences=3, block_size=4)
    take, calls = SequenceState.take, 0

    def interrupted(*args: Any) -> Chunk:
        nonlocal calls
        chunk = take(*args)
        if calls == after:
            raise KeyboardInterrupt
        calls += 1
        return chunk

    prompts, parameters = ragged(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceState, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, parameters)
    check_at_rest(engine)
    assert [list(found) for found in ids(engine.generate(prompts[:2], parameters[:2]))] == [
        plain_ids(*both) for both in zip(prompts[:2], parameters[:2], strict=True)
    ]


def test_ignored_ends_are_gone_past(model: Transformer):
    engine = make_engine(model)
    parameters = SamplingParameters(max_new_tokens=50, temperature=5.0, seed=1)
    completions = engine.generate([[9]] * 60, [replace(parameters, seed=s) for s in range(60)])
    ended = next(found for found in completions if found.finish_reason == "stop")
    assert (ended.finish_reason, ended.stop_reason, ended.token_ids[-1]) == ("stop", END, END)
    (past,) = engine.generate([[9]], replace(parameters, seed=ended.seed, ignore_end=True))
    assert past.token_ids[: len(ended.token_ids)] == ended.token_ids
    assert len(past.token_ids) == 50
    assert "<|endoftext|>" in past.text


def test_a_stop_string_that_straddles_tokens_ends_the_text(model: Transformer):
    engine = make_engine(model)
    (whole,) = engine.generate([[5]], replace(SEEDED, max_new_tokens=40, seed=8))
    at = next(i for i in range(4, 30) if whole.text[i : i + 3].isascii())
    stop = whole.text[at : at + 3]
    assert whole.text.index(stop) == at
    parameters = replace(SEEDED, max_new_tokens=40, seed=8, stop=("no such text", stop))
    (found,) = engine.generate([[5]], parameters)
    assert found.text == whole.text[:at]
    assert (found.finish_reason, found.stop_reason) == ("stop", stop)
    assert found.token_ids == whole.token_ids[: len(found.token_ids)]
    (kept,) = engine.generate([[5]], replace(parameters, keep_stop=True))
    assert kept.text == whole.text[: at + 3]
    assert kept.token_ids == found.token_ids


def test_a_sequence_ends_where_the_context_does(model: Transformer):
    engine = make_engine(model)
    (found,) = engine.generate([list(range(60))], replace(GREEDY, ignore_end=True))
    assert (len(found.token_ids), found.finish_reason) == (4, "length")
    (one,) = engine.generate([list(range(63))], GREEDY)
    assert len(one.token_ids) == 1
    (scored,) = engine.generate([list(range(64))], SamplingParameters(max_new_tokens=0))
    assert (scored.token_ids, scored.text, scored.finish_reason) == ((), "", "length")
    check_at_rest(engine)


@pytest.mark.parametrize("options", [{}, {"max_step_tokens": 3, "block_size": 4}])
def test_prompts_are_scored_by_the_logits_before_each_id(
    model: Transformer, options: dict[str, int]
):
    engine = make_engine(model, **options)
    prompt = list(range(40, 60))
    engine.generate([prompt], GREEDY)  # What is cached has no logits, so it must not be used.
    parameters = SamplingParameters(
        max_new_tokens=3, prompt_log_probs=True, log_probs=2, n=2, seed=1
    )
    found = engine.generate([prompt], parameters)
    for completion in found:
        scores = completion.prompt_log_probs
        assert scores is not None
        assert len(scores) == 20
        assert scores[0] is None
        for position, found_score in enumerate(scores[1:], 1):
            expected = lookup_logits(prompt[:position]).log_softmax(0)
            assert found_score is not None
            assert found_score.token_id == prompt[position]
            assert found_score.log_prob == expected[prompt[position]].item()
            assert [token_id for token_id, _ in found_score.top] == expected.topk(
                2
            ).indices.tolist()
        assert completion.log_probs is not None
        assert len(completion.log_probs) == len(completion.token_ids)
        sequence = [*prompt, *completion.token_ids]
        for position, found_score in enumerate(completion.log_probs, 20):
            expected = lookup_logits(sequence[:position]).log_softmax(0)
            assert found_score.log_prob == expected[sequence[position]].item()
    (echo,) = engine.generate([prompt], replace(parameters, max_new_tokens=0, n=1))
    assert echo.prompt_log_probs == found[0].prompt_log_probs
    assert echo.log_probs == ()
    check_at_rest(engine)


def test_scores_survive_the_loss_of_blocks(model: Transformer):
    parameters = SamplingParameters(max_new_tokens=20, prompt_log_probs=True, log_probs=0, seed=2)
    prompts = [list(range(i, i + 25)) for i in range(6)]
    expected = make_engine(model).generate(prompts, parameters)
    engine = make_engine(
        model, block_size=4, cache_bytes=14 * block_bytes(model, 4), max_step_tokens=5
    )
    found = engine.generate(prompts, parameters)
    assert engine.statistics().preemptions > 0
    assert [c.prompt_log_probs for c in found] == [c.prompt_log_probs for c in expected]
    assert [c.log_probs for c in found] == [c.log_probs for c in expected]


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
    ],
)
def test_what_can_never_be_served_is_refused(
    model: Transformer, prompt: Any, parameters: SamplingParameters, message: str
):
    engine = make_engine(model, max_queued=8, block_size=4, cache_bytes=8 * block_bytes(model, 4))
    calls: list[Callable[[], object]] = [
        lambda: engine.generate([[1], prompt], parameters),
        lambda: engine.stream(prompt, parameters),
    ]
    if not isinstance(prompt, str):
        calls.append(lambda: engine.submit(prompt, parameters))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    check_at_rest(engine)


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


def test_damaged_weights_leave_an_engine_that_can_be_cleared(model: Transformer):
    broken = tiny_model()
    broken.ln_final.weight.data[3] = float("nan")
    engine = make_engine(broken, make_runner=Runner)
    with pytest.raises(ValueError, match="the model's logits must be finite"):
        engine.generate(["hello"] * 3, SEEDED)
    check_at_rest(engine)


def test_changed_weights_are_used_at_once(model: Transformer):
    changing = tiny_model()
    engine = make_engine(changing, make_runner=Runner, block_size=4)
    prompt = list(range(21))
    (before,) = engine.generate([prompt], GREEDY)
    request = engine.submit(prompt, GREEDY)
    for _ in range(4):
        engine.step()
    begun = list(request.sequences[0].token_ids)
    changing.load_state_dict(tiny_model(seed=1).state_dict())
    engine.update_weights()
    while engine.has_work:
        engine.step()
    fresh = make_engine(tiny_model(seed=1), make_runner=reference_runner)
    (expected,) = fresh.generate([prompt], GREEDY)
    (after,) = engine.generate([prompt], GREEDY)
    assert after.token_ids == expected.token_ids != before.token_ids
    # What ran keeps its ids and goes on from them by the new weights.
    (rest,) = fresh.generate([begun], replace(GREEDY, max_new_tokens=12 - (len(begun) - 21)))
    assert list(request.completions[0].token_ids) == begun[21:] + list(rest.token_ids)


def test_times_and_gradients(model: Transformer):
    engine = make_engine(model, make_runner=Runner)
    (found,) = engine.generate(["hello"], GREEDY)
    assert 0 < found.first_token_seconds <= found.seconds
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_statistics_count_tokens(model: Transformer):
    engine = make_engine(model)
    completions = engine.generate([[1, 2, 3], [4]], SEEDED)
    statistics = engine.statistics()
    assert statistics.prompt_tokens == 4
    assert statistics.generated_tokens == sum(len(found) for found in ids(completions))
    assert statistics.steps == max(len(found) for found in ids(completions))
    assert (statistics.draft_proposed, statistics.preemptions) == (0, 0)
