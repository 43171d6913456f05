import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rslm.architecture import TransformerConfig
from rslm.evaluate.loss import evaluate_loss
from rslm.losses import token_losses
from rslm.model import Transformer
from rslm.token_file import TokenFile


def tiny_model() -> Transformer:
    config = TransformerConfig(
        vocab_size=257, context_length=16, d_model=16, n_layers=1, n_heads=2, d_ff=32
    )
    return Transformer(config, generator=torch.Generator().manual_seed(0))


def test_evaluation_counts_every_target_once(
    token_files: tuple[Path, Path], byte_tokenizer: Any
) -> None:
    model = tiny_model()
    token_file = TokenFile.open(token_files[1])
    lengths = byte_tokenizer.token_byte_lengths
    for n_tokens in (1, 16, 37, None):
        score = evaluate_loss(
            model, token_file, batch_size=3, n_tokens=n_tokens, token_byte_lengths=lengths
        )
        assert score is not None
        n_targets = len(token_file) - 1 if n_tokens is None else n_tokens
        ids = torch.from_numpy(token_file[: n_targets + 1].astype(np.int64))
        with torch.no_grad():
            total = sum(
                token_losses(model(ids[i : min(i + 16, n_targets)]), ids[i + 1 : i + 17])
                .sum()
                .item()
                for i in range(0, n_targets, 16)
            )
        n_bytes = int(lengths[ids[1:].numpy()].sum())
        assert (score.n_tokens, score.n_bytes) == (n_targets, n_bytes)
        assert score.loss == pytest.approx(total / n_targets, rel=1e-6)
        assert score.bits_per_byte == pytest.approx(total / (math.log(2) * n_bytes), rel=1e-6)
    assert model.training


def test_stderr_of_the_loss_is_that_of_a_ratio_over_batches(
    token_files: tuple[Path, Path],
) -> None:
    model = tiny_model()
    token_file = TokenFile.open(token_files[1])
    n_tokens, batch = 16 * 8 + 5, 16 * 3
    score = evaluate_loss(model, token_file, batch_size=3, n_tokens=n_tokens)
    assert score is not None
    ids = torch.from_numpy(token_file[: n_tokens + 1].astype(np.int64))
    with torch.no_grad():
        losses = np.concatenate(
            [
                token_losses(model(ids[i : min(i + 16, n_tokens)]), ids[i + 1 : i + 17]).numpy()
                for i in range(0, n_tokens, 16)
            ]
        ).astype(np.float64)
    # Two whole batches, one of two windows, and the rest alone.
    parts = np.split(losses, [batch, 2 * batch, 128])
    deviations = [(part - losses.mean()).sum() for part in parts]
    expected = math.sqrt(4 / 3 * sum(each**2 for each in deviations)) / n_tokens
    assert score.stderr == pytest.approx(expected, rel=1e-4)
    alone = evaluate_loss(model, token_file, batch_size=3, n_tokens=48)
    assert alone is not None
    assert alone.stderr == math.inf


def test_evaluation_stops_when_told(token_files: tuple[Path, Path]) -> None:
    model = tiny_model()
    valid = TokenFile.open(token_files[1])
    assert evaluate_loss(model, valid, batch_size=3, should_stop=lambda: True) is None
    assert model.training
