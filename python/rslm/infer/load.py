"""A model and its tokenizer out of a run folder."""

from pathlib import Path

import torch

from rslm import checkpoint
from rslm.architecture import n_parameters
from rslm.config import read_config
from rslm.errors import FormatError
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer
from rslm.train_config import TrainConfig


def load_run(run: Path, *, device: str = "auto") -> tuple[Transformer, Tokenizer]:
    """The newest good model of a run folder, in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: it is no run folder, or has no checkpoint or no tokenizer.
        FormatError: the weights do not fit the config.
    """
    config = read_config(TrainConfig, run / "config.toml")
    weights = checkpoint.weights_path(run)
    # Counted before the model is made: a forged config must not ask for terabytes.
    stored, needed = checkpoint.count_elements(weights), n_parameters(config.model)
    if stored != needed:
        raise FormatError(f"{weights} must hold {needed} numbers to fit the config, got {stored}")
    # A generator of its own, for weights that are replaced: the global one is left alone.
    model = Transformer(config.model, generator=torch.Generator(), device=choose_device(device))
    checkpoint.load_weights(weights, model)
    return model.eval(), Tokenizer.load(run / "tokenizer.json")


def end_ids(model: Transformer, tokenizer: Tokenizer) -> set[int]:
    """Ids at which a sample ends: end of text, and those that stand for no text.

    A vocabulary that was padded to a round size has such ids, and holes are such.
    """
    ids = set(range(model.config.resolved_vocab_size)) - tokenizer.vocab.keys()
    end = tokenizer.end_of_text
    return ids if end is None else ids | {end}


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
