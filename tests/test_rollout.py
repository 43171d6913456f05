"""The record of a rollout: its seed, its file, and how it is compared."""

import json
import math
import random
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from rslm import FormatError
from rslm.checkpoint import weights_hash
from rslm.post.rollout import (
    Rollout,
    SampleRequest,
    _parsed,
    count_flips,
    measure_mismatch,
    read_rollouts,
    sampling_seed,
    truncated_fraction,
    write_rollouts,
)

ROLLOUT = Rollout(
    prompt_id=7,
    sample_index=1,
    step=3,
    prompt_ids=(1, 2),
    token_ids=(3, 4, 5),
    log_probs=(-0.1, -0.0, -1e-8),
    train_mask=(True, False, True),
    finish_reason="stop",
    text="a\u2028b\ufffd\n",
    weights_hash="00ff",
    seed=2**53 - 1,
    reward=0.5,
    reward_parts={"format": 1.0, "answer": 0.0},
)


def test_seeds_are_the_same_everywhere_for_ever():
    """A resumed run, and one on another machine, must draw what this one drew."""
    assert sampling_seed(0, 0, 0, 0) == 5673711680700993
    assert sampling_seed(1, 2, 3, 4) == 7419587758169300
    assert sampling_seed(-1, 2**62, 3, 4) == 6154930685791597


def test_seeds_tell_apart_all_that_names_a_sample():
    draw = random.Random(0)
    places = {tuple(draw.randrange(-3, 4) for _ in range(4)) for _ in range(2000)}
    seeds = {sampling_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**53 for seed in seeds)
    request = SampleRequest(run_seed=5, step=6, prompt_id=7, prompt_ids=[1], n=2)
    assert request.seed(1) == sampling_seed(5, 6, 7, 1)


@pytest.mark.parametrize("place", [(2**63, 0, 0, 0), (0, 0.5, 0, 0), (0, 0, "1", 0)])
def test_seeds_of_what_is_no_number_of_64_bits_are_refused(place: Any):
    with pytest.raises(ValueError, match="whole numbers of 64 bits"):
        sampling_seed(*place)


def test_weights_hash_sees_one_bit_of_one_weight_and_the_names():
    model = tiny_model(d_model=16)
    before = weights_hash(model)
    assert before == weights_hash(model) == weights_hash(tiny_model(d_model=16))
    weight = model.layers[1].ffn.w2.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    changed = weights_hash(model)
    assert changed != before
    model.layers[1].ffn.w1, model.layers[1].ffn.w3 = model.layers[1].ffn.w3, model.layers[1].ffn.w1
    assert weights_hash(model) not in (before, changed)
    assert weights_hash(model.bfloat16()) != before
    one, other = (torch.nn.ModuleDict({name: torch.nn.Linear(1, 1)}) for name in "ab")
    other["b"].load_state_dict(one["a"].state_dict())
    assert weights_hash(one) != weights_hash(other)


floats32 = st.floats(max_value=0, width=32, allow_nan=False, allow_infinity=False)
drawn = st.lists(st.tuples(st.integers(0, 2**31 - 1), floats32, st.booleans()), max_size=6)


@given(
    drawn,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_file_gives_back_the_same_bits(tokens, text: str, reward: float | None):
    columns = list(zip(*tokens, strict=True)) or [(), (), ()]
    rollout = replace(
        ROLLOUT,
        **dict(zip(("token_ids", "log_probs", "train_mask"), columns, strict=True)),
        text=text,
        reward=reward,
        reward_parts=None if reward is None else {text: reward},
    )
    again = _parsed(json.dumps(asdict(rollout)).encode())
    assert again == rollout
    for a, b in zip(again.log_probs, rollout.log_probs, strict=True):
        assert struct.pack("d", a) == struct.pack("d", b)


def test_a_written_file_is_read_and_replaced_whole(tmp_path: Path):
    path = tmp_path / "step_3.jsonl"
    write_rollouts(path, [ROLLOUT, replace(ROLLOUT, token_ids=(), log_probs=(), train_mask=())])
    write_rollouts(path, [ROLLOUT])
    assert read_rollouts(path) == [ROLLOUT]
    with pytest.raises(ValueError, match="numbers must be finite, got NaN"):
        write_rollouts(path, [ROLLOUT, replace(ROLLOUT, reward=math.nan)])
    assert read_rollouts(path) == [ROLLOUT]
    assert list(tmp_path.iterdir()) == [path]
    write_rollouts(path, [])
    assert read_rollouts(path) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_ids": []}, r"prompt_ids must be a list of token ids, at least one, got \[\]"),
        ({"prompt_ids": [-1]}, "prompt_ids must be a list of token ids"),
        ({"token_ids": [3, 4]}, r"must be equally long, got \[2, 3, 3\]"),
        ({"token_ids": [3, 4, 5.0]}, "token_ids must be a list of token ids"),
        ({"token_ids": [3, 4, 2**31]}, "token_ids must be a list of token ids"),
        ({"token_ids": [3, 4, True]}, "token_ids must be a list of token ids"),
        ({"token_ids": "345"}, "token_ids must be a list of token ids, got '345'"),
        ({"log_probs": [0.1, -1, -1]}, "log_probs must be a list of float32 numbers up to 0"),
        ({"log_probs": [-1e39, -1, -1]}, "log_probs must be a list of float32"),
        ({"log_probs": [None, -1, -1]}, "log_probs must be a list of float32"),
        ({"train_mask": [1, 0, 1]}, "train_mask must be a list of true and false"),
        ({"finish_reason": "cancelled"}, "finish_reason must be stop or length, got 'cancelled'"),
        ({"finish_reason": ["stop"]}, "finish_reason must be stop or length"),
        ({"text": None}, "text must be a text, got None"),
        ({"text": "\ud800"}, "text must be a text"),
        ({"weights_hash": 5}, "weights_hash must be a text, got 5"),
        ({"seed": 1.5}, r"seed must be a whole number of 64 bits, got 1\.5"),
        ({"step": 10**400}, "step must be a whole number of 64 bits"),
        ({"prompt_id": True}, "prompt_id must be a whole number of 64 bits, got True"),
        ({"reward": 10**400}, "reward must be a finite number or null"),
        ({"reward": "1"}, "reward must be a finite number or null, got '1'"),
        ({"reward_parts": {"a": None}}, "reward_parts must be an object of finite numbers"),
        ({"reward_parts": [1]}, "reward_parts must be an object of finite numbers"),
        ({"more": 1}, "it must be an object of prompt_id, sample_index"),
    ],
)
def test_lines_that_are_no_rollout_are_refused_by_number(
    tmp_path: Path, changes: dict[str, Any], said: str
):
    path = tmp_path / "rollouts.jsonl"
    good = asdict(ROLLOUT)
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | changes)}\n")
    with pytest.raises(FormatError, match=rf"rollouts\.jsonl, line 2: .*{said}"):
        read_rollouts(path)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"reward": NaN}',
        b"\xff\xfe",
        b"9" * 5000,
        json.dumps(asdict(ROLLOUT)).replace("0.5", "Infinity").encode(),
        json.dumps({k: v for k, v in asdict(ROLLOUT).items() if k != "seed"}).encode(),
    ],
)
def test_hostile_lines_are_refused_by_number(tmp_path: Path, line: bytes):
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(FormatError, match=r"rollouts\.jsonl, line 1: ") as caught:
        read_rollouts(path)
    assert len(str(caught.value)) < 1000


def test_a_file_that_was_cut_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rollouts.jsonl"
    write_rollouts(path, [ROLLOUT, ROLLOUT])
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError, match="line 2: it must end within 16777216 bytes"):
        read_rollouts(path)
    monkeypatch.setattr("rslm.post.rollout._MAX_LINE", 100)
    path.write_bytes(data)
    with pytest.raises(FormatError, match="line 1: it must end within 100 bytes"):
        read_rollouts(path)


def test_mismatch_is_of_trained_tokens_alone():
    sampler = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -5.0, 0.0]])
    trainer = torch.tensor([[-1.0, -2.5, -9.0], [-1.25, -5.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    found = measure_mismatch(sampler, trainer, mask)
    assert (found.n_tokens, found.n_different, found.largest) == (4, 2, 0.5)
    k3 = [math.exp(d) - 1 - d for d in (0, -0.5, -0.25, 0)]
    assert found.mean_k3 == pytest.approx(math.fsum(k3) / 4, rel=1e-12)
    nothing = measure_mismatch(sampler, trainer, torch.zeros_like(mask))
    assert (nothing.n_tokens, nothing.largest, nothing.mean_k3) == (0, 0.0, 0.0)


def test_mismatch_of_rounding_is_not_rounded_away():
    sampler = torch.full((1, 1), -1e-3)
    one = torch.ones_like(sampler, dtype=torch.bool)
    found = measure_mismatch(sampler, torch.nextafter(sampler, torch.zeros(1)), one)
    assert found.n_different == 1
    assert found.mean_k3 == pytest.approx(found.largest**2 / 2, rel=1e-4, abs=0)
    assert measure_mismatch(torch.tensor([0.0]), torch.tensor([-0.0]), one[0]).n_different == 0


def test_mean_k3_is_the_divergence_over_all_samples():
    """By enumeration: samples of p weighted by p, sampler p, trainer q."""
    p, q = (
        torch.randn(50, generator=torch.Generator().manual_seed(i)).log_softmax(0) for i in (1, 2)
    )
    expected = (p.exp() * (p - q)).sum()
    n = 200_000
    counts = (p.double().exp() * n).round().long()
    ids = torch.repeat_interleave(torch.arange(50), counts)
    found = measure_mismatch(p[ids], q[ids], torch.ones_like(ids, dtype=torch.bool))
    assert found.mean_k3 == pytest.approx(float(expected), rel=1e-3)


def test_flips_count_ids_up_to_the_first_that_differs():
    others = [
        ROLLOUT,
        replace(ROLLOUT, token_ids=(3, 9, 9)),
        replace(ROLLOUT, token_ids=(3, 4)),
    ]
    found = count_flips([ROLLOUT] * 3, others)
    assert (found.n_samples, found.n_flipped, found.n_tokens) == (3, 2, 3 + 2 + 2)
    assert found.rate == pytest.approx(2 / 7)
    assert count_flips([], []).rate == 0
    with pytest.raises(ValueError, match="samples must be of the same requests, got seeds 9007"):
        count_flips([ROLLOUT], [replace(ROLLOUT, seed=1)])


def test_truncated_fraction_is_of_all_rollouts():
    cut = replace(ROLLOUT, finish_reason="length")
    assert truncated_fraction([ROLLOUT, cut, cut, ROLLOUT]) == 0.5
    assert truncated_fraction([]) == 0
