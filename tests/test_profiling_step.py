"""Times of a training step, the operators in it, and the dtypes."""

import statistics
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rslm.matmul_peak import measure_matmul_flops
from rslm.profiling.cases import sized_model
from rslm.profiling.operators import kind_of, share_operators
from rslm.profiling.precision import TENSORS, accumulate, list_dtypes
from rslm.profiling.step import PHASES, rates, step_table, time_steps
from rslm.profiling.timing import (
    Marks,
    is_out_of_memory,
    out_of_memory_noted,
    repeat,
    require_memory,
    summarise,
)
from rslm.profiling.workload import Case, Workload, matmul_precision

CPU = torch.device("cpu")


def tiny_case(**changes: object) -> Case:
    model = sized_model("32x2x2", vocab_size=64, context_length=16)
    return Case(**{"size": "32x2x2", "model": model, "batch_size": 3, **changes})


def test_marks_measure_each_phase():
    marks = Marks(CPU)
    time.sleep(0.02)
    marks.mark()
    marks.mark()
    first, second = marks.seconds()
    assert first >= 0.02 > second >= 0


def test_repeat_drops_the_warm_up():
    calls: list[int] = []

    def work() -> list[float]:
        calls.append(len(calls))
        return [float(calls[-1])]

    assert repeat(work, n_warmup=2, n_timed=3) == [[2.0], [3.0], [4.0]]


def test_summary_is_that_of_the_standard_library():
    values = [1.0, 2.0, 6.0]
    assert summarise("x", values) == {
        "x_mean": 3.0,
        "x_median": 2.0,
        "x_std": statistics.stdev(values),
    }
    assert summarise("x", [5.0])["x_std"] == 0.0


def test_rates_follow_from_the_mean_seconds():
    case = tiny_case()
    seconds = {"step_seconds_mean": 2.0, "forward_seconds_mean": 0.5, "backward_seconds_mean": 1.0}
    record = rates(case, seconds, peak=1e9)
    assert record["tokens_per_second"] == 3 * 16 / 2
    flops = record["train_flops"]
    assert record["flops_per_second"] == flops / 2
    assert record["forward_flops_per_second"] == pytest.approx(flops / 3 / 0.5)
    assert record["backward_flops_per_second"] == pytest.approx(flops * 2 / 3)
    assert record["utilisation"] == pytest.approx(flops / 2 / 1e9)


def test_flops_of_a_step_are_those_torch_counts():
    case = tiny_case(implementation="reference")
    work = Workload(case, CPU)
    with FlopCounterMode(display=False) as counter:
        work.backward(work.loss())
    seconds = dict.fromkeys(
        ("step_seconds_mean", "forward_seconds_mean", "backward_seconds_mean"), 1.0
    )
    assert rates(case, seconds, peak=1.0)["train_flops"] == counter.get_total_flops()


def test_steps_are_timed_by_phase():
    told: list[str] = []
    cases = [tiny_case(), tiny_case(precision="bfloat16")]
    records = time_steps(cases, CPU, n_warmup=1, n_timed=3, announce=told.append)
    assert told == ["32x2x2, 16 tokens, float32", "32x2x2, 16 tokens, bfloat16"]
    for record, precision in zip(records, ("float32", "bfloat16"), strict=True):
        assert record["precision"] == precision
        assert record["status"] == "measured"
        phases = [record[f"{phase}_seconds_mean"] for phase in PHASES]
        assert min(phases) > 0
        assert record["step_seconds_mean"] == pytest.approx(sum(phases))
        both = record["forward_backward_seconds_mean"]
        assert both == pytest.approx(sum(phases[:2]))
        assert record["first_step_seconds"] > 0
        peak = record["peak_flops_per_second"]
        assert record["utilisation"] == record["flops_per_second"] / peak
    table = step_table(records)
    assert [len(row) for row in table.rows()] == [len(table.columns)] * 2
    assert all("OOM" not in row and "-" not in row for row in table.rows())


def test_workloads_of_equal_cases_are_equal():
    torch.manual_seed(1)
    first = Workload(tiny_case(), CPU)
    torch.manual_seed(2)
    second, other = Workload(tiny_case(), CPU), Workload(tiny_case(), CPU, rank=1)
    assert torch.equal(first.loss(), second.loss())
    assert not torch.equal(first.inputs, other.inputs)
    assert torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])


def test_steps_stay_finite_and_move_weights():
    work = Workload(tiny_case(), CPU)
    before = work.model.lm_head.weight.detach().clone()
    for _ in range(3):
        work.backward(work.loss())
        work.update()
    assert torch.isfinite(work.loss())
    assert not torch.equal(before, work.model.lm_head.weight)


def test_tf32_needs_cuda_and_precision_is_put_back():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match="precision tfloat32 needs device cuda, got cpu"):
        time_steps([tiny_case(precision="tfloat32")], CPU, n_warmup=0, n_timed=1)
    torch.set_float32_matmul_precision("medium")
    with matmul_precision("float32", CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


def test_memory_that_does_not_suffice_is_noted_and_nothing_else():
    record: dict[str, object] = {}
    with out_of_memory_noted(record, CPU):
        torch.empty(2**60)
    assert record["status"] == "out of memory"
    with out_of_memory_noted(record, CPU):
        require_memory(1e18, CPU)
    assert record["status"] == "out of memory"
    with out_of_memory_noted(record, CPU):
        require_memory(1.0, CPU)
    assert record["status"] == "measured"
    with pytest.raises(RuntimeError, match="another"), out_of_memory_noted(record, CPU):
        raise RuntimeError("another")
    assert is_out_of_memory(MemoryError())


def test_a_model_beyond_the_memory_is_a_row_of_its_own():
    model = sized_model("65536x200x64", vocab_size=64, context_length=16)
    case = tiny_case(model=model, size="vast")
    (record,) = time_steps([case], CPU, n_warmup=0, n_timed=1)
    assert record["status"] == "out of memory"
    assert step_table([record]).rows()[0][4:] == ["OOM"] * 9


def test_the_matmul_peak_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert measure_matmul_flops(CPU, torch.float32, seconds=0.0) > 1e6
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("sm90_xmma_gemm_bf16", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_softmax", "softmax and loss"),
        ("aten::exp_", "softmax and loss"),
        ("aten::expand", "elementwise and other"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::copy_", "copies and casts"),
        ("aten::mul", "elementwise and other"),
    ],
)
def test_operators_are_known_by_kind(operator: str, kind: str):
    assert kind_of(operator) == kind


def test_shares_of_operators_are_whole_and_products_are_counted():
    kinds, largest = share_operators([tiny_case()], CPU)
    for work in ("inference", "training"):
        own = [record for record in kinds if record["work"] == work]
        assert sum(record["share"] for record in own) == pytest.approx(1)
    # q, k, v, output and three of the feed-forward layer in each of two blocks, and the head;
    # each is a matmul, which calls mm, and backward multiplies twice as often.
    counts = {
        record["work"]: record["n_calls"] for record in largest if record["operator"] == "aten::mm"
    }
    assert counts == {"inference": 2 * 7 + 1, "training": 3 * (2 * 7 + 1)}
    assert {record["kind"] for record in largest} <= {record["kind"] for record in kinds}


def test_dtypes_under_autocast_are_these():
    plain, half = list_dtypes([tiny_case(), tiny_case(precision="bfloat16")], CPU)
    assert plain == {"precision": "float32"} | dict.fromkeys(TENSORS, "float32")
    narrow = {name for name in TENSORS if half[name] == "bfloat16"}
    assert narrow == {"query", "feed_forward", "logits"}
    assert all(half[name] == "float32" for name in TENSORS if name not in narrow)


def test_sums_in_half_precision_are_the_published_ones():
    # CS336, assignment 2, section on mixed precision.
    sums = {(record["sum"], record["terms"]): record["value"] for record in accumulate()}
    assert sums["float32", "float32"] == pytest.approx(10.0001, abs=5e-5)
    assert sums["float16", "float16"] == pytest.approx(9.9531, abs=5e-5)
    assert sums["float32", "float16"] == pytest.approx(10.0021, abs=5e-5)
