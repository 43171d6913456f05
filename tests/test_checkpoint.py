import errno
import io
import json
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rslm import checkpoint
from rslm.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_run_checkpoint,
    load_weights,
    mark_best,
    model_tensors,
    newest_checkpoint,
    prune_checkpoints,
    read_state,
    save_checkpoint,
    take_snapshot,
    verify_checkpoint,
    weights_path,
    write_snapshot,
)
from rslm.errors import FormatError
from rslm.optim import AdamW, parameter_groups

Build = Callable[[nn.Module], torch.optim.Optimizer]


class Net(nn.Module):
    def __init__(self, width: int = 3, tied: bool = False) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, width))
        self.b = nn.Parameter(torch.randn(width))
        self.register_buffer("count", torch.tensor(3))
        if tied:
            self.c = self.a

    def forward(self) -> torch.Tensor:
        return (self.a * self.b).square().sum()


def ours(model: nn.Module) -> torch.optim.Optimizer:
    return AdamW(parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95))


OPTIMIZERS: list[Build] = [
    ours,
    lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.9)),
    lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
    lambda model: torch.optim.SGD(model.parameters(), lr=1e-2),
]


def trained(build: Build = ours, n_steps: int = 3, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Net(**options)
    optimizer = build(model)
    continue_training(model, optimizer, n_steps)
    return model, optimizer


def continue_training(model: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int) -> None:
    for _ in range(n_steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()


def assert_equal_tensors(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("build", OPTIMIZERS, ids=["ours", "torch", "momentum", "sgd"])
def test_restored_training_goes_on_to_the_same_bits(build: Build, tmp_path: Path) -> None:
    model, optimizer = trained(build)
    save_checkpoint(model, optimizer, 3, tmp_path / "saved")
    fresh, fresh_optimizer = trained(build, n_steps=0)
    fresh_optimizer.param_groups[0]["lr"] = 9.0
    assert load_checkpoint(tmp_path / "saved", fresh, fresh_optimizer) == 3
    assert_equal_tensors(model, fresh)
    for group, restored in zip(optimizer.param_groups, fresh_optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in restored.items() if k != "params"
        }
    continue_training(model, optimizer, 3)
    continue_training(fresh, fresh_optimizer, 3)
    assert_equal_tensors(model, fresh)


def test_checkpoint_goes_to_file_objects_and_equal_states_give_equal_bytes() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        save_checkpoint(*trained(), 7, file)
        file.seek(0)
    assert files[0].getvalue() == files[1].getvalue()
    model, optimizer = trained(n_steps=0)
    assert load_checkpoint(files[0], model, optimizer) == 7
    assert_equal_tensors(model, trained()[0])


def test_tied_parameters_are_stored_once(tmp_path: Path) -> None:
    model, optimizer = trained(tied=True)
    assert list(model_tensors(model)) == ["a", "b", "count"]
    save_checkpoint(model, optimizer, 1, tmp_path / "saved")
    other, other_optimizer = trained(n_steps=0, tied=True)
    load_checkpoint(tmp_path / "saved", other, other_optimizer)
    assert_equal_tensors(model, other)
    assert other.c is other.a


def test_compiled_model_has_the_names_of_the_plain_one() -> None:
    model, _ = trained()
    assert list(model_tensors(torch.compile(model))) == list(model_tensors(model))


def test_optimizer_of_another_model_is_refused() -> None:
    _, optimizer = trained()
    with pytest.raises(ValueError, match="must belong to the model"):
        save_checkpoint(Net(), optimizer, 1, io.BytesIO())


def test_state_that_is_no_plain_value_is_refused() -> None:
    model, optimizer = trained()
    optimizer.state[model.a]["odd"] = {1, 2}
    with pytest.raises(TypeError, match="a/odd must be a tensor or a plain value, got set"):
        save_checkpoint(model, optimizer, 1, io.BytesIO())


def saved_bytes(**options: Any) -> bytes:
    file = io.BytesIO()
    save_checkpoint(*trained(**options), 3, file)
    return file.getvalue()


def changed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> bytes:
    """A checkpoint whose metadata and tensors were tampered with."""
    tensors, record = checkpoint._parse_safetensors(saved_bytes(), "saved")
    change(record, tensors)
    return checkpoint.save(tensors, checkpoint._metadata(record))


BAD_FILES = {
    "nothing": (b"", "not a safetensors file"),
    "noise": (bytes(range(200)), "not a safetensors file"),
    "pickle": (b"\x80\x04\x95" + bytes(100), "not a safetensors file"),
    "huge header": (struct.pack("<Q", 2**62) + b"{}", "not a safetensors file"),
    "cut": (saved_bytes()[:-8], "not a safetensors file"),
    "long": (saved_bytes() + b"x", "not a safetensors file"),
    "other shapes": (saved_bytes(width=5), r"tensor a must be .*\(4, 3\), got .*\(4, 5\)"),
    "other optimizer": (
        saved_bytes(build=OPTIMIZERS[2]),
        "the optimizer must be AdamW, got 'SGD'",
    ),
    "no metadata": (
        checkpoint.save({"model/a": torch.zeros(1)}),
        "step must be a count, got None",
    ),
    "metadata not JSON": (checkpoint.save({}, {"rslm": "{"}), "metadata is not JSON"),
    "metadata deep": (checkpoint.save({}, {"rslm": "[" * 100_000}), "metadata is not JSON"),
    "metadata a list": (checkpoint.save({}, {"rslm": "[]"}), "metadata must be an object"),
    "stray tensor": (checkpoint.save({"x": torch.zeros(1)}), "unexpected tensor 'x'"),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_one_format_error(data: bytes, message: str) -> None:
    model, optimizer = trained(n_steps=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FormatError, match=message):
        load_checkpoint(io.BytesIO(data), model, optimizer)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not optimizer.state


def put(name: str, tensor: torch.Tensor) -> Callable[..., None]:
    return lambda record, tensors: tensors.update({name: tensor})


TAMPERED: dict[str, tuple[Callable[..., None], str]] = {
    "step": (lambda r, t: r.update(step=-1), "step must be a count, got -1"),
    "step kind": (lambda r, t: r.update(step=True), "step must be a count, got True"),
    "missing tensor": (lambda r, t: t.pop("model/a"), "tensor a is missing"),
    "extra tensor": (put("model/z", torch.zeros(2)), "tensor z is not in the model"),
    "dtype": (put("model/b", torch.zeros(3, dtype=torch.float64)), "tensor b must be"),
    "state shape": (put("optimizer/a/exp_avg", torch.zeros(7)), "state a/exp_avg does not fit"),
    "state owner": (lambda r, t: r["scalars"].update({"z/x": 1}), "z/x belongs to no parameter"),
    "state missing": (lambda r, t: t.pop("optimizer/a/exp_avg"), "tensors are not those listed"),
    "state unlisted": (lambda r, t: r.pop("tensors"), "tensors are not those listed"),
    "state kind": (lambda r, t: r["scalars"].update({"a/x": [1]}), "state a/x does not fit"),
    "no scalars": (lambda r, t: r.pop("scalars"), "scalars are missing"),
    "no groups": (lambda r, t: r.pop("groups"), "groups are missing"),
    "fewer groups": (lambda r, t: r["groups"].pop(), "same parameters in the same order"),
    "group value": (lambda r, t: r["groups"][0].update(lr="x"), "lr = 'x' does not fit"),
    "group length": (lambda r, t: r["groups"][0].update(betas=[1]), r"betas = \[1\] does not fit"),
    "group range": (
        lambda r, t: r["groups"][0].update(betas=[1, 1]),
        r"betas must lie in \[0, 1\)",
    ),
    "group item": (lambda r, t: r["groups"][0].update(betas=["x", 0]), "not supported between"),
    "group NaN": (
        lambda r, t: r["groups"][0].update(eps=math.nan),
        "eps must be at least 0, got nan",
    ),
    "group key": (lambda r, t: r["groups"][0].update(odd=1), "odd = 1 does not fit"),
}


@pytest.mark.parametrize(("change", "message"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_checkpoint_is_one_format_error(change: Callable[..., None], message: str) -> None:
    model, optimizer = trained(n_steps=1)
    with pytest.raises(FormatError, match=message):
        load_checkpoint(io.BytesIO(changed(change)), model, optimizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2 and 3."""
    model, optimizer = trained(n_steps=0)
    for step in (1, 2, 3):
        continue_training(model, optimizer, 1)
        write_snapshot(tmp_path, take_snapshot(model, optimizer), {"step": step, "note": "x"})
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_run_checkpoint_restores_the_same_bits(folder: Path) -> None:
    model, optimizer = trained(n_steps=0)
    newest, rejected = newest_checkpoint(folder)
    assert newest == folder / "step_00000003"
    assert not rejected
    assert load_run_checkpoint(newest, model, optimizer) == {"step": 3, "note": "x"}
    twin, twin_optimizer = trained(n_steps=3)
    assert_equal_tensors(model, twin)
    continue_training(model, optimizer, 2)
    continue_training(twin, twin_optimizer, 2)
    assert_equal_tensors(model, twin)


def test_manifest_is_what_sha256sum_reads(folder: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "manifest.sha256"]
    subprocess.run(command, cwd=folder / "step_00000002", check=True, capture_output=True)


def test_only_the_newest_are_kept(folder: Path) -> None:
    prune_checkpoints(folder, 2)
    assert names(folder) == ["step_00000002", "step_00000003"]
    prune_checkpoints(folder, 5)
    assert names(folder) == ["step_00000002", "step_00000003"]


def test_the_best_is_kept_beside_the_newest(folder: Path) -> None:
    mark_best(folder, 2)
    mark_best(folder, 1)
    prune_checkpoints(folder, 1, best=1)
    assert names(folder) == ["best", "step_00000001", "step_00000003"]
    assert read_state((folder / "best").resolve())["step"] == 1
    # The link moves with the folder.
    moved = folder.with_name("moved")
    os.rename(folder, moved)
    verify_checkpoint(moved / "best")
    mark_best(moved, 3)
    prune_checkpoints(moved, 1, best=3)
    assert names(moved) == ["best", "step_00000003"]
    assert newest_checkpoint(moved) == (moved / "step_00000003", {})


def test_copy_that_followed_the_link_can_be_marked_again(folder: Path) -> None:
    mark_best(folder, 2)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    assert not (copy / "best").is_symlink()
    mark_best(copy, 3)
    prune_checkpoints(copy, 1, best=3)
    assert names(copy) == ["best", "step_00000003"]
    assert os.readlink(copy / "best") == "step_00000003"


def test_leftover_of_a_link_is_no_obstacle(folder: Path) -> None:
    (folder / "best.tmp").symlink_to("nowhere")
    mark_best(folder, 3)
    assert names(folder) == ["best", "step_00000001", "step_00000002", "step_00000003"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "link to a file", "broken link"])
def test_what_lies_in_the_way_goes_and_what_it_links_to_stays(
    folder: Path, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "inside").mkdir()
    (outside / "file").touch()
    links = {"link": outside, "link to a file": outside / "file", "broken link": folder / "no"}
    for name in ("tmp_step_00000004", "tmp_old_step_00000004", "tmp_x", "step_00000004"):
        if kind == "folder":
            (folder / name).mkdir()
            (folder / name / "inner").symlink_to(outside)
        elif kind == "file":
            (folder / name).touch()
        else:
            (folder / name).symlink_to(links[kind])
    model, optimizer = trained()
    write_snapshot(folder, take_snapshot(model, optimizer), {"step": 4})
    prune_checkpoints(folder, 2)
    assert names(folder) == ["step_00000003", "step_00000004"]
    verify_checkpoint(folder / "step_00000004")
    assert names(outside) == ["file", "inside"]


def test_link_to_a_checkpoint_is_pruned_and_its_target_is_not(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "step_00000001"
    os.rename(folder / "step_00000001", outside)
    (folder / "step_00000001").symlink_to(outside)
    prune_checkpoints(folder, 1)
    assert names(folder) == ["step_00000003"]
    verify_checkpoint(outside)


def test_snapshot_is_untouched_by_further_training(tmp_path: Path) -> None:
    model, optimizer = trained(n_steps=3)
    write_snapshot(tmp_path / "at_once", take_snapshot(model, optimizer), {"step": 3})
    snapshot = take_snapshot(model, optimizer)
    continue_training(model, optimizer, 2)
    optimizer.param_groups[0]["lr"] = 9.0
    write_snapshot(tmp_path / "later", snapshot, {"step": 3})
    for name in (checkpoint.MODEL, checkpoint.OPTIM):
        at_once, later = (tmp_path / at / "step_00000003" / name for at in ("at_once", "later"))
        assert at_once.read_bytes() == later.read_bytes()


def test_snapshot_of_a_view_holds_the_view_alone() -> None:
    model, optimizer = trained(n_steps=1)
    exp_avg = optimizer.state[model.a]["exp_avg"]
    optimizer.state[model.a]["exp_avg"] = torch.zeros(4, 300)[:, ::100].copy_(exp_avg)
    copied = take_snapshot(model, optimizer).optimizer["a/exp_avg"]
    assert torch.equal(copied, exp_avg)
    assert copied.is_contiguous()
    assert copied.untyped_storage().nbytes() == copied.nbytes


def test_writing_a_step_again_replaces_it(folder: Path) -> None:
    model, optimizer = trained(n_steps=5)
    write_snapshot(folder, take_snapshot(model, optimizer), {"step": 3, "note": "again"})
    assert names(folder) == ["step_00000001", "step_00000002", "step_00000003"]
    assert read_state(folder / "step_00000003")["note"] == "again"
    verify_checkpoint(folder / "step_00000003")


def test_steps_are_ordered_as_numbers(folder: Path) -> None:
    os.rename(folder / "step_00000001", folder / "step_123456789")
    (folder / "step_old").mkdir()
    assert [path.name for path in list_checkpoints(folder)] == [
        "step_00000002",
        "step_00000003",
        "step_123456789",
    ]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "flipped weights": ("model.safetensors", flip, "model.safetensors is damaged"),
    "cut optimizer": ("optim.safetensors", cut, "optim.safetensors is damaged"),
    "flipped state": ("state.json", flip, "state.json is damaged"),
    "missing weights": ("model.safetensors", Path.unlink, "model.safetensors is missing"),
    "missing manifest": ("manifest.sha256", Path.unlink, "manifest.sha256 is missing"),
    "empty manifest": ("manifest.sha256", lambda p: p.write_text(""), "must list"),
    "manifest with more": (
        "manifest.sha256",
        lambda p: p.write_text(p.read_text() + p.read_text()[:65] + " ../x\n"),
        "must list",
    ),
    "manifest not text": ("manifest.sha256", lambda p: p.write_bytes(b"\xff\xfe"), "is not text"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_newest_checkpoint_falls_back_and_says_why(
    folder: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder / "step_00000003" / name)
    newest, rejected = newest_checkpoint(folder)
    assert newest == folder / "step_00000002"
    assert list(rejected) == [folder / "step_00000003"]
    assert message in rejected[folder / "step_00000003"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") == (None, {})


def test_full_disk_leaves_the_older_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    model, optimizer = trained()
    with pytest.raises(OSError, match="No space left on device") as error:
        write_snapshot(folder, take_snapshot(model, optimizer), {"step": 3})
    assert error.value.errno == errno.ENOSPC
    assert names(folder) == ["step_00000001", "step_00000002", "step_00000003"]
    assert newest_checkpoint(folder)[0] == folder / "step_00000003"


def test_weights_path_takes_a_run_or_a_file(tmp_path: Path, folder: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no good checkpoint"):
        weights_path(run)
    os.rename(folder / "step_00000002", run / "step_00000002")
    (run / "checkpoints").mkdir()
    os.rename(run / "step_00000002", run / "checkpoints" / "step_00000002")
    weights = weights_path(run)
    assert weights == run / "checkpoints" / "step_00000002" / "model.safetensors"
    assert weights_path(weights) == weights
    model, _ = trained(n_steps=0)
    load_weights(weights, model)
    assert_equal_tensors(model, trained(n_steps=2)[0])
    with pytest.raises(FormatError, match="not a safetensors file"):
        load_weights(weights.with_name("state.json"), model)


def test_state_must_be_a_small_object_with_a_step(folder: Path) -> None:
    path = folder / "step_00000001"
    for text, message in (
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be an object with a step"),
        (json.dumps({"step": "1"}), "must be an object with a step"),
        (" " * (checkpoint.MAX_JSON_BYTES + 1), "must be at most"),
    ):
        (path / "state.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            read_state(path)


def test_run_weights_are_plain_safetensors(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "step_00000003" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "a": (4, 3),
        "b": (3,),
        "count": (),
    }
    save_file(tensors, tmp_path / "exported.safetensors")
    model, _ = trained(n_steps=0)
    load_weights(tmp_path / "exported.safetensors", model)
    assert_equal_tensors(model, trained(n_steps=3)[0])
