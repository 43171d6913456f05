"""The check of the kernels on a GPU: what can be shown of it without one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rslm.attention import attention
from rslm.commands.gpu_check import GpuCheckOptions, gpu_check
from rslm.gpu_check import correctness, paged, speed
from rslm.gpu_check.budget import Budget
from rslm.gpu_check.cases import Case, speed_cases
from rslm.gpu_check.pictures import draw_speed
from rslm.gpu_check.sweep import table_patch
from rslm.infer.paged_cache import PagedCache, StepBatch

CPU = torch.device("cpu")
CASE = Case(n_heads=2, n_kv_heads=1, n_queries=40, n_keys=40, d_head=16, dtype="float32")


def stand_in(*, wrong: float = 0.0, unsteady: bool = False):
    """`attention` with the formula in place of Triton, and a fault."""
    turns = iter(range(1000))

    def run(q: Tensor, k: Tensor, v: Tensor, *, implementation: str, **options: object) -> Tensor:
        output = attention(q, k, v, implementation="reference", **options)
        if implementation == "triton":
            fault = wrong + (1e-6 * next(turns) if unsteady else 0.0)
            return output + fault * output.detach().abs().max()
        return output

    return run


def test_cases_of_speed_hold_tokens_and_width() -> None:
    cases = speed_cases((512, 4096), n_tokens=8192, width=256)
    assert {case.n_tokens for case in cases} == {8192}
    assert {case.n_heads * case.d_head for case in cases} == {256}
    assert len(cases) == 8


def test_flops_are_those_of_the_papers() -> None:
    case = Case(batch_size=2, n_heads=3, n_queries=100, n_keys=200, d_head=8, causal=False)
    assert case.forward_flops == 4 * 2 * 3 * 100 * 200 * 8
    assert replace(case, causal=True).forward_flops == case.forward_flops / 2


def test_documents_give_the_first_visible_key() -> None:
    start = replace(CASE, n_queries=7, document_length=3).start(CPU)
    assert start is not None
    assert start.tolist() == [[0, 0, 0, 3, 3, 3, 6]]


@pytest.mark.parametrize(("wrong", "passes"), [(0.0, True), (1e-3, False), (float("nan"), False)])
def test_correctness_fails_on_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, wrong: float, passes: bool
) -> None:
    monkeypatch.setattr(correctness, "attention", stand_in(wrong=wrong))
    cases = [CASE, replace(CASE, window=7), replace(CASE, document_length=9)]
    found = correctness.check_correctness(cases, ["float32"], CPU, Budget(60), share=1.0)
    assert [record["passed"] for record in found] == [passes] * 3


@pytest.mark.parametrize("unsteady", [False, True])
def test_races_are_results_that_differ(monkeypatch: pytest.MonkeyPatch, unsteady: bool) -> None:
    monkeypatch.setattr(correctness, "attention", stand_in(unsteady=unsteady))
    [found] = correctness.hunt_races([CASE], CPU, Budget(60), share=1.0, n_repetitions=4)
    assert (found["n_different"], found["passed"]) == ((4, False) if unsteady else (0, True))


def paged_stand_in(monkeypatch: pytest.MonkeyPatch, fault: Callable[[StepBatch], float]) -> None:
    """Exact arithmetic in place of the kernel, and a fault of the first head."""
    make, attend = paged.PagedCase.cache, paged._attend

    def run(cache: PagedCache, batch: StepBatch, *rest: Any) -> Tensor:
        output = attend(cache, batch, *rest)
        output[0] += fault(batch)
        return output

    monkeypatch.setattr(
        paged.PagedCase, "cache", lambda case, device, _: make(case, device, "exact")
    )
    monkeypatch.setattr(paged, "_attend", run)


@pytest.mark.parametrize(
    ("fault", "passes", "n_different"),
    [
        (lambda batch: 0.0, True, 0),
        (lambda batch: 1e-3, False, 0),
        (lambda batch: float("nan"), False, 6),
        # Of three tokens each is read once with its sequence and once alone.
        (lambda batch: 1e-6 * len(batch.lengths), False, 6),
    ],
)
def test_paged_check_fails_on_wrong_numbers_and_on_bits_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[StepBatch], float],
    passes: bool,
    n_different: int,
) -> None:
    paged_stand_in(monkeypatch, fault)
    case = replace(paged.DRY, dtype="float32")
    [found] = paged.check_paged([case], ["float32"], CPU, Budget(60), share=1.0)
    assert (found["passed"], found["n_different"]) == (passes, n_different)


def test_paged_bytes_are_of_the_keys_that_are_seen() -> None:
    sizes = {"n_kv_heads": 2, "n_heads": 4, "d_head": 8, "dtype": "bfloat16"}
    row = 2 * 2 * 8 * 2
    case = paged.PagedCase(sequences=((99, 1), (0, 30)), **sizes)
    assert case.n_bytes == (100 + 30) * row
    # One token sees 10 keys; of 30 tokens the last sees the last 10, and all are seen by some.
    assert replace(case, window=10).n_bytes == (10 + 30) * row


def test_a_budget_that_is_spent_names_what_it_leaves_out() -> None:
    budget = Budget(0.0)
    assert correctness.check_correctness([CASE], ["float32"], CPU, budget, share=1.0) == []
    assert budget.left_out == [f"correctness of {CASE.label}"]


def test_a_peer_that_cannot_run_is_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(_: Case) -> speed.Attend:
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def absent(_: Case) -> speed.Attend:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(speed, "contenders", lambda _: {"plain": plain, "absent": absent})
    case = replace(CASE, n_kv_heads=2)
    found = speed.time_speed([case], CPU, Budget(60), share=1.0, peak_flops=1e12)
    assert [record["status"] for record in found] == ["measured", "cannot run: no such kernel"]
    seconds = found[0]["forward_seconds"]
    assert found[0]["forward_flops_per_second"] == pytest.approx(case.forward_flops / seconds)
    assert found[0]["both_share_of_peak"] == found[0]["both_flops_per_second"] / 1e12


def test_picture_is_drawn_of_what_was_timed(tmp_path) -> None:
    timed = {f"{part}_flops_per_second": 1e12 for part in ("forward", "backward")}
    records = [CASE.record() | timed | {"implementation": "rslm triton"}, {"status": "cannot run"}]
    draw_speed(records, tmp_path / "speed.png")
    draw_speed([], tmp_path / "empty.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_dry_run_goes_through_every_section(tmp_path) -> None:
    command = [sys.executable, "-m", "rslm.gpu_check", "--dry-run", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["passed"]
    assert report["left_out"] == []
    for section in ("correctness", "races", "paged", "paged_speed", "speed", "sweep", "steps"):
        assert report[section], section
        assert (tmp_path / f"{section}.csv").exists()
    assert {record["attention"] for record in report["steps"]} == {"torch", "triton"}
    ours = [r for r in report["speed"] if r["implementation"] == "rslm triton"]
    assert all(record["status"] == "measured" for record in ours)
    assert (tmp_path / "speed.png").exists()


def test_interrupt_keeps_the_sections_that_are_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(correctness, "attention", stand_in())
    paged_stand_in(monkeypatch, lambda batch: 0.0)
    monkeypatch.setattr(paged, "time_paged", lambda *_, **__: [])
    monkeypatch.setattr(speed, "time_speed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gpu_check(GpuCheckOptions(out=tmp_path, dry_run=True))
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["correctness"]
    assert report["races"]
    assert report["paged"]
    assert "speed" not in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "device must be cuda or cuda:N, got cpu"),
        pytest.param(
            ["--device", "cuda"],
            "device must be one of this machine, got 'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["--minutes", "0", "--dry-run"], "minutes must be above 0"),
    ],
)
def test_bad_options_get_one_sentence(tmp_path, arguments: list[str], message: str) -> None:
    out = tmp_path / "new"
    command = [sys.executable, "-m", "rslm.gpu_check", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_patch_gives_rows_that_the_table_lacks() -> None:
    fields = ("tile_queries", "tile_keys", "n_warps", "n_stages")

    def record(kernel: str, tiles: tuple[int, ...], **marks: bool) -> dict[str, object]:
        row = dict(zip(fields, tiles, strict=True))
        return {"kernel": kernel, "d_head": 48, "use_descriptors": True} | row | marks

    table = record("forward", (128, 64, 4, 3), is_best=False, is_table=True)
    better = record("forward", (64, 64, 4, 2), is_best=True, is_table=False)
    rest = [
        record("key_gradients", (64, 128, 8, 2), is_best=True, is_table=True),
        record("query_gradients", (128, 64, 8, 2), is_best=True, is_table=True),
    ]
    [line] = table_patch([table, better, *rest])
    rows = "(64, 64, 4, 2), (64, 128, 8, 2), (128, 64, 8, 2)"
    assert line == f"64: _table({rows}, use_descriptors=True),"
    assert table_patch([table | {"is_best": True}, *rest]) == []
    assert table_patch([better, rest[0]]) == []


def test_folder_that_cannot_be_is_refused_before_anything_is_measured(tmp_path) -> None:
    (tmp_path / "file").write_text("kept")
    command = [sys.executable, "-m", "rslm.gpu_check", "--dry-run", "--out", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'file'}: File exists\n"
    assert (tmp_path / "file").read_text() == "kept"
