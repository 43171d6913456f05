from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rslm.batches import (
    count_samples,
    counter_seed,
    get_batch,
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


def batch(token_file: TokenFile, step: int, **changes: Any) -> np.ndarray:
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
