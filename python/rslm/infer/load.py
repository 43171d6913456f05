"""A model and its tokenizer out of a run folder, or out of a model folder."""

import os
from pathlib import Path

import torch

from rslm import checkpoint
from rslm.chat import END_TOKENS, ChatFormat
from rslm.errors import FormatError
from rslm.infer.model_folder import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    check_sizes,
    is_model_folder,
    read_model_config,
)
from rslm.infer.weight_file import copy_weights
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

_MAX_DEPTH = 4
"""Folders in folders among which models are looked for: studies of studies of runs."""


def load_run(run: Path | str, *, device: str = "auto") -> tuple[Transformer, Tokenizer]:
    """The model of a folder, in evaluation mode, and its tokenizer.

    Of a run folder it is the newest good checkpoint; a model folder, as `rslm import` writes
    them, has one.

    Raises:
        FileNotFoundError: it is neither, or has no checkpoint or no tokenizer.
        FormatError: weights, config and tokenizer do not fit.
    """
    run = Path(run)
    require_config(run)
    is_alone = is_model_folder(run)
    if not is_alone and (run / CONFIG).is_file() and not (run / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{run} must be a run or model folder, and holds neither checkpoints nor {WEIGHTS}"
        )
    config = read_model_config(run).model
    weights = run / WEIGHTS if is_alone else checkpoint.weights_path(run)
    # Counted before the model is made: a forged config must not ask for terabytes.
    check_sizes(config, weights)
    tokenizer = Tokenizer.load(run / TOKENIZER)
    if max(tokenizer.vocab) >= config.resolved_vocab_size:
        raise FormatError(
            f"{run / TOKENIZER} must have ids below the model's {config.resolved_vocab_size} "
            f"(vocab_size), got {max(tokenizer.vocab)}"
        )
    # Without initial weights, which are replaced: to draw those of 135 M parameters takes 19 s.
    model = Transformer(config, device="meta").to_empty(device=choose_device(device))
    copy_weights(weights, model)
    return model.eval(), tokenizer


def require_config(folder: Path, option: str | None = None) -> None:
    """Refuses what can be no run or model folder, by the option's name if there is one.

    Raises:
        FileNotFoundError: it does not exist, or has no config.
        NotADirectoryError: it is no folder.
    """
    kind = "must be a run or model folder, and"
    must = f"{folder} {kind}" if option is None else f"{option} {kind} {folder}"
    if not folder.exists():
        raise FileNotFoundError(f"{must} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{must} is a file")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{must} holds no {CONFIG}")


def load_chat_format(folder: Path | str, tokenizer: Tokenizer) -> ChatFormat:
    """How the model of a folder is talked to: as its config says, else as its tokens suggest.

    Raises:
        ValueError: the config is damaged, or the tokenizer lacks the format's special tokens.
    """
    if not (Path(folder) / CONFIG).is_file():
        return ChatFormat.of(tokenizer)
    config = read_model_config(Path(folder))
    return ChatFormat.of(tokenizer, config.chat_format, default_system=config.default_system)


def find_models(folder: Path | str) -> dict[str, Path]:
    """The models to serve, by name: the folder itself if it is one, else those below it.

    Names are paths below `folder`. Hidden folders and links are not looked into, nor what lies
    inside a run or more than four folders down.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fault = "is none" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} must be a folder with a model, and {fault}")
    if _holds_model(folder):
        return {folder.resolve().name: folder}
    found: dict[str, Path] = {}
    for path, names, _ in os.walk(folder):
        here = Path(path)
        inside = here.relative_to(folder)
        if here != folder and _holds_model(here):
            found[inside.as_posix()] = here
        if len(inside.parts) >= _MAX_DEPTH or (here / CONFIG).is_file():
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))
    return found


def _holds_model(folder: Path) -> bool:
    """Whether a folder has what `load_run` needs; whether that is sound it says itself."""
    has_weights = is_model_folder(folder) or any((folder / "checkpoints").glob("step_*"))
    return has_weights and (folder / CONFIG).is_file() and (folder / TOKENIZER).is_file()


def end_ids(model: Transformer, tokenizer: Tokenizer) -> set[int]:
    """Ids at which a sample ends: end of text or of a turn, and those that stand for no text."""
    specials = tokenizer.special_tokens
    return textless_ids(model, tokenizer) | {
        specials[name] for name in END_TOKENS if name in specials
    }


def textless_ids(model: Transformer, tokenizer: Tokenizer) -> set[int]:
    """Ids of the model that the tokenizer does not have.

    A vocabulary that was padded to a round size has such ids, and holes are such.
    """
    return set(range(model.config.resolved_vocab_size)) - tokenizer.vocab.keys()


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" takes a GPU when there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError(f"device must be one that computes, got {name!r}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one of this machine, got {name!r} ({reason})") from None
    return device
