"""A GGUF file as a model folder: the architectures llama, qwen2 and qwen3.

Quantised weights become float numbers as the `gguf` package defines them. The file is only data:
its header is checked before anything else, its chat template is only looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rslm.architecture import TransformerConfig
from rslm.errors import FormatError
from rslm.infer.foreign_model import (
    ForeignWeights,
    Imported,
    limit_context,
    with_switches,
    write_imported,
)
from rslm.infer.foreign_tokenizer import gguf_tokenizer
from rslm.infer.gguf_file import GGUFFile, ListOf, read_gguf

_ARCHITECTURES = ("llama", "qwen2", "qwen3")


def import_gguf(
    source: Path,
    out: Path,
    *,
    context_length: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Imported:
    """Writes a model folder with the weights, the tokenizer and the chat format of `source`.

    Args:
        source: a GGUF file, whole, not in shards.
        out: the new folder.
        context_length: a shorter context than the model's.
        dtype: of the weights as written; they are float32 in memory.

    Raises:
        FormatError: the file is damaged.
        ValueError: the model has parts that ours have not, which the message names.
        OSError: the file cannot be read, or `out` exists.
        ModuleNotFoundError: the extra `export` is not installed.
    """
    file = read_gguf(source)
    architecture = file.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{source}: the architecture must be one of {', '.join(_ARCHITECTURES)}, "
            f"got {architecture!r:.80}"
        )
    _refuse_other_parts(file, architecture, source)
    weights = _weights(source, file, halves=architecture != "llama")
    config = with_switches(_our_config(file, architecture, source), weights)
    config = limit_context(config, context_length)
    tokenizer = gguf_tokenizer(source, config.resolved_vocab_size)
    template = file.metadata.get("tokenizer.chat_template")
    text = template if isinstance(template, str) else None
    return write_imported(out, config, weights, tokenizer, text, dtype=dtype)


def _our_config(file: GGUFFile, architecture: str, source: Path) -> TransformerConfig:
    """The config in our terms; switches that only tensors show are off.

    Raises:
        FormatError: a value is missing or of the wrong kind.
        ValueError: it is one that no model has.
    """

    def get(key: str, kind: type, default: Any = None) -> Any:
        name = f"{architecture}.{key}"
        value = file.metadata.get(name, default)
        if type(value) is not kind:
            shown = "a list" if isinstance(value, ListOf) else f"{value!r:.80}"
            raise FormatError(f"{source}: {name} must be one {kind.__name__}, got {shown}")
        return value

    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise FormatError(f"{source}: token_embd.weight must be a table of token embeddings")
    n_heads, d_model = get("attention.head_count", int), get("embedding_length", int)
    d_head = get("attention.key_length", int, d_model // max(n_heads, 1))
    same = {
        "attention.value_length": get("attention.value_length", int, d_head),
        "rope.dimension_count": get("rope.dimension_count", int, d_head),
    }
    for key, value in same.items():
        if value != d_head:
            raise ValueError(f"{source}: {architecture}.{key} must be {d_head}, got {value}")
    return TransformerConfig(
        vocab_size=table.shape[0],
        context_length=get("context_length", int),
        d_model=d_model,
        n_layers=get("block_count", int),
        n_heads=n_heads,
        n_kv_heads=get("attention.head_count_kv", int, n_heads),
        d_head=d_head,
        d_ff=get("feed_forward_length", int),
        rope_theta=get("rope.freq_base", float, 10_000.0),
        norm_epsilon=_shortest(get("attention.layer_norm_rms_epsilon", float)),
        tied_head="output.weight" not in file.tensors,
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _refuse_other_parts(file: GGUFFile, architecture: str, source: Path) -> None:
    """Refuses what the metadata asks for and our models have not."""

    def is_set(key: str) -> bool:
        return file.metadata.get(f"{architecture}.{key}") not in (None, 0, 0.0, False, "none", "")

    is_scaled = is_set("rope.scaling.type") or "rope_freqs.weight" in file.tensors
    scale = file.metadata.get(f"{architecture}.rope.scale_linear", 1.0)
    outside = {
        "experts": is_set("expert_count"),
        "scaled rotary embeddings": is_scaled or scale not in (0.0, 1.0),
        "a sliding window": is_set("attention.sliding_window"),
        "a factor of the logits": is_set("logit_scale"),
        "a factor of the embeddings": is_set("embedding_scale"),
        "a factor of the branches": is_set("residual_scale"),
        "a factor of the scores": is_set("attention.scale"),
        "softcaps": is_set("attn_logit_softcapping") or is_set("final_logit_softcapping"),
    }
    if parts := [part for part, is_there in outside.items() if is_there]:
        raise ValueError(f"{source}: the model must have only parts known here, has {parts[0]}")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise ValueError(f"{source} must be a whole model, and is one of several shards")


def _weights(source: Path, file: GGUFFile, *, halves: bool) -> ForeignWeights:
    shapes: Mapping[str, tuple[int, ...]] = {
        name: tensor.shape for name, tensor in file.tensors.items()
    }

    def read(name: str) -> torch.Tensor:
        return _read_tensor(source, file, name)

    return ForeignWeights(source, "gguf", halves=halves, shapes=shapes, read=read)


def _read_tensor(source: Path, file: GGUFFile, name: str) -> torch.Tensor:
    """One tensor in float32."""
    import gguf

    stored = file.tensors[name]
    with source.open("rb") as data:
        data.seek(stored.at)
        raw = np.frombuffer(data.read(stored.n_bytes), np.uint8)
    if raw.nbytes != stored.n_bytes:
        raise FormatError(f"{source}: the file has become shorter")
    kind = gguf.GGMLQuantizationType(stored.kind)
    rows = raw.reshape(*stored.shape[:-1], -1)
    try:
        # A number that overflows is found to be one afterwards.
        with np.errstate(all="ignore"):
            numbers = gguf.dequantize(rows, kind)
    except NotImplementedError:
        raise ValueError(f"{source}: tensor {name} has the unknown type {kind.name}") from None
    return torch.from_numpy(np.array(numbers, np.float32)).view(stored.shape)
