"""Checkpoints that were edited together with their hashes: one sentence, and nothing changed."""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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


def edit_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the header of a safetensors file and leaves the bytes behind it."""
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def first_of(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = min(
        (e for name, e in header.items() if name != "__metadata__" and e["shape"]),
        key=lambda entry: entry["data_offsets"],
    )
    return entry


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "offset beyond": lambda h: first_of(h).update(data_offsets=[0, 10**12]),
    "offset huge": lambda h: first_of(h).update(data_offsets=[0, 2**64 - 1]),
    "offset negative": lambda h: first_of(h).update(data_offsets=[-4, 4]),
    "offsets backwards": lambda h: first_of(h).update(data_offsets=[64, 0]),
    "offsets overlapping": lambda h: h.update(twin=first_of(h)),
    "shape huge": lambda h: first_of(h).update(shape=[2**40, 2**40]),
    "shape long": lambda h: first_of(h).update(shape=[1] * 100_000),
    "shape negative": lambda h: first_of(h).update(shape=[-1, 4]),
    "shape turned": lambda h: first_of(h).update(shape=first_of(h)["shape"][::-1] + [1]),
    "dtype of the same size": lambda h: first_of(h).update(dtype="I32"),
    "dtype unknown": lambda h: first_of(h).update(dtype="X99"),
    "dtype of another size": lambda h: first_of(h).update(dtype="F64"),
    "name deep": lambda h: h.update({"x" * 100_000: first_of(h)}),
    "metadata of numbers": lambda h: h.update(__metadata__={"rslm": 3}),
}
LENGTHS = {"length huge": 2**63, "length of a gigabyte": 2**30, "length 0": 0, "length 1": 1}


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        *((checkpoint.OPTIM, lie) for lie in (*HEADERS, *LENGTHS)),
        *(
            (checkpoint.MODEL, lie)
            for lie in ("offset huge", "dtype of the same size", "name deep")
        ),
    ],
)
def test_a_header_that_lies_is_one_sentence(
    name: str, lie: str, run: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = newest_of(run)
    if lie in HEADERS:
        edit_header(newest / name, HEADERS[lie])
    else:
        data = (newest / name).read_bytes()
        (newest / name).write_bytes(struct.pack("<Q", LENGTHS[lie]) + data[8:])
    sign(newest)
    assert_refused(run, rf"step_00000020/{name}", capsys)


Tensors = dict[str, torch.Tensor]
STATE_NAME = "lm_head.weight/exp_avg"
WEIGHT = "lm_head.weight"
CHANGES: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "weights nan": (checkpoint.MODEL, lambda t: t[WEIGHT].fill_(torch.nan), WEIGHT),
    "weights missing": (checkpoint.MODEL, lambda t: t.pop(WEIGHT), WEIGHT),
    "weights more": (checkpoint.MODEL, lambda t: t.update(x=torch.zeros(1)), "tensor x"),
    "weights half": (checkpoint.MODEL, lambda t: t.update({WEIGHT: t[WEIGHT].half()}), WEIGHT),
    "weights cut": (checkpoint.MODEL, lambda t: t.update({WEIGHT: t[WEIGHT][1:].clone()}), WEIGHT),
    "state nan": (checkpoint.OPTIM, lambda t: t[STATE_NAME].fill_(torch.nan), STATE_NAME),
    "state inf": (checkpoint.OPTIM, lambda t: t[STATE_NAME][0, :1].fill_(torch.inf), STATE_NAME),
    "state missing": (checkpoint.OPTIM, lambda t: t.pop(STATE_NAME), STATE_NAME),
    "weights of a long name": (
        checkpoint.MODEL,
        lambda t: t.update({"x" * 10_000: torch.zeros(1)}),
        "tensor x+ is not in the model",
    ),
    "state of a long name": (
        checkpoint.OPTIM,
        lambda t: t.update({f"{WEIGHT}/{'x' * 10_000}": torch.zeros(1, 1)}),
        "x+ is none of the optimizer's",
    ),
    "state of nothing": (
        checkpoint.OPTIM,
        lambda t: t.update({"x" * 10_000: torch.zeros(1)}),
        "state x+ belongs to no parameter",
    ),
    "state more": (
        checkpoint.OPTIM,
        lambda t: t.update({f"{WEIGHT}/x": torch.zeros(1)}),
        f"{WEIGHT}/x",
    ),
    "state half": (
        checkpoint.OPTIM,
        lambda t: t.update({STATE_NAME: t[STATE_NAME].half()}),
        STATE_NAME,
    ),
    "state of whole numbers": (
        checkpoint.OPTIM,
        lambda t: t.update({STATE_NAME: t[STATE_NAME].int()}),
        STATE_NAME,
    ),
    "state one number": (
        checkpoint.OPTIM,
        lambda t: t.update({STATE_NAME: torch.zeros(())}),
        STATE_NAME,
    ),
    "state one row": (
        checkpoint.OPTIM,
        lambda t: t.update({STATE_NAME: t[STATE_NAME][:1].clone()}),
        STATE_NAME,
    ),
    "step a matrix": (
        checkpoint.OPTIM,
        lambda t: t.update({f"{WEIGHT}/step": torch.ones_like(t[STATE_NAME])}),
        f"{WEIGHT}/step",
    ),
    "step below 0": (checkpoint.OPTIM, lambda t: t[f"{WEIGHT}/step"].fill_(-5), "at least 0"),
}


@pytest.mark.parametrize(("name", "change", "message"), CHANGES.values(), ids=CHANGES)
def test_tensors_that_do_not_fit_are_one_sentence(
    name: str,
    change: Callable[[Tensors], Any],
    message: str,
    run: TrainConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run.out / "checkpoints"
    shutil.rmtree(newest_of(run))  # So that there are steps to go.
    newest = list_checkpoints(folder)[-1]
    tensors, record = checkpoint.read_safetensors(newest / name)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    change(tensors)
    if name == checkpoint.OPTIM:
        record["tensors"] = sorted(tensors)
    save_file(tensors, newest / name, checkpoint._metadata(record) if record else None)
    sign(newest)
    assert_refused(run, rf"step_00000018/{name}.*{message}", capsys)
