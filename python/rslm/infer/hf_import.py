"""A folder of Hugging Face's as a model folder: Llama, Mistral, Qwen2 and Qwen3.

Nothing in it is executed: weights are safetensors, never pickles, and the chat template is only
looked at. What the config asks for and our models have not is refused by name.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rslm.architecture import TransformerConfig
from rslm.errors import FormatError
from rslm.infer.foreign_model import (
    ForeignWeights,
    Imported,
    limit_context,
    with_switches,
    write_imported,
)
from rslm.infer.foreign_tokenizer import hf_tokenizer, read_bounded
from rslm.infer.weight_file import tensor_shapes

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_MAX_JSON_BYTES = 1 << 24
_MAX_NUMBER = 1e30
"""JSON has whole numbers that no float holds."""


def import_hf(
    source: Path,
    out: Path,
    *,
    context_length: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Imported:
    """Writes a model folder with the weights, the tokenizer and the chat format of `source`.

    Args:
        source: a folder with config.json, safetensors and tokenizer.json.
        out: the new folder.
        context_length: a shorter context than the model's.
        dtype: of the weights as written; they are float32 in memory.

    Raises:
        FormatError: a file is damaged, or does not fit the others.
        ValueError: the model has parts that ours have not, which the message names.
        OSError: a file is missing or cannot be read, or `out` exists.
    """
    record = _read_json(source / "config.json")
    with ExitStack() as files:
        weights = _open_weights(source, files)
        config = limit_context(with_switches(_our_config(record, source), weights), context_length)
        if config.tied_head:
            weights = _without_head(weights)
        tokenizer = hf_tokenizer(source / "tokenizer.json", config.resolved_vocab_size)
        return write_imported(out, config, weights, tokenizer, _read_template(source), dtype=dtype)


def _our_config(record: Mapping[str, Any], source: Path) -> TransformerConfig:
    """The config in our terms; switches that only tensors show are off.

    Raises:
        FormatError: a value is missing or of the wrong kind.
        ValueError: it asks for what we have not.
    """
    path = source / "config.json"
    kind = record.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(
            f"{path}: model_type must be one of {', '.join(_FAMILIES)}, got {kind!r:.80}"
        )

    def size(name: str, default: int | None = None) -> int:
        value = record.get(name)
        value = default if value is None else value
        if type(value) is not int:
            raise FormatError(f"{path}: {name} must be a whole number, got {value!r:.80}")
        return value

    def number(value: Any, name: str) -> float:
        if type(value) not in (int, float) or abs(value) > _MAX_NUMBER:
            raise FormatError(f"{path}: {name} must be a number, got {value!r:.80}")
        return float(value)

    rope = _rope(record, path)
    _refuse_other_parts(record, path)
    theta = rope.get("rope_theta", record.get("rope_theta", 10_000.0))
    d_model, n_heads = size("hidden_size"), size("num_attention_heads")
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        context_length=size("max_position_embeddings", 2048),
        d_model=d_model,
        n_layers=size("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=size("num_key_value_heads", n_heads),
        d_head=size("head_dim", d_model // max(n_heads, 1)),
        d_ff=size("intermediate_size"),
        rope_theta=number(theta, "rope_theta"),
        norm_epsilon=number(record.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        tied_head=record.get("tie_word_embeddings") is True,
    )


def _rope(record: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The table of rotary parameters, from either place, if it changes nothing but the base."""
    table = record.get("rope_parameters") or record.get("rope_scaling") or {}
    if not isinstance(table, dict):
        raise FormatError(f"{path}: rope_parameters must be an object, got {table!r:.80}")
    kind = table.get("rope_type", table.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"{path}: rotary embeddings must not be scaled, got rope_type {kind!r:.80}"
        )
    return table


def _refuse_other_parts(record: Mapping[str, Any], path: Path) -> None:
    """Refuses what a config of the known families may ask for and our models have not."""
    layers = record.get("layer_types") or []
    windowed = record.get("use_sliding_window", record.get("model_type") == "mistral")
    outside = {
        f"hidden_act {record.get('hidden_act')!r:.40}": record.get("hidden_act", "silu") != "silu",
        "a sliding window": bool(windowed and record.get("sliding_window")),
        "layers of other types than full_attention": (
            not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)
        ),
        "a partial rotary embedding": record.get("partial_rotary_factor", 1.0) != 1.0,
    }
    if parts := [part for part, is_there in outside.items() if is_there]:
        raise ValueError(
            f"{path}: the model must have no parts but those known here, has {', '.join(parts)}"
        )


def _open_weights(source: Path, files: ExitStack) -> ForeignWeights:
    """The tensors of a folder, in one file or in those that an index names."""
    index, single = source / "model.safetensors.index.json", source / "model.safetensors"
    if index.is_file():
        names = _indexed_files(index)
    elif single.is_file():
        names = [single.name]
    else:
        raise _missing_weights(source)
    places: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        found = tensor_shapes(source / name)
        if twins := found.keys() & shapes.keys():
            raise FormatError(f"{source / name}: tensor {min(twins):.200} is in another file, too")
        shapes |= found
        places |= dict.fromkeys(found, files.enter_context(safe_open(source / name, "pt")))
    # Tables that old checkpoints kept although they follow from the config.
    shapes = {n: shape for n, shape in shapes.items() if not n.endswith("rotary_emb.inv_freq")}

    def read(name: str) -> torch.Tensor:
        tensor: torch.Tensor = places[name].get_tensor(name)
        return tensor.float() if tensor.is_floating_point() else tensor

    return ForeignWeights(source, "hf", halves=True, shapes=shapes, read=read)


def _indexed_files(index: Path) -> list[str]:
    """The files that an index names, each a plain name in the same folder."""
    table = _read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FormatError(f"{index}: weight_map must be an object that names files")
    for name in table.values():
        plain = isinstance(name, str) and name.endswith(".safetensors") and "\0" not in name
        if not plain or Path(name).name != name or "\\" in name:
            raise FormatError(
                f"{index}: weight_map must name safetensors files beside it, got {name!r:.200}"
            )
    return sorted(set(table.values()))


def _missing_weights(source: Path) -> Exception:
    """The sentence for a folder without safetensors."""
    for pickled in sorted([*source.glob("*.bin"), *source.glob("*.pt*")]):
        return ValueError(
            f"{source} must hold safetensors, got {pickled.name}, a pickle, which runs code when "
            f"it is read; convert it where that does no harm"
        )
    return FileNotFoundError(f"{source} must hold model.safetensors, or an index of several files")


def _without_head(weights: ForeignWeights) -> ForeignWeights:
    """A tied model's own copy of the head, which nobody reads, is left out."""
    shapes = {name: shape for name, shape in weights.shapes.items() if name != "lm_head.weight"}
    return replace(weights, shapes=shapes)


def _read_template(source: Path) -> str | None:
    """The chat template, from its own file or from the tokenizer's config."""
    path = source / "chat_template.jinja"
    if path.is_file():
        return read_bounded(path, _MAX_JSON_BYTES).decode("utf-8", errors="replace")
    config = source / "tokenizer_config.json"
    template = _read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # Several, by name.
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    data = read_bounded(path, _MAX_JSON_BYTES)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error!s:.200}") from None
    if not isinstance(record, dict):
        raise FormatError(f"{path} must be an object, got {record!r:.80}")
    return record
