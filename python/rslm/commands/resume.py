"""What a training command takes from the folder of a run that goes on."""

from collections.abc import Sequence
from pathlib import Path

from rslm.config import Record, check_record, merge_records, read_toml

_OWN_OPTIONS = {"rl": "task", "dpo": "pairs", "sft": "packing", "train": "data"}
"""An option that the runs of a command have, and those of the commands behind it have not."""


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The word after the last occurrence of a flag, if any."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag:
            found = arguments[position + 1] if position + 1 < len(arguments) else ""
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found


def resumed_config(arguments: Sequence[str], record: Record) -> Path | None:
    """The config of the run that `--resume` goes on with; None where none is begun yet."""
    out = value_of("--out", arguments) or record.get("out")
    source = Path(out or "") / "config.toml"
    return source if "--resume" in arguments and out is not None and source.exists() else None


def below_run(config_type: type, command: str, source: Path, record: Record) -> Record:
    """The record over the options of a run of this command.

    Raises:
        ValueError: another command made the run, or its config is damaged.
    """
    of_run = read_toml(source)
    made_by = next((name for name, option in _OWN_OPTIONS.items() if option in of_run), command)
    if made_by != command:
        raise ValueError(
            f"{source.parent} must be a run of rslm {command}, and is one of rslm {made_by}"
        )
    return merge_records(check_record(config_type, of_run, str(source)), record)
