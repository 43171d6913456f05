"""`rslm export hf` and `rslm export gguf`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rslm.commands.tokenizer import File
from rslm.terminal import note

DTypeName = Literal["float32", "bfloat16", "float16"]
Out = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class HfOptions:
    """Write a model as a folder that transformers, vLLM and others load."""

    run: File
    """Run folder, or model folder."""
    out: Out
    """Folder to write."""
    dtype: DTypeName = "float32"
    """Of the weights."""


def hf(options: HfOptions) -> None:
    """Writes weights, configs, tokenizer and, for a model with chat tokens, the chat template."""
    import torch

    from rslm.infer.hf import export_hf
    from rslm.infer.load import load_chat_format, load_run

    model, tokenizer = load_run(options.run, device="cpu")
    chat_format = load_chat_format(options.run, tokenizer)
    export_hf(model, chat_format, options.out, dtype=getattr(torch, options.dtype))
    note(f"{options.out}: weights in {options.dtype}, config and tokenizer")
    _note_template(chat_format.is_injection_proof)


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """Write a model as a GGUF file, which llama.cpp and what is built on it run."""

    run: File
    """Run folder, or model folder."""
    out: Out
    """File to write."""
    dtype: Literal["f32", "f16", "q8_0"] = "f16"
    """Of the matrices; q8_0 has eight bits for each number and a scale for each 32."""


def gguf(options: GgufOptions) -> None:
    """Writes weights, sizes, tokenizer and, for a model with chat tokens, the chat template."""
    from rslm.infer.gguf import export_gguf
    from rslm.infer.load import load_chat_format, load_run

    model, tokenizer = load_run(options.run, device="cpu")
    chat_format = load_chat_format(options.run, tokenizer)
    name = options.run.resolve().name
    export_gguf(model, chat_format, options.out, name=name, dtype=options.dtype)
    note(f"{options.out}: weights in {options.dtype}, {options.out.stat().st_size:,} bytes")
    _note_template(chat_format.is_injection_proof)


def _note_template(has_template: bool) -> None:
    if not has_template:
        note("no chat template: the tokenizer has no chat tokens")
