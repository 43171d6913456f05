"""`rslm sft`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rslm.commands.resume import below_run, resumed_config, value_of
from rslm.commands.tokenizer import require_files
from rslm.commands.train import report
from rslm.config import Record, read_sources, to_toml
from rslm.post.post_config import PostConfig
from rslm.post.sft_config import SftConfig
from rslm.terminal import Switch


@dataclass(frozen=True, kw_only=True)
class SftOptions:
    """Train a model to answer: rslm sft BASE --data chats.jsonl --out RUN."""

    config: Path | None = None
    """TOML file of options; flags win over it."""
    resume: Switch = False
    """Go on with the run in --out; its options need not be repeated."""
    print_config: Switch = False
    """Print the resolved options as TOML and do nothing else."""
    run: Annotated[SftConfig, tyro.conf.arg(name="")] = field()


def defaults(arguments: Sequence[str]) -> Record:
    """What a file and, at a resumption, the run folder say before the flags do."""
    return tuning_defaults(SftConfig, "sft", arguments)


def tuning_defaults(kind: type[PostConfig], command: str, arguments: Sequence[str]) -> Record:
    """The same of a command whose runs are so many epochs or steps long."""
    record = read_sources(kind, arguments)
    if (source := resumed_config(arguments, record)) is not None:
        record = below_run(kind, command, source, record)
    elif value_of("--n-steps", arguments) and value_of("--n-epochs", arguments):
        raise ValueError("give --n-steps or --n-epochs, not both")
    return {"run": record}


def sft(options: SftOptions) -> int:
    """Trains, and says how it ended."""
    if options.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_toml(options.run), end="")
        return 0
    from rslm.post.sft import sft as run_training

    if not options.resume:
        require_files([*options.run.data, *options.run.valid])
    return report(run_training(options.run, resume=options.resume), "sft", "chat")
