"""What the processes of a run decide they decide together; every switch goes with several."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import (
    assert_same_run,
    join_all,
    run_each,
    skip_slow_parts,
    start_each,
    train_here,
    write,
)

from rslm import train as loop
from rslm.batches import sample_batch
from rslm.checkpoint import list_checkpoints, newest_checkpoint, read_state, step_of
from rslm.config import read_config
from rslm.run_log import Clock
from rslm.token_file import TokenFile
from rslm.train import train
from rslm.train_config import (
    DataConfig,
    MuonConfig,
    OptimizerConfig,
    ParallelKind,
    TrainConfig,
)

# Processes that wait for each other must not wait for ever.
pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("quick")]

MakeConfig = Callable[..., TrainConfig]

MUON = OptimizerConfig(
    algorithm="muon",
    learning_rate=1e-2,
    warmup_steps=4,
    muon=MuonConfig(normuon_beta2=0.9, cautious_decay=True),
)
SWITCHES: dict[str, Any] = {
    "tied_head": True,
    "value_embeddings": True,
    "x0_scalars": True,
    "residual_scalars": True,
    "qk_norm": "rms-gain",
    "biases": True,
    "n_kv_heads": 1,
    "z_loss": 1e-3,
    "softcap": 15.0,
    "n_layers": 2,
    "parametrisation": "completep",
    "base_d_model": 8,
    "base_n_layers": 1,
}


def switched(config: TrainConfig) -> TrainConfig:
    """The same run with many of the model's switches, and blocks that are computed again."""
    return replace(config, model=replace(config.model, **SWITCHES), recompute_blocks=1)


@pytest.mark.parametrize("kind", ["ddp", "sharded", "torch-ddp"])
def test_muon_makes_the_same_update_in_one_and_two_processes(
    tiny_config: MakeConfig, tmp_path: Path, kind: str
):
    """To the last bit; with the scales of CompleteP on the groups that AdamW updates."""
    options = {"optimizer": MUON, "micro_batch_size": 2}
    alone = switched(tiny_config(out=tmp_path / "alone", **options))
    train(alone)
    config = switched(tiny_config(out=tmp_path / kind, parallel=kind, **options))
    assert run_each(train_here, write(config), False) == [("finished", 20)] * 2
    assert_same_run(config.out, alone.out, 0)


@pytest.mark.parametrize("kind", ["fsdp", "torch-fsdp2"])
def test_sharded_model_with_every_switch_trains_as_one_process_does(
    tiny_config: MakeConfig, tmp_path: Path, kind: str
):
    alone = switched(tiny_config(out=tmp_path / "alone", micro_batch_size=2))
    train(alone)
    config = switched(tiny_config(out=tmp_path / kind, parallel=kind))
    assert run_each(train_here, write(config), False) == [("finished", 20)] * 2
    assert_same_run(config.out, alone.out, 1e-5)


@pytest.mark.parametrize("kind", ["fsdp", "torch-fsdp2"])
def test_muon_is_refused_where_matrices_are_cut(tiny_config: MakeConfig, kind: ParallelKind):
    with pytest.raises(ValueError, match=r"parallel must be ddp, .* whole matrices, got .*fsdp"):
        tiny_config(parallel=kind, optimizer=MUON)


def killed_after(file: Path, n_steps: int) -> None:
    """Goes on with a run, and is killed where the batch of a step is asked for."""
    skip_slow_parts()
    take = loop.sample_batch

    def sample_batch(*args: Any, **options: Any) -> Any:
        if options["step"] == n_steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(*args, **options)

    loop.sample_batch = sample_batch
    loop.train(read_config(TrainConfig, file), resume=True)


def test_killed_processes_go_on_in_any_number(tiny_config: MakeConfig, tmp_path: Path):
    """Two are killed beside what they were writing, one goes on and is killed, two finish."""
    options = {"optimizer": MUON, "micro_batch_size": 2, "keep_checkpoints": 9}
    alone = tiny_config(out=tmp_path / "alone", **options)
    train(alone)
    out = tmp_path / "run"
    for kind, n, last in (("sharded", 2, 8), ("none", 1, 14)):
        file = write(tiny_config(out=out, parallel=kind, **options))
        killed = start_each(killed_after, file, last, n=n, folder=tmp_path)
        assert join_all(killed) == [-signal.SIGKILL] * n
        newest, _ = newest_checkpoint(out / "checkpoints")
        assert newest is not None
        assert step_of(newest) < last
    config = tiny_config(out=out, parallel="ddp", **options)
    assert run_each(train_here, write(config), True) == [("finished", 20)] * 2
    assert_same_run(out, alone.out, 0)


def test_signal_to_one_process_stops_all_at_one_step(tiny_config: MakeConfig, tmp_path: Path):
    config = tiny_config(out=tmp_path / "run", parallel="ddp", n_steps=4000, validate_every=4000)
    started = start_each(train_here, write(config), False, 0.002, n=2, folder=tmp_path)
    deadline = time.monotonic() + 60
    while not (config.out / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(started[1].pid, signal.SIGTERM)
    assert join_all(started) == [0, 0]
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    assert first[0] == "terminated"
    newest, _ = newest_checkpoint(config.out / "checkpoints")
    assert newest is not None
    assert step_of(newest) == first[1]


def train_with_a_fast_clock(file: Path) -> tuple[str, int]:
    """Trains; in the second process every moment is a thousand hours after the one before."""
    if os.environ["RANK"] == "1":
        seconds = iter(range(0, 10**12, 3_600_000))
        Clock.elapsed_seconds = property(lambda _: float(next(seconds)))
    return train_here(file, False)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_late_process_makes_all_save(tiny_config: MakeConfig, tmp_path: Path, kind: str):
    options = {"checkpoint_every": 100, "keep_checkpoints": 100, "checkpoint_minutes": 600.0}
    config = tiny_config(out=tmp_path / "run", parallel=kind, **options)
    assert run_each(train_with_a_fast_clock, write(config)) == [("finished", 20)] * 2
    steps = [step_of(path) for path in list_checkpoints(config.out / "checkpoints")]
    assert steps == list(range(1, 21))


def poison(*bad: tuple[int, int]) -> None:
    """At each (step, window) the loss of one window in the whole batch gives NaN gradients.

    The reported loss stays finite, so that nothing but the gradients' norm can tell.
    """
    take, make = loop.sample_batch, loop.parallelize
    marked: set[bytes] = set()

    def sample(*args: Any, **options: Any) -> Any:
        whole = take(*args, **{**options, "share": slice(None)})
        marked.clear()
        marked.update(whole[i, 1:].tobytes() for step, i in bad if step == options["step"])
        return take(*args, **options)

    def parallelize(*args: Any, **options: Any) -> Any:
        parallel = make(*args, **options)

        def forward(*inputs: Any, targets: torch.Tensor, **options: Any) -> Any:
            minimised, loss = parallel.forward(*inputs, targets=targets, **options)
            is_bad = any(row.numpy().tobytes() in marked for row in targets)
            return minimised * (float("nan") if is_bad else 1.0), loss

        return replace(parallel, forward=forward)

    loop.sample_batch, loop.parallelize = sample, parallelize


def train_poisoned(file: Path, bad: list[tuple[int, int]]) -> tuple[str, int] | str:
    poison(*bad)
    try:
        return train_here(file, False)
    except FloatingPointError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "optimizer", "tolerance"),
    [
        *[("ddp", MUON, 0), ("sharded", MUON, 0), ("torch-ddp", MUON, 0)],
        *[("fsdp", None, 1e-5), ("torch-fsdp2", None, 1e-5)],
    ],
)
def test_infinite_gradients_of_one_process_are_skipped_by_all(
    tiny_config: MakeConfig,
    token_files: tuple[Path, Path],
    tmp_path: Path,
    kind: str,
    optimizer: OptimizerConfig | None,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
):
    options: dict[str, Any] = {} if optimizer is None else {"optimizer": optimizer}
    bad = [(5, 3), (8, 0), (9, 2)]
    config = tiny_config(out=tmp_path / kind, parallel=kind, **options)
    assert run_each(train_poisoned, write(config), bad) == [("finished", 20)] * 2
    alone = tiny_config(out=tmp_path / "alone", micro_batch_size=2, **options)
    for name in ("sample_batch", "parallelize"):
        monkeypatch.setattr(loop, name, getattr(loop, name))
    poison(*bad)
    train(alone)
    assert_same_run(config.out, alone.out, tolerance)
    state = read_state(config.out / "checkpoints" / "step_00000020")
    assert state["skipped"] == {"n_skipped": 3, "n_in_a_row": 0}
    # The first process writes, and the whole batch.
    files = sorted(config.out.glob("nonfinite_*"))
    assert [file.name[-7:-5] for file in files] == ["06", "09", "10"]
    windows = sample_batch(
        TokenFile.open(token_files[0]), seed=0, step=5, batch_size=4, context_length=16
    )
    assert json.loads(files[0].read_text())["token_ids"] == windows.tolist()


def test_too_many_infinite_steps_end_all_processes(tiny_config: MakeConfig, tmp_path: Path):
    config = tiny_config(out=tmp_path / "run", parallel="ddp")
    bad = [(step, 3) for step in (4, 5, 6, 7)]
    first, second = run_each(train_poisoned, write(config), bad)
    assert first == second
    assert first.startswith("step 8: loss")
    assert newest_checkpoint(config.out / "checkpoints")[0] is not None


def test_mixed_sources_are_the_same_in_one_and_two_processes(
    tiny_config: MakeConfig, token_files: tuple[Path, Path], tmp_path: Path
):
    data = DataConfig(train=token_files[0], mixed_in=(token_files[1],), weights=(2.0, 1.0))
    alone = tiny_config(out=tmp_path / "alone", micro_batch_size=3, data=data, batch_size=6)
    train(alone)
    config = tiny_config(out=tmp_path / "run", parallel="sharded", data=data, batch_size=6)
    taken = run_each(note_windows, write(config))
    assert_same_run(config.out, alone.out, 0)
    source = loop.open_data(config).source
    for step in range(20):
        whole = sample_batch(source, seed=0, step=step, batch_size=6, context_length=16)
        assert taken[0][step] + taken[1][step] == whole.tolist()


def note_windows(file: Path) -> list[list[list[int]]]:
    """The windows that this process trained on, by step."""
    taken = []
    cut = loop.micro_batch

    def micro_batch(batch: Any, first: int, count: int, device: torch.device) -> Any:
        taken.append(batch[first : first + count].tolist())
        return cut(batch, first, count, device)

    loop.micro_batch = micro_batch
    train_here(file, False)
    return taken
