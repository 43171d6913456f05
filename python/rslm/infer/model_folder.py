"""A model without a run: what `rslm import` writes, beside run folders in all that use models.

config.toml         [model], chat_format, default_system
model.safetensors   the weights under our names, in any floating dtype
tokenizer.json      our own JSON
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rslm.architecture import TransformerConfig, n_parameters, parameter_shapes
from rslm.chat import FormatName
from rslm.config import from_record, read_toml, to_toml
from rslm.errors import FormatError
from rslm.files import sync_folder, write_atomically
from rslm.infer.weight_file import NamedTensors, tensor_shapes, write_weights
from rslm.process import exits_at_sigterm
from rslm.tokenizer import Tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.toml", "model.safetensors", "tokenizer.json"

MAX_CONTEXT_LENGTH = 1 << 20
"""Tables of more angles take gigabytes; a config that asks for them is a mistake or a trap."""


@dataclass(frozen=True, kw_only=True)
class ModelFolderConfig:
    """What `config.toml` of a model folder says."""

    chat_format: FormatName | None = None
    """How conversations are rendered; what the tokenizer's tokens suggest unless given."""
    default_system: str | None = None
    """System message of conversations that begin without one."""
    model: TransformerConfig


def read_model_config(folder: Path) -> ModelFolderConfig:
    """What the `config.toml` of a run or model folder says of its model.

    The other options of a run, whichever loop made it, are not looked at.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no TOML, or what it says of the model is damaged.
    """
    said = read_toml(folder / CONFIG)
    if not is_model_folder(folder):
        names = [field.name for field in dataclasses.fields(ModelFolderConfig)]
        said = {name: said[name] for name in names if name in said}
    return from_record(ModelFolderConfig, said, str(folder / CONFIG))


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model, and not a run."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def check_sizes(config: TransformerConfig, weights: Path) -> None:
    """Holds a config against the header of its weights, before a model of that size is made.

    Raises:
        FormatError: they do not fit, or the context is too long for any model.
    """
    shapes = tensor_shapes(weights)
    # Counted first: parameters are counted layer by layer.
    if config.n_layers > len(shapes):
        raise FormatError(
            f"{weights} must hold {config.n_layers} layers to fit the config, "
            f"got {len(shapes)} tensors"
        )
    stored, needed = sum(map(math.prod, shapes.values())), n_parameters(config)
    if stored != needed:
        raise FormatError(f"{weights} must hold {needed} numbers to fit the config, got {stored}")
    if config.context_length > MAX_CONTEXT_LENGTH:
        raise FormatError(
            f"context_length must be at most {MAX_CONTEXT_LENGTH} for a model that is run, "
            f"got {config.context_length}"
        )


def write_model_folder(
    out: Path,
    config: ModelFolderConfig,
    tensors: NamedTensors,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a folder that `load_run` reads; tensors come in the order of `parameter_shapes`.

    Raises:
        FileExistsError: there is something at `out` already.
    """
    with new_path(out) as folder:
        folder.mkdir()
        write_atomically(folder / CONFIG, to_toml(config).encode())
        tokenizer.save(folder / TOKENIZER)
        write_weights(folder / WEIGHTS, parameter_shapes(config.model), tensors, dtype=dtype)


@contextlib.contextmanager
def new_path(out: Path) -> Iterator[Path]:
    """A name beside `out` for a file or folder, which gets that name once the block has made it.

    What the block leaves behind when it fails is removed.

    So it is at SIGTERM.

    Raises:
        FileExistsError: there is something at `out` already.
        NotADirectoryError: what is to hold it is no folder.
    """
    if out.exists():
        raise FileExistsError(f"out must not exist yet, but {out} does")
    above = next(path for path in out.parents if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"out must lie in a folder, and {above} of {out} is a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    with exits_at_sigterm():
        try:
            yield beside
            if beside.is_dir():
                sync_folder(beside)
            beside.rename(out)
        except BaseException:
            if beside.is_dir():
                shutil.rmtree(beside, ignore_errors=True)
            beside.unlink(missing_ok=True)
            raise
    sync_folder(out.parent)
