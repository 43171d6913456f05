"""Weights of the Llama family from files of others, as a model folder of ours.

Files of strangers are only data: names and shapes are held against what the config says before
any tensor is read, a tensor is read when it is written, and there is never more than one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig, parameter_shapes
from rslm.errors import FormatError
from rslm.infer.chat_templates import recognise
from rslm.infer.foreign_tokenizer import ForeignTokenizer
from rslm.infer.llama_family import Dialect, foreign_name, halves_to_pairs, is_turned
from rslm.infer.model_folder import MAX_CONTEXT_LENGTH, ModelFolderConfig, write_model_folder
from rslm.infer.weight_file import finite

_TABLES = ("token_embeddings.weight", "lm_head.weight")


@dataclass(frozen=True)
class ForeignWeights:
    """Tensors in somebody else's file.

    Attributes:
        source: what messages call the file.
        dialect: whose names they have.
        halves: whether heads are turned in halves, not in pairs.
        shapes: of every tensor, rows first.
        read: one tensor, by name.
    """

    source: Path
    dialect: Dialect
    halves: bool
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


class Imported(NamedTuple):
    """What was made of a file."""

    config: ModelFolderConfig
    notes: list[str]
    """What a user should know of it."""


def with_switches(config: TransformerConfig, weights: ForeignWeights) -> TransformerConfig:
    """The config with those switches on whose tensors are there."""
    biases = any(name.endswith(".bias") for name in weights.shapes)
    gain = foreign_name("layers.0.attn.q_norm.weight", weights.dialect) in weights.shapes
    return replace(config, biases=biases, qk_norm="rms-gain" if gain else "none")


def limit_context(config: TransformerConfig, context_length: int | None) -> TransformerConfig:
    """The config with a shorter context, where one is asked for.

    Raises:
        ValueError: it is longer than the model's, or the model's is longer than can be run.
    """
    theirs = config.context_length
    if context_length is not None:
        if not 1 <= context_length <= theirs:
            raise ValueError(
                f"context_length must be from 1 to the model's {theirs}, got {context_length}"
            )
        return replace(config, context_length=context_length)
    if theirs > MAX_CONTEXT_LENGTH:
        raise ValueError(
            f"the model's context of {theirs} tokens is longer than {MAX_CONTEXT_LENGTH}; "
            f"give a context_length"
        )
    return config


def check_tensors(config: TransformerConfig, weights: ForeignWeights) -> None:
    """Holds the names and shapes of a file against those that the config needs.

    Raises:
        FormatError: one is missing or has another shape, or the file has parts that we have not.
    """
    # Counted first: shapes are listed layer by layer.
    if config.n_layers > len(weights.shapes):
        raise FormatError(
            f"{weights.source} must hold {config.n_layers} layers to fit its config, "
            f"got {len(weights.shapes)} tensors"
        )
    wanted = parameter_shapes(config)
    theirs = {foreign_name(name, weights.dialect): name for name in wanted}
    for foreign in sorted(weights.shapes.keys() - theirs.keys()):
        raise FormatError(
            f"{weights.source}: tensor {foreign:.200} belongs to no part that a model here has"
        )
    for foreign, name in theirs.items():
        shape = weights.shapes.get(foreign)
        if shape is None and name.endswith(".bias"):
            continue
        if shape != wanted[name]:
            found = "it is missing" if shape is None else f"got {shape}"
            raise FormatError(
                f"{weights.source}: tensor {foreign} must have the shape {wanted[name]}, {found}"
            )


def our_tensors(
    config: TransformerConfig, weights: ForeignWeights, n_added: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """The tensors under our names, in our order and layout; biases that are not there are zero.

    Tables of the vocabulary get `n_added` rows more, each the mean of the others: its logit is the
    mean logit, which Jensen's inequality keeps below the log of the mean of their exponentials,
    so an added id never has more than 1/vocab_size of the probability. Rows of zeros, whose
    logits are 0, had up to 0.8 % together in SmolLM2.
    """
    for name, shape in parameter_shapes(config).items():
        foreign = foreign_name(name, weights.dialect)
        if foreign not in weights.shapes:
            yield name, torch.zeros(shape)
            continue
        tensor = finite(weights.read(foreign), f"{weights.source}: tensor {foreign}")
        if weights.halves and is_turned(name):
            tensor = halves_to_pairs(tensor, config.resolved_d_head)
        if n_added and name in _TABLES:
            tensor = torch.cat((tensor, tensor.mean(0, keepdim=True).expand(n_added, -1)))
        yield name, tensor


def write_imported(
    out: Path,
    config: TransformerConfig,
    weights: ForeignWeights,
    tokenizer: ForeignTokenizer,
    template: str | None,
    *,
    dtype: torch.dtype,
) -> Imported:
    """Writes the model folder, once everything is known to fit.

    Raises:
        FormatError: tensors or tokenizer do not fit the config.
        FileExistsError: there is something at `out` already.
    """
    check_tensors(config, weights)
    vocab_size = config.resolved_vocab_size + tokenizer.n_added
    if max(tokenizer.tokenizer.vocab) >= vocab_size:
        raise FormatError(
            f"{weights.source}: the tokenizer must have ids below the model's {vocab_size}, "
            f"got {max(tokenizer.tokenizer.vocab)}"
        )
    recognised = recognise(template, tokenizer.tokenizer)
    record = ModelFolderConfig(
        model=replace(config, vocab_size=vocab_size),
        chat_format=recognised.name,
        default_system=recognised.default_system,
    )
    tensors = our_tensors(config, weights, tokenizer.n_added)
    write_model_folder(out, record, tensors, tokenizer.tokenizer, dtype=dtype)
    return Imported(record, tokenizer.notes + ([recognised.note] if recognised.note else []))
