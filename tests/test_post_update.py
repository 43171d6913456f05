"""One weighted update, and what compiling touches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_chats import skip_slow_parts, tiny_sft

from rslm.post import setup
from rslm.post import sft as loop
from rslm.post.post_config import PostOptimizerConfig
from rslm.post.setup import open_run, open_start
from rslm.post.sft import open_data, sft, weighted_loss
from rslm.post.sft_batches import parts_of
from rslm.post.sft_config import SFT_RESUMABLE
from rslm.post.update import weighted_update


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_slow_parts(monkeypatch.setattr)


def update_by(folder: Path, size: int | None, **options: Any) -> tuple[Any, list[torch.Tensor]]:
    """The first update of a run in micro-batches of a size, and the weights it leaves."""
    config = tiny_sft(folder, out=folder / f"run_{size}", micro_batch_size=size, **options)
    with open_start(config, resume=False, resumable=SFT_RESUMABLE) as start:
        data = open_data(start)
        with open_run(start, n_steps=4, fingerprints=data.fingerprints) as run:
            parts = list(parts_of(loop.next_batch(run, data), size, run.device))
            update = weighted_update(run, parts, lambda part: weighted_loss(run.model, part))
    return update, [parameter.detach() for parameter in run.model.parameters()]


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_micro_batches_move_neither_loss_nor_norm_nor_weights(tmp_path: Path, aggregation: Any):
    # Clipped, so that a norm of parts instead of the whole would show.
    optimizer = PostOptimizerConfig(learning_rate=1e-3, max_grad_norm=0.01, epsilon=1.0)
    options: dict[str, Any] = {"aggregation": aggregation, "optimizer": optimizer}
    whole, wanted = update_by(tmp_path, None, **options)
    for size in (1, 3):
        update, found = update_by(tmp_path, size, **options)
        assert update.loss == pytest.approx(whole.loss, rel=1e-6)
        assert update.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
        for one, two in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_compiled_blocks_serve_updates_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def compile_(function: Any) -> Any:
        def compiled(*args: Any, **options: Any) -> Any:
            assert options.keys() <= {"documents", "token_positions"}, "a cache"
            calls.append(torch.is_grad_enabled())
            return function(*args, **options)

        return compiled

    plain = tiny_sft(tmp_path, out=tmp_path / "plain", n_steps=3, validate_every=2)
    expected = sft(plain)
    monkeypatch.setattr(setup.torch, "compile", compile_)
    found = sft(replace(plain, out=tmp_path / "compiled", compile=True))
    assert calls == [True] * 3
    assert (found.loss, found.val_loss) == (expected.loss, expected.val_loss)
