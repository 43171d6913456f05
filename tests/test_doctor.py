"""The doctor: what it finds on a good machine, and that each fault is found."""

import json
import shlex
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_each

from rslm.cli import main
from rslm.doctor import attention as attention_check
from rslm.doctor import machine, processes
from rslm.doctor.check import Check
from rslm.tokenizer import Tokenizer
from rslm.train import train

TINY = "--model.vocab-size 300 --model.d-model 16 --model.n-layers 1 --model.n-heads 2 --device cpu"
CPU = torch.device("cpu")

Doctor = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """`doctor("--quick")`: exit code and checks by name, without starting processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_run_two", lambda kind: ["3.0", "3.0"])
    monkeypatch.setattr(machine, "measure_matmul_flops", lambda *_: 1e10)

    def call(flags: str = "") -> tuple[int, dict[str, dict[str, Any]]]:
        code = main(shlex.split(f"doctor {TINY} {flags} --json"))
        checks = json.loads(capsys.readouterr().out)["checks"]
        return code, {check["name"]: check for check in checks}

    return call


def test_a_good_machine_and_good_data_pass(doctor: Doctor, token_files: tuple[Path, Path]) -> None:
    train_file, valid_file = token_files
    flags = "--model.n-layers 2 --model.window-pattern SL --model.window-size 8"
    flags += " --precision bfloat16"
    code, checks = doctor(f"--data.train {train_file} --data.valid {valid_file} {flags}")
    assert code == 0
    assert {check["status"] for check in checks.values()} == {"ok"}
    names = {"versions", "device", "matmul", "memory", "disk", "tokenizer", "processes (gloo)"}
    paths = ("reference", "tiled", "torch", "torch/flash", "torch/math")
    names |= {f"attention {p} {d}" for p in paths for d in ("float32", "bfloat16")}
    assert names | {f"data {train_file}", f"data {valid_file}"} == checks.keys()


def test_without_data_it_warns_and_passes(doctor: Doctor) -> None:
    code, checks = doctor()
    assert code == 0
    assert checks["data"]["status"] == "warn"
    assert "--data.train" in checks["data"]["advice"]


def test_checkpoints_of_the_run_folder_are_read(
    doctor: Doctor, tiny_config: Callable[..., Any], quick: None
) -> None:
    train(tiny_config(n_steps=12, keep_best=False))
    folder = tiny_config().out / "checkpoints"
    flags = f"--out {folder.parent}"
    found = doctor(flags)[1]["checkpoint"]
    assert (found["status"], found["found"]) == ("ok", f"{folder}/step_00000012, hashes hold")

    newest, older = (folder / f"step_000000{step}" for step in ("12", "10"))
    damage(newest / "optim.safetensors")
    assert doctor(f"{flags} --quick")[1]["checkpoint"]["status"] == "ok"
    code, checks = doctor(flags)
    assert (code, checks["checkpoint"]["status"]) == (0, "warn")
    assert "optim.safetensors is damaged" in checks["checkpoint"]["found"]
    assert str(older) in checks["checkpoint"]["advice"]

    damage(older / "model.safetensors")
    code, checks = doctor(flags)
    assert (code, checks["checkpoint"]["status"]) == (1, "fail")


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_damaged_and_missing_token_files_fail(
    doctor: Doctor, token_files: tuple[Path, Path]
) -> None:
    shutil.copytree(token_files[0], "flipped")
    shard = Path("flipped/shard_00000.bin")
    payload = bytearray(shard.read_bytes())
    payload[1500] ^= 1
    shard.write_bytes(payload)
    assert doctor("--data.train flipped --quick")[0] == 0
    code, checks = doctor("--data.train flipped --data.valid nowhere")
    assert code == 1
    assert checks["data flipped"]["status"] == checks["data nowhere"]["status"] == "fail"


def test_another_tokenizer_fails(doctor: Doctor, token_files: tuple[Path, Path]) -> None:
    Tokenizer({i: bytes([i]) for i in range(256)}, []).save("other.json")
    code, checks = doctor(f"--data.train {token_files[0]} --tokenizer other.json")
    assert (code, checks["tokenizer"]["status"]) == (1, "fail")
    assert "other.json" in checks["tokenizer"]["found"]


def test_a_vocabulary_too_small_for_the_data_fails(
    doctor: Doctor, token_files: tuple[Path, Path]
) -> None:
    code, checks = doctor(f"--data.train {token_files[0]} --model.vocab-size 100")
    assert code == 1
    assert checks["tokenizer"]["advice"] == "--model.vocab-size 257"


def test_a_full_disk_and_too_little_memory_fail(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    monkeypatch.setattr(machine, "machine_memory_bytes", lambda: 1 << 20)
    code, checks = doctor()
    assert code == 1
    assert checks["disk"]["status"] == checks["memory"]["status"] == "fail"
    assert "--micro-batch-size" in checks["memory"]["advice"]


def test_a_folder_that_takes_no_file_fails(doctor: Doctor) -> None:
    Path("file").write_text("")
    code, checks = doctor("--out file/run")
    assert (code, checks["disk"]["status"]) == (1, "fail")


def test_attention_that_computes_something_else_fails(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention_check.attention

    def wrong(*args: Any, implementation: Any, **options: Any) -> torch.Tensor:
        output = right(*args, implementation=implementation, **options)
        return output * 1.001 if implementation == "torch" else output

    monkeypatch.setattr(attention_check, "attention", wrong)
    code, checks = doctor()
    assert code == 1
    failed = [name for name, check in checks.items() if check["status"] == "fail"]
    assert failed == ["attention torch float32"]


def test_slow_bfloat16_and_too_many_threads_warn(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.float32: 2e10, torch.bfloat16: 1e10}
    monkeypatch.setattr(machine, "measure_matmul_flops", lambda _, dtype: speeds[dtype])
    code, checks = doctor("--precision bfloat16 --n-threads 1000")
    assert code == 0
    assert checks["matmul"]["status"] == checks["device"]["status"] == "warn"
    assert "--precision float32" in checks["matmul"]["advice"]


def test_two_processes_add_up() -> None:
    (check,) = processes.check_two_processes(CPU)
    assert check.status == "ok"


def test_processes_that_do_not_answer_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_run_two", lambda kind: ["3.0", "Connection refused"])
    (check,) = processes.check_two_processes(CPU)
    assert check.status == "fail"
    assert "Connection refused" in check.found


def examine_rank(flags: list[str]) -> torch.Tensor:
    import os

    own = flags[int(os.environ["RANK"])]
    return torch.tensor(main(shlex.split(f"doctor {TINY} {own} --json")))


@pytest.mark.parametrize(("other", "code"), [("", 0), ("--model.d-ff 128", 1)])
def test_ranks_of_torchrun_must_agree(other: str, code: int) -> None:
    assert [int(x) for x in run_each(examine_rank, ["", other])] == [code, code]


def test_lines_begin_with_the_status(capsys: pytest.CaptureFixture[str], doctor: Doctor) -> None:
    code = main(shlex.split(f"doctor {TINY}"))
    out = capsys.readouterr().out.splitlines()
    assert code == 0
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in out)
    assert "warn  data: no token file named, none checked; name it with --data.train" in out


def test_on_a_terminal_advice_has_a_line_of_its_own() -> None:
    import io

    from rich.console import Console

    from rslm.commands.doctor import make_show

    file = io.StringIO()
    show = make_show(Console(file=file, force_terminal=True, width=60, color_system=None))
    show(Check(name="disk", status="fail", found="full", advice="free 3 GB"))
    assert file.getvalue() == "fail  disk: full\n      free 3 GB\n"


@pytest.mark.parametrize("flags", ["--device nothing", "--n-step 3", "--model.d-model 15"])
def test_bad_input_is_code_2(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(f"doctor {TINY} {flags}")) == 2
    assert capsys.readouterr().err.startswith("error: ")
