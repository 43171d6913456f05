"""Rejection sampling against sums over everything that can happen, in float64."""

import itertools
from typing import Any

import pytest
import torch
from engines import ReadBack, lookup_logits, make_engine, reference_runner, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rslm.infer import DraftModel, PromptLookup, SamplingParameters
from rslm.infer.rejection import acceptance, rejection_sample, residual

SIZES = [(2, 1), (2, 3), (3, 2), (4, 1), (4, 2)]


def tables(vocab_size: int, n: int, *, seed: int, sparse: bool) -> dict[tuple[int, ...], Any]:
    """A distribution after every sequence of at most `n` ids; some ids impossible if `sparse`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for length in range(n + 1):
        for before in itertools.product(range(vocab_size), repeat=length):
            logits = 2 * torch.randn(vocab_size, generator=generator, dtype=torch.float64)
            if sparse:
                logits[torch.randint(vocab_size, (1,), generator=generator)] = -torch.inf
            found[before] = logits.softmax(0)
    return found


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("vocab_size", "n_draft"), SIZES)
def test_ids_are_distributed_as_the_target_has_them(vocab_size: int, n_draft: int, sparse: bool):
    """Draft, accept, draw the rest, and then by the target alone up to n_draft + 1 ids."""
    target = tables(vocab_size, n_draft, seed=1, sparse=sparse)
    draft = tables(vocab_size, n_draft, seed=2, sparse=sparse)
    law: dict[tuple[int, ...], float] = dict.fromkeys(
        itertools.product(range(vocab_size), repeat=n_draft + 1), 0.0
    )

    def spread(before: tuple[int, ...], probability: float) -> None:
        """What follows is the target's."""
        if len(before) == n_draft + 1:
            law[before] += probability
            return
        for token_id, share in enumerate(target[before].tolist()):
            spread((*before, token_id), probability * share)

    for drafted in itertools.product(range(vocab_size), repeat=n_draft):
        probability = 1.0
        for i, token_id in enumerate(drafted):
            probability *= draft[drafted[:i]][token_id].item()
        if probability == 0:
            continue
        for i, token_id in enumerate(drafted):
            before = drafted[:i]
            accepted = acceptance(target[before], draft[before])[token_id].item()
            rest = residual(target[before], draft[before]).tolist()
            for other, share in enumerate(rest):
                spread((*before, other), probability * (1 - accepted) * share)
            probability *= accepted
        spread(drafted, probability)

    for sequence, probability in law.items():
        expected = 1.0
        for i, token_id in enumerate(sequence):
            expected *= target[sequence[:i]][token_id].item()
        assert probability == pytest.approx(expected, abs=1e-10)


@given(st.integers(0, 999), st.integers(2, 4), st.integers(1, 3), st.data())
def test_a_draft_is_accepted_below_its_threshold_and_the_rest_drawn_from_the_residual(
    seed: int, vocab_size: int, n_draft: int, data: st.DataObject
):
    generator = torch.Generator().manual_seed(seed)
    shape = (n_draft + 1, vocab_size)
    target = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
    draft = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)[:-1]
    ids = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=n_draft, max_size=n_draft))
    uniforms = torch.rand(n_draft, generator=generator, dtype=torch.float64).tolist()
    noise = torch.randn(shape, generator=generator)
    found = rejection_sample(target, draft, ids, uniforms, noise)
    n = len(found) - 1
    assert found[:n] == ids[:n]
    ratios = [(target[i, t] / draft[i, t]).item() for i, t in enumerate(ids)]
    assert all(uniforms[i] < ratios[i] for i in range(n))
    rest = target[-1]
    if n < n_draft:
        assert uniforms[n] >= ratios[n]
        assert found[n] != ids[n]
        rest = (target[n] - draft[n]).clamp(min=0)
    assert found[n] == int((rest.log() + noise[n]).argmax())


def test_a_draft_from_the_target_is_always_accepted():
    target = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert acceptance(target, target).tolist() == [[1.0] * 3] * 2
    assert torch.equal(residual(target, target), target)
    ids = rejection_sample(target, target[:1], [1], [1 - 1e-12], torch.zeros(2, 3))
    assert ids == [1, 2]


class Doubting(ReadBack):
    """The model's logits halved and shuffled a little: right about every other time."""

    def _last_logits(self, table: list[int], length: int) -> torch.Tensor:
        logits = super()._last_logits(table, length)
        return logits / 2 + torch.linspace(0, 1, len(logits))


@pytest.mark.parametrize("speculation", ["draft", "lookup"])
def test_an_engine_that_accepts_by_chance_has_the_target_s_distribution(speculation: str):
    """All three ids of many completions, against the law of plain decoding."""
    model, other = tiny_model(d_model=16), tiny_model(d_model=16)

    def runner(made_for: Any, *, n_blocks: int, block_size: int, **_: Any) -> ReadBack:
        kind = Doubting if made_for is other else ReadBack
        return kind(made_for, n_blocks=n_blocks, block_size=block_size)

    # A prompt whose look-up drafts an id that the model finds likely.
    prompt = next(
        [5, y, 5] for y in range(128) if y in lookup_logits([5, y, 5]).topk(3).indices.tolist()
    )
    parameters = SamplingParameters(max_new_tokens=3, seed=4, n=256, top_k=3, ignore_end=True)
    chosen: Any = PromptLookup(n_draft=2, acceptance="rejection")
    if speculation == "draft":
        chosen = DraftModel(other, 2, acceptance="rejection")
    engine = make_engine(model, make_runner=runner, max_sequences=256, speculation=chosen)
    found = engine.generate([prompt], parameters)
    counts: dict[tuple[int, ...], int] = {}
    for completion in found:
        counts[completion.token_ids] = counts.get(completion.token_ids, 0) + 1
    law = law_of_three(prompt)
    assert set(counts) <= set(law)
    assert sum(law.values()) == pytest.approx(1)
    expected = [256 * law[ids] for ids in law]
    observed = [counts.get(ids, 0) for ids in law]
    # Cells of less than five are thrown together.
    large = [i for i, value in enumerate(expected) if value >= 5]
    rest = (256 - sum(observed[i] for i in large), 256 - sum(expected[i] for i in large))
    assert (
        chisquare(
            [observed[i] for i in large] + [rest[0]], [expected[i] for i in large] + [rest[1]]
        ).pvalue
        > 0.001
    )
    statistics = engine.statistics()
    assert 0 < statistics.draft_accepted < statistics.draft_proposed


def law_of_three(prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of every three ids after the prompt, each of the three likeliest."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for ids, probability in law.items():
            values, top = lookup_logits([*prompt, *ids]).double().topk(3)
            for token_id, share in zip(top.tolist(), values.softmax(0).tolist(), strict=True):
                longer[*ids, token_id] = probability * share
        law = longer
    return law


def test_greedy_ids_are_the_same_under_either_rule():
    model = tiny_model(d_model=16)
    parameters = SamplingParameters(max_new_tokens=8, temperature=0, log_probs=1)
    (expected,) = make_engine(model).generate([[1, 2]], parameters)
    for chosen in (
        DraftModel(model, 2, acceptance="rejection"),
        PromptLookup(acceptance="rejection"),
    ):
        (found,) = make_engine(model, speculation=chosen).generate([[1, 2]], parameters)
        assert found.token_ids == expected.token_ids
        assert found.log_probs == expected.log_probs


def test_log_probs_are_those_of_the_ids_that_were_taken():
    model = tiny_model(d_model=16)
    chosen = DraftModel(tiny_model(seed=3, d_model=16), 2, acceptance="rejection")
    engine = make_engine(model, make_runner=reference_runner, speculation=chosen)
    parameters = SamplingParameters(max_new_tokens=6, seed=1, temperature=0.7, log_probs=1)
    (found,) = engine.generate([[1, 2]], parameters)
    assert found.log_probs is not None
    assert [score.token_id for score in found.log_probs] == list(found.token_ids)
    for position, score in enumerate(found.log_probs, 2):
        logits = model(torch.tensor([1, 2, *found.token_ids][:position]))[-1]
        assert score.log_prob == pytest.approx(
            logits.log_softmax(0)[score.token_id].item(), abs=1e-5
        )
        tempered = (logits / 0.7).log_softmax(0)[score.token_id].item()
        assert score.processed_log_prob == pytest.approx(tempered, abs=1e-5)
