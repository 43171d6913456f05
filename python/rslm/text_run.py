"""A run straight from text: its tokenizer and token files are made inside the run folder.

The folder gets `config.toml` first, then `tokenizer.json`, then `tokens/train` and
`tokens/valid`. Each is complete or absent, so a run that is stopped in these preparations
goes on with the first one that is missing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rslm.config import to_toml
from rslm.files import END_OF_TEXT, write_atomically
from rslm.tokenizer import Tokenizer
from rslm.train_config import TrainConfig

Progress = bool | Callable[[int, int, str], None] | None


def require_free(out: Path, *, resume: bool) -> None:
    """Refuses to begin a run in a folder that holds something.

    Raises:
        FileExistsError: it does, and `resume` is false.
    """
    if not resume and out.exists() and any(out.iterdir()):
        raise FileExistsError(
            f"the run folder {out} already exists\nadd --resume to go on with it, or name another"
        )


def begin(config: TrainConfig, *, validates: bool, resume: bool) -> TrainConfig:
    """Makes the run folder; returns the config with the paths of the token files to come.

    Raises:
        FileExistsError: the folder holds something and `resume` is false.
        ValueError: an option has no UTF-8.
    """
    tokens = config.out / "tokens"
    valid = tokens / "valid" if validates else None
    config = replace(config, data=replace(config.data, train=tokens / "train", valid=valid))
    require_free(config.out, resume=resume)
    toml = to_toml(config).encode()
    config.out.mkdir(parents=True, exist_ok=True)
    if not any(config.out.iterdir()):
        write_atomically(config.out / "config.toml", toml)
    return config


def make_token_files(
    config: TrainConfig,
    train_files: Sequence[Path],
    valid_files: Sequence[Path],
    *,
    mixed_files: Sequence[Path] = (),
    tokenizer_file: Path | None = None,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    progress: Progress = None,
) -> Tokenizer:
    """Makes what is missing of tokenizer and token files; returns the tokenizer.

    Args:
        config: as `begin` returned it; a tokenizer of `config.model.vocab_size` is trained.
        train_files: UTF-8 text to train both tokenizer and model on.
        valid_files: UTF-8 text to validate on.
        mixed_files: UTF-8 text of the first token files in `config.data.mixed_in`.
        tokenizer_file: use this tokenizer instead of training one.
        special_tokens: of a tokenizer to train.
        pattern: of a tokenizer to train.
        progress: as for `Tokenizer.train`.
    """
    own = config.out / "tokenizer.json"
    if own.exists():
        tokenizer = Tokenizer.load(own)
    elif tokenizer_file is not None:
        tokenizer = Tokenizer.load(tokenizer_file)
    else:
        vocab_size = config.model.resolved_vocab_size
        tokenizer = Tokenizer.train(
            list(train_files),
            vocab_size,
            special_tokens,
            pattern=pattern,
            n_threads=config.n_threads,
            progress=progress,
        )
    if not own.exists():
        tokenizer.save(own)
    # Token files may be mixed in that are there already.
    mixed = [(config.data.mixed_in[i], [file]) for i, file in enumerate(mixed_files)]
    for folder, files in (
        (config.data.train, train_files),
        (config.data.valid, valid_files),
        *mixed,
    ):
        if folder is not None and (folder / "manifest.json").exists():
            require_same_text(folder, files)
        elif folder is not None:
            folder.parent.mkdir(exist_ok=True)
            tokenizer.encode_files(
                list(files), folder, n_threads=config.n_threads, progress=progress
            )
    return tokenizer


def require_same_text(folder: Path, files: Sequence[Path]) -> None:
    """Refuses to go on with other text than the token file was made of.

    Raises:
        ValueError: names or sizes of the text files differ.
    """
    sources = json.loads((folder / "manifest.json").read_bytes())["sources"]
    made_of = [(source["file"], source["bytes"]) for source in sources]
    given = [(file.name, file.stat().st_size) for file in files]
    if made_of != given:
        raise ValueError(f"the text of {folder} must stay {made_of} (name, bytes), got {given}")
