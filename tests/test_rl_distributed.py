"""Two processes sample and learn what one does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_each, run_processes
from rl_runs import make_base, make_task, rl_config, timeless_rows

from rslm.checkpoint import MODEL, newest_checkpoint, read_safetensors
from rslm.config import read_config, to_toml
from rslm.distributed import Processes
from rslm.post import rl, setup, update
from rslm.post.rl_config import RlConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    make_base(folder / "base", n_steps=0)
    make_task(folder / "task.jsonl")
    return folder


def train_from(file: Path, stop_at: int | None = None) -> str | None:
    """Trains or goes on; what was refused."""
    setup.peak_flops = lambda *_: 1e12
    update.write_curve = lambda *_: None
    try:
        rl.train(read_config(RlConfig, file), resume=True, stop_at=stop_at)
    except ValueError as error:
        return str(error)
    return None


def gather_bytes_of(processes: Processes, parts: list[bytes]) -> list[str]:
    return [part.hex() for part in processes.gather_bytes(parts[processes.rank])]


def ids_of(run: Path) -> list[Any]:
    """What was drawn and earned, of every step."""
    files = sorted((run / "rollouts").glob("step_*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [[each[key] for key in ("step", "seed", "token_ids", "reward")] for each in records]


@pytest.mark.parametrize(
    "changes",
    [
        {"minibatches_per_rollout": 2, "n_evaluation_prompts": 3, "n_evaluation_samples": 2},
        # One of the processes has no question to evaluate, and no row in some micro-batches.
        {"n_evaluation_prompts": 1, "minibatches_per_rollout": 16, "temperature": 0.7},
        {"aggregation": "token", "keep": "mixed", "sampling_rounds": 2, "group_size": 2},
        {"exact": False, "kl_coefficient": 0.1, "aggregation": "constant"},
    ],
)
def test_two_processes_learn_what_one_does(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    runs = []
    for n in (1, 2):
        parallel = "none" if n == 1 else "ddp"
        config = rl_config(
            folder, out=tmp_path / f"{n}", rewards=("random",), parallel=parallel, **changes
        )
        file = tmp_path / f"{n}.toml"
        file.write_text(to_toml(config))
        if n == 2:
            assert run_each(train_from, file, 1, n=n) == [None, None]
        run_each(train_from, file, n=n)
        runs.append(config.out)
    one, two = runs
    assert ids_of(one) == ids_of(two)
    first, other = ((run / "rollouts" / "step_1.jsonl").read_bytes() for run in runs)
    assert first == other
    for row, found in zip(timeless_rows(one), timeless_rows(two), strict=True):
        assert found.keys() == row.keys()
        for key, value in row.items():
            assert found[key] == (value if value is None else pytest.approx(value, 1e-5, 1e-6))
    weights = []
    for run in runs:
        newest, _ = newest_checkpoint(run / "checkpoints")
        assert newest is not None
        weights.append(read_safetensors(newest / MODEL)[0])
    for name, tensor in weights[0].items():
        distance = (weights[1][name] - tensor).norm() / tensor.norm()
        assert distance <= 1e-6, name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"prompts_per_step": 3},
            "prompts_per_step must be a multiple of the 2 processes, got 3",
        ),
        (
            {"server": "http://localhost", "server_folder": Path("x")},
            "server must be left out where 2 processes train, which sample",
        ),
    ],
)
def test_what_processes_cannot_do_together_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    config = rl_config(folder, out=tmp_path / "run", parallel="ddp", **changes)
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    assert run_each(train_from, file) == [said, said]
    assert not config.out.exists()


def test_bytes_of_all_processes_come_in_order() -> None:
    parts = [b"", b"\x00one", b"three"]
    for found in run_processes(gather_bytes_of, parts, n=3):
        assert [bytes.fromhex(part) for part in found] == parts
    assert Processes(device=torch.device("cpu")).gather_bytes(b"x") == [b"x"]
