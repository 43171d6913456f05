import copy
import gc
import random
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import tiny_model
from test_model_switches import PLAIN, SWITCHES
from test_runner import WIDE, made

from rslm.infer.runner import score
from rslm.model import Transformer
from rslm.post import log_probs as module
from rslm.post.log_probs import label_log_probs
from rslm.post.rows import Rows, make_rows


def ragged_rows(vocab_size: int, longest: int, n: int = 7, seed: int = 0) -> Rows:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(draw.randint(low, high))]

    prompts = [ids(1, longest // 2) for _ in range(n)]
    completions = [ids(0, longest // 2) for _ in range(n)]
    marks = [[draw.random() < 0.8 for _ in completion] for completion in completions]
    return make_rows(prompts, completions, train_masks=marks, pad_id=draw.randrange(vocab_size))


def gradients_of(model: Transformer, values: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view(values.shape)
    return list(torch.autograd.grad((weights * values).sum(), list(model.parameters())))


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "chunk_tokens", lambda *_: 5)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_entropy_and_gradients_are_those_of_whole_logits(
    in_parts: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
):
    if in_parts:
        small_chunks(monkeypatch)
    model = tiny_model().double()
    rows = ragged_rows(257, 40)
    found = label_log_probs(
        model,
        rows.input_ids,
        rows.labels,
        mask=rows.mask,
        temperature=temperature,
        with_entropy=True,
    )
    logits = model(rows.input_ids) / temperature
    whole = logits.log_softmax(-1)
    values = whole.gather(-1, rows.labels[..., None])[..., 0] * rows.mask
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.entropy, entropy * rows.mask)
    torch.testing.assert_close(
        gradients_of(model, found.values), gradients_of(model, values), atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("name", [*SWITCHES, *WIDE])
def test_exact_values_are_the_bits_of_the_exact_pass(name: str):
    options: dict[str, Any] = WIDE.get(name) or SWITCHES[name]
    model = made(replace(replace(PLAIN, context_length=40) if name in WIDE else PLAIN, **options))
    vocab_size = model.config.resolved_vocab_size
    rows = ragged_rows(vocab_size, model.config.context_length)
    found = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask, exact=True)
    with torch.no_grad():
        whole = score(model, rows.input_ids, exact=True)
    expected = whole.gather(-1, rows.labels[..., None])[..., 0].masked_fill(~rows.mask, 0)
    assert torch.equal(found.values, expected)
    with torch.no_grad():
        again = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask, exact=True)
    assert torch.equal(again.values, expected)


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_padding_neighbours_and_parts_change_no_exact_bit(
    most: int, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model()
    rows = ragged_rows(257, 40)
    whole = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask, exact=True)
    monkeypatch.setattr(module, "_MOST_TOKENS", most)
    small_chunks(monkeypatch)
    for order in ([3], [6, 0], [5, 4, 3, 2, 1, 0]):
        ids, labels, mask = (
            torch.nn.functional.pad(x[order], (0, 3), value=value)
            for x, value in ((rows.input_ids, 9), (rows.labels, 9), (rows.mask, False))
        )
        part = label_log_probs(model, ids, labels, mask=mask, exact=True).values
        assert torch.equal(part[:, :-3], whole.values[order])
        assert not part[:, -3:].any()


def test_neighbours_and_padding_change_other_values_by_rounding_alone():
    model = tiny_model()
    rows = ragged_rows(257, 40)
    whole = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask).values
    for i, mask in enumerate(rows.mask):
        n = int(mask.nonzero().max()) + 1 if mask.any() else 1
        alone = label_log_probs(
            model, rows.input_ids[i : i + 1, :n], rows.labels[i : i + 1, :n], mask=mask[None, :n]
        )
        torch.testing.assert_close(alone.values[0], whole[i, :n], atol=1e-5, rtol=1e-5)


def test_exact_gradients_are_those_of_the_ordinary_pass():
    model = tiny_model()
    rows = ragged_rows(257, 40)
    exact, ordinary = (
        label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask, exact=exact).values
        for exact in (True, False)
    )
    torch.testing.assert_close(exact, ordinary, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients_of(model, exact), gradients_of(model, ordinary), strict=True):
        assert torch.equal(a, b)


def test_exact_values_follow_weights_that_are_trained_exchanged_and_moved():
    model = tiny_model()
    rows = ragged_rows(257, 40)

    def check() -> torch.Tensor:
        found = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask, exact=True)
        fresh = copy.deepcopy(model)
        again = label_log_probs(fresh, rows.input_ids, rows.labels, mask=rows.mask, exact=True)
        assert torch.equal(found.values, again.values)
        return found.values.detach()

    seen = [check()]
    with torch.no_grad():
        model.layers[1].attn.k_proj.weight.mul_(2)
    seen.append(check())
    model.lm_head.weight.data = model.lm_head.weight.data * 2
    seen.append(check())
    model.token_embeddings.weight = torch.nn.Parameter(model.token_embeddings.weight + 1)
    seen.append(check())
    model.to(torch.bfloat16).float()
    seen.append(check())
    assert len({tuple(values.flatten().tolist()) for values in seen}) == len(seen)


def test_a_scored_model_is_not_kept():
    model = tiny_model()
    rows = make_rows([[1]], [[2]])
    label_log_probs(model, rows.input_ids, rows.labels, exact=True)
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


def test_rows_without_a_trained_label_give_zeros_and_no_gradient():
    model = tiny_model()
    rows = make_rows([[1, 2], [3]], [[], []])
    for exact in (False, True):
        found = label_log_probs(
            model, rows.input_ids, rows.labels, mask=rows.mask, exact=exact, with_entropy=True
        )
        assert found.values.tolist() == [[0.0], [0.0]]
        assert found.entropy is not None
        assert found.entropy.tolist() == [[0.0], [0.0]]
        assert all(not gradient.any() for gradient in gradients_of(model, found.values))


@pytest.mark.parametrize("exact", [False, True])
def test_entropy_asks_for_nothing_else(exact: bool):
    model = tiny_model()
    rows = ragged_rows(257, 40)
    found = label_log_probs(
        model, rows.input_ids, rows.labels, mask=rows.mask, exact=exact, with_entropy=True
    )
    logits = model(rows.input_ids)
    entropy = torch.distributions.Categorical(logits=logits).entropy() * rows.mask
    assert found.entropy is not None
    torch.testing.assert_close(found.entropy, entropy.detach(), atol=1e-5, rtol=1e-5)
    assert not found.entropy.requires_grad


def test_autocast_changes_only_the_ordinary_pass():
    model = tiny_model()
    rows = ragged_rows(257, 40)
    values = {
        (exact, dtype): label_log_probs(
            model,
            rows.input_ids,
            rows.labels,
            mask=rows.mask,
            exact=exact,
            autocast_dtype=dtype,
        ).values.detach()
        for exact in (False, True)
        for dtype in (None, torch.bfloat16)
    }
    assert torch.equal(values[True, None], values[True, torch.bfloat16])
    difference = (values[False, None] - values[False, torch.bfloat16]).abs().max()
    assert 0 < difference < 0.5
    assert values[False, torch.bfloat16].dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_nothing_is_drawn_at_are_refused(temperature: float):
    rows = make_rows([[1]], [[2]])
    with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
        label_log_probs(tiny_model(), rows.input_ids, rows.labels, temperature=temperature)


def test_exact_mode_refuses_other_weights():
    rows = make_rows([[1]], [[2]])
    with pytest.raises(ValueError, match="float32 on a CPU"):
        label_log_probs(tiny_model().bfloat16(), rows.input_ids, rows.labels, exact=True)
