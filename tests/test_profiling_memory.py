"""Bytes that are allocated and saved, against graphs whose bytes are known."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rslm.architecture import n_parameters, parameter_shapes
from rslm.losses import cross_entropy
from rslm.model import Transformer
from rslm.profiling.cases import sized_model
from rslm.profiling.memory import memory_tables, timeline, weigh_steps
from rslm.profiling.memory_trace import MemoryTrace, saved_tensors
from rslm.profiling.workload import Case, distinct_bytes

CPU = torch.device("cpu")


def tiny_case(n_layers: int = 2, **changes: object) -> Case:
    model = sized_model(f"32x{n_layers}x2", vocab_size=64, context_length=16)
    return Case(**{"size": "tiny", "model": model, "batch_size": 2, **changes})


def test_saved_bytes_of_a_known_graph():
    # A layer saves its input for the weight's gradient, and its weight for the input's; a
    # sigmoid its output, which is the next layer's input.
    layers = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 4))
    x = torch.ones(5, 8)
    with saved_tensors(*layers.parameters()) as saved:
        y = layers(x)
    assert saved.n_bytes == 4 * (5 * 8 + 5 * 16)
    assert saved.by_shape == {
        ((5, 8), torch.float32): 4 * 5 * 8,
        ((5, 16), torch.float32): 4 * 5 * 16,
    }
    with saved_tensors() as with_weights:
        y = layers(x)
    # The first weight is not needed: its input has no gradient.
    assert with_weights.n_bytes == saved.n_bytes + 4 * 16 * 4
    del y


def test_views_and_repeated_tensors_count_once():
    x = torch.ones(10, requires_grad=True)
    with saved_tensors() as saved:
        y = x[:4] * x[4:8] + x.sin()[:4] * x.cos()[:4]
    # x once; sin and cos have a product each that saves the other, ten numbers though four.
    assert saved.n_bytes == 3 * 40
    del y


def test_what_is_recomputed_is_not_saved():
    x = torch.ones(100, requires_grad=True)
    with saved_tensors() as saved:
        y = checkpoint(lambda x: x.exp().exp().exp(), x, use_reentrant=False)
    assert saved.n_bytes == 400
    with saved_tensors() as everything:
        y = x.exp().exp().exp()
    assert everything.n_bytes == 3 * 400
    del y


def test_trace_counts_to_the_byte():
    before = torch.ones(1000)
    with MemoryTrace(CPU) as trace:
        with trace.phase("one"):
            a = torch.ones(100)
            b = torch.ones(200)
            del a
        with trace.phase("two"):
            c = torch.ones(50)
        with trace.phase("three"):
            pass
    one, two, three = trace.phases
    assert [phase.name for phase in trace.phases] == ["one", "two", "three"]
    assert one.n_bytes == [0, 400, 1200, 800]
    assert two.n_bytes == [800, 1000]
    assert three.n_bytes == [1000]
    assert (one.peak_bytes, trace.peak_bytes) == (1200, 1200)
    assert all(a <= b for a, b in pairwise(one.seconds + two.seconds + three.seconds))
    moments, levels, ends = timeline(trace.phases)
    assert levels == [0, 400, 1200, 800, 800, 1000, 1000]
    assert (moments[0], len(moments), len(ends)) == (0.0, 7, 3)
    assert len(before) + len(b) + len(c) == 1250


def test_traces_do_not_see_each_other():
    peaks = []
    for _ in range(2):
        kept = torch.ones(64)
        with MemoryTrace(CPU) as trace, trace.phase("all"):
            kept = torch.ones(16) + torch.ones(16)
        peaks.append(trace.peak_bytes)
        del kept
    assert peaks == [192, 192]


def test_distinct_bytes_count_shared_memory_once():
    x = torch.ones(10)
    assert distinct_bytes([x, x[2:], x.view(2, 5), torch.ones(3)]) == 40 + 12


def test_weights_gradients_and_state_are_what_the_parameters_say():
    case = tiny_case()
    (record,), _, _ = weigh_steps([case], CPU)
    n, n_tensors = n_parameters(case.model), len(parameter_shapes(case.model))
    assert record["weights_bytes"] == record["gradients_bytes"] == 4 * n
    # Two moments, and a number that counts steps for each tensor.
    assert record["optimizer_bytes"] == 8 * n + 4 * n_tensors
    assert record["status"] == "measured"


def test_recomputed_blocks_save_the_residual_stream_alone():
    records, _, _ = weigh_steps([tiny_case(n, recompute_blocks=1) for n in (2, 3)], CPU)
    two, three = (record["saved_bytes"] for record in records)
    assert three - two == 4 * 2 * 16 * 32


def test_a_block_more_saves_what_a_block_saves():
    records, _, _ = weigh_steps([tiny_case(n) for n in (2, 3)], CPU)
    two, three = (record["saved_bytes"] for record in records)
    assert three - two == records[0]["saved_block_bytes"] == records[1]["saved_block_bytes"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_forward_pass_leaves_what_was_saved(precision: str):
    case = tiny_case(precision=precision)
    (record,), _, traces = weigh_steps([case], CPU)
    (phases,) = traces.values()
    forward, backward, optimizer = phases
    left = forward.n_bytes[-1] - forward.n_bytes[0]
    # The batch's ids are saved, and were there; the loss was not, and is not saved.
    ids = 2 * 8 * 2 * 16
    assert 0 <= left - (record["saved_bytes"] - ids) <= 64
    assert backward.n_bytes[-1] - backward.n_bytes[0] == record["gradients_bytes"] - left
    assert optimizer.n_bytes[-1] == forward.n_bytes[0]
    assert record["peak_step_bytes"] == max(phase.peak_bytes for phase in phases)
    stays = record["weights_bytes"] + record["optimizer_bytes"]
    assert record["peak_step_bytes"] >= stays + max(left, record["gradients_bytes"])
    assert record["weights_bytes"] < record["peak_forward_bytes"] < record["peak_step_bytes"]


def test_recomputing_lowers_the_peak_of_a_long_batch():
    model = sized_model("32x8x2", vocab_size=64, context_length=64)
    base = replace(tiny_case(), model=model, batch_size=8)
    records, _, _ = weigh_steps([base, replace(base, recompute_blocks=1)], CPU)
    everything, recomputed = (record["peak_step_bytes"] for record in records)
    assert recomputed < 0.5 * everything


def test_residual_stream_has_the_published_size():
    # 20 MiB for 4 sequences of 512 tokens 2560 wide, in a model that is never made.
    config = sized_model("xl", vocab_size=10_000, context_length=512)
    sizes = []
    for n_layers in (1, 2):
        cut = replace(config, n_layers=n_layers)
        model = Transformer(cut, recompute_blocks=1, device="meta")
        ids = torch.zeros(4, 512, dtype=torch.int64, device="meta")
        with saved_tensors(*model.parameters(), *model.buffers()) as saved:
            loss = cross_entropy(model(ids), ids)
        sizes.append(saved.n_bytes)
        del loss
    assert sizes[1] - sizes[0] == 20 * 2**20


def test_tables_name_the_largest_shapes():
    records, largest, _ = weigh_steps([tiny_case()], CPU)
    weights, shapes = memory_tables(records, largest)
    assert weights.headings[-2:] == ["peak forward", "peak step"]
    assert all("-" not in row for row in weights.rows())
    sizes = [record["saved_bytes"] for record in largest]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= records[0]["saved_bytes"]
    assert len(shapes.rows()) == len(largest)
    # Of the feed-forward layer, two of w1 and w3 and two of the gate, in each block.
    assert largest[0]["shape"] == "2 x 16 x 64"


@pytest.mark.gpu
def test_allocator_agrees_with_the_trace_and_writes_a_snapshot(tmp_path):
    device = torch.device("cuda")
    (record,), _, _ = weigh_steps([tiny_case()], device, snapshots=tmp_path)
    assert record["allocator_peak_bytes"] >= record["peak_step_bytes"]
    assert record["reserved_peak_bytes"] >= record["allocator_peak_bytes"]
    assert len(list(tmp_path.glob("memory-*.pickle"))) == 1
