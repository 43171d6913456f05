"""`rslm dpo`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rslm.commands.sft import tuning_defaults
from rslm.commands.train import report
from rslm.config import Record, to_toml
from rslm.post.dpo_config import DpoConfig
from rslm.terminal import Switch


@dataclass(frozen=True, kw_only=True)
class DpoOptions:
    """Train a model on pairs of answers of which one is preferred.

    `rslm dpo runs/sft --pairs pairs.jsonl --out runs/dpo` takes lines of
    {"prompt": ..., "chosen": ..., "rejected": ...}, where the prompt is a text or a list of
    messages; `--pairs runs/rl/rollouts` makes pairs of right and wrong answers that were drawn.
    """

    config: Path | None = None
    """TOML file of options; flags win over it."""
    resume: Switch = False
    """Go on with the run in --out; its options need not be repeated."""
    print_config: Switch = False
    """Print the resolved options as TOML and do nothing else."""
    run: Annotated[DpoConfig, tyro.conf.arg(name="")] = field()


def defaults(arguments: Sequence[str]) -> Record:
    """What file and, at a resumption, the run folder say before the flags do."""
    return tuning_defaults(DpoConfig, "dpo", arguments)


def dpo(options: DpoOptions) -> int:
    """Trains, and says how it ended."""
    if options.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_toml(options.run), end="")
        return 0
    from rslm.post.dpo import train

    return report(train(options.run, resume=options.resume), "dpo", "chat")
