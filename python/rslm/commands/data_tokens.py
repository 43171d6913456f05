"""`rslm data export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rslm.commands.tokenizer import refuse_existing
from rslm.terminal import note


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the token ids of a token file as other programs read them."""

    path: Annotated[Path, tyro.conf.Positional]
    """Token-file folder, or one shard."""
    out: Path
    """File to write."""
    format: Literal["raw"] = "raw"
    """raw: uint16, little-endian, end to end, each document with <|endoftext|> behind it."""


def export(options: ExportOptions) -> None:
    """Writes the file; ids above 65,535 are refused."""
    from rslm.data.token_stage import export_raw

    refuse_existing(options.out)
    n_tokens = export_raw(options.path, options.out)
    note(f"{options.out}: {n_tokens:,} tokens")
