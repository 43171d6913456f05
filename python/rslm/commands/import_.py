"""`rslm import hf` and `rslm import gguf`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rslm.commands.export import DTypeName
from rslm.commands.tokenizer import File
from rslm.terminal import note

if TYPE_CHECKING:
    from rslm.infer.foreign_model import Imported

Out = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Make a model folder of a model of the Llama family."""

    source: File
    """What to read."""
    out: Out
    """Model folder to write."""
    context_length: int | None = None
    """Longest sequence, in tokens; the model's unless given."""
    dtype: DTypeName = "float32"
    """Of the weights on the disk; they are float32 in memory."""


@dataclass(frozen=True, kw_only=True)
class HfOptions(ImportOptions):
    """Make a model folder of a folder of Hugging Face's: Llama, Mistral, Qwen2, Qwen3."""


@dataclass(frozen=True, kw_only=True)
class GgufOptions(ImportOptions):
    """Make a model folder of a GGUF file: llama, qwen2, qwen3."""


def hf(options: HfOptions) -> None:
    """Writes config, weights and tokenizer; says what was left out."""
    import torch

    from rslm.infer.hf_import import import_hf

    dtype = getattr(torch, options.dtype)
    _tell(
        options.out,
        import_hf(options.source, options.out, context_length=options.context_length, dtype=dtype),
    )


def gguf(options: GgufOptions) -> None:
    """Writes config, weights and tokenizer; says what was left out."""
    import torch

    from rslm.infer.gguf_import import import_gguf

    dtype = getattr(torch, options.dtype)
    _tell(
        options.out,
        import_gguf(
            options.source, options.out, context_length=options.context_length, dtype=dtype
        ),
    )


def _tell(out: Path, imported: "Imported") -> None:
    """Says on stderr what was made, and every note."""
    from rslm.architecture import n_parameters

    record = imported.config
    chat_format = record.chat_format or "as its tokens suggest"
    note(f"{out}: {n_parameters(record.model):,} parameters, chat format {chat_format}")
    for line in imported.notes:
        note(f"note: {line}")
