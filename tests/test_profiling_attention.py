"""Times and memory of the ways to compute attention."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rslm.architecture import forward_flops_by_part
from rslm.attention import implementations_on
from rslm.profiling.attention import (
    AttentionCase,
    attention_tables,
    draw_heads,
    time_attention,
    time_parts,
)
from rslm.profiling.cases import sized_model

CPU = torch.device("cpu")
CASE = AttentionCase(implementation="torch", batch_size=2, n_heads=3, sequence_length=32, d_head=8)


def measured(case: AttentionCase) -> dict[str, object]:
    (record,) = time_attention([case], CPU, n_warmup=0, n_timed=2)
    return record


def test_flops_are_those_of_a_model():
    model = sized_model("24x1x3", vocab_size=8, context_length=32)
    assert CASE.forward_flops == 2 * forward_flops_by_part(model, 32)["attention"]


def test_fused_attention_saves_its_output_and_a_number_a_query():
    n_queries = 2 * 3 * 32
    assert measured(CASE)["saved_bytes"] == 4 * n_queries * (8 + 1)


def test_reference_saves_squares():
    case = replace(CASE, implementation="reference")
    lengths = [measured(replace(case, sequence_length=n))["saved_bytes"] for n in (32, 64, 128)]
    # Of second degree without a rest: twice the length is four times the squares, twice the rest.
    squares = [b - 2 * a for a, b in pairwise(lengths)]
    assert squares[1] == 4 * squares[0]
    # At least the exponentials and the weights, float32, and the mask, once for all heads.
    assert squares[0] / 2 >= 32**2 * (2 * 4 * 2 * 3 + 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", implementations_on(CPU))
def test_every_path_computes_attention(implementation: str, precision: str):
    record = measured(replace(CASE, implementation=implementation, precision=precision))
    assert record["status"] == "measured"
    # Half precision keeps eight bits.
    assert record["largest_error"] < (1e-6 if precision == "float32" else 2**-6)
    assert record["peak_bytes"] >= record["saved_bytes"] > 0
    both = record["forward_seconds_mean"] + record["backward_seconds_mean"]
    assert record["both_seconds_mean"] == pytest.approx(both)
    assert record["flops_per_second"] == pytest.approx(3 * CASE.forward_flops / both)


def test_what_cannot_fit_is_not_tried():
    case = replace(CASE, implementation="reference", sequence_length=2**20)
    small = replace(case, batch_size=1, n_heads=1, d_head=1)
    assert measured(small)["status"] == "out of memory"
    assert time_parts(small, CPU, n_warmup=0, n_timed=1) == []


def test_parts_are_the_formulas_steps():
    records = time_parts(CASE, CPU, n_warmup=1, n_timed=2)
    assert [record["part"] for record in records] == [
        *("scores", "mask and softmax", "weighted values"),
    ]
    assert sum(record["share"] for record in records) == pytest.approx(1)
    products = records[0]["flops"] + records[2]["flops"]
    assert products == CASE.forward_flops
    assert records[1]["flops"] == 5 * 2 * 3 * 32**2
    paths, parts = attention_tables([measured(CASE)], records)
    assert [len(paths.rows()), len(parts.rows())] == [1, 3]
    assert "-" not in paths.rows()[0]


def test_heads_are_equal_for_equal_shapes():
    torch.manual_seed(0)
    first = draw_heads(CASE, CPU)
    torch.manual_seed(1)
    second = draw_heads(replace(CASE, implementation="reference"), CPU)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
