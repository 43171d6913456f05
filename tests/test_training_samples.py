"""Samples that a run draws while it trains, and what they must leave alone."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rslm import train as loop
from rslm.infer.load import load_run
from rslm.train import sample_text, train
from rslm.train_config import TrainConfig

MakeConfig = Callable[..., TrainConfig]
PROMPTS = ("", "the cat", "a dog\nsees")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(loop, "write_loss_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def tensors(config: TrainConfig) -> list[bytes]:
    """The bytes of weights and optimizer at the end."""
    folder = config.out / "checkpoints" / "step_00000020"
    return [file.read_bytes() for file in sorted(folder.glob("*.safetensors"))]


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_sampled_run_trains_to_the_same_bytes(tiny_config: MakeConfig, tmp_path: Path) -> None:
    plain = tiny_config(out=tmp_path / "plain", sample_every=None)
    sampled = tiny_config(out=tmp_path / "sampled", sample_every=1, sample_prompts=PROMPTS)
    train(plain)
    train(sampled)
    assert tensors(plain) == tensors(sampled)
    assert len(tensors(plain)) == 2


@pytest.mark.parametrize("moment", ["sampling", "training"])
def test_run_that_fails_between_samples_resumes_to_the_same_bytes_and_samples(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    options = {"sample_every": 4, "sample_prompts": PROMPTS}
    unbroken = tiny_config(out=tmp_path / "unbroken", **options)
    broken = tiny_config(out=tmp_path / "broken", **options)
    train(unbroken)

    def fail_after(n: int, function: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(1000))

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == n:
                raise RuntimeError("killed")
            return function(*args, **kwargs)

        return call

    # Of the third sample two prompts are drawn; three updates beyond the last checkpoint.
    name, n = {"sampling": ("generate", 8), "training": ("optimizer_step", 11)}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(loop, name, fail_after(n, getattr(loop, name)))
        with pytest.raises(RuntimeError, match="killed"):
            train(broken)
    train(broken, resume=True)
    assert tensors(unbroken) == tensors(broken)
    files = [config.out / "samples.md" for config in (unbroken, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_section_continues_each_prompt_with_draws_of_its_own(tiny_config: MakeConfig) -> None:
    config = tiny_config(sample_prompts=("the cat", "the cat", "a dog\nsees"), n_sample_tokens=30)
    train(config)
    model, tokenizer = load_run(config.out, device="cpu")
    before = random_states()
    section = sample_text(model, tokenizer, config, 20)
    assert random_states() == before, "generators that others draw from"
    assert section == sample_text(model, tokenizer, config, 20)
    assert section != sample_text(model, tokenizer, config, 19)
    assert (config.out / "samples.md").read_text().endswith(section)
    head, *samples = section.rstrip("\n").split("\n\n    ")
    assert head == "## Step 20"
    texts = [sample.replace("\n    ", "\n").strip(" ") for sample in samples]
    assert len(texts) == 3
    assert [text.startswith(p) for text, p in zip(texts, config.sample_prompts, strict=True)]
    assert texts[0] != texts[1], "an equal prompt in another place"


def test_prompts_must_be_given(tiny_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="sample_prompts must be at least one text"):
        tiny_config(sample_prompts=())
