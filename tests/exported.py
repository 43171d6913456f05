"""Small models with everything that export knows, and how two of them are compared."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.chat import CHAT_TOKENS, CHATML_TOKENS
from rslm.checkpoint import model_tensors
from rslm.infer.model_folder import ModelFolderConfig, write_model_folder
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SIZES: dict[str, Any] = {
    "context_length": 96,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "d_ff": 64,
    "rope_theta": 5000.0,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied_head": True},
    "grouped": {"n_kv_heads": 2},
    "one-kv-head": {"n_kv_heads": 1, "tied_head": True},
    "wide-heads": {"d_head": 16},
    "biases": {"biases": True, "n_kv_heads": 2},
    "epsilon": {"norm_epsilon": 1e-6},
    "qk-norm-gain": {"qk_norm": "rms-gain", "n_kv_heads": 2},
    "qk-norm": {"qk_norm": "rms", "tied_head": True},
    "scale": {"attention_scale": 0.21, "biases": True},
    "scale-qk-norm": {"attention_scale": 0.21, "qk_norm": "rms-gain"},
    "embedding-norm": {"embedding_norm": True},
    "embedding-norm-tied": {"embedding_norm": True, "tied_head": True},
    "mup": {"parametrisation": "mup", "base_d_model": 8},
    "completep": {"parametrisation": "completep", "base_d_model": 8, "base_n_layers": 1},
    "completep-tied": {
        "parametrisation": "completep",
        "base_d_model": 8,
        "base_n_layers": 1,
        "tied_head": True,
        "biases": True,
    },
}
EXACT = ["plain", "tied", "grouped", "one-kv-head", "wide-heads", "biases", "epsilon"] + [
    "qk-norm-gain"
]
"""Those into whose weights nothing has to be folded."""


def chat_tokenizer(twin: Any, *, chat: bool = True, pattern: str = "gpt2") -> Tokenizer:
    specials = [END_OF_TEXT, *(CHAT_TOKENS if chat else [])]
    return Tokenizer(twin.vocab, twin.merges, specials, pattern=pattern)


def chatml_tokenizer(twin: Any) -> Tokenizer:
    return Tokenizer(twin.vocab, twin.merges, [END_OF_TEXT, *CHATML_TOKENS])


def model_with(tokenizer: Tokenizer, **switches: Any) -> Transformer:
    """A model whose every weight counts: gains and biases are off their starts.

    It has three rows more than the tokenizer has tokens, as padded vocabularies have.
    """
    config = TransformerConfig(vocab_size=tokenizer.vocab_size + 3, **{**SIZES, **switches})
    generator = torch.Generator().manual_seed(1)
    model = Transformer(config, generator=generator).eval()
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            size = 0.02 if name == "token_embeddings.weight" and config.tied_head else 0.1
            tensor.add_(size * torch.randn(tensor.shape, generator=generator))
    return model


def write_folder(out: Path, model: Transformer, tokenizer: Tokenizer, **chat: Any) -> Path:
    record = ModelFolderConfig(model=model.config, **chat)
    write_model_folder(out, record, model_tensors(model).items(), tokenizer)
    return out


def random_ids(model: Transformer, length: int = 64, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    high = model.config.resolved_vocab_size
    return torch.randint(0, high, (rows, length), generator=generator)


def same_weights(one: Transformer, other: Transformer) -> None:
    """Bit for bit."""
    first, second = model_tensors(one), model_tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
