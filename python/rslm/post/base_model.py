"""The model that post-training begins with, and the rows its vocabulary gets for chat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.batches import counter_seed
from rslm.chat import ChatFormat, FormatName, missing_tokens
from rslm.checkpoint import model_tensors
from rslm.infer.load import load_run
from rslm.infer.model_folder import TOKENIZER, read_model_config
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

NOISE = 0.02
"""Deviation of the noise in new rows, as a share of that of the old rows' numbers."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model to be trained on, ready for its chat format.

    Attributes:
        model: on its device, in float32 and training mode.
        tokenizer: which has the tokens of the format.
        chat_format: how conversations are rendered.
        config: the sizes of the model.
        note: what was changed in a sentence; None where nothing was.
    """

    model: Transformer
    tokenizer: Tokenizer
    chat_format: ChatFormat
    config: TransformerConfig
    note: str | None = None


def open_base(
    source: Path | str,
    *,
    device: str | torch.device = "auto",
    chat_format: FormatName | None = None,
    default_system: str | None = None,
    wants_chat: bool = False,
    context_length: int | None = None,
) -> Base:
    """The model of a run or model folder, and how it is talked to.

    Tokens that the format needs and the tokenizer lacks get the next ids, and each a row in the
    embeddings and the head: the mean of the rows of all tokens before, which makes a new token
    as likely as an average one, plus noise that is a function of the token's name. Rows of a
    vocabulary that was padded are used first. Equal folders give equal models.

    Args:
        source: the folder.
        device: where to.
        chat_format: None takes the format that the folder says, else the one for which the
            tokenizer has the tokens.
        default_system: system message of the format; the folder's unless given.
        wants_chat: with no format said anywhere, take `rslm` and not a plain transcript.
        context_length: longest sequence; the folder's unless given.

    Raises:
        FileNotFoundError: it is no such folder, or has no checkpoint or no tokenizer.
        FormatError: weights, config and tokenizer do not fit.
        ValueError: there is no such format, or the context does not fit the model's windows.

    Source of rows at the mean: Hewitt 2021, Initializing New Word Embeddings for Pretrained
    Language Models, there drawn from the whole distribution of the old rows.
    """
    said = read_model_config(Path(source))
    model, tokenizer = load_run(source, device=str(device))
    name = chat_format or said.chat_format
    if name is None:
        name = ChatFormat.of(tokenizer).name
        name = "rslm" if wants_chat and name == "plain" else name
    new = missing_tokens(tokenizer, name)
    note = None
    if new:
        before = tokenizer
        tokenizer = Tokenizer.load(Path(source) / TOKENIZER, special_tokens=new)
        model = grown(model, before, tokenizer, new)
        n_rows = model.config.resolved_vocab_size
        note = f"{source} gets the tokens {' '.join(new)}: {n_rows:,} rows in its embeddings"
    if context_length is not None:
        model = resized(model, replace(model.config, context_length=context_length))
    system = said.default_system if default_system is None else default_system
    return Base(
        model=model.train(),
        tokenizer=tokenizer,
        chat_format=ChatFormat.of(tokenizer, name, default_system=system),
        config=model.config,
        note=note,
    )


def grown(
    model: Transformer, before: Tokenizer, after: Tokenizer, new_tokens: Sequence[str]
) -> Transformer:
    """The model with rows for the tokens that its tokenizer got."""
    old_size = model.config.resolved_vocab_size
    size = max(old_size, max(after.vocab) + 1)
    model = resized(model, replace(model.config, vocab_size=size))
    real = torch.tensor(sorted(before.vocab))
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            if _is_table(name):
                rows = tensor[real.to(tensor.device)].double().cpu()
                mean, scale = rows.mean(0), NOISE * float(rows.std())
                for token in new_tokens:
                    row = mean + scale * _noise(f"{name} {token}", len(mean))
                    tensor[after.special_tokens[token]] = row.to(tensor)
    return model


def resized(model: Transformer, config: TransformerConfig) -> Transformer:
    """The weights in a model of another vocabulary or context; rows that are new are zero."""
    if config == model.config:
        return model
    device = model.token_embeddings.weight.device
    larger = Transformer(config, device="meta").to_empty(device=device)
    own = model_tensors(larger)
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            if own[name].shape != tensor.shape:
                own[name].zero_()
            own[name][: len(tensor)] = tensor
    return larger


def _is_table(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return name in ("token_embeddings.weight", "lm_head.weight") or name.startswith(
        "value_embeddings."
    )


def _noise(name: str, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(counter_seed(0, name))
    return torch.randn(width, generator=generator, dtype=torch.float64)
