"""`rslm rl`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rslm.commands.resume import below_run, resumed_config, value_of
from rslm.commands.tokenizer import require_files
from rslm.commands.train import report
from rslm.config import Record, check_record, merge_records, read_sources, to_toml
from rslm.post.rl_config import RlConfig
from rslm.post.rl_presets import PRESETS, Algorithm
from rslm.terminal import Switch, note

if TYPE_CHECKING:
    from rslm.post.rl_replay import Replay


@dataclass(frozen=True, kw_only=True)
class RlOptions:
    """Train a model on the rewards of a task whose answers can be checked.

    Each step samples completions of some questions, grades them, and makes the better ones
    likelier. `rslm rl runs/sft --task arithmetic --out runs/rl` does it as GRPO does.
    """

    algorithm: Algorithm | None = None
    """Options of an algorithm, which flags and the file may change; grpo unless given."""
    config: Path | None = None
    """TOML file of options; flags win over it."""
    resume: Switch = False
    """Go on with the run in --out; its options need not be repeated."""
    replay: Path | None = None
    """RUN/rollouts/step_N.jsonl: make that step of that run again, offline, into --out."""
    print_config: Switch = False
    """Print the resolved options as TOML and do nothing else."""
    run: Annotated[RlConfig, tyro.conf.arg(name="")] = field()


def defaults(arguments: Sequence[str]) -> Record:
    """What algorithm, file and, at a resumption or replay, the run folder say before the flags."""
    record = read_sources(RlConfig, arguments)
    algorithm = value_of("--algorithm", arguments)
    if algorithm in PRESETS:  # Another word is refused with the other flags.
        preset = check_record(RlConfig, PRESETS[algorithm])
        record = merge_records(preset, record)
    if "--resume" in arguments and value_of("--replay", arguments) is not None:
        raise ValueError("give --resume or --replay, not both")
    source = replayed_config(arguments) or resumed_config(arguments, record)
    if source is not None:
        out = record.get("out")
        record = below_run(RlConfig, "rl", source, record)
        if "--resume" not in arguments:
            record.pop("out")
            record |= {} if out is None else {"out": out}
    return {"run": record}


def replayed_config(arguments: Sequence[str]) -> Path | None:
    """The config of the run of which a step is replayed.

    Raises:
        FileNotFoundError: there is no such step, or it is in no run folder.
    """
    if (file := value_of("--replay", arguments)) is None:
        return None
    require_files([Path(file)])
    source = Path(file).resolve().parent.parent / "config.toml"
    require_files([source])
    return source


def rl(options: RlOptions) -> int:
    """Trains, or replays a step, and says how it ended."""
    if options.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_toml(options.run), end="")
        return 0
    if options.replay is not None:
        from rslm.post.rl_replay import replay

        replayed = replay(options.run, options.replay)
        note(f"{options.run.out}: step {replayed.result.step} made again, {verdict(replayed)}")
        return 0
    from rslm.post.rl import train

    result = train(options.run, resume=options.resume)
    # Losses of policies say nothing.
    return report(replace(result, loss=None, val_loss=None), "rl", "chat")


def verdict(replayed: "Replay") -> str:
    """How the weights of a replayed step compare with those of its run."""
    if replayed.is_same is None:
        return "and the run keeps no weights to compare with"
    return f"with {'the same weights as' if replayed.is_same else 'other weights than'} the run's"
