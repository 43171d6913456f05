"""What the software that runs models knows as Llama and Qwen3, and our models in its terms.

A model of ours is one of theirs where all its switches are: RMS norms before the layers, gated
SiLU, rotary embedding in all pairs. What only scales something is folded into the weights next
to it, exactly but for one rounding: the scale of scores into queries (or the gain of their norm),
CompleteP's factor of the branches into what writes to the residual stream, muP's factor of the
logits into the gain of the last norm, and the norm of the embeddings into their table. Everything
else is refused by name, as it would load nowhere.

Their names of tensors differ, and of the two layouts of heads: we, as GGUF's `llama`, turn the
pairs (2i, 2i + 1) of a head, Hugging Face and GGUF's other architectures (i, i + d_head/2). A
wrong layout still writes fluent text; only logits show it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rslm import parametrisation
from rslm.architecture import TransformerConfig, parameter_shapes
from rslm.checkpoint import model_tensors
from rslm.model import Transformer

Family = Literal["llama", "qwen3"]
Dialect = Literal["hf", "gguf"]

_PARTS = {
    "token_embeddings": ("model.embed_tokens", "token_embd"),
    "ln_final": ("model.norm", "output_norm"),
    "lm_head": ("lm_head", "output"),
    "ln1": ("input_layernorm", "attn_norm"),
    "attn.q_proj": ("self_attn.q_proj", "attn_q"),
    "attn.k_proj": ("self_attn.k_proj", "attn_k"),
    "attn.v_proj": ("self_attn.v_proj", "attn_v"),
    "attn.output_proj": ("self_attn.o_proj", "attn_output"),
    "attn.q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attn.k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "ln2": ("post_attention_layernorm", "ffn_norm"),
    "ffn.w1": ("mlp.gate_proj", "ffn_gate"),
    "ffn.w2": ("mlp.down_proj", "ffn_down"),
    "ffn.w3": ("mlp.up_proj", "ffn_up"),
}
_PREFIXES = {"hf": "model.layers", "gguf": "blk"}
_NAME = re.compile(r"(?:layers\.(\d+)\.)?(.*)\.(weight|bias)")
_TURNED = re.compile(r"layers\.\d+\.attn\.[qk]_(proj|norm)\.(weight|bias)")


def family_of(config: TransformerConfig) -> Family:
    """What a model is to the software of others: Qwen3 with QK-norm, else Llama.

    Raises:
        ValueError: it has parts that they have not, which the message names.
    """
    outside = {
        f"ffn {config.ffn}": config.ffn != "swiglu",
        "no norms": config.norm == "none",
        f"norm_position {config.norm_position}": config.norm_position != "pre",
        f"position_encoding {config.position_encoding}": config.position_encoding != "rope",
        "softcap": config.softcap is not None,
        "windows": config.window_pattern is not None,
        "value_embeddings": config.value_embeddings,
        "residual_scalars": config.residual_scalars,
        "x0_scalars": config.x0_scalars,
        "biases together with qk_norm": config.biases and config.qk_norm != "none",
    }
    if parts := [part for part, is_there in outside.items() if is_there]:
        raise ValueError(
            f"the model must be one that Llama or Qwen3 can be, and has {', '.join(parts)}"
        )
    return "llama" if config.qk_norm == "none" else "qwen3"


def plain_config(config: TransformerConfig) -> TransformerConfig:
    """The config of the model with everything folded into its weights, and all sizes given.

    Raises:
        ValueError: as `family_of`.
    """
    return replace(
        config,
        n_kv_heads=config.resolved_n_kv_heads,
        d_head=config.resolved_d_head,
        d_ff=config.resolved_d_ff,
        qk_norm="none" if family_of(config) == "llama" else "rms-gain",
        attention_scale=None,
        # A table that holds normed rows can no longer be the head's.
        tied_head=config.tied_head and not config.embedding_norm,
        embedding_norm=False,
        zero_init_projections=False,
        zero_init_head=False,
        z_loss=0.0,
        parametrisation="standard",
        base_d_model=None,
        base_n_layers=None,
    )


def plain_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights for `plain_config`, one at a time, in the order of `parameter_shapes`.

    Raises:
        ValueError: as `family_of`.
    """
    config, weights = model.config, model_tensors(model)
    family_of(config)
    head = weights.get("lm_head.weight", weights["token_embeddings.weight"])
    ones = torch.ones(config.resolved_d_head)
    query, branch, head_input = _factors(config)
    q_part = "q_proj" if config.qk_norm == "none" else "q_norm"
    scaled = {f"attn.{q_part}": query, "attn.output_proj": branch, "ffn.w2": branch}
    with torch.no_grad():
        for name in parameter_names(config):
            tensor = head if name == "lm_head.weight" else weights.get(name, ones)
            part = name.split(".", 2)[-1].rpartition(".")[0]
            factor = head_input if name == "ln_final.weight" else scaled.get(part, 1.0)
            if name == "token_embeddings.weight" and config.embedding_norm:
                tensor = model.ln_embedding(tensor)
            yield name, tensor if factor == 1 else tensor * factor


def _factors(config: TransformerConfig) -> tuple[float, float, float]:
    """Of queries, of what is added to the residual stream, and of what the head reads."""
    query = 1.0
    if config.attention_scale is not None or config.parametrisation != "standard":
        query = parametrisation.attention_scale(config) * config.resolved_d_head**0.5
    return (
        query,
        parametrisation.residual_multiplier(config),
        parametrisation.output_multiplier(config),
    )


def parameter_names(config: TransformerConfig) -> list[str]:
    """Names of the tensors of `plain_config`, in the model's order."""
    return list(parameter_shapes(plain_config(config)))


def foreign_name(name: str, dialect: Dialect) -> str:
    """The name of one of our tensors in files of others."""
    match = _NAME.fullmatch(name)
    assert match is not None, f"{name} must be the name of a parameter"
    layer, part, kind = match.groups()
    theirs = _PARTS[part][dialect == "gguf"]
    return f"{theirs}.{kind}" if layer is None else f"{_PREFIXES[dialect]}.{layer}.{theirs}.{kind}"


def is_turned(name: str) -> bool:
    """Whether the rows (or gains) of a tensor lie as the rotary embedding pairs them."""
    return _TURNED.fullmatch(name) is not None


def pairs_to_halves(tensor: Tensor, d_head: int) -> Tensor:
    """Rows of each head in the order 0, 2, 4, ..., 1, 3, 5, ...; a vector counts as rows."""
    heads: Tensor = tensor.unflatten(0, (-1, d_head // 2, 2))
    return heads.transpose(1, 2).flatten(0, 2)


def halves_to_pairs(tensor: Tensor, d_head: int) -> Tensor:
    """The inverse of `pairs_to_halves`."""
    heads: Tensor = tensor.unflatten(0, (-1, 2, d_head // 2))
    return heads.transpose(1, 2).flatten(0, 2)
