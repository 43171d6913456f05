"""A model as a folder that `transformers`, vLLM and others load.

Weights, `config.json`, `generation_config.json`, `tokenizer.json` with the exact expression that
splits texts, `tokenizer_config.json`, and `chat_template.jinja` for a model with chat tokens.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rslm.architecture import TransformerConfig, parameter_shapes
from rslm.chat import ChatFormat
from rslm.files import write_atomically
from rslm.infer.llama_family import (
    family_of,
    foreign_name,
    is_turned,
    pairs_to_halves,
    plain_config,
    plain_tensors,
)
from rslm.infer.model_folder import new_path
from rslm.infer.weight_file import NamedTensors, write_weights
from rslm.model import Transformer

_CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def export_hf(
    model: Transformer,
    chat_format: ChatFormat,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a new folder that Hugging Face's software loads; tensors go out one at a time.

    Args:
        model: with parts that Llama or Qwen3 have.
        chat_format: with the tokenizer; gives the ids at which texts begin and end.
        out: the folder.
        dtype: of the weights.

    Raises:
        ValueError: the model has other parts, which the message names, or a weight is too large
            for the dtype.
        FileExistsError: there is something at `out` already.
    """
    config, tokenizer = plain_config(model.config), chat_format.tokenizer
    _check_heads(config)
    shapes = {foreign_name(n, "hf"): shape for n, shape in parameter_shapes(config).items()}
    with new_path(out) as folder:
        folder.mkdir()
        write_weights(folder / "model.safetensors", shapes, _their_tensors(model), dtype=dtype)
        ends = _special_ids(chat_format)
        _write_json(folder / "config.json", hf_config(config, dtype) | ends)
        _write_json(folder / "generation_config.json", ends)
        tokenizer.save(folder / "tokenizer.json", "hf")
        texts = _tokenizer_config(chat_format, config.context_length)
        _write_json(folder / "tokenizer_config.json", texts)
        if chat_format.is_injection_proof:
            template = folder / "chat_template.jinja"
            write_atomically(template, chat_format.template.encode())


def hf_config(config: TransformerConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What `config.json` says of a `plain_config`, without the ids of special tokens."""
    family = family_of(config)
    record: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": config.resolved_vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "intermediate_size": config.resolved_d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.resolved_n_kv_heads,
        "head_dim": config.resolved_d_head,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        # The old place of the base and the new one: software of either age finds it.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.biases,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "dtype": str(dtype).removeprefix("torch."),
    }
    if family == "llama":
        return record | {"mlp_bias": config.biases, "pretraining_tp": 1}
    return record | {"use_sliding_window": False, "sliding_window": None}


def _check_heads(config: TransformerConfig) -> None:
    if family_of(config) == "llama" and config.d_model % config.n_heads:
        raise ValueError(
            f"d_model must be a multiple of n_heads for Hugging Face's Llama, "
            f"got {config.d_model} and {config.n_heads}"
        )


def _their_tensors(model: Transformer) -> NamedTensors:
    d_head = model.config.resolved_d_head
    for name, tensor in plain_tensors(model):
        turned = pairs_to_halves(tensor, d_head) if is_turned(name) else tensor
        yield foreign_name(name, "hf"), turned


def _special_ids(chat_format: ChatFormat) -> dict[str, Any]:
    """Ids of begin, ends and padding; what a base model pads with is its end of text."""
    ends = list(chat_format.stop_token_ids)
    return {
        "bos_token_id": chat_format.begin_id,
        "eos_token_id": ends or None,
        "pad_token_id": _padding_id(chat_format),
    }


def _padding_id(chat_format: ChatFormat) -> int | None:
    end_of_text, ends = chat_format.tokenizer.end_of_text, chat_format.stop_token_ids
    return ends[-1] if end_of_text is None and ends else end_of_text


def _tokenizer_config(chat_format: ChatFormat, context_length: int) -> dict[str, Any]:
    ends = chat_format.stop_token_ids
    tokens = {
        "bos_token": chat_format.begin_id,
        "eos_token": ends[0] if ends else None,
        "pad_token": _padding_id(chat_format),
    }
    names = {token_id: name for name, token_id in chat_format.tokenizer.special_tokens.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        # Else blanks before punctuation vanish from decoded text.
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        **{key: names[token_id] for key, token_id in tokens.items() if token_id is not None},
    }


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
