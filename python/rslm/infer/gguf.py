"""A model as a GGUF file, which llama.cpp and what is built on it run.

One file with sizes, tokenizer, chat template and weights. Matrices are float32, float16 or
8-bit integers with a scale for each 32 of a row; vectors stay float32.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rslm.architecture import TransformerConfig, parameter_shapes
from rslm.chat import ChatFormat
from rslm.infer.foreign_tokenizer import DIGITS_GPT2
from rslm.infer.llama_family import (
    family_of,
    foreign_name,
    is_turned,
    pairs_to_halves,
    plain_config,
    plain_tensors,
)
from rslm.infer.model_folder import new_path
from rslm.infer.weight_file import converted
from rslm.model import Transformer

GGUFDtype = Literal["f32", "f16", "q8_0"]

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
_UNUSED = 5
_QUANTIZED_ROW = 32


def export_gguf(
    model: Transformer,
    chat_format: ChatFormat,
    out: Path,
    *,
    name: str,
    dtype: GGUFDtype = "f16",
) -> None:
    """Writes a GGUF file; tensors go out one at a time.

    Args:
        model: with parts that Llama or Qwen3 have.
        chat_format: with the tokenizer, whose pattern llama.cpp must have a name for.
        out: the file.
        name: what the file calls the model.
        dtype: of the matrices; rows that no 32 divides are float16 where the rest is q8_0.

    Raises:
        ValueError: the model has other parts or llama.cpp no name for the pattern, which the
            message says, or a weight is too large for float16.
        FileExistsError: there is something at `out` already.
        ModuleNotFoundError: the extra `export` is not installed.
    """
    import gguf

    config = plain_config(model.config)
    family = family_of(config)
    metadata = _tokenizer_metadata(chat_format, config.resolved_vocab_size)
    shapes = parameter_shapes(config)
    with new_path(out) as file, closing(gguf.GGUFWriter(file, family)) as writer:
        writer.add_name(name)
        writer.add_file_type(_FILE_TYPES[dtype])
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in (_sizes(config, family) | metadata).items():
            _add_value(writer, key, value)
        for ours, shape in shapes.items():
            kind, n_bytes = _stored_as(shape, dtype)
            theirs = foreign_name(ours, "gguf")
            writer.add_tensor_info(theirs, shape, np.dtype("float32"), n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in _their_arrays(model, family, dtype):
            _write(writer, data, out)


def _write(writer: Any, data: Any, out: Path) -> None:
    """A tensor to the file; numpy does not say why a disk takes only part of one.

    Raises:
        OSError: the disk is full, or another reason that the system gives.
    """
    try:
        writer.write_tensor_data(data)
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from None


def _their_arrays(model: Transformer, family: str, dtype: GGUFDtype) -> Iterator[Any]:
    """The tensors as they are stored, in our order."""
    import gguf

    d_head = model.config.resolved_d_head
    for name, tensor in plain_tensors(model):
        # llama.cpp's `llama` turns pairs, as we do.
        if family != "llama" and is_turned(name):
            tensor = pairs_to_halves(tensor, d_head)
        kind, _ = _stored_as(tuple(tensor.shape), dtype)
        is_half = kind == gguf.GGMLQuantizationType.F16
        wanted = torch.float16 if is_half else torch.float32
        data = converted(tensor, wanted, name).contiguous().numpy()
        if kind == gguf.GGMLQuantizationType.Q8_0:
            data = gguf.quantize(data, kind)
        yield data


def _stored_as(shape: tuple[int, ...], dtype: GGUFDtype) -> tuple[Any, int]:
    """The kind of a tensor in the file, and how many bytes it takes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType.F32
    if len(shape) == 2 and dtype != "f32":
        is_cut = dtype == "q8_0" and shape[-1] % _QUANTIZED_ROW == 0
        kind = GGMLQuantizationType.Q8_0 if is_cut else GGMLQuantizationType.F16
    block, n_bytes = GGML_QUANT_SIZES[kind]
    return kind, int(np.prod(shape)) // block * n_bytes


def _sizes(config: TransformerConfig, family: str) -> dict[str, Any]:
    d_head = config.resolved_d_head
    sizes = {
        "vocab_size": config.resolved_vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.resolved_d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.resolved_n_kv_heads,
        "attention.key_length": d_head,
        "attention.value_length": d_head,
        "attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
        "rope.dimension_count": d_head,
        "rope.freq_base": float(config.rope_theta),
    }
    return {f"{family}.{key}": value for key, value in sizes.items()}


def _tokenizer_metadata(chat_format: ChatFormat, vocab_size: int) -> dict[str, Any]:
    """What the file says of texts: the tokenizer, where they end, the chat template."""
    tokenizer = chat_format.tokenizer
    pre = "smollm" if tokenizer.pattern == DIGITS_GPT2 else None
    metadata = tokenizer.gguf_metadata(pre=pre)
    tokens, types = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type"))
    # llama.cpp wants a token for every row of the embedding.
    n_tokens = len(metadata[tokens])
    padding = [f"[PAD{token_id}]" for token_id in range(n_tokens, vocab_size)]
    _refuse_twins(metadata[tokens], padding)
    metadata[tokens] = [*metadata[tokens], *padding]
    metadata[types] = [*metadata[types], *(_UNUSED for _ in padding)]
    ends = chat_format.stop_token_ids
    if ends:
        metadata.setdefault("tokenizer.ggml.eos_token_id", ends[0])
        metadata["tokenizer.ggml.padding_token_id"] = metadata["tokenizer.ggml.eos_token_id"]
    if chat_format.is_injection_proof:
        metadata["tokenizer.ggml.eot_token_id"] = ends[0]
        metadata["tokenizer.chat_template"] = chat_format.template
    return metadata


def _refuse_twins(tokens: list[str], padding: list[str]) -> None:
    if twins := set(tokens) & set(padding):
        raise ValueError(
            f"no token may be written like a row of the embedding without a token, "
            f"but {min(twins)!r} is"
        )


def _add_value(writer: Any, key: str, value: Any) -> None:
    """A value under the GGUF type that llama.cpp reads: sizes are 32 bits wide."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
