import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import (
    GREEDY,
    SEEDED,
    block_bytes,
    check_at_rest,
    ids_of,
    make_engine,
    plain_ids,
    ragged,
    reference_runner,
    tiny_model,
)

from rslm.infer import SamplingParameters
from rslm.infer.parameters import Chunk
from rslm.infer.requests import SequenceState
from rslm.infer.runner import Runner, score
from rslm.model import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


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
    assert [list(found) for found in ids_of(completions)] == [
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
    assert [list(found) for found in ids_of(completions)] == [
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
        assert ids_of(engine.generate(prompts, parameters)) == ids_of(expected)
        check_at_rest(engine)


def test_paged_runner_gives_the_ids_of_the_plain_one_on_few_requests(model: Transformer):
    prompts, parameters = ragged(3)
    parameters = [replace(each, max_new_tokens=4) for each in parameters]
    expected = make_engine(model, make_runner=reference_runner).generate(prompts, parameters)
    engine = make_engine(model, make_runner=Runner, block_size=4, max_step_tokens=9)
    assert ids_of(engine.generate(prompts, parameters)) == ids_of(expected)


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


def test_a_group_with_seeds_draws_as_each_would_alone(model: Transformer):
    prompts, seeds = [[1, 2, 3], list(range(30))], (5, 2**63, -7)
    group = replace(SEEDED, seed=None, n=3, seeds=seeds)
    alone = [replace(SEEDED, seed=seed) for seed in seeds] * 2
    engine = make_engine(model, block_size=4, max_sequences=4)
    completions = engine.generate(prompts, group)
    expected = engine.generate([prompts[0]] * 3 + [prompts[1]] * 3, alone)
    assert ids_of(completions) == ids_of(expected)
    assert len(set(ids_of(completions))) == 6
    assert [each.seed for each in completions] == [*seeds, *seeds]
    assert [each.index for each in completions] == [0, 1, 2] * 2


def test_groups_start_together(model: Transformer):
    """Those behind a group do not wait for its first to have read the prompt."""
    parameters = replace(GREEDY, max_new_tokens=5, n=3, ignore_end=True)
    engine = make_engine(model)
    prompts = [[i] * 20 for i in range(6)]
    completions = engine.generate(prompts, parameters)
    assert engine.statistics().steps == 6
    assert engine.statistics().prefix_hits == 6 * 2 * 16
    expected = [plain_ids(prompt, parameters) for prompt in prompts for _ in range(3)]
    assert [list(found) for found in ids_of(completions)] == expected
    check_at_rest(engine)


def test_those_that_are_passed_over_stay_in_their_order(model: Transformer):
    engine = make_engine(model, max_sequences=2)
    requests = [engine.submit([i] * 20, replace(SEEDED, n=3)) for i in range(3)]
    engine.step()
    waiting = list(engine._scheduler.waiting)
    assert waiting == [
        *requests[0].sequences[1:],
        *requests[1].sequences[1:],
        *requests[2].sequences,
    ]


def test_what_one_step_admits_leaves_room_for_its_next_ids(model: Transformer):
    """Two prompts fill the blocks, and neither could go on without the other's."""
    engine = make_engine(model, block_size=4, cache_bytes=4 * block_bytes(model, 4))
    engine.generate([[1] * 8, [2] * 8], replace(SEEDED, max_new_tokens=4, ignore_end=True))
    assert engine.statistics().preemptions == 0


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
        assert len(set(ids_of(completions))) == 8
        assert [completion.n_cached_tokens for completion in completions] == [0, *[28] * 7]
        assert [list(found) for found in ids_of(completions)] == [
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


def test_cancelling_siblings_that_wait_for_the_first_lets_others_start(model: Transformer):
    engine = make_engine(model, max_step_tokens=4)
    request = engine.submit(list(range(20)), replace(SEEDED, n=3))
    other = engine.submit([1, 2], SEEDED)
    engine.step()
    engine.cancel(request)
    while engine.has_work:
        engine.step()
    assert other.completions[0].finish_reason in ("length", "stop")
    check_at_rest(engine)


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
    assert [list(found) for found in ids_of(engine.generate(prompts[:2], parameters[:2]))] == [
        plain_ids(*both) for both in zip(prompts[:2], parameters[:2], strict=True)
    ]


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
    # It has left blocks that are known by the new weights' names.
    assert after.n_cached_tokens == 20
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
    assert statistics.generated_tokens == sum(len(found) for found in ids_of(completions))
    assert statistics.steps == max(len(found) for found in ids_of(completions))
    assert (statistics.draft_proposed, statistics.preemptions) == (0, 0)
