"""Ragged steps over a paged cache against the pass over whole sequences, and exact mode's bits."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_model_switches import PLAIN, SWITCHES
from torch import Tensor
from torch.nn import ModuleList

from rslm import _rslm
from rslm.architecture import TransformerConfig
from rslm.infer.cpu_block import CpuBlock
from rslm.infer.cpu_network import cpu_network
from rslm.infer.runner import Runner, StepBatch, score
from rslm.kv_cache import KeyValueCache
from rslm.layers import Linear
from rslm.model import Transformer

WIDE = {
    "d 64": {"d_model": 64, "n_heads": 4, "d_ff": 128, "vocab_size": 101},
    "d 256, grouped heads": {"d_model": 256, "n_heads": 8, "n_kv_heads": 2, "vocab_size": 257},
    "d 576, three a head": {"d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536},
    "odd": {"d_model": 30, "n_heads": 3, "d_ff": 41, "vocab_size": 53, "ffn": "gelu"},
    "odd, gated, capped": {"d_model": 42, "n_heads": 3, "d_ff": 77, "softcap": 3.0},
    "seven a head": {"d_model": 70, "n_heads": 7, "n_kv_heads": 1, "d_ff": 50},
    "windows": {"d_model": 64, "window_pattern": "SL", "window_size": 5, "context_length": 70},
}


def made(config: TransformerConfig, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model whose every weight is off its start, so that gains, zeros and biases count."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, generator=generator)
    size = 0.1 if config.norm == "rms" else 0.01
    for parameter in model.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def model_of(name: str) -> Transformer:
    options: dict[str, Any] = WIDE.get(name) or SWITCHES[name]
    base = replace(PLAIN, context_length=40) if name in WIDE else PLAIN
    return made(replace(base, **options))


def sequences(config: TransformerConfig, n: int, seed: int = 0) -> list[list[int]]:
    """Token ids, the first of the full length."""
    draw, longest = random.Random(seed), config.context_length
    lengths = [longest] + [draw.randint(1, longest) for _ in range(n - 1)]
    return [[draw.randrange(config.resolved_vocab_size) for _ in range(m)] for m in lengths]


def ragged_steps(
    ids: list[list[int]], draw: random.Random, *, block_size: int, n_blocks: int, most: int
) -> Iterator[tuple[StepBatch, list[tuple[int, int]]]]:
    """Random steps that read the sequences to their ends, with what each row stands for."""
    free = list(range(n_blocks))
    draw.shuffle(free)
    tables = [[free.pop() for _ in range(-(-len(x) // block_size))] for x in ids]
    done = [0] * len(ids)
    while any(n < len(x) for n, x in zip(done, ids, strict=True)):
        batch, rows = StepBatch([], [], [], [], []), []
        for i in draw.sample(range(len(ids)), len(ids)):
            n = min(draw.choice([0, 1, 1, most]), len(ids[i]) - done[i])
            if n:
                new = range(done[i], done[i] + n)
                batch.token_ids += [ids[i][at] for at in new]
                batch.positions += new
                batch.lengths.append(n)
                batch.block_tables.append(tables[i])
                rows += [(i, at) for at in new]
                done[i] += n
        if rows:
            batch.rows = [j for j in range(len(rows)) if draw.random() < 0.8] or [0]
            yield batch, [rows[j] for j in batch.rows]


def differences(
    runner: Runner, ids: list[list[int]], full: list[Tensor], seed: int
) -> Iterator[Tensor]:
    """What ragged steps give, minus what `full` holds of the same sequences and positions."""
    size = runner.cache.block_size
    draw = random.Random(seed)
    for batch, rows in ragged_steps(
        ids, draw, block_size=size, n_blocks=runner.cache.n_blocks, most=draw.randint(1, 9)
    ):
        logits = runner.forward(batch)
        yield logits - torch.stack([full[i][at] for i, at in rows])


def whole(model: Transformer, ids: list[list[int]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([x]))[0].float() for x in ids]


def exact_logits(model: Transformer, ids: list[list[int]]) -> list[Tensor]:
    """Logits of the exact pass over whole sequences, all padded into one batch."""
    network, longest = cpu_network(model), max(map(len, ids))
    padded = torch.tensor([x + [0] * (longest - len(x)) for x in ids])
    from rslm.infer.runner import _WholeSequences

    with torch.no_grad():
        logits = network(padded, cache=_WholeSequences(model.config))
    return [x[: len(y)] for x, y in zip(logits, ids, strict=True)]


@pytest.mark.parametrize("name", [*SWITCHES, *WIDE])
def test_ragged_steps_are_bit_equal_to_the_exact_pass_over_whole_sequences(name: str):
    model = model_of(name)
    ids = sequences(model.config, 5)
    full = exact_logits(model, ids)
    for x, y in zip(full, whole(model, ids), strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))
    for seed, block_size in ((1, 4), (2, 1)):
        runner = Runner(model, n_blocks=400, block_size=block_size, exact=True)
        for difference in differences(runner, ids, full, seed):
            assert not difference.any()


def test_the_ordinary_path_is_not_bit_equal_when_it_decodes():
    """What shows that the test above could fail; which widths it holds for depends on the CPU."""
    are_equal = []
    for name in ("d 64", "d 256, grouped heads", "d 576, three a head"):
        model = model_of(name)
        (ids, *_) = sequences(model.config, 1)
        (full,) = whole(model, [ids])
        cache = KeyValueCache(model.config)
        with torch.no_grad():
            decoded = [model(torch.tensor([[x]]), cache=cache)[0, 0] for x in ids]
        are_equal.append(torch.equal(torch.stack(decoded), full))
    assert not all(are_equal)


@pytest.mark.parametrize("name", [*SWITCHES, *WIDE])
def test_the_gathered_path_equals_the_whole_pass(name: str):
    """In float64, which the extension does not take, so that PyTorch computes."""
    model = model_of(name).double()
    ids = sequences(model.config, 4)
    full = whole(model, ids)
    runner = Runner(model, n_blocks=200, block_size=4)
    assert runner.network is model
    for difference in differences(runner, ids, full, seed=3):
        assert difference.abs().max() < 1e-5 * max(1.0, max(float(x.abs().max()) for x in full))


@pytest.mark.hypothesis
@given(seed=st.integers(0, 2**32), block_size=st.integers(1, 20), n=st.integers(1, 6))
def test_exact_bits_depend_on_no_schedule(seed: int, block_size: int, n: int):
    model = model_of("everything")
    ids = sequences(model.config, n, seed)
    runner = Runner(model, n_blocks=12 * n, block_size=block_size, exact=True)
    for difference in differences(runner, ids, exact_logits(model, ids), seed):
        assert not difference.any()


def test_exact_bits_do_not_depend_on_the_number_of_threads():
    model = model_of("d 576, three a head")
    ids = sequences(model.config, 8)
    full = exact_logits(model, ids)
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            runner = Runner(model, n_blocks=100, block_size=16, exact=True)
            for difference in differences(runner, ids, full, seed=n):
                assert not difference.any()
            for x, y in zip(exact_logits(model, ids), full, strict=True):
                assert torch.equal(x, y)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("name", ["everything", "odd, gated, capped", "windows", "biases"])
def test_exact_scores_have_the_gradients_of_the_ordinary_pass(name: str):
    model = model_of(name)
    ids = torch.tensor([x[:9] for x in sequences(model.config, 3) if len(x) >= 9])
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(*ids.shape, model.config.resolved_vocab_size, generator=generator)
    found = []
    for exact in (True, False):
        model.zero_grad()
        (score(model, ids, exact=exact) * weights).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for exact_gradient, ordinary in zip(*found, strict=True):
        torch.testing.assert_close(exact_gradient, ordinary, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("name", ["plain", "windows", "odd, gated, capped", "d 256, grouped heads"])
def test_blocks_in_one_call_are_the_bits_of_their_parts(name: str, quantize: Any):
    model = model_of(name)
    ids = sequences(model.config, 4)
    whole_blocks = Runner(model, n_blocks=200, block_size=4, quantize=quantize)
    parts = Runner(model, n_blocks=200, block_size=4, quantize=quantize)
    assert all(isinstance(layer, CpuBlock) for layer in parts.network.layers)
    parts.network.layers = ModuleList(layer.block for layer in parts.network.layers)
    draw = random.Random(0)
    for batch, _ in ragged_steps(ids, draw, block_size=4, n_blocks=200, most=7):
        assert torch.equal(whole_blocks.forward(batch), parts.forward(batch))
    assert torch.equal(whole_blocks.cache.pool, parts.cache.pool)


@pytest.mark.parametrize(
    "name", ["post-norm", "peri-norm", "no-norm", "qk-norm", "biases", "gelu", "completep"]
)
def test_other_blocks_are_computed_part_by_part(name: str):
    network = Runner(model_of(name), n_blocks=2, block_size=4).network
    assert not any(isinstance(layer, CpuBlock) for layer in network.layers)


def test_a_block_refuses_what_does_not_fit():
    def array(*shape: int) -> Any:
        return np.ones(shape, dtype=np.float32)

    plan = _rslm.StepPlan([0, 1], [2], [[0]], 4, 1)
    gains, turns = (array(8), array(8)), (array(2, 2), array(2, 2))
    shapes = [(8, 8), (4, 8), (4, 8), (8, 8), (6, 8), (6, 8), (8, 6)]
    for wrong in (None, *range(7)):
        matrices = [(array(*shape), None) for shape in shapes]
        if wrong is not None:
            n_outputs, n_inputs = shapes[wrong]
            matrices[wrong] = (array(n_outputs + 4, n_inputs), None)
        block = _rslm.Block(gains, matrices, turns, 1e-5, (2, 1, 4), None, 0.5)
        x, keys, values, out = array(2, 8), array(4, 1, 4), array(4, 1, 4), array(2, 8)
        if wrong is None:
            plan.run_block(block, x, keys, values, out, 1)
            assert np.isfinite(out).all()
            for bad in (array(3, 8), array(2, 7), array(0)):
                with pytest.raises(ValueError, match="must"):
                    plan.run_block(block, bad, keys, values, out, 1)
            with pytest.raises(ValueError, match="must"):
                plan.run_block(block, x, array(3, 1, 4), values, out, 1)
        else:
            with pytest.raises(ValueError, match="must"):
                plan.run_block(block, x, keys, values, out, 1)


def test_score_is_log_probs_of_decoding():
    model = model_of("windows")
    (ids,) = sequences(model.config, 1)
    runner = Runner(model, n_blocks=40, block_size=4, exact=True)
    scores = score(model, torch.tensor(ids), exact=True)
    assert scores.shape == (len(ids), model.config.resolved_vocab_size)
    with torch.no_grad():
        assert torch.equal(scores, score(model, torch.tensor(ids), exact=True))
    for at, token_id in enumerate(ids):
        batch = StepBatch([token_id], [at], [1], [list(range(20))], [0])
        assert torch.equal(runner.forward(batch).log_softmax(-1)[0], scores[at])
    ordinary = score(model, torch.tensor(ids), exact=False)
    torch.testing.assert_close(scores, ordinary, rtol=0, atol=1e-5)


def test_updated_weights_are_used_after_the_call():
    model, generator = model_of("tied-head"), torch.Generator().manual_seed(0)
    batch = StepBatch([1, 2], [0, 1], [2], [[0]], [1])
    for quantize in (None, "int8"):
        runner = Runner(model, n_blocks=1, block_size=4, quantize=quantize)
        before = runner.forward(batch)
        for parameter in model.parameters():
            parameter.data = parameter.data + 0.5 * torch.randn(
                parameter.shape, generator=generator
            )
        runner.update_weights()
        fresh = Runner(model, n_blocks=1, block_size=4, quantize=quantize).forward(batch)
        assert torch.equal(runner.forward(batch), fresh)
        assert not torch.equal(fresh, before)


def test_int8_is_the_model_of_the_weights_that_its_integers_stand_for():
    """And no number depends on the batch."""
    model = model_of("d 576, three a head")
    ids = sequences(model.config, 4)
    runner = Runner(model, n_blocks=100, block_size=8, quantize="int8")
    plain = whole(model, ids)
    for module in model.modules():
        if isinstance(module, Linear):
            integers, scales = _rslm.quantize_rows(module.weight.detach().numpy())
            rows = torch.from_numpy(integers).view(module.weight.shape)
            module.weight.data = rows * torch.from_numpy(scales)[:, None]
    full = whole(model, ids)
    largest = max(float(x.abs().max()) for x in full)
    alone: dict[tuple[int, int], Tensor] = {}
    for seed in (1, 2):
        draw = random.Random(seed)
        for batch, rows in ragged_steps(ids, draw, block_size=8, n_blocks=100, most=5):
            for (i, at), logits in zip(rows, runner.forward(batch), strict=True):
                assert torch.equal(alone.setdefault((i, at), logits), logits)
                assert (logits - full[i][at]).abs().max() <= 1e-5 * max(1.0, largest)
    assert max(float((x - plain[i][at]).abs().max()) for (i, at), x in alone.items()) > 1e-3


def test_a_product_of_integers_lies_within_half_a_step_of_each_weight():
    """So |error| <= scale/2 · the sum of |x|, with scale the row's largest weight over 127."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 300, generator=generator) for n in (40, 9))
    integers, scales = _rslm.quantize_rows(weight.numpy())
    out = np.empty((9, 40), dtype=np.float32)
    _rslm.linear_int8(x.numpy(), integers.reshape(40, 300), scales, None, out, 1)
    bound = weight.abs().amax(-1) / 254 * x.abs().sum(-1, keepdim=True)
    error = (torch.from_numpy(out).double() - x.double() @ weight.double().T).abs()
    assert (error <= 1.001 * bound).all()
    assert (error > 0.01 * bound).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": True}, "exact arithmetic needs weights in float32 on a CPU, got torch.float64"),
        ({"quantize": "int8"}, "exact arithmetic needs weights in float32"),
        ({"compile": True}, "compile needs weights on CUDA, got cpu"),
        ({"n_blocks": 0}, "n_blocks must be at least 1, got 0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    model = model_of("plain").double()
    with pytest.raises(ValueError, match=message):
        Runner(model, **({"n_blocks": 4, "block_size": 4} | options))


def test_a_step_outside_the_pool_is_refused():
    runner = Runner(model_of("plain"), n_blocks=2, block_size=4)
    for batch, message in (
        (StepBatch([1], [4], [1], [[0]], [0]), "must have room for position 4, got 1 blocks of 4"),
        (StepBatch([1], [0], [1], [[2]], [0]), "a block must be below 2, got 2"),
        (StepBatch([1], [12], [1], [[0, 1, 0, 1]], [0]), "at most 12 tokens"),
        (StepBatch([1], [0], [2], [[0]], [0]), "lengths must add up to 1 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.forward(batch)


def test_what_is_not_finite_stays_in_its_sequence():
    model = model_of("plain")
    model.token_embeddings.weight.data[3] = float("nan")
    for dtype in (torch.float32, torch.float64):
        runner = Runner(model.to(dtype), n_blocks=4, block_size=4)
        batch = StepBatch([3, 3, 3, 1, 2], [0, 1, 2, 0, 1], [3, 2], [[0], [1]], [2, 4])
        bad, good = runner.forward(batch)
        assert bad.isnan().all()
        assert good.isfinite().all()
        batch = StepBatch([3, 1], [3, 2], [1, 1], [[0], [1]], [0, 1])
        bad, good = runner.forward(batch)
        assert bad.isnan().all()
        assert good.isfinite().all()


def test_bytes_per_block_is_what_the_pool_takes():
    for name in ("plain", "grouped-heads", "wide-heads"):
        model = model_of(name)
        runner = Runner(model, n_blocks=6, block_size=5)
        assert runner.cache.pool.nbytes == 6 * Runner.bytes_per_block(model.config, 5)
