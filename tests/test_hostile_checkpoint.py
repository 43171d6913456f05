"""Checkpoints that were edited together with their hashes: one sentence, and nothing changed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rslm import checkpoint
from rslm.checkpoint import list_checkpoints
from rslm.cli import main
from rslm.config import to_toml
from rslm.errors import FormatError
from rslm.train import train
from rslm.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run for all tests, to be copied; made by the first that asks."""
    return [tmp_path_factory.mktemp("finished") / "run"]


@pytest.fixture
def run(tiny_config: MakeConfig, finished: list[Path]) -> TrainConfig:
    """The config of a finished run of 20 steps, whose folder is the test's own."""
    config = tiny_config()
    if not finished[0].exists():
        train(config)
        os.rename(config.out, finished[0])
    shutil.copytree(finished[0], config.out, symlinks=True)
    return config


def newest_of(config: TrainConfig) -> Path:
    return list_checkpoints(config.out / "checkpoints")[-1]


def sign(folder: Path) -> None:
    """Makes the hashes of a checkpoint those of what it now holds."""
    names = (checkpoint.MODEL, checkpoint.OPTIM, checkpoint.STATE)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    (folder / checkpoint.MANIFEST).write_text("".join(lines))


def edit_state(folder: Path, **changes: object) -> None:
    state = json.loads((folder / checkpoint.STATE).read_text()) | changes
    (folder / checkpoint.STATE).write_text(json.dumps(state))
    sign(folder)


def assert_refused(config: TrainConfig, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says one short line, ends with 2, and leaves the run as it was."""
    metrics = (config.out / "metrics.jsonl").read_bytes()
    names = sorted(path.name for path in (config.out / "checkpoints").iterdir())
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    capsys.readouterr()
    assert main(["train", "--resume", "--config", str(file)]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.search(message, said), said
    assert len(said) < 1000
    assert (config.out / "metrics.jsonl").read_bytes() == metrics
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == names


COUNTS = ("metrics_bytes", "samples_bytes")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in COUNTS for value in (-1, 1.5, None, 10**30)),
        *[("step", -1), ("step", 21), ("step", "20")],
        *(("elapsed_seconds", value) for value in (-1, float("nan"), [], 10**400, 1e300)),
        *[("data", None), ("data", [])],
        *(("batch_sizes", value) for value in (None, [], [4], [[1, 4]], [[0, 0]], [[0, True]])),
        *(("batch_sizes", value) for value in ([[0, 4], [21, 8]], [[0, 4], [0, 8]], [[0, 4, 1]])),
        *(("batch_sizes", value) for value in ([[0, 10**30]], [[0, 4, 1]] * 10_000)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_state_edited_together_with_its_hash_is_a_format_error(
    key: str, value: object, run: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_state(newest_of(run), **{key: value})
    assert_refused(run, rf"state\.json.*{key}", capsys)


def test_a_step_beyond_the_end_of_the_run_is_a_format_error(run: TrainConfig) -> None:
    newest = newest_of(run)
    beyond = newest.with_name("step_00000021")
    os.rename(newest, beyond)
    edit_state(beyond, step=21)
    with pytest.raises(FormatError, match=r"state\.json: step must be at most n_steps 20, got 21"):
        train(run, resume=True)
