"""Rows of conversations and their weights: what must not move the loss, and what it must be."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sft_chats import FORMAT, TOKENIZER, made_up, store
from tiny_models import tiny_model
from torch import Tensor

from rslm.losses import token_losses
from rslm.model import Transformer
from rslm.post.sft import weighted_loss
from rslm.post.sft_batches import (
    RowPlan,
    parts_of,
    plan_rows,
    read_batch,
    rows_of_epochs,
    rows_of_step,
    steps_of,
)
from rslm.post.sft_data import ChatFile

CPU = torch.device("cpu")
AGGREGATIONS: list[Any] = ["token", "sequence", "constant"]
N = 24


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> ChatFile:
    return store(tmp_path_factory.mktemp("chats") / "c", made_up(N))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(TOKENIZER)


def loss_of(
    model: Transformer,
    chats: ChatFile,
    plan: RowPlan,
    rows: Sequence[int],
    *,
    aggregation: Any = "token",
    size: int | None = None,
    shares: Sequence[slice] = (slice(None),),
) -> Tensor:
    """The loss of a batch, summed over its micro-batches and over the parts of processes."""
    total = torch.zeros(())
    options: dict[str, Any] = {"aggregation": aggregation}
    options |= {"max_length": 64} if aggregation == "constant" else {}
    for share in shares:
        batch = read_batch(chats, plan, np.array(rows), share=share, **options)
        for part in parts_of(batch, size, CPU):
            total = total + weighted_loss(model, part)
    return total


@torch.no_grad()
def by_hand(model: Transformer, chats: ChatFile, numbers: Sequence[int], aggregation: str) -> float:
    """The same loss, one conversation at a time, from the definition."""
    sums, counts = [], []
    for number in numbers:
        ids, mask = torch.from_numpy(chats.token_ids(number)), chats.mask(number)
        losses = token_losses(model(ids[None, :-1])[0], ids[1:])[torch.from_numpy(mask[1:])]
        sums.append(float(losses.double().sum()))
        counts.append(len(losses))
    if aggregation == "token":
        return sum(sums) / sum(counts)
    if aggregation == "sequence":
        return sum(s / n for s, n in zip(sums, counts, strict=True)) / len(sums)
    return sum(sums) / (64 * len(sums))


@pytest.mark.parametrize("packing", ["best-fit", "none"])
def test_every_conversation_is_whole_in_one_row(
    chats: ChatFile, packing: Literal["best-fit", "none"]
):
    plan = plan_rows(chats, 64, packing)
    rows = [plan.row(number) for number in range(len(plan))]
    assert sorted(itertools.chain(*rows)) == list(range(N))
    assert all(sum(int(chats.n_targets[n]) for n in row) <= 64 for row in rows)
    assert len(plan) == N if packing == "none" else len(plan) < N / 1.5


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("packing", ["best-fit", "none"])
@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_loss_is_the_definition_however_it_is_cut_and_packed(
    model: Transformer,
    chats: ChatFile,
    aggregation: Any,
    packing: Literal["best-fit", "none"],
    size: int | None,
):
    plan = plan_rows(chats, 64, packing)
    rows = list(range(min(7, len(plan))))
    numbers = [number for row in rows for number in plan.row(row)]
    expected = by_hand(model, chats, numbers, aggregation)
    with torch.no_grad():
        found = loss_of(model, chats, plan, rows, aggregation=aggregation, size=size)
        halves = [slice(0, 3), slice(3, 7)]
        in_two = loss_of(
            model, chats, plan, rows, aggregation=aggregation, size=size, shares=halves
        )
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert in_two.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_do_not_depend_on_packing(chats: ChatFile, aggregation: Any):
    packed, alone = plan_rows(chats, 64, "best-fit"), plan_rows(chats, 64, "none")
    model = tiny_model(TOKENIZER)

    def gradients(plan: RowPlan, rows: Sequence[int], size: int | None) -> list[Tensor]:
        model.zero_grad()
        loss_of(model, chats, plan, rows, aggregation=aggregation, size=size).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    numbers = [number for row in (0, 2, 3) for number in packed.row(row)]
    expected = gradients(alone, numbers, 1)
    for plan, rows, size in (
        (packed, [0, 2, 3], None),
        (packed, [3, 0, 2], 1),
        (alone, numbers, 3),
    ):
        for found, wanted in zip(gradients(plan, rows, size), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_one_mean_over_the_batch_and_no_mean_of_means(model: Transformer, chats: ChatFile):
    plan = plan_rows(chats, 64, "none")
    with torch.no_grad():
        whole = loss_of(model, chats, plan, [0, 1, 2, 3], size=1).item()
        means = [loss_of(model, chats, plan, [row]).item() for row in range(4)]
    assert abs(whole - np.mean(means)) > 1e-3
    assert whole == pytest.approx(by_hand(model, chats, [0, 1, 2, 3], "token"), rel=1e-6)


def test_changing_one_conversation_moves_no_other_loss(tmp_path: Path, model: Transformer):
    texts = made_up(6, seed=3)
    first = store(tmp_path / "one", texts)
    plan = plan_rows(first, 64, "best-fit")
    row = next(plan.row(n) for n in range(len(plan)) if len(plan.row(n)) >= 3)
    # The first in the row, as what comes after could only see what is before.
    changed = [*texts]
    answer = texts[row[0]].get("answer") or texts[row[0]]["messages"][-1]["content"]
    other = "".join("e" if letter != "e" else "a" for letter in answer)
    if "answer" in texts[row[0]]:
        changed[row[0]] = texts[row[0]] | {"answer": other}
    else:
        *before, last = texts[row[0]]["messages"]
        changed[row[0]] = {"messages": [*before, last | {"content": other}]}
    second = store(tmp_path / "two", changed)
    assert plan_rows(second, 64, "best-fit").row(0) == plan.row(0)

    def losses(chats: ChatFile) -> list[Tensor]:
        number = next(n for n in range(len(plan)) if plan.row(n) == row)
        batch = read_batch(chats, plan, np.array([number]), aggregation="token")
        (part,) = parts_of(batch, None, CPU)
        begins = part.options["documents"].diff(dim=1, prepend=torch.tensor([[-1]])) != 0
        assert torch.equal(part.options["token_positions"] == 0, begins)
        hidden = model.hidden_states(part.inputs, **part.options)
        found = token_losses(model.logits(hidden.flatten(0, 1)[part.places]), part.targets)
        return list(found.split([int(chats.mask(n)[1:].sum()) for n in row]))

    with torch.no_grad():
        before_, after = losses(first), losses(second)
    assert not torch.equal(before_[0], after[0])
    for one, two in zip(before_[1:], after[1:], strict=True):
        assert torch.equal(one, two)


def test_padding_is_known_by_its_place_not_by_its_id(tmp_path: Path, model: Transformer):
    # Id 0 fills rows and is a byte of the first answer; end of text begins each conversation.
    stored = store(
        tmp_path / "c", [{"prompt": "p", "answer": "\0\0"}, {"prompt": "q" * 30, "answer": "a"}]
    )
    plan = plan_rows(stored, 64, "none")
    batch = read_batch(stored, plan, np.array([0, 1]), aggregation="token")
    (part,) = parts_of(batch, None, CPU)
    assert batch.n_trained_tokens == len(part.targets) == 5
    assert part.targets.tolist().count(0) == 2
    with torch.no_grad():
        found = weighted_loss(model, part).item()
    assert found == pytest.approx(by_hand(model, stored, [0, 1], "token"), rel=1e-6)


@given(
    n_rows=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    n_epochs=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    seed=st.integers(0, 5),
)
def test_whole_epochs_see_every_row_equally_often(
    n_rows: int, batch_size: int, n_epochs: float, seed: int
):
    n_steps = steps_of(n_rows, batch_size, n_epochs)
    seen = [
        row
        for step in range(n_steps)
        for row in rows_of_step(
            n_rows,
            seed=seed,
            step=step,
            batch_size=batch_size,
            n_steps=n_steps,
            n_epochs=n_epochs,
        ).tolist()
    ]
    assert len(seen) == rows_of_epochs(n_rows, n_epochs)
    counts = np.bincount(seen, minlength=n_rows)
    assert counts.max() - counts.min() <= (0 if n_epochs >= 1 else 1)


def test_a_given_number_of_steps_has_whole_batches():
    for step in range(9):
        rows = rows_of_step(5, seed=0, step=step, batch_size=4, n_steps=9, n_epochs=1.0)
        assert len(rows) == 4


def test_the_last_batch_is_weighed_by_its_own_counts(model: Transformer, chats: ChatFile):
    plan = plan_rows(chats, 64, "none")
    options: Any = {"seed": 0, "batch_size": 5, "n_steps": 5, "n_epochs": 1.0}
    rows = rows_of_step(N, step=4, **options).tolist()
    assert len(rows) == N % 5
    with torch.no_grad():
        found = loss_of(model, chats, plan, rows).item()
    assert found == pytest.approx(by_hand(model, chats, rows, "token"), rel=1e-6)


def test_a_conversation_twice_in_a_batch_counts_twice(model: Transformer, chats: ChatFile):
    plan = plan_rows(chats, 64, "none")
    with torch.no_grad():
        found = loss_of(model, chats, plan, [1, 1, 2], aggregation="sequence").item()
    assert found == pytest.approx(by_hand(model, chats, [1, 1, 2], "sequence"), rel=1e-6)


def test_chunks_of_the_head_give_the_same(chats: ChatFile, monkeypatch: pytest.MonkeyPatch):
    plan, found = plan_rows(chats, 64, "best-fit"), []
    for chunk in (10**6, 7):
        monkeypatch.setattr("rslm.model.chunk_tokens", lambda *_, n=chunk: n)
        model = tiny_model(TOKENIZER)
        loss = loss_of(model, chats, plan, [0, 1], aggregation="sequence")
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_head_sees_trained_places_alone(
    model: Transformer, chats: ChatFile, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_rows(chats, 64, "best-fit")
    batch = read_batch(chats, plan, np.array([0, 1]), aggregation="token")
    (part,) = parts_of(batch, None, CPU)
    shapes: list[tuple[int, ...]] = []
    logits = Transformer.logits
    monkeypatch.setattr(
        Transformer, "logits", lambda self, h: shapes.append(h.shape) or logits(self, h)
    )
    weighted_loss(model, part)
    assert shapes == [(batch.n_trained_tokens, 16)]
    assert batch.n_trained_tokens < part.inputs.numel() * 0.7


def test_prompts_and_generation_fit_what_is_trained(chats: ChatFile):
    # What the chat asks a model with is what stands before a trained answer.
    first = made_up(N)[1]
    ids, mask = chats.token_ids(1), chats.mask(1)
    asked = FORMAT.prompt([{"role": "user", "content": first["prompt"]}])
    assert ids[: int(mask.argmax())].tolist() == asked
