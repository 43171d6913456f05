"""Where sequences end, what their text is then, and what scores tell."""

from dataclasses import replace

import pytest
import torch
from engines import (
    END,
    GREEDY,
    SEEDED,
    TOKENIZER,
    block_bytes,
    check_at_rest,
    lookup_logits,
    make_engine,
    tiny_model,
)

from rslm.infer import Engine, EngineOptions, SamplingParameters
from rslm.model import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


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
