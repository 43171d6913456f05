"""Batches of packed documents: a function of (data, seed, step), and equal to documents alone."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.attention import attention, document_starts
from rslm.batches import (
    N_SLOTS,
    Mixture,
    Packed,
    PackedBatch,
    count_samples,
    draw_samples,
    micro_batch,
    mixing_slots,
    sample_batch,
    sample_indices,
)
from rslm.evaluate.loss import evaluate_loss
from rslm.losses import token_losses, training_loss
from rslm.model import Transformer
from rslm.packing import IGNORE_INDEX, plan_packing, positions_in
from rslm.token_file import TokenFile
from rslm.token_file_writer import TokenizerRecord, write_token_file
from rslm.train import accumulate_gradients

END, LENGTH = 0, 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenFile, TokenFile]:
    """Two files of documents of 2 to 31 random tokens, in shards of 200."""
    record = TokenizerRecord(
        name="random",
        vocab_size=50,
        canonical_json=b"{}",
        special_tokens={"<|endoftext|>": END},
        end_of_text=END,
        token_byte_lengths=np.ones(50, np.uint32),
    )
    folder, opened = tmp_path_factory.mktemp("packed"), []
    for seed in range(2):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(1, 31, 60)
        documents = [np.append(draw.integers(1, 50, n), END) for n in lengths]
        out = folder / str(seed)
        write_token_file(out, documents, tokenizer=record, shard_tokens=200, rslm_version="0")
        opened.append(TokenFile.open(out))
    return opened[0], opened[1]


def pack(*token_files: TokenFile, policy: Any = "obfd", **options: Any) -> Packed:
    source: TokenFile | Mixture = token_files[0]
    if len(token_files) > 1:
        source = Mixture(token_files=token_files, slots=mixing_slots([1] * len(token_files), 0))
    plans = () if policy == "chunk" else tuple(plan_packing(f, LENGTH, policy) for f in token_files)
    options = {"mask_documents": True, "restart_positions": True} | options
    return Packed(source=source, plans=plans, **options)


def batch(source: Packed, step: int, **changes: Any) -> PackedBatch:
    options = {"seed": 3, "batch_size": 4, "context_length": LENGTH, **changes}
    drawn = sample_batch(source, step=step, **options)
    assert isinstance(drawn, PackedBatch)
    return drawn


def build(implementation: Any = "reference", dtype: Any = torch.float64, **switches: Any):
    sizes = {"context_length": LENGTH, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32}
    config = TransformerConfig(vocab_size=50, **{**sizes, **switches})
    generator = torch.Generator().manual_seed(0)
    return Transformer(config, implementation=implementation, generator=generator, dtype=dtype)


def sequences(rows: Any) -> Iterator[tuple[int, slice]]:
    """Row and places of each document of some rows, padding left out."""
    for row, (documents, targets) in enumerate(zip(rows.documents, rows.targets, strict=True)):
        for number in np.unique(documents[targets >= 0]):
            (places,) = np.nonzero(documents == number)
            yield row, slice(int(places[0]), int(places[-1]) + 1)


@pytest.mark.parametrize("policy", ["chunk", "bos-bestfit", "obfd"])
@pytest.mark.parametrize("implementation", ["reference", "tiled", "torch"])
@pytest.mark.parametrize("restart_positions", [True, False])
@pytest.mark.parametrize(
    "switches",
    [{}, {"n_kv_heads": 1, "window_pattern": "SL", "window_size": 5}, {"value_embeddings": True}],
)
def test_packed_rows_give_what_their_documents_give_apart(
    files: tuple[TokenFile, TokenFile],
    policy: str,
    implementation: str,
    restart_positions: bool,
    switches: dict[str, Any],
):
    drawn = batch(pack(files[0], policy=policy), 0, batch_size=30)
    rows, together, apart = drawn.rows, build(implementation, **switches), build(**switches)
    assert rows.documents.max() > 1, "the rows must hold several documents"
    options = {"documents": torch.from_numpy(rows.documents)}
    if restart_positions:
        options["token_positions"] = torch.from_numpy(rows.positions)
    inputs, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    logits = together(inputs, **options)
    has_padding = bool((targets < 0).any())
    assert has_padding or policy != "obfd"
    # Rotary positions count as differences only, so where a document begins plays no part but
    # for the float32 of their tables.
    tolerance = 1e-12 if restart_positions else 1e-6
    training_loss(logits, targets, has_padding=has_padding)[0].backward()

    n_targets = int((targets >= 0).sum())
    for row, places in sequences(rows):
        alone = apart(inputs[row, places])
        torch.testing.assert_close(logits[row, places], alone, rtol=0, atol=tolerance)
        (token_losses(alone, targets[row, places]).sum() / n_targets).backward()
    for (name, parameter), other in zip(
        together.named_parameters(), apart.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_without_a_mask_documents_do_see_each_other(files: tuple[TokenFile, TokenFile]):
    rows, model = batch(pack(files[0]), 0).rows, build()
    inputs = torch.from_numpy(rows.inputs)
    masked = model(inputs, documents=torch.from_numpy(rows.documents))
    assert not torch.allclose(model(inputs), masked, atol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "tiled", "torch"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_sees_the_keys_of_its_document(implementation: Any, window: Any, dtype: Any):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 12, 8).to(dtype)  # batch, heads, sequence, d_head
    documents = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3, [0] + [1] * 11])
    options = {"causal": True, "window": window, "implementation": implementation}
    together = attention(q, k, v, start=document_starts(documents), **options)
    for row, numbers in enumerate(documents):
        for number in numbers.unique():
            own = numbers == number
            alone = attention(*(x[row][:, own] for x in (q, k, v)), **options)
            tolerance = 1e-12 if dtype == torch.float64 else 2e-2
            torch.testing.assert_close(together[row][:, own], alone, rtol=0, atol=tolerance)


def test_documents_go_with_no_cache():
    from rslm.kv_cache import KeyValueCache

    model = build()
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="documents must not be given with a cache"):
        model(ids, documents=ids, cache=KeyValueCache(model.config))


def test_recomputed_blocks_mask_as_well(files: tuple[TokenFile, TokenFile]):
    rows = batch(pack(files[0]), 0).rows
    inputs, documents = torch.from_numpy(rows.inputs), torch.from_numpy(rows.documents)
    plain, recomputed = build(), build()
    recomputed.recompute_blocks = 1
    for model in (plain, recomputed):
        model(inputs, documents=documents).sum().backward()
    for parameter, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_padding_is_left_out_of_the_loss_as_torch_does(z_loss: float):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (3, 7))
    targets[0, 4:] = targets[2, 1:] = IGNORE_INDEX
    minimised, loss = training_loss(logits, targets, z_loss=z_loss, has_padding=True)
    minimised.backward()
    expected_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    log_sums = logits[targets >= 0].logsumexp(-1)
    expected = expected_loss + z_loss * log_sums.square().mean()
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(minimised, expected)
    torch.testing.assert_close(logits.grad, gradient)
    assert (logits.grad[targets < 0] == 0).all()


def test_loss_has_the_same_bits_where_nothing_is_padded():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 8, 50), torch.randint(50, (4, 8))
    drawn = training_loss(logits, targets, z_loss=0.1)
    assert drawn[1] is not drawn[0]
    assert torch.equal(drawn[1], token_losses(logits, targets).mean())


def gradients(model: Transformer, parts: list[PackedBatch], size: int) -> tuple[Tensor, ...]:
    """The loss and gradients of processes that average what they accumulate."""
    model.zero_grad()
    loss = sum(accumulate_gradients(model, part, size, CPU, None) for part in parts) / len(parts)
    assert isinstance(loss, Tensor)
    return loss, *(p.grad.clone() / len(parts) for p in model.parameters())


def test_loss_is_the_mean_over_targets_however_the_batch_is_cut(
    files: tuple[TokenFile, TokenFile],
):
    source, model = pack(files[0]), build()
    # The last row of the plan has the most padding.
    place = next(
        at
        for at in range(source.plans[0].n_rows)
        if sample_indices(source.plans[0].n_rows, 3, at, 1)[0] == source.plans[0].n_rows - 1
    )
    options = {"first": place, "batch_size": 4}
    whole = batch(source, 0, **options)
    n_targets = int((whole.rows.targets >= 0).sum())
    assert n_targets < 4 * LENGTH
    assert whole.targets_per_row == n_targets / 4

    expected = gradients(model, [whole], 4)
    part = micro_batch(whole, 0, 4, "cpu")
    logits = model(part.inputs, **part.options)
    mean = F.cross_entropy(logits.flatten(0, 1), part.targets.flatten())
    torch.testing.assert_close(expected[0].double(), mean, rtol=1e-6, atol=0)
    for size in (1, 2):
        torch.testing.assert_close(gradients(model, [whole], size), expected, rtol=1e-6, atol=1e-9)
    for n in (2, 4):
        shares = [slice(4 // n * rank, 4 // n * (rank + 1)) for rank in range(n)]
        parts = [batch(source, 0, share=share, **options) for share in shares]
        cut = gradients(model, parts, 1)
        torch.testing.assert_close(cut, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("policy", ["chunk", "bos-bestfit", "obfd"])
def test_batches_are_a_function_of_seed_and_step(files: tuple[TokenFile, TokenFile], policy: str):
    source, again = (pack(TokenFile.open(files[0].path), policy=policy) for _ in range(2))

    def rows(source: Packed, step: int, **changes: Any) -> np.ndarray:
        return np.stack(batch(source, step, **changes).rows)

    assert np.array_equal(rows(source, 7), rows(again, 7))
    assert not np.array_equal(rows(source, 7), rows(source, 8))
    assert not np.array_equal(rows(source, 7), rows(source, 7, seed=4))
    # Cut otherwise, across an epoch, the order is the same.
    n = 2 * (source.plans[0].n_rows if source.plans else count_samples(len(files[0]), LENGTH))
    whole = rows(source, 0, batch_size=n)
    for size in (1, 5):
        cut = [rows(source, 0, first=at, batch_size=min(size, n - at)) for at in range(0, n, size)]
        assert np.array_equal(np.concatenate(cut, axis=1), whole)
    # In each epoch every row has its turn.
    for epoch in (whole[:, : n // 2], whole[:, n // 2 :]):
        assert len(np.unique(epoch[:2].swapaxes(0, 1), axis=0)) >= n // 2 - 1


def test_windows_are_the_same_whether_or_not_documents_are_told_apart(
    files: tuple[TokenFile, TokenFile],
):
    windows = sample_batch(files[0], seed=3, step=5, batch_size=4, context_length=LENGTH)
    rows = batch(pack(files[0], policy="chunk"), 5).rows
    assert np.array_equal(rows.inputs, windows[:, :-1])
    assert np.array_equal(rows.targets, windows[:, 1:])
    # An end of text begins the document after it.
    begins = np.diff(rows.documents, axis=1, prepend=0) != 0
    assert np.array_equal(begins[:, 1:], rows.inputs[:, 1:] == END)
    assert np.array_equal(rows.positions, positions_in(rows.documents))


@pytest.mark.parametrize("policy", ["chunk", "obfd"])
def test_a_mixture_takes_rows_of_each_file_in_turns(
    files: tuple[TokenFile, TokenFile], policy: str
):
    source = pack(*files, policy=policy)
    assert isinstance(source.source, Mixture)
    drawn = batch(source, 9, batch_size=12)
    sources, indices = draw_samples(source, seed=3, first=108, count=12, context_length=LENGTH)
    assert np.array_equal(sources, source.source.slots[np.arange(108, 120) % N_SLOTS])
    assert set(sources) == {0, 1}
    for i, (number, index) in enumerate(zip(sources, indices, strict=True)):
        one = pack(files[number], policy=policy)
        n = one.plans[0].n_rows if one.plans else count_samples(len(files[number]), LENGTH)
        at = np.flatnonzero(sample_indices(n, 3, 0, n) == index)
        expected = batch(one, 0, first=int(at[0]), batch_size=1).rows
        for array, other in zip(drawn.rows, expected, strict=True):
            assert np.array_equal(array[i], other[0])
    targets = int((drawn.rows.targets >= 0).sum())
    assert drawn.targets_per_row == pytest.approx(targets / 12)


def test_options_reach_the_model_only_where_they_are_asked_for(
    files: tuple[TokenFile, TokenFile],
):
    def names(**options: bool) -> list[str]:
        return sorted(micro_batch(batch(pack(files[0], **options), 0), 0, 2, "cpu").options)

    assert names(mask_documents=False, restart_positions=False) == []
    assert names(restart_positions=False) == ["documents"]
    assert names() == ["documents", "token_positions"]


@pytest.mark.parametrize("restart_positions", [False, True])
def test_validation_masks_documents(files: tuple[TokenFile, TokenFile], restart_positions: bool):
    model, token_file = build(), files[0]
    options = {"mask_documents": True, "restart_positions": restart_positions}
    found = evaluate_loss(model, token_file, batch_size=3, n_tokens=157, **options)
    total, tokens = 0.0, token_file[:158].astype(np.int64)
    for first in range(0, 157, LENGTH):
        window = tokens[first : min(first + LENGTH, 157) + 1]
        ends = [0, *np.flatnonzero(window[:-1] == END).tolist(), len(window) - 1]
        for start, stop in itertools.pairwise(ends):
            if start < stop:
                part = torch.from_numpy(window[start : stop + 1])
                total += token_losses(model(part[None, :-1]), part[None, 1:]).sum().item()
    assert found is not None
    assert found.loss == pytest.approx(total / 157, rel=1e-6)
    plain = evaluate_loss(model, token_file, batch_size=3, n_tokens=157)
    assert plain is not None
    assert plain.loss != pytest.approx(found.loss, rel=1e-6)
