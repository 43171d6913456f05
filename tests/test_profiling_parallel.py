"""Collectives counted and timed in two processes, against the formulas."""

from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from processes import run_processes

from rslm.architecture import n_parameters, parameter_shapes
from rslm.distributed.processes import Processes
from rslm.profiling.cases import Kind, sized_model
from rslm.profiling.collectives import all_reduce_table, time_all_reduce
from rslm.profiling.launch import in_processes
from rslm.profiling.parallel import (
    PHASES,
    ParallelCase,
    compare_parallel,
    parallel_tables,
)
from rslm.profiling.traffic import (
    ParameterBytes,
    Traffic,
    expected_held_bytes,
    expected_sent_bytes,
    parameter_bytes,
    sent_bytes,
)
from rslm.profiling.workload import Case

MODEL = sized_model("32x2x2", vocab_size=64, context_length=16)
CASE = Case(size="32x2x2", model=MODEL, batch_size=2)
KINDS: tuple[Kind, ...] = get_args(Kind)
P = 4 * n_parameters(MODEL)
N_TENSORS = len(parameter_shapes(MODEL))


def known_traffic(processes: Processes) -> tuple[dict[str, int], dict[str, int], Any]:
    """One collective of each kind, of sizes that are known."""
    x = torch.ones(10, requires_grad=True)
    with Traffic() as traffic:
        dist.all_reduce(torch.ones(100))
        dist.all_reduce(torch.ones(3, dtype=torch.float64))
        dist.broadcast(torch.ones(7, dtype=torch.float16), src=1)
        dist.all_gather_into_tensor(torch.empty(20), torch.ones(10))
        dist.all_gather([torch.empty(4), torch.empty(4)], torch.ones(4))
        # In a backward pass, too.
        x.register_hook(lambda gradient: dist.all_reduce(torch.ones(50)))
        (x * 2).sum().backward()
    dist.all_reduce(torch.ones(1000))
    return dict(traffic.n_bytes), dict(traffic.n_calls), x.grad


def account(processes: Processes) -> Any:
    cases = [ParallelCase(kind=kind, case=CASE) for kind in KINDS]
    half = Case(size="half", model=MODEL, batch_size=2, precision="bfloat16")
    cases += [ParallelCase(kind=kind, case=half) for kind in ("fsdp", "torch-fsdp2")]
    sizes = [0.004, 0.1]
    return (
        known_traffic(processes),
        time_all_reduce(processes, sizes, n_warmup=1, n_timed=2),
        compare_parallel(cases, processes, n_warmup=0, n_timed=2),
    )


@pytest.fixture(scope="module")
def accounts() -> list[Any]:
    """What two processes found."""
    return run_processes(account)


@pytest.fixture(scope="module")
def records(accounts: list[Any]) -> dict[str, dict[str, Any]]:
    """The records of process 0, by kind; those in half precision with "half" before it."""
    return {
        ("half " if record["size"] == "half" else "") + record["kind"]: record
        for record in accounts[0][2]
    }


def test_collectives_are_counted_by_the_whole_tensor(accounts: list[Any]):
    for (n_bytes, n_calls, gradient), _, _ in accounts:
        assert n_bytes == {"all-reduce": 400 + 24 + 200, "broadcast": 14, "all-gather": 80 + 32}
        assert n_calls == {"all-reduce": 3, "broadcast": 1, "all-gather": 2}
        assert torch.equal(gradient, torch.full((10,), 2.0))


@pytest.mark.parametrize(
    ("collective", "expected"),
    [("all-reduce", 150), ("broadcast", 75), ("all-gather", 75), ("reduce-scatter", 75)],
)
def test_a_rings_bytes_are_those_of_the_formula(collective: str, expected: float):
    assert sent_bytes(collective, 100, 4) == expected
    assert sent_bytes(collective, 100, 1) == 0


def test_all_reduce_has_a_record_for_each_size(accounts: list[Any]):
    reduced = accounts[0][1]
    assert [record["n_bytes"] for record in reduced] == [4_000, 100_000]
    for record in reduced:
        assert (record["backend"], record["n_processes"]) == ("gloo", 2)
        assert record["seconds_mean"] > 0
        # With two processes a ring sends as many bytes as the tensor has.
        assert record["bus_bytes_per_second"] == record["bytes_per_second"]
        speed = record["n_bytes"] / record["seconds_mean"]
        assert record["bytes_per_second"] == pytest.approx(speed)
    assert accounts[0][1] == accounts[1][1]
    assert [row[2] for row in all_reduce_table(reduced).rows()] == ["0.004", "0.1"]


def test_nothing_is_sent_by_processes_that_train_by_themselves(records: dict[str, Any]):
    assert records["none"]["sent_bytes"] == records["none"]["n_calls"] == 0
    assert records["none"]["exposed_seconds"] == 0


OWN_DDP = [kind for kind in KINDS if kind.startswith("ddp-")]


@pytest.mark.parametrize("kind", OWN_DDP)
def test_own_ddp_reduces_each_gradient_once(records: dict[str, Any], kind: str):
    record = records[kind]
    # And a number for each tensor, by which processes agree on those that are unused.
    assert record["all_reduce_bytes"] == P + 4 * N_TENSORS
    assert record["sent_bytes"] == record["all_reduce_bytes"]
    assert record["expected_sent_bytes"] == P
    n_messages = {"ddp-naive": N_TENSORS, "ddp-overlap": N_TENSORS}.get(kind, 1)
    assert record["n_calls"] == n_messages + 1


def test_torchs_ddp_reduces_each_gradient_once(records: dict[str, Any]):
    record = records["torch-ddp"]
    assert 0 <= record["all_reduce_bytes"] - P <= 8 * N_TENSORS
    assert record["expected_sent_bytes"] == P


def test_a_sharded_optimizer_sends_the_weights_as_well(records: dict[str, Any]):
    record = records["sharded"]
    assert record["all_reduce_bytes"] == P + 4 * N_TENSORS
    assert record["broadcast_bytes"] == P
    assert record["expected_sent_bytes"] == 1.5 * P


@pytest.mark.parametrize(("name", "width"), [("fsdp", 4), ("half fsdp", 2)])
def test_own_fsdp_gathers_matrices_twice_and_tables_once(
    records: dict[str, Any], name: str, width: int
):
    record, size = records[name], parameter_bytes(MODEL)
    n_vectors = size.others // (4 * 32)
    gathered = (2 * size.matrices + size.lookups) * width // 4
    assert record["all_gather_bytes"] == gathered
    # On a CPU gradients are reduced whole; the flags of the vectors and the norm are small.
    small = 4 * n_vectors + 8
    assert record["all_reduce_bytes"] == size.whole + small
    assert record["sent_bytes"] == record["expected_sent_bytes"] + small


@pytest.mark.parametrize(("name", "width"), [("torch-fsdp2", 4), ("half torch-fsdp2", 2)])
def test_torchs_fsdp_gathers_twice_and_scatters_once(
    records: dict[str, Any], name: str, width: int
):
    record = records[name]
    assert record["all_gather_bytes"] == 2 * P * width // 4
    assert record["reduce_scatter_bytes"] == P
    assert record["sent_bytes"] == pytest.approx(record["expected_sent_bytes"], abs=64)


@pytest.mark.parametrize("name", KINDS)
def test_held_bytes_are_those_of_the_formula(records: dict[str, Any], name: str):
    record = records[name]
    # Beside the moments the state has a number that counts steps for each tensor; and whole
    # tensors are dealt out, so that one process may own some more.
    slack = 4 * N_TENSORS + (4 * 64 * 32 if name == "sharded" else 0)
    assert 0 <= record["held_bytes"] - record["expected_held_bytes"] <= slack
    assert record["peak_making_bytes"] >= record["weights_bytes"]
    assert record["peak_backward_bytes"] > record["held_bytes"] - record["optimizer_bytes"]
    assert record["peak_optimizer_bytes"] >= record["held_bytes"]


def test_sharding_divides_what_it_says(records: dict[str, Any]):
    whole, size = records["ddp-flat"], parameter_bytes(MODEL)
    assert whole["weights_bytes"] == whole["gradients_bytes"] == P
    assert records["sharded"]["weights_bytes"] == P
    assert records["sharded"]["optimizer_bytes"] < 0.6 * whole["optimizer_bytes"]
    rows = (size.matrices + size.lookups) // 2 + size.others
    assert records["fsdp"]["weights_bytes"] == records["fsdp"]["gradients_bytes"] == rows
    assert records["torch-fsdp2"]["weights_bytes"] == P // 2


def test_every_process_has_the_same_records(accounts: list[Any]):
    keys = ("sent_bytes", "held_bytes", "step_seconds_mean", "peak_backward_bytes")
    for first, second in zip(accounts[0][2], accounts[1][2], strict=True):
        assert [first[key] for key in keys] == [second[key] for key in keys]


def test_steps_are_the_sum_of_their_phases(records: dict[str, Any]):
    for record in records.values():
        phases = sum(record[f"{phase}_seconds_mean"] for phase in PHASES)
        assert record["step_seconds_mean"] == pytest.approx(phases)
        n_tokens = 2 * 2 * 16
        assert record["tokens_per_second"] * record["step_seconds_mean"] == pytest.approx(n_tokens)
    alone = records["none"]["step_seconds_mean"]
    flat = records["ddp-flat"]
    assert flat["exposed_seconds"] == pytest.approx(flat["step_seconds_mean"] - alone)


def test_tables_are_full(accounts: list[Any]):
    times, costs = parallel_tables(accounts[0][2])
    assert len(times.rows()) == len(costs.rows()) == len(KINDS) + 2
    # A bucket's size is the only thing that may be missing.
    assert all("-" not in row[2:] and "OOM" not in row for row in times.rows() + costs.rows())


def test_parameters_are_told_apart_by_how_they_are_sharded():
    size = parameter_bytes(MODEL)
    d, d_ff, vocab_size = 32, MODEL.resolved_d_ff, 64
    assert size.lookups == 4 * vocab_size * d
    assert size.matrices == 4 * (vocab_size * d + 2 * (4 * d * d + 3 * d * d_ff))
    assert size.others == 4 * 5 * d
    assert size.whole == P


# Bytes per parameter by the design's section on accounting, 2 processes: 3.41e9 parameters take
# 54.5, 40.9 and 27.3 GB.
@pytest.mark.parametrize(
    ("kind", "gigabytes"), [("ddp", 54.5), ("sharded", 40.9), ("torch-fsdp2", 27.3)]
)
def test_held_bytes_of_the_largest_model_are_the_published_ones(kind: Any, gigabytes: float):
    xl = sized_model("xl", vocab_size=10_000, context_length=512)
    held = expected_held_bytes(kind, parameter_bytes(xl), 2) / 1e9
    assert held == pytest.approx(gigabytes, abs=0.06)


def test_a_gpu_scatters_what_a_cpu_reduces_whole():
    size = ParameterBytes(lookups=0, matrices=1000, others=0)
    cpu, gpu = (
        expected_sent_bytes("fsdp", size, 4, device_type=device) for device in ("cpu", "cuda")
    )
    assert (cpu, gpu) == (3000, 2250)


def fail_in_one(processes: Processes) -> None:
    if processes.rank == 1:
        raise ValueError("one is enough")
    dist.barrier()


@pytest.mark.slow  # Two processes load torch anew.
def test_a_process_that_fails_ends_the_others():
    # What the other one says of it may come first.
    what = "one is enough|lost another one"
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=what):
        in_processes(2, torch.device("cpu"), fail_in_one)
