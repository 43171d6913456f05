"""Plans: published numbers, what the command prints, and what it refuses."""

import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from rslm.architecture import TransformerConfig
from rslm.cli import main
from rslm.hardware import ACCELERATORS, find_accelerator, reported_accelerator
from rslm.model import Transformer
from rslm.plan import Speed, checkpoint_bytes, make_plan, sent_bytes_per_step
from rslm.plan_tables import lines, print_plan
from rslm.terminal import with_prefix
from rslm.train_config import DataConfig, TrainConfig

# GPT-2 XL with SwiGLU, as in the table of training.
XL = TransformerConfig(
    vocab_size=50_257, context_length=1024, d_model=1600, n_layers=48, n_heads=25, d_ff=4288
)
TINY = "--model.vocab-size 300 --model.d-model 16 --model.n-layers 2 --model.n-heads 2 --device cpu"


def run(model: TransformerConfig, **options: Any) -> TrainConfig:
    data = DataConfig(train=Path("tokens"))
    return TrainConfig(**{"out": Path("run"), "data": data, "model": model, **options})


def test_plan_of_xl_is_the_published_one() -> None:
    # 400,000 steps of 1,024 sequences at half of 495 TFLOP/s take 4,850 hours.
    config = run(XL, n_steps=400_000, batch_size=1024, micro_batch_size=1)
    rate = 0.5 * 495e12 / (3 * 3.5168e12 / 1024)
    speed = Speed(tokens_per_second=rate, source="given", peak_flops=495e12)
    plan = make_plan(config, device="gpu", memory_bytes=80 * 10**9, speed=speed, price=2.0)
    record = plan.record()
    assert record["parameters"]["n_parameters"] == 1_640_452_800
    assert plan.hours == pytest.approx(4850, rel=2e-3)
    assert plan.utilisation == pytest.approx(0.5, rel=1e-3)
    assert plan.cost == pytest.approx(2 * plan.hours)
    memory = record["memory_bytes"]["none"]
    held = memory["weights"] + memory["gradients"] + memory["optimizer_state"]
    assert held / 1e9 == pytest.approx(26.25, abs=0.01)
    assert plan.n_micro_batches == 1024
    assert checkpoint_bytes(config) == 12 * 1_640_452_800


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_kv_heads": 2, "ffn": "relu2", "tied_head": True},
        {"d_head": 32, "vocab_size": 999, "context_length": 48},
    ],
    ids=str,
)
def test_flops_per_token_are_those_that_torch_counts(sizes: dict[str, Any]) -> None:
    base = {"vocab_size": 512, "context_length": 64, "d_model": 64, "n_layers": 3, "n_heads": 4}
    config = TransformerConfig(**{**base, **sizes})
    model = Transformer(config, implementation="reference")
    ids = torch.zeros(2, config.context_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    flops = make_plan(run(config)).record()["flops_per_token"]
    assert flops["all"] * ids.numel() == counter.get_total_flops()
    assert flops["all"] == sum(v for k, v in flops.items() if k not in ("all", "6n"))


def test_a_window_saves_its_part_of_the_attention() -> None:
    sizes = {"vocab_size": 512, "context_length": 64, "d_model": 64, "n_layers": 4, "n_heads": 4}
    whole = TransformerConfig(**sizes)
    cut = TransformerConfig(**sizes, window_pattern="SSSL", window_size=16)
    counts = [make_plan(run(c)).record()["flops_per_token"]["attention"] for c in (whole, cut)]
    assert counts[1] / counts[0] == (3 * 16 + 64) / (4 * 64)


def test_sent_bytes_follow_the_way_of_dividing() -> None:
    model = TransformerConfig(vocab_size=512)
    config = run(model, batch_size=16, micro_batch_size=2)
    n_bytes = 4 * make_plan(config).record()["parameters"]["n_parameters"]
    sent = {kind: sent_bytes_per_step(config, kind, 4) for kind in ("ddp", "sharded", "fsdp")}
    assert sent["ddp"] == pytest.approx(2 * 0.75 * n_bytes)
    assert sent["sharded"] == pytest.approx(3 * 0.75 * n_bytes)
    # Two micro-batches a process: each gathers twice and reduces once.
    assert sent["fsdp"] == pytest.approx(2 * 3 * 0.75 * n_bytes)
    assert sent_bytes_per_step(config, "ddp", 1) == 0


def test_accelerators_are_found_by_both_names() -> None:
    for accelerator in ACCELERATORS:
        assert find_accelerator(accelerator.name.lower()) is accelerator
        assert accelerator.source
    found = {
        "NVIDIA A100-SXM4-80GB": "A100-80GB",
        "NVIDIA A100-SXM4-40GB": "A100-40GB",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA L40S": "L40S",
        "NVIDIA L4": "L4",
        "NVIDIA GeForce RTX 4090": "RTX-4090",
    }
    for reported, name in found.items():
        accelerator = reported_accelerator(reported)
        assert accelerator is not None
        assert accelerator.name == name
    for other in (
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A10G",
        "NVIDIA H200 NVL",
        "Apple M2",
    ):
        assert reported_accelerator(other) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (26_247_000_000, "26.2 GB"),
        (999_600, "1.00 MB"),
    ],
)
def test_prefixes(value: float, text: str) -> None:
    assert with_prefix(value, "B") == text


def call(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(shlex.split(command))
    return code, *capsys.readouterr()


def test_command_in_a_pipe_prints_one_value_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--hardware h100 --price 3 --processes 2 --parallel ddp"
    code, out, err = call(f"plan --preset tinystories {flags}", capsys)
    assert (code, err) == (0, "")
    values = dict(line.split("=", 1) for line in out.splitlines())
    assert values["parameters.n_parameters"] == "22696448"
    assert values["run.n_tokens"] == "327680000"
    assert {"memory_bytes.ddp.peak", "memory_bytes.fsdp.peak"} <= values.keys()
    assert values["fit.fits"] == "true"
    assert float(values["time.cost"]) == pytest.approx(6 * float(values["time.hours"]))
    as_json = call(f"plan --preset tinystories {flags} --json", capsys)[1]
    assert lines(json.loads(as_json)) == out.splitlines()


def test_command_counts_the_passes_over_a_token_file(
    token_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--model.context-length 16 --n-steps 200 --batch-size 4 --tokens-per-second 1000"
    data = f"--data.train {token_files[0]}"
    code, out, _ = call(f"plan {TINY} {flags} {data} --json", capsys)
    record = json.loads(out)
    assert code == 0
    run = record["run"]
    assert run["data_passes"] == pytest.approx(200 * 4 * 16 / run["n_data_tokens"])
    assert record["time"]["hours"] == pytest.approx(200 * 4 * 16 / 1000 / 3600)


def test_command_measures_real_steps(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        f"plan {TINY} --batch-size 4 --micro-batch-size 2 --measure --measured-steps 2 --json",
        capsys,
    )
    record = json.loads(out)
    assert code == 0
    assert record["time"]["source"] == "2 steps measured here"
    assert 0 < record["time"]["utilisation"] < 1.5
    assert record["run"]["n_micro_batches"] == 2


def test_tables_on_a_terminal_show_everything() -> None:
    config = run(XL, batch_size=64, parallel="ddp", precision="bfloat16")
    speed = Speed(tokens_per_second=1e4, source="given")
    plan = make_plan(config, n_processes=8, memory_bytes=80 * 10**9, speed=speed, device="gpu")
    file = io.StringIO()
    print_plan(plan, Console(file=file, force_terminal=True, width=100, color_system=None))
    shown = file.getvalue()
    for text in ("1,640,452,800", "Memory of a process", "sharded", "fsdp", "8 (ddp)", "hours"):
        assert text in shown
    assert "run.n_steps=" not in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ("", "model.vocab_size must be given"),
        (f"{TINY} --hardware H1000", "hardware must be one of"),
        (f"{TINY} --memory much", "memory must be a size"),
        (f"{TINY} --utilisation 1.5", "utilisation must be at most 1"),
        (f"{TINY} --processes 0", "processes must be at least 1"),
        (f"{TINY} --processes 2", "parallel must be"),
        (f"{TINY} --processes 3 --parallel ddp", "multiple of the 3 processes"),
        (f"{TINY} --processes 2 --parallel fsdp --compile", "compile must be off"),
        (f"{TINY} --measure --hardware H100", "measure is of this machine"),
        (f"{TINY} --measure --memory 1MB", "micro_batch_size must be at most"),
        (f"{TINY} --price -1", "price must be at least 0"),
        (f"{TINY} --data.train nowhere", "nowhere"),
        (f"{TINY} --n-step 3", "did you mean --n-steps?"),
    ],
)
def test_bad_input_is_one_line(
    flags: str, fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(f"plan {flags}", capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err
