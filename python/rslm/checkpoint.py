"""Checkpoints: safetensors and JSON, never pickle, so a file from a stranger is only data.

Two kinds. `save_checkpoint` and `load_checkpoint` are for small scripts: one file with model,
optimizer and step. A run keeps folders instead, one per saved step:

    checkpoints/step_00001000/
        model.safetensors    parameters and buffers, unsharded, by name
        optim.safetensors    optimizer state, unsharded, as `<parameter name>/<state name>`
        state.json           step, data position, metrics offset, config, versions
        manifest.sha256      hashes of the other three, as `sha256sum -c` reads them

A folder is written under a temporary name, synced, and renamed when it is complete; so a folder
with the right name is whole, unless the disk damaged it, which the hashes tell. `checkpoints/best`
is a link to the one with the lowest validation loss.

Writing takes two halves: `take_snapshot` copies what training would change, and `write_snapshot`
needs no more than the copy, so a thread can do it while training goes on.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rslm.errors import FormatError
from rslm.files import sha256_of, sync_folder

Place = str | os.PathLike[str] | IO[bytes]
Tensors = dict[str, Tensor]
Record = dict[str, Any]

MODEL, OPTIM, STATE = "model.safetensors", "optim.safetensors", "state.json"
MANIFEST = "manifest.sha256"
BEST = "best"
STEP_FOLDER = re.compile(r"step_\d{8,}")
MANIFEST_LINE = re.compile(r"([0-9a-f]{64})  ([a-z0-9.]+)")
# What a checkpoint says in JSON is a few kilobytes; more is refused before it is parsed.
MAX_JSON_BYTES = 1 << 24


def save_checkpoint(model: nn.Module, optimizer: Optimizer, step: int, out: Place) -> None:
    """Writes model, optimizer and step to one safetensors file, at a path or a file object.

    Raises:
        ValueError: the optimizer holds a parameter that the model does not.
        TypeError: the optimizer's state holds something else than tensors and plain values.
    """
    state, record = pack_optimizer(model, optimizer)
    tensors = {f"model/{name}": tensor for name, tensor in model_tensors(model).items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in state.items()}
    data = save(_ready(tensors), _metadata(record | {"step": step}))
    if isinstance(out, str | os.PathLike):
        Path(out).write_bytes(data)
    else:
        out.write(data)


def load_checkpoint(src: Place, model: nn.Module, optimizer: Optimizer) -> int:
    """Restores what `save_checkpoint` wrote, in place, and returns the step.

    Everything is checked before anything is changed. Devices and dtypes stay the model's.

    Raises:
        FormatError: the file is no such checkpoint, or is one of another model or optimizer.
        OSError: it cannot be read.
    """
    source = str(src) if isinstance(src, str | os.PathLike) else "the checkpoint"
    data = Path(src).read_bytes() if isinstance(src, str | os.PathLike) else src.read()
    tensors, record = _parse_safetensors(data, source)
    parts: dict[str, Tensors] = {"model": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, inner = name.partition("/")
        _require(part in parts, f"{source}: unexpected tensor {name!r}")
        parts[part][inner] = tensor
    step = record.get("step")
    if type(step) is not int or step < 0:
        raise FormatError(f"{source}: step must be a count, got {step!r}")
    check_model_tensors(model, parts["model"], source)
    state_dict = unpack_optimizer(model, optimizer, parts["optimizer"], record, source)
    copy_into_model(model, parts["model"])
    optimizer.load_state_dict(state_dict)
    return step


def model_tensors(model: nn.Module) -> Tensors:
    """The parameters and persistent buffers by name; a tied one under its first name only.

    A compiled module gives the names of the module it wraps.
    """
    plain = getattr(model, "_orig_mod", model)
    named: Tensors = {}
    seen: set[int] = set()
    for name, tensor in plain.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            named[name] = tensor
            seen.add(id(tensor))
    return named


def weights_hash(model: nn.Module) -> str:
    """A hash of the bytes of all parameters with their names, shapes and dtypes.

    It costs a pass over them, on the host: about a second for each gigabyte.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        whole = tensor.detach().cpu().contiguous().flatten()
        digest.update(whole.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Holds the tensors of a file against those of a model.

    Raises:
        FormatError: names, shapes or dtypes differ, or a number is not finite.
    """
    expected = model_tensors(model)
    check_tensor_names(expected, tensors, source)
    for name, want in expected.items():
        have = tensors[name]
        _require(
            want.shape == have.shape and want.dtype == have.dtype,
            f"{source}: tensor {name} must be {want.dtype} {tuple(want.shape)}, "
            f"got {have.dtype} {tuple(have.shape)}",
        )
        _require(is_finite(have), f"{source}: tensor {name} must hold finite numbers only")


def check_tensor_names(expected: Collection[str], given: Collection[str], source: str) -> None:
    """Holds the names of a file's tensors against those of a model.

    Raises:
        FormatError: they differ.
    """
    for name in sorted(set(expected) ^ set(given)):
        fault = "is missing" if name in expected else "is not in the model"
        raise FormatError(f"{source}: tensor {name:.200} {fault}")


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or none; takes no memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(extreme) for extreme in torch.stack(tensor.aminmax()).tolist())


def copy_into_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies checked tensors into the model's own, wherever those lie."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(tensors[name])


def pack_optimizer(model: nn.Module, optimizer: Optimizer) -> tuple[Tensors, Record]:
    """The optimizer's tensors as `<parameter name>/<state name>`, and the rest for JSON."""
    names = _parameter_names(model)
    tensors: Tensors = {}
    scalars: Record = {}
    groups: list[Record] = []
    for group in optimizer.param_groups:
        if any(id(parameter) not in names for parameter in group["params"]):
            raise ValueError("every parameter of the optimizer must belong to the model")
        plain = {k: _plain(v, k) for k, v in group.items() if k != "params"}
        groups.append(plain | {"params": [names[id(p)] for p in group["params"]]})
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                name = f"{names[id(parameter)]}/{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    scalars[name] = _plain(value, name)
    # Tensors are listed, so that one that got lost is not taken for one that never was.
    record = {"tensors": sorted(tensors), "groups": groups, "scalars": scalars}
    return tensors, {"optimizer": type(optimizer).__name__} | record


def _parameter_names(model: nn.Module) -> dict[int, str]:
    plain = getattr(model, "_orig_mod", model)
    return {id(parameter): name for name, parameter in plain.named_parameters()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} must be a tensor or a plain value, got {type(value).__name__}")


def unpack_optimizer(
    model: nn.Module, optimizer: Optimizer, tensors: Tensors, record: Record, source: str
) -> Record:
    """The `state_dict` to load into this optimizer, once it is known to fit.

    Raises:
        FormatError: it was packed from another kind of optimizer, other parameters, or is
            damaged.
    """
    kind = type(optimizer).__name__
    found = record.get("optimizer")
    _require(found == kind, f"{source}: the optimizer must be {kind}, got {found!r}")
    listed = record.get("tensors")
    _require(listed == sorted(tensors), f"{source}: the optimizer's tensors are not those listed")
    names = _parameter_names(model)
    state_dict = optimizer.state_dict()
    numbers: dict[str, int] = {}
    shapes: dict[str, torch.Size] = {}
    for group, numbered in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            numbers[names[id(parameter)]] = number
            shapes[names[id(parameter)]] = parameter.shape
    inside = {number: name for name, number in numbers.items()}
    own = [[inside[n] for n in group["params"]] for group in state_dict["param_groups"]]
    _restore_groups(state_dict["param_groups"], own, record.get("groups"), source)
    state_dict["state"] = _restore_state(numbers, shapes, tensors, record.get("scalars"), source)
    if hasattr(optimizer, "new_state"):
        for group, numbered in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
            _require_options(optimizer, numbered, source)
            for parameter, number in zip(group["params"], numbered["params"], strict=True):
                wanted = optimizer.new_state(parameter.detach().to("meta"), numbered)
                place = f"{source}: state {inside[number]}"
                _require_state(state_dict["state"].get(number, {}), wanted, place)
    return state_dict


def _require_options(optimizer: Any, group: Record, source: str) -> None:
    try:
        optimizer.check_options(group)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{source}: {error}") from None


def _require_state(state: Record, wanted: Mapping[str, Tensor], place: str) -> None:
    """Holds the state of a parameter, if it has one, against what its optimizer would make."""
    if not state:
        return
    for key in sorted(state.keys() ^ wanted.keys()):
        fault = "is missing" if key in wanted else "is none of the optimizer's"
        raise FormatError(f"{place}/{key:.200} {fault}")
    for key, want in wanted.items():
        have = state[key]
        fits = isinstance(have, Tensor) and (have.shape, have.dtype) == (want.shape, want.dtype)
        _require(fits, f"{place}/{key} must be {want.dtype} {tuple(want.shape)}")
        _require(is_finite(have), f"{place}/{key} must hold finite numbers only")
        _require(key != "step" or float(have) >= 0, f"{place}/{key} must be at least 0")


def _restore_groups(groups: list[Record], own: list[list[str]], stored: Any, source: str) -> None:
    """Puts the stored hyperparameters into the groups of a fresh `state_dict`."""
    _require(
        isinstance(stored, list) and all(isinstance(group, dict) for group in stored),
        f"{source}: the optimizer's groups are missing",
    )
    _require(
        [group.get("params") for group in stored] == own,
        f"{source}: the optimizer's groups must hold the same parameters in the same order",
    )
    for group, saved in zip(groups, stored, strict=True):
        for key, value in saved.items():
            if key != "params":
                known = key in group and _same_kind(group[key], value)
                _require(known, f"{source}: {key} = {value!r} does not fit the optimizer")
                group[key] = tuple(value) if isinstance(group[key], tuple) else value


def _same_kind(own: Any, stored: Any) -> bool:
    """Whether a stored value may stand where the optimizer has `own`; None fits anything."""
    if isinstance(own, tuple | list):
        return isinstance(stored, list) and len(own) == len(stored)
    if own is None or stored is None:
        return not isinstance(stored, list | dict)
    numbers = isinstance(own, int | float) and isinstance(stored, int | float)
    return type(own) is type(stored) or (numbers and not isinstance(stored, bool))


def _restore_state(
    numbers: Mapping[str, int],
    shapes: Mapping[str, torch.Size],
    tensors: Tensors,
    scalars: Any,
    source: str,
) -> dict[int, Record]:
    """The state by parameter number, from the tensors and plain values by name."""
    _require(isinstance(scalars, dict), f"{source}: the optimizer's scalars are missing")
    state: dict[int, Record] = {}
    for name, value in (tensors | scalars).items():
        parameter, _, key = name.rpartition("/")
        _require(parameter in numbers, f"{source}: state {name:.200} belongs to no parameter")
        fits = not isinstance(value, Tensor) or _is_shaped_like(value, shapes[parameter])
        fits = fits and not isinstance(value, list | dict)
        _require(fits, f"{source}: state {name:.200} does not fit its parameter")
        # A copy of its own, so that no mapped file stays open behind the optimizer.
        copied = value.clone() if isinstance(value, Tensor) else value
        state.setdefault(numbers[parameter], {})[key] = copied
    return state


def _is_shaped_like(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether a state is one number, or a number per entry, row or column of the parameter."""
    if tensor.ndim == 0:
        return True
    sizes = zip(tensor.shape, shape, strict=False)
    return tensor.ndim == len(shape) and all(have in (1, want) for have, want in sizes)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Model and optimizer at one moment, copied to the CPU's memory.

    Attributes:
        model: parameters and buffers by name.
        optimizer: the optimizer's tensors, as `pack_optimizer` names them.
        record: its hyperparameters and plain values.
    """

    model: Tensors
    optimizer: Tensors
    record: Record


def take_snapshot(
    model: nn.Module, optimizer: Optimizer, copies: Iterable[Tensor] = ()
) -> Snapshot:
    """Copies model and optimizer; memory: as much as both take, until the snapshot is dropped.

    Args:
        model: the model.
        optimizer: its optimizer.
        copies: contiguous tensors of theirs on the CPU that nobody will change; the snapshot
            keeps them as they are.

    Raises:
        ValueError: the optimizer holds a parameter that the model does not.
        TypeError: the optimizer's state holds something else than tensors and plain values.
    """
    tensors, record = pack_optimizer(model, optimizer)
    kept = {tensor.data_ptr() for tensor in copies}
    weights = _copied(model_tensors(model), kept)
    return Snapshot(model=weights, optimizer=_copied(tensors, kept), record=record)


def _copied(tensors: Mapping[str, Tensor], kept: Container[int]) -> Tensors:
    """Copies on the CPU, each with a storage of its own: a view does not drag its base along.

    What lies at an address in `kept` has one already.
    """
    return {
        name: tensor.detach()
        if tensor.data_ptr() in kept
        else tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def write_snapshot(folder: Path, snapshot: Snapshot, state: Record) -> Path:
    """Writes `folder/step_<state["step"]>`, complete or not at all, and returns its path.

    Raises:
        OSError: the disk is full or not writable; what stood there before still stands.
    """
    target = step_folder(folder, state["step"])
    beside = folder / f"tmp_{target.name}"
    _remove(beside)
    beside.mkdir(parents=True)
    try:
        _fill(beside, snapshot, state)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    set_aside(target, "tmp_old")
    os.rename(beside, target)
    sync_folder(folder)
    clear_leftovers(folder)
    return target


def _fill(folder: Path, snapshot: Snapshot, state: Record) -> None:
    try:
        save_file(snapshot.model, folder / MODEL)
        save_file(snapshot.optimizer, folder / OPTIM, _metadata(snapshot.record))
    except SafetensorError as error:
        # The library hides the system's error in its text.
        number = re.search(r"os error (\d+)", str(error))
        reason = f"cannot write a checkpoint: {error}"
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, reason, str(folder.parent)) from error
    (folder / STATE).write_text(json.dumps(state, indent=1))
    hashes = {name: _hash_and_sync(folder / name) for name in (MODEL, OPTIM, STATE)}
    lines = [f"{digest}  {name}\n" for name, digest in hashes.items()]
    (folder / MANIFEST).write_text("".join(lines))
    _hash_and_sync(folder / MANIFEST)
    sync_folder(folder)


def _hash_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(folder: Path, prefix: str) -> None:
    """Renames a checkpoint so that it no longer counts as one; an older such one goes."""
    aside = folder.with_name(f"{prefix}_{folder.name}")
    if os.path.lexists(folder):
        _remove(aside)
        os.rename(folder, aside)


def clear_leftovers(folder: Path) -> None:
    """Removes what an interrupted write or removal left; of a link the link, not its target."""
    for leftover in folder.glob("tmp_*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    """Removes a folder, file or link, if there is one; follows no link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(path.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, unverified."""
    found = [p for p in folder.glob("step_*") if STEP_FOLDER.fullmatch(p.name)]
    return sorted(found, key=step_of)


def prune_checkpoints(folder: Path, keep: int, best: int | None = None) -> None:
    """Removes all but the newest `keep` checkpoints and that of the step `best`."""
    for old in list_checkpoints(folder)[:-keep]:
        if step_of(old) != best:
            # Renamed first: a removal that is cut short must not leave half a checkpoint.
            set_aside(old, "tmp_old")
    clear_leftovers(folder)


def mark_best(folder: Path, step: int) -> None:
    """Points the link `best` at the checkpoint of a step; the old link stands until then."""
    beside = folder / f"{BEST}.tmp"
    beside.unlink(missing_ok=True)
    beside.symlink_to(step_folder(folder, step).name)
    if not (folder / BEST).is_symlink():
        # A copy of the run that followed the link has a folder there, which no link replaces.
        set_aside(folder / BEST, "tmp_old")
    os.replace(beside, folder / BEST)


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint whose hashes hold, and the newer ones with why they were rejected."""
    rejected: dict[Path, str] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except (FormatError, OSError) as error:
            rejected[path] = str(error)
        else:
            return path, rejected
    return None, rejected


def weights_path(source: Path) -> Path:
    """The weights of a run folder's newest good checkpoint, or the file itself.

    Raises:
        FileNotFoundError: the folder has no good checkpoint.
    """
    if not source.is_dir():
        return source
    newest, rejected = newest_checkpoint(source / "checkpoints")
    if newest is None:
        faults = "".join(f"\n{fault}" for fault in rejected.values())
        raise FileNotFoundError(f"{source} holds no good checkpoint{faults}")
    return newest / MODEL


def verify_checkpoint(path: Path) -> None:
    """Reads a run's checkpoint whole and compares the hashes.

    Raises:
        FormatError: a file is missing or differs from its hash.
    """
    manifest = path / MANIFEST
    _require(manifest.is_file(), f"{manifest} is missing")
    matches = [MANIFEST_LINE.fullmatch(line) for line in _read_text(manifest).splitlines()]
    hashes = {match[2]: match[1] for match in matches if match}
    _require(
        hashes.keys() == {MODEL, OPTIM, STATE} and len(hashes) == len(matches),
        f"{manifest} must list {MODEL}, {OPTIM} and {STATE}",
    )
    for name, digest in hashes.items():
        file = path / name
        _require(file.is_file(), f"{file} is missing")
        found = sha256_of(file)
        _require(found == digest, f"{file} is damaged: SHA-256 must be {digest}, got {found}")


def load_run_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> Record:
    """Restores model and optimizer from a run's checkpoint and returns its state record.

    Raises:
        FormatError: it does not fit the model or the optimizer, or is damaged.
    """
    state = read_state(path)
    weights, _ = read_safetensors(path / MODEL)
    check_model_tensors(model, weights, str(path / MODEL))
    tensors, record = read_safetensors(path / OPTIM)
    state_dict = unpack_optimizer(model, optimizer, tensors, record, str(path / OPTIM))
    copy_into_model(model, weights)
    optimizer.load_state_dict(state_dict)
    return state


def load_weights(path: Path, model: nn.Module) -> None:
    """Copies the weights of a safetensors file into a model with the same names and shapes.

    Raises:
        FormatError: it is not a safetensors file, or does not fit the model.
    """
    weights, _ = read_safetensors(path)
    check_model_tensors(model, weights, str(path))
    copy_into_model(model, weights)


def read_state(path: Path) -> Record:
    """The state record of a run's checkpoint.

    Raises:
        FormatError: it is not one.
    """
    file = path / STATE
    try:
        state = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON: {error}") from None
    _require(
        isinstance(state, dict) and type(state.get("step")) is int,
        f"{file} must be an object with a step",
    )
    return dict(state)


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    _require(size <= MAX_JSON_BYTES, f"{path} must be at most {MAX_JSON_BYTES} bytes, got {size}")
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not text: {error}") from None


def read_safetensors(path: Path) -> tuple[Tensors, Record]:
    """The tensors of a file, mapped and not yet read, and what our metadata says.

    Raises:
        FormatError: it is not a safetensors file.
        FileNotFoundError: there is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, _record(
                metadata, path
            )
    except SafetensorError as error:
        raise FormatError(f"{path} is not a safetensors file: {error!s:.200}") from None


def _parse_safetensors(data: bytes, source: str) -> tuple[Tensors, Record]:
    """The tensors in the bytes of a file, and what our metadata says."""
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise FormatError(f"{source} is not a safetensors file: {error!s:.200}") from None
    # The library has accepted the header, so its length and JSON are sound.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, _record(header.get("__metadata__", {}), source)


def _metadata(record: Record) -> dict[str, str]:
    # One entry: the library writes several in a random order, and equal runs give equal files.
    return {"rslm": json.dumps(record)}


def _record(metadata: Mapping[str, str], source: object) -> Record:
    try:
        record = json.loads(metadata.get("rslm", "{}"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source}: the metadata is not JSON: {error}") from None
    _require(isinstance(record, dict), f"{source}: the metadata must be an object")
    return dict(record)


def _ready(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors as the library wants them: without graph, and dense in memory."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise FormatError(message)
