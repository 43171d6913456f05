"""One number, the depth, to a whole run: sizes, steps, batch and learning rates.

The family is nanochat's (Karpathy 2025-2026, github.com/karpathy/nanochat, `base_train.py` and
`gpt.py`), tuned by its author at depth 12 and carried over to others by these rules:

| option | rule | source |
|---|---|---|
| d_model | 64 depth, up to a multiple of d_head = 128 | nanochat |
| tokens D | 12 (12 depth d_model² + d_model V) | nanochat's own fit: matrices and head |
| batch B | 2^19 (D/D₁₂)^0.383 tokens, to a power of 2 | Bergsma et al. 2025 (2505.13738) |
| learning rates | √(B/2^19) | Malladi et al. 2022 (2205.10287) |
| those of AdamW's matrices | (d_model/768)^-1/2 | nanochat |
| Muon's decay | √(B/2^19) D₁₂/D | Wang, Aitchison 2024 (2405.13698) |
| warm-up, cooldown | 40 steps; the last 65 %, to 5 % | nanochat |

D₁₂ is D at depth 12. The architecture is nanochat's as far as the switches of `TransformerConfig`
go: ReLU², RMS norm of the embedding, QK-norm with the scores times 1.44, softcap 15, windows SSSL,
value embeddings, residual and x0 scalars, projections and head from zero.

Where we differ: no smear and no backout; norms have gains, at the residual scalars' rate; Muon's
momentum stays at 0.95 where theirs goes from 0.85 to 0.97 to 0.9; its decay is half of theirs,
which falls to 0 along a cosine.
"""

import math
from typing import Any

VOCAB_SIZE = 32_768
CONTEXT_LENGTH = 2_048
_TUNED_DEPTH = 12
_TUNED_BATCH = 2**19
_D_HEAD = 128


def depth_options(
    depth: int,
    *,
    vocab_size: int = VOCAB_SIZE,
    context_length: int = CONTEXT_LENGTH,
    n_steps: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The options of the run of this depth, nested as those of `TrainConfig`; others win.

    Args:
        depth: number of blocks, the dial.
        vocab_size: of the data, which counts in how long is trained.
        context_length: tokens of a sequence; the batch stays the same in tokens.
        n_steps: of a run that is shorter or longer, where warm-up and cooldown must still fit.
        batch_size: sequences, where others than these are wanted; micro-batches must divide them.

    Raises:
        ValueError: the depth is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    d_model = _width(depth)
    n_tokens = _training_tokens(depth, vocab_size)
    growth = n_tokens / _training_tokens(_TUNED_DEPTH, vocab_size)
    batch = int(2 ** round(math.log2(_TUNED_BATCH * growth**0.383)))
    by_batch = math.sqrt(batch / _TUNED_BATCH)
    batch_size = batch_size or max(1, batch // context_length)
    n_steps = max(1, n_tokens // batch) if n_steps is None else n_steps
    # The cooldown keeps its share in a short run, where the warm-up takes a tenth.
    warmup_steps = min(40, n_steps // 10)
    learning_rate = 0.02 * by_batch
    # A third of the context in whole tiles of 128: 768 of 2,048.
    window_size = -(-context_length // (3 * 128)) * 128
    # None where it would not be shorter than the context, or the one layer sees all.
    has_windows = window_size < context_length and depth > 1
    windows = {"window_pattern": "SSSL", "window_size": window_size} if has_windows else {}
    return {
        "depth": depth,
        "n_steps": n_steps,
        "batch_size": batch_size,
        # What one GPU of 80 GB holds at any depth up to some twenty.
        "micro_batch_size": math.gcd(batch_size, 16),
        "precision": "bfloat16",
        "n_validation_tokens": 10_485_760,
        "checkpoint_every": 1_000,
        "model": {
            "context_length": context_length,
            "d_model": d_model,
            "n_layers": depth,
            "n_heads": d_model // _D_HEAD,
            "ffn": "relu2",
            "embedding_norm": True,
            "qk_norm": "rms",
            "attention_scale": 1.2**2 / math.sqrt(_D_HEAD),
            "softcap": 15.0,
            **windows,
            "value_embeddings": True,
            "residual_scalars": True,
            "x0_scalars": True,
            "zero_init_projections": True,
            "zero_init_head": True,
        },
        "optimizer": {
            "algorithm": "muon",
            "learning_rate": learning_rate,
            "min_learning_rate": 0.05 * learning_rate,
            "warmup_steps": warmup_steps,
            "schedule": "wsd",
            "cooldown_fraction": 0.65,
            "epsilon": 1e-10,
            "weight_decay": 0.0,
            "max_grad_norm": math.inf,
            "groups": _groups((d_model / 768) ** -0.5),
            "muon": {
                "learning_rate": learning_rate,
                "convention": "original",
                "weight_decay": 0.14 * by_batch / growth,
                "normuon_beta2": 0.9,
                "cautious_decay": True,
            },
        },
    }


def _width(depth: int) -> int:
    return -(-64 * depth // _D_HEAD) * _D_HEAD


def _training_tokens(depth: int, vocab_size: int) -> int:
    d_model = _width(depth)
    return 12 * (12 * depth * d_model**2 + d_model * vocab_size)


def _groups(by_width: float) -> list[str]:
    """nanochat's groups; their rates as factors of Muon's 0.02."""
    tables = "beta1=0.8 beta2=0.995 weight_decay=0.001"
    return [
        r"^layers\.\d+\.(attn|ffn)\.\w+\.weight$: algorithm=muon",
        rf"^token_embeddings\.: learning_rate_scale={15 * by_width} {tables}",
        rf"^value_embeddings\.: learning_rate_scale={7.5 * by_width} {tables}",
        rf"^lm_head\.: learning_rate_scale={0.4 * by_width} beta1=0.8 beta2=0.96 weight_decay=0.01",
        "^residual_scalars$: learning_rate_scale=0.25 beta1=0.8 beta2=0.95",
        "^x0_scalars$: learning_rate_scale=25 beta1=0.96 beta2=0.95",
        r"(^|\.)ln\w+\.weight$: learning_rate_scale=0.25 beta1=0.8 beta2=0.95",
    ]
