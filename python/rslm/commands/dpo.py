"""`rslm dpo`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rslm.commands.train import report, value_of
from rslm.config import Record, check_record, merge_records, read_sources, read_toml, to_toml
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
    record = read_sources(DpoConfig, arguments)
    out = value_of("--out", arguments) or record.get("out")
    source = Path(out or "") / "config.toml"
    if "--resume" in arguments and out is not None and source.exists():
        of_run = check_record(DpoConfig, read_toml(source), str(source))
        record = merge_records(of_run, record)
    elif value_of("--n-steps", arguments) and value_of("--n-epochs", arguments):
        raise ValueError("give --n-steps or --n-epochs, not both")
    return {"run": record}


def dpo(options: DpoOptions) -> int:
    """Trains, and says how it ended."""
    if options.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_toml(options.run), end="")
        return 0
    from rslm.post.dpo import train

    return report(train(options.run, resume=options.resume), "dpo", "chat")
