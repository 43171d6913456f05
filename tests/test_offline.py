import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("triton")

from rslm.kernels.launch_configs import LaunchConfig, flash_config
from rslm.kernels.offline import approved, candidates, gate
from rslm.kernels.offline.__main__ import main
from rslm.kernels.offline.binaries import Binary
from rslm.kernels.offline.gate import Subject, Verdict, failures
from rslm.kernels.offline.machine_code import EXP2, PRODUCT, count, hot_loop, parse
from rslm.kernels.offline.report import HEADER, LOOPS, print_verdicts
from rslm.kernels.offline.roofline import Roofline, programs_at_home, roofline
from rslm.kernels.offline.targets import TARGETS

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = "offline_kernels.json"

# Two loops over tiles in a third, the second with a comparison; the wait of the first ends behind
# the last exit and jumps back, over everything.
SASS = """
	.target	sm_90a
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_9:
        /*0010*/                   IMAD R0, R1, R2, RZ ;
.L_x_1:
        /*0020*/              @!P0 BRA `(.L_x_5) ;
.L_x_6:
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], R24 ;
        /*0040*/                   MUFU.EX2 R3, R2 ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   ISETP.GE.AND P0, PT, R0, R1, PT ;
        /*0070*/                   FSEL R3, R2, -INF , P0 ;
        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], R24 ;
        /*0090*/                   MUFU.EX2 R3, R2 ;
        /*00a0*/               @P1 BRA `(.L_x_2) ;
        /*00b0*/               @P2 BRA `(.L_x_9) ;
        /*00c0*/                   EXIT ;
.L_x_5:
        /*00d0*/              @!P0 BRA `(.L_x_5) ;
        /*00e0*/                   BRA `(.L_x_6) ;
"""

AMDGCN = """
	.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
kernel:                                 ; @kernel
; %bb.0:
	s_load_dwordx4 s[0:3], s[4:5], 0x0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
	v_exp_f32_e32 v4, v4
	scratch_load_dword v5, off, s32
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	s_endpgm
"""

BINARY = Binary(
    n_warps=4,
    n_stages=2,
    n_registers=128,
    spill_bytes=0,
    shared_bytes=48 * 1024,
    tensor_columns=0,
    amd_waves=None,
    product="mma.sync",
    uses_tma=False,
    loop_instructions=400,
    loop_products=64,
    loop_exp2=32,
    loop_spills=0,
)


def test_hot_loop_is_the_inner_one_without_masks():
    loop = hot_loop(parse(SASS))
    assert [i.opcode for i in loop] == ["BRA", "HGMMA.64x128x16.F32.BF16", "MUFU.EX2", "BRA"]


def test_hot_loop_prefers_more_products_to_fewer_instructions():
    line = "        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], R24 ;\n"
    twice = SASS.replace("R3, R2, -INF , P0 ;\n", f"R3, R2, -INF , P0 ;\n{line}")
    assert count(hot_loop(parse(twice)), PRODUCT) == 2


def test_hot_loop_is_empty_where_nothing_multiplies():
    assert hot_loop(parse(SASS.replace("HGMMA", "FADD"))) == []


def test_amd_assembly_is_read_like_sass():
    loop = hot_loop(parse(AMDGCN))
    assert [i.opcode.partition("_")[0] for i in loop] == ["v", "v", "scratch", "s"]
    assert count(loop, EXP2) == 1


@pytest.mark.parametrize(
    ("arch", "changes", "expected"),
    [
        # 65,536 registers: 255, rounded up to 256, of 128 lanes leave room for two programs.
        ("80", {"n_registers": 255, "shared_bytes": 1024}, 2),
        ("80", {"n_registers": 168, "shared_bytes": 1024}, 3),
        ("80", {"n_registers": 255, "n_warps": 8}, 1),
        # 164 KB, and one of each program's is the driver's.
        ("80", {"shared_bytes": 81 * 1024}, 2),
        ("80", {"shared_bytes": 82 * 1024}, 1),
        ("80", {"shared_bytes": 164 * 1024}, 0),
        ("90", {"n_registers": 32, "shared_bytes": 0}, 16),
        ("100", {"tensor_columns": 256, "shared_bytes": 1024}, 2),
        ("gfx942", {"amd_waves": 2, "shared_bytes": 16 * 1024}, 2),
        ("gfx942", {"amd_waves": 4, "shared_bytes": 33 * 1024}, 1),
    ],
)
def test_programs_at_home_are_limited_by_what_runs_out_first(arch, changes, expected):
    assert programs_at_home(replace(BINARY, **changes), TARGETS[arch]) == expected


def test_roofline_adds_up():
    bounds = roofline(BINARY, TARGETS["80"], "forward_kernel", 64, 64, 64)
    # 2 products of 2 * 64^3 FLOPs at 2048 a clock; 400 instructions of 4 warps on 4 schedulers,
    # 32 exponentials of 128 lanes at 16 a clock. Three programs are at home and take turns.
    assert (bounds.products, bounds.serial_clocks) == (512, 912)
    assert (bounds.clocks, bounds.bound) == (512, "products")
    assert bounds.serial_share == pytest.approx(512 / 912)
    slow = roofline(replace(BINARY, n_registers=255), TARGETS["80"], "forward_kernel", 64, 32, 64)
    assert (slow.clocks, slow.bound) == (400, "issue")
    alone = replace(BINARY, shared_bytes=160 * 1024)
    assert roofline(alone, TARGETS["80"], "forward_kernel", 64, 64, 64).bound == "latency"


def judge(changes: dict[str, object], exp2_per_score: float = 1.0, **subject: object) -> list[str]:
    binary = replace(BINARY, **changes)
    made = Subject(**({"arch": "80", "d_head": 64, "kernel": "forward"} | subject))
    target = TARGETS[made.arch]
    programs = programs_at_home(binary, target)
    verdict = Verdict(
        subject=made, failures=(), binary=binary, programs=programs, exp2_per_score=exp2_per_score
    )
    return failures(verdict, binary, target)


HOPPER = {"product": "wgmma", "uses_tma": True}


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({}, {}),
        ({"spill_bytes": 64}, {}),
        (HOPPER, {"arch": "90"}),
        ({"product": "none"}, {"dtype": "float32"}),
        ({"product": "none", "loop_products": 0}, {"kernel": "row_terms"}),
        # tanh takes an exponential of its own
        ({}, {"softcap": 20.0, "exp2_per_score": 2.0}),
        # sixteen rows are a warp's product, and blocks are not tiles of a tensor
        ({}, {"kernel": "paged", "arch": "90", "exp2_per_score": 2.0}),
    ],
)
def test_gate_passes(changes, subject):
    assert judge(changes, **subject) == []


@pytest.mark.parametrize(
    ("changes", "subject", "complaint"),
    [
        ({"loop_spills": 1}, {}, "1 spill instructions in the hot loop"),
        ({"spill_bytes": 68}, {}, "68 bytes spilled, at most 64 may be"),
        ({"shared_bytes": 164 * 1024}, {}, "of shared memory, a program may have 166912"),
        ({"tensor_columns": 1024}, {}, "not one program fits"),
        ({"loop_products": 0}, {}, "no loop with products"),
        ({"product": "none"}, {}, "multiplies by none, not by mma.sync"),
        ({**HOPPER, "product": "mma.sync"}, {"arch": "90"}, "mma.sync, not by wgmma"),
        ({**HOPPER, "uses_tma": False}, {"arch": "90"}, "copies no tile by TMA"),
        ({}, {"exp2_per_score": 2.0}, "2.00 exponentials per score"),
        ({"product": "none"}, {"kernel": "paged"}, "multiplies by none, not by mma.sync"),
        ({}, {"kernel": "paged", "exp2_per_score": 2.5}, "2.50 exponentials per score"),
    ],
)
def test_gate_says_what_fails(changes, subject, complaint):
    (found,) = judge(changes, **subject)
    assert complaint in found


def test_what_does_not_compile_fails_and_prints_nothing(monkeypatch, capsys):
    def compile_kernel(compilation, target):
        print("a page of PTX")
        raise RuntimeError("ptxas failed\nin line 7")

    monkeypatch.setattr(gate, "compile_kernel", compile_kernel)
    verdict = gate.examine(Subject(arch="80", d_head=64, kernel="forward"))
    assert verdict.failures == ("does not compile: ptxas failed in line 7",)
    assert json.dumps(verdict.record())
    assert capsys.readouterr().out == ""


def test_gate_lets_a_listed_exception_spill(monkeypatch):
    monkeypatch.setitem(gate.EXCEPTIONS, ("80", 64, "forward"), 100)
    assert judge({"spill_bytes": 100}) == []
    assert judge({"spill_bytes": 100, "loop_spills": 2}) != []
    assert judge({"spill_bytes": 104}) != []


def test_report_has_a_row_per_kernel_estimates_and_what_fails():
    bounds = Roofline(products=100, clocks=100, serial_clocks=200, bound="products")
    verdicts = [
        Verdict(
            subject=Subject(arch="80", d_head=64, kernel=kernel),
            failures=("spills",) if kernel == "forward" else (),
            binary=BINARY,
            tiles=(64, 32),
            programs=3,
            roofline=bounds,
        )
        for kernel in LOOPS
    ]
    verdicts.append(Verdict(subject=replace(verdicts[0].subject, d_head=96), failures=("breaks",)))
    console = Console(file=io.StringIO(), width=240)
    print_verdicts(verdicts, console)
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "sm_80"
    assert lines[1].split() == " ".join(HEADER).split()
    assert len({line.find("64x32") for line in lines[2:5]}) == 1
    assert [line.split()[0] for line in lines[2:6]] == [*LOOPS, "forward"]
    # 5 of the backward's 7 products are counted: 312 * 5 / 7.
    assert "d_head 64: at most forward 312 (156), backward 223 (111) TFLOP/s" in lines
    assert "fails: sm_80, d_head 64, forward 64x32 w4 s2: spills" in lines
    assert "fails: sm_80, d_head 96, forward: breaks" in lines


@pytest.mark.parametrize("arch", ["80", "90", "100", "gfx942"])
@pytest.mark.parametrize("d_head", [16, 64, 80, 128, 256])
def test_candidates_are_few_and_differ(arch, d_head):
    found = candidates(arch, d_head)
    assert set(found) == {"forward", "key_gradients", "query_gradients"}
    for configs in found.values():
        assert 8 <= len(configs) == len(set(configs)) <= 12
        assert all(config.use_descriptors == (arch in ("90", "100")) for config in configs)


@pytest.mark.parametrize("arch", ["80", "90", "100"])
@pytest.mark.parametrize("d_head", [64, 128, 256])
def test_a_table_row_replaced_by_a_candidate_is_one_kernel_only(arch, d_head):
    import torch

    config = candidates(arch, d_head)["forward"][0]
    subject = Subject(arch=arch, d_head=d_head, kernel="forward", config=config)
    made = subject.compilation()
    table = flash_config(arch, d_head, torch.bfloat16)
    names = made.kernel.arg_names
    assert made.constants[(names.index("Br"),)] == config.tile_queries
    other = replace(subject, kernel="key_gradients", config=None).compilation()
    names = other.kernel.arg_names
    assert other.constants[(names.index("Br"),)] == table.key_gradients.tile_queries


def test_approved_keeps_order_and_takes_out_what_fails(monkeypatch):
    import torch

    def examine_all(subjects, n_jobs):
        assert n_jobs == 3
        assert {subject.kernel for subject in subjects} == {"query_gradients"}
        bad = ("spills",)
        return [Verdict(subject=s, failures=bad if s.config.n_warps == 4 else ()) for s in subjects]

    monkeypatch.setattr(gate, "examine_all", examine_all)
    configs = [LaunchConfig(64, 64, n_warps, 2) for n_warps in (8, 4, 16)]
    found = approved("query_gradients", configs, "80", 64, torch.bfloat16, n_jobs=3, group=4)
    assert found == [configs[0], configs[2]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--arch", "70"], "arch must be one of 80, 86, 89, 90, 100, 120, gfx942, got '70'"),
        (["--arch", "80", "--d-head", "0"], "--d-head must be from 1 to 256, got 0"),
        (["--arch", "80", "--d-head", "x"], "argument --d-head: invalid int value: 'x'"),
        (["--arch", "80", "--group", "3"], "--group must divide 8, got 3"),
        (["--arch", "80", "--jobs", "-1"], "--jobs must be from 1 to 1024, got -1"),
        (["--arch", "80", "--softcap", "0"], "--softcap must be positive, got 0.0"),
        (["--arch", "80", "--start", "--full"], "--start needs causal attention, got --full"),
        (
            ["--arch", "80", "--full", "--kernel", "paged"],
            "--kernel paged must go without --full and --softcap, which it lacks",
        ),
        ([], "the following arguments are required: --arch"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(arguments, complaint, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["--arch", "80"]) == 2
    assert "TRITON_INTERPRET must not be 1" in capsys.readouterr().err


def run_gate(*arguments: str) -> dict:
    """The document of `--json`, from a process of its own: this one may interpret kernels.

    Triton keeps what it compiled, by source, options and its own version, so that only the first
    run after a change takes the time of 18 compilations.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "rslm.kernels.offline", "--json", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    found: dict = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    return found


@pytest.mark.timeout(1200)
def test_golden_kernels_pass_the_gate_and_stay_as_lean(check_golden, request):
    found = run_gate("--arch", "80", "90", "100", "--kernel", *LOOPS, "paged")
    failed = {name(v): v["failures"] for v in found["verdicts"] if v["failures"]}
    assert not failed
    made = {"triton": found["triton"], "kernels": {name(v): lean(v) for v in found["verdicts"]}}
    if request.config.getoption("--rewrite-golden"):
        check_golden(GOLDEN, (json.dumps(made, indent=1) + "\n").encode())
        return
    golden = json.loads((FIXTURES / GOLDEN).read_text(encoding="utf-8"))
    again = f"tests/fixtures/{GOLDEN} is of another {{}}: run `make golden`, review the diff"
    assert made["triton"] == golden["triton"], again.format("version of Triton")
    for key, was in golden["kernels"].items():
        now = made["kernels"][key]
        assert now["config"] == was["config"], again.format(f"configuration of {key}")
        assert now["loop_instructions"] <= 1.05 * was["loop_instructions"], key
        assert now["programs"] >= was["programs"], key
        assert now["spill_bytes"] <= was["spill_bytes"], key
    assert made["kernels"].keys() == golden["kernels"].keys()


def name(verdict: dict) -> str:
    subject = verdict["subject"]
    return f"{subject['arch']} {subject['d_head']} {subject['kernel']}"


def lean(verdict: dict) -> dict:
    binary = verdict["binary"]
    queries, keys = verdict["tiles"]
    return {
        "config": f"{queries}x{keys} w{binary['n_warps']} s{binary['n_stages']}",
        "loop_instructions": binary["loop_instructions"],
        "programs": verdict["programs"],
        "spill_bytes": binary["spill_bytes"],
    }


@pytest.mark.timeout(600)
def test_kernels_compile_for_amd():
    (verdict,) = run_gate("--arch", "gfx942", "--d-head", "64", "--kernel", "forward")["verdicts"]
    assert verdict["binary"]["product"] == "v_mfma"
    assert verdict["binary"]["spill_bytes"] == 0
    assert verdict["programs"] >= 1


# What a run can ask of the kernels beside the default: each makes other code of them.
VARIANTS = {
    "softcap": ("--softcap", "30", "--start", "--group", "2"),
    "full": ("--full", "--dtype", "float16"),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_compile_without_a_spill_in_their_loops(variant: tuple[str, ...]):
    verdicts = run_gate("--arch", "90", "--d-head", "64", *variant)["verdicts"]
    assert [verdict["failures"] for verdict in verdicts] == [[]] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [("--softcap", "30"), ("--softcap", "30", "--start"), ("--start",)],
    ids=" ".join,
)
def test_variants_pass_the_gate_everywhere(variant: tuple[str, ...]):
    gate = run_gate("--arch", "80", "90", "100", *variant)
    # Per width and architecture the four loops, and where scores are as they are the paged kernel.
    n_kernels = 4 if "--softcap" in variant else 5
    assert [verdict["failures"] for verdict in gate["verdicts"]] == [[]] * (6 * n_kernels)


@pytest.mark.slow
def test_wide_heads_do_not_spill_in_their_loops():
    for verdict in run_gate("--arch", "80", "90", "100", "--d-head", "256")["verdicts"]:
        assert verdict["binary"]["loop_spills"] == 0
        assert verdict["binary"]["spill_bytes"] <= 64


@pytest.mark.slow
def test_all_kernels_compile_for_amd():
    for verdict in run_gate("--arch", "gfx942", "--kernel", *LOOPS)["verdicts"]:
        assert verdict["binary"]["product"] == "v_mfma"
        assert verdict["binary"]["loop_spills"] == 0
        assert verdict["programs"] >= 1
