from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rslm.batches import (
    N_SLOTS,
    Mixture,
    continue_batch_sizes,
    count_samples,
    counter_seed,
    first_sample,
    get_batch,
    mixed_samples,
    mixing_slots,
    read_windows,
    sample_batch,
    sample_indices,
    split_windows,
)
from rslm.permutation import permute_scalar
from rslm.token_file import TokenFile
from rslm.token_file_writer import TokenizerRecord, write_token_file


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """Tokens 0, 1, 2, ..., 99 in shards of 30, so that a token says where it came from."""
    record = TokenizerRecord(
        name="count",
        vocab_size=100,
        canonical_json=b"{}",
        special_tokens={},
        end_of_text=None,
        token_byte_lengths=np.ones(100, np.uint32),
    )
    folder = tmp_path_factory.mktemp("counted") / "tokens"
    write_token_file(
        folder,
        [np.arange(start, start + 10) for start in range(0, 100, 10)],
        tokenizer=record,
        shard_tokens=30,
        rslm_version="0",
    )
    return TokenFile.open(folder)


def batch(token_file: TokenFile | Mixture, step: int, **changes: Any) -> np.ndarray:
    options = {"seed": 3, "batch_size": 4, "context_length": 8}
    return sample_batch(token_file, step=step, **{**options, **changes})


def test_get_batch_gives_windows_and_targets_one_ahead() -> None:
    inputs, targets = get_batch(np.arange(50, dtype=np.uint16), 64, 7, "cpu")
    assert inputs.shape == targets.shape == (64, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))


def test_get_batch_reaches_every_start_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = get_batch(np.arange(20), 10_000, 10, "cpu", generator=generator)
    counts = torch.bincount(inputs[:, 0])
    # Starts 0 .. 9, so that the last target is the last token; 1000 +- 5 sigma of 30 each.
    assert len(counts) == 10
    assert targets.max() == 19
    assert (counts - 1000).abs().max() < 150


def test_get_batch_takes_memory_maps_and_a_generator(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(100, dtype=np.uint16))
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
    batches = [
        get_batch(ids, 3, 5, "cpu", generator=torch.Generator().manual_seed(1))[0] for _ in range(2)
    ]
    assert torch.equal(*batches)


def test_data_shorter_than_a_window_is_refused() -> None:
    message = r"at least context_length \+ 1 = 11 tokens, got 10"
    with pytest.raises(ValueError, match=message):
        get_batch(np.arange(10), 1, 10, "cpu")
    with pytest.raises(ValueError, match=message):
        count_samples(10, 10)
    assert count_samples(11, 10) == 1


def test_samples_follow_the_permutation_of_each_epoch() -> None:
    n_samples, seed = 13, 5
    order = sample_indices(n_samples, seed, 0, 3 * n_samples)
    expected = [permute_scalar(n_samples, seed, e, i) for e in range(3) for i in range(n_samples)]
    assert order.tolist() == expected
    assert all(sorted(order[e * 13 : e * 13 + 13]) == list(range(13)) for e in range(3))


def test_batches_do_not_depend_on_how_the_order_is_cut() -> None:
    whole = sample_indices(10, 1, 0, 60)
    for size in (1, 3, 7, 25):
        parts = [sample_indices(10, 1, i, min(size, 60 - i)) for i in range(0, 60, size)]
        assert np.concatenate(parts).tolist() == whole.tolist()


def test_sample_batch_reads_whole_windows_across_shards(counted: TokenFile) -> None:
    n_samples = count_samples(100, 8)
    assert n_samples == 12
    seen = np.concatenate([batch(counted, step) for step in range(3)])
    assert np.array_equal(seen, seen[:, :1] + np.arange(9))
    assert sorted(seen[:, 0].tolist()) == [i * 8 for i in range(n_samples)]


def test_sample_batch_is_a_function_of_seed_and_step(counted: TokenFile) -> None:
    again = TokenFile.open(counted.path)
    assert np.array_equal(batch(counted, 7), batch(again, 7))
    assert not np.array_equal(batch(counted, 7), batch(counted, 8))
    assert not np.array_equal(batch(counted, 7), batch(counted, 7, seed=4))


def test_sample_batch_does_not_depend_on_batch_size(counted: TokenFile) -> None:
    large = np.concatenate([batch(counted, step, batch_size=6) for step in range(4)])
    small = np.concatenate([batch(counted, step, batch_size=2) for step in range(12)])
    assert np.array_equal(large, small)


def test_first_sample_adds_up_the_batches_before() -> None:
    batch_sizes = [(0, 4), (7, 8), (9, 1), (12, 3)]
    sizes = [4] * 7 + [8] * 2 + [1] * 3 + [3] * 5
    assert [first_sample(batch_sizes, step) for step in range(18)] == [
        sum(sizes[:step]) for step in range(18)
    ]


def test_batch_sizes_are_continued_where_they_change() -> None:
    batch_sizes = continue_batch_sizes([], 0, 4)
    assert batch_sizes == [(0, 4)]
    assert continue_batch_sizes(batch_sizes, 5, 4) == [(0, 4)]
    assert continue_batch_sizes(batch_sizes, 5, 8) == [(0, 4), (5, 8)]
    # Changed twice at one step: the first change was never used.
    assert continue_batch_sizes([(0, 4), (5, 8)], 5, 2) == [(0, 4), (5, 2)]
    assert continue_batch_sizes([(0, 4), (5, 8)], 5, 4) == [(0, 4)]
    assert continue_batch_sizes([(0, 4)], 0, 8) == [(0, 8)]


def test_samples_go_on_in_order_where_the_batch_size_changes(counted: TokenFile) -> None:
    batch_sizes = [(0, 4), (3, 2), (6, 5)]
    sizes = [4, 4, 4, 2, 2, 2, 5]
    parts = [
        batch(counted, step, batch_size=size, first=first_sample(batch_sizes, step))
        for step, size in enumerate(sizes)
    ]
    assert np.array_equal(np.concatenate(parts), batch(counted, 0, batch_size=sum(sizes)))


def test_slots_are_shares_by_largest_remainder_in_seeded_order() -> None:
    slots = mixing_slots([1, 1, 1], 0)
    assert np.bincount(slots).tolist() == [334, 333, 333]
    assert np.bincount(mixing_slots([0.7005, 0.2, 0.0995], 0)).tolist() == [701, 200, 99]
    assert np.array_equal(slots, mixing_slots([2.0, 2.0, 2.0], 0))
    assert not np.array_equal(slots, mixing_slots([1, 1, 1], 1))
    # Seeded order means mixed order: no hundred slots in a row miss a source.
    assert all(set(slots[i : i + 100]) == {0, 1, 2} for i in range(0, 1000, 100))


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_must_be_positive_numbers(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be positive numbers"):
        mixing_slots(weights, 0)


def test_huge_and_tiny_weights_are_shares_like_any_others() -> None:
    # The sum of two of the largest floats is infinite.
    for scale in (1e308, 1.0, 5e-324):
        slots = mixing_slots([scale, scale], 3)
        assert np.array_equal(slots, mixing_slots([1, 1], 3)), scale
    # Scaling is by a power of two: what a run reads is not moved by a rounding.
    weights = [0.1, 0.7, 1 / 3, 1e-3]
    shares = np.array(weights) / sum(weights) * N_SLOTS
    assert (np.abs(np.bincount(mixing_slots(weights, 0)) - shares) < 1).all()


def test_faults_of_weights_and_lengths_name_the_file() -> None:
    with pytest.raises(ValueError, match="positive numbers, got 1 for a, nan for b/c"):
        mixing_slots([1, float("nan")], 0, ["a", Path("b/c")])
    with pytest.raises(ValueError, match=r"of their sum, got 1 for a, 0\.0001 for b"):
        mixing_slots([1, 1e-4], 0, ["a", "b"])
    with pytest.raises(ValueError, match=r"^runs/x must hold at least"):
        count_samples(10, 10, Path("runs/x"))


def test_weight_too_small_for_a_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1/1000 of their sum"):
        mixing_slots([1, 1e-4], 0)
    assert np.bincount(mixing_slots([0.999, 0.001], 0)).tolist() == [999, 1]


def test_mixed_samples_follow_the_order_of_each_source() -> None:
    n_samples, slots = [13, 1000, 5], mixing_slots([5, 3, 2], 9)
    sources, indices = mixed_samples(n_samples, slots, 4, 0, 3 * N_SLOTS)
    assert np.array_equal(sources, np.tile(slots, 3))
    for source, n in enumerate(n_samples):
        own = indices[sources == source]
        order = sample_indices(n, counter_seed(4, "source", source), 0, len(own))
        assert np.array_equal(own, order)


def test_mixed_batches_do_not_depend_on_how_the_order_is_cut() -> None:
    n_samples, slots = [13, 1000, 5], mixing_slots([5, 3, 2], 9)
    whole = mixed_samples(n_samples, slots, 4, 0, 2500)
    for size in (1, 7, 640, 2500):
        parts = [
            mixed_samples(n_samples, slots, 4, i, min(size, 2500 - i)) for i in range(0, 2500, size)
        ]
        for one, cut in zip(whole, zip(*parts, strict=True), strict=True):
            assert np.array_equal(one, np.concatenate(cut))


def test_a_place_far_into_a_mixture_costs_nothing() -> None:
    slots = mixing_slots([1, 2], 0)
    sources, indices = mixed_samples([10**9, 10**6], slots, 0, 10**15, 4)
    assert np.array_equal(sources, slots[:4])
    assert (indices < np.where(sources == 0, 10**9, 10**6)).all()


def test_sample_batch_reads_the_windows_of_a_mixture(counted: TokenFile) -> None:
    mixture = Mixture(token_files=(counted, counted), slots=mixing_slots([1, 1], 0))
    windows = batch(mixture, 5, batch_size=6)
    _, indices = mixed_samples([12, 12], mixture.slots, 3, 30, 6)
    assert windows[:, 0].tolist() == (indices * 8).tolist()
    assert np.array_equal(windows, windows[:, :1] + np.arange(9))


def test_split_windows_shifts_by_one(counted: TokenFile) -> None:
    windows = read_windows(counted, np.array([2, 0]), 8)
    inputs, targets = split_windows(windows, "cpu")
    assert inputs.tolist() == [list(range(16, 24)), list(range(8))]
    assert torch.equal(targets, inputs + 1)


def test_counter_seeds_differ_by_every_part_and_never_change() -> None:
    seeds = {counter_seed(s, p, t) for s in (0, 1) for p in ("a", "b") for t in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A run that is resumed with another version must draw the same.
    assert counter_seed(0, "weights") == 8463182719803679840
