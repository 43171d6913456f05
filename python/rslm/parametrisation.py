"""How initial weights, learning rates and multipliers follow the sizes of a model.

In the standard parametrisation the best learning rate moves as a model grows. muP and CompleteP
are chosen so that activations, and what an update does to them, keep their size, and with them
the best hyperparameters, from a base model on which they were tuned. With m_d and m_L the ratios
of width and depth to that base:

| | standard | mup | completep |
|---|---|---|---|
| variance of hidden matrices | 2/(d_in + d_out) | that, so ÷ m_d | likewise |
| variance of the head | 2/(d_model + vocab_size) | that of the base | likewise |
| variance of the embedding | 1 | 1 | 1 |
| scores | 1/sqrt(d_head) | 1/d_head | 1/d_head |
| logits | 1 | 1/m_d | 1/m_d |
| branches | 1 | 1 | 1/m_L |
| AdamW's rate, hidden matrices | 1 | 1/m_d | 1/m_d |
| AdamW's decay, hidden matrices | 1 | 1 | m_d |
| AdamW's ε, in blocks and elsewhere | 1, 1 | 1, 1 | 1/(m_d m_L), 1/m_d |

All are functions of the config and a parameter's name; nothing here needs torch. Embedding, head,
gains, biases and scalars keep the tuned rate. The widths of heads and feed-forward layers are
taken to grow with d_model. Muon needs no rate by width: its update is scaled by the shape of the
matrix already.

Source: Yang et al. 2022, Tensor Programs V, Table 8 (arXiv:2203.03466), with the logits divided
instead of the head's variance and rate; Dey et al. 2025, CompleteP, Table 1 with α = 1
(arXiv:2505.01618). They draw hidden matrices from N(0, 1/d_in), we by Glorot & Bengio's formula,
which has the same power of the width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rslm.architecture import TransformerConfig, parameter_shapes

_HIDDEN = re.compile(r"layers\.\d+\.(attn\.\w+_proj|ffn\.w\d)\.weight")
_PROJECTION = re.compile(r"layers\.\d+\.(attn\.output_proj|ffn\.w2)\.weight")


class OptimizerScales(NamedTuple):
    """Factors of AdamW's hyperparameters for one parameter."""

    learning_rate: float
    weight_decay: float
    epsilon: float


def width_ratio(config: TransformerConfig) -> float:
    """m_d: the width over that of the base model; 1 in the standard parametrisation."""
    return config.d_model / _base_width(config)


def depth_ratio(config: TransformerConfig) -> float:
    """m_L: the depth over that of the base model; 1 but for CompleteP."""
    return config.n_layers / (config.base_n_layers or config.n_layers)


def _base_width(config: TransformerConfig) -> int:
    return config.base_d_model or config.d_model


def attention_scale(config: TransformerConfig) -> float:
    """What the products of queries and keys are multiplied with before the softmax."""
    if config.attention_scale is not None:
        return config.attention_scale
    d_head = config.resolved_d_head
    return float(d_head**-0.5) if config.parametrisation == "standard" else 1 / d_head


def output_multiplier(config: TransformerConfig) -> float:
    """What the head's input is multiplied with: 1/m_d."""
    return 1 / width_ratio(config)


def residual_multiplier(config: TransformerConfig) -> float:
    """What the outputs of attention and feed-forward layers are multiplied with: 1/m_L."""
    return 1 / depth_ratio(config)


def init_std(config: TransformerConfig, name: str) -> float:
    """Standard deviation of a matrix's initial entries before the cut at three of it.

    A tied embedding starts at base_d_model^-1/2, so that the logits of a hidden state of size 1
    have size 1, as an untied head's do not exceed.

    Raises:
        ValueError: the model has no such matrix; gains, biases and scalars start at constants.
    """
    shape = parameter_shapes(config).get(name, ())
    if len(shape) != 2:
        raise ValueError(f"name must be that of a matrix of the model, got {name!r}")
    if name == "lm_head.weight":
        return 0.0 if config.zero_init_head else head_std(config)
    if name.startswith("value_embeddings."):
        return 0.0
    if name == "token_embeddings.weight":
        return embedding_std(config)
    if _PROJECTION.fullmatch(name) and config.zero_init_projections:
        return 0.0
    return glorot_std(*shape)


def glorot_std(d_out: int, d_in: int) -> float:
    """√(2/(d_in + d_out)), which keeps the size of activations and gradients alike.

    Source: Glorot & Bengio 2010, equation 12.
    """
    return float((2 / (d_in + d_out)) ** 0.5)


def head_std(config: TransformerConfig) -> float:
    """`init_std` of an output head that does not start at zero."""
    return glorot_std(config.resolved_vocab_size, _base_width(config))


def embedding_std(config: TransformerConfig) -> float:
    """`init_std` of the token embeddings."""
    return float(_base_width(config) ** -0.5) if config.tied_head else 1.0


def optimizer_scales(config: TransformerConfig, name: str) -> OptimizerScales:
    """Factors of AdamW's learning rate, weight decay and ε for the parameter `name`."""
    if config.parametrisation == "standard":
        return OptimizerScales(1.0, 1.0, 1.0)
    m_d, m_l = width_ratio(config), depth_ratio(config)
    is_hidden = _HIDDEN.fullmatch(name) is not None
    rate = 1 / m_d if is_hidden else 1.0
    if config.parametrisation == "mup":
        return OptimizerScales(rate, 1.0, 1.0)
    decay = m_d if is_hidden else 1.0
    return OptimizerScales(rate, decay, 1 / (m_d * m_l) if name.startswith("layers.") else 1 / m_d)


def scaled_groups(
    groups: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    config: TransformerConfig,
    *,
    epsilon: float,
) -> list[dict[str, Any]]:
    """Optimizer groups cut so that all parameters of one have the same scales, and scaled.

    `learning_rate_scale`, which multiplies the scheduled rate, `weight_decay` and `eps` are
    multiplied by `optimizer_scales`. In the standard parametrisation, and for groups whose
    `algorithm` is "muon", nothing changes.

    Args:
        groups: as torch.optim takes them.
        names: the name of each parameter by its `id`.
        config: the model's sizes.
        epsilon: AdamW's ε for groups that do not give their own `eps`.
    """
    scaled: list[dict[str, Any]] = []
    for group in groups:
        if config.parametrisation == "standard" or group.get("algorithm") == "muon":
            scaled.append(dict(group))
            continue
        members: dict[OptimizerScales, list[Any]] = {}
        for parameter in group["params"]:
            scales = optimizer_scales(config, names[id(parameter)])
            members.setdefault(scales, []).append(parameter)
        scaled += [
            {
                **group,
                "params": parameters,
                "learning_rate_scale": group.get("learning_rate_scale", 1.0) * scales.learning_rate,
                "weight_decay": group.get("weight_decay", 0.0) * scales.weight_decay,
                "eps": group.get("eps", epsilon) * scales.epsilon,
            }
            for scales, parameters in members.items()
        ]
    return scaled
