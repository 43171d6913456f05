"""What commands that read text files ask about them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from rslm.terminal import Switch

if TYPE_CHECKING:
    from rslm.tokenizer import InputOptions

Files = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="[PATH ...]", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class InputFlags:
    """The flags that say what input files are."""

    format: Literal["text", "jsonl", "parquet"] | None = None
    """Format of all files; by default their names say: .jsonl, .ndjson, .parquet, else text."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text."""
    rows_hold_special_tokens: Switch = False
    """Recognise special tokens in JSON lines and table rows, too, where they are text else."""
    max_document_bytes: int = 1 << 24
    """The longest line, row, or text without a place to divide it, that is read."""

    def inputs(self) -> "InputOptions":
        """The flags as `Tokenizer.train` and `Tokenizer.encode_files` take them."""
        return {
            "format": self.format,
            "text_field": self.text_field,
            "rows_hold_special_tokens": self.rows_hold_special_tokens,
            "max_document_bytes": self.max_document_bytes,
        }
