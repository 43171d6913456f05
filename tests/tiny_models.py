"""Models of a few thousand random weights, whose tokens are bytes."""

from pathlib import Path

import torch

from rslm.architecture import TransformerConfig
from rslm.chat import CHAT_TOKENS
from rslm.checkpoint import model_tensors
from rslm.infer.model_folder import ModelFolderConfig, write_model_folder
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer


def tiny_tokenizer(*, has_chat: bool) -> Tokenizer:
    special = ["<|endoftext|>", *(CHAT_TOKENS if has_chat else ())]
    return Tokenizer({i: bytes([i]) for i in range(256)}, [], special)


def tiny_model(tokenizer: Tokenizer, *, context_length: int = 64) -> Transformer:
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    config = TransformerConfig(
        context_length=context_length, vocab_size=tokenizer.vocab_size, **sizes
    )
    return Transformer(config, generator=torch.Generator().manual_seed(0)).eval()


def write_tiny_model(folder: Path, *, has_chat: bool) -> Path:
    """A model folder, as `rslm import` writes them."""
    tokenizer = tiny_tokenizer(has_chat=has_chat)
    model = tiny_model(tokenizer)
    config = ModelFolderConfig(model=model.config)
    write_model_folder(folder, config, model_tensors(model).items(), tokenizer)
    return folder
