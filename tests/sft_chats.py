"""Conversations for the tests of fine-tuning, the files they are stored in, and tiny runs."""

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny_models import tiny_tokenizer, write_tiny_model

from rslm.chat import ChatFormat
from rslm.checkpoint import MODEL, OPTIM, newest_checkpoint
from rslm.post import setup, update
from rslm.post.post_config import PostOptimizerConfig
from rslm.post.sft_config import SftConfig
from rslm.post.sft_data import ChatFile, read_chats, write_chats
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS

TOKENIZER = tiny_tokenizer(has_chat=True)
FORMAT = ChatFormat.of(TOKENIZER)


def made_up(n: int, *, seed: int = 0, longest: int = 12) -> list[dict[str, Any]]:
    """Conversations of one or two turns, by both ways to write them down."""
    draw = random.Random(seed)

    def say() -> str:
        return "".join(draw.choices("abcde ", k=draw.randrange(1, longest)))

    chats: list[dict[str, Any]] = []
    for i in range(n):
        if i % 2:
            chats.append({"prompt": say(), "answer": say()})
            continue
        messages = [{"role": role, "content": say()} for role in ("user", "assistant")]
        if i % 4:
            messages += [{"role": role, "content": say()} for role in ("user", "assistant")]
        chats.append({"messages": messages})
    return chats


def write_lines(path: Path, chats: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return path


def store(folder: Path, chats: Sequence[Any], *, max_length: int = 65, **options: Any) -> ChatFile:
    """Conversations rendered and stored."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lines = write_lines(folder.with_suffix(".jsonl"), chats)
    write_chats(folder, read_chats([lines]), FORMAT, max_length=max_length, **options)
    return ChatFile(folder, TOKENIZER)


def skip_slow_parts(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """No matrix products for the peak, no picture, and no syncs, which only a power cut needs."""
    patch(setup, "peak_flops", lambda *_: 1e12)
    patch(update, "write_curve", lambda *_: None)
    patch(os, "fsync", lambda _: None)


def tiny_sft(folder: Path, **changes: Any) -> SftConfig:
    """A run of 11 steps in folder/run, on 40 conversations, from a base without chat tokens."""
    base, chats, valid = folder / "base", folder / "c.jsonl", folder / "v.jsonl"
    if not base.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tiny_model(base, has_chat=False)
        write_lines(chats, made_up(40))
        write_lines(valid, made_up(8, seed=9))
    options: dict[str, Any] = {
        "base": base,
        "out": folder / "run",
        "data": (chats,),
        "valid": (valid,),
        "optimizer": PostOptimizerConfig(learning_rate=1e-2),
        "n_epochs": 3.3,
        "batch_size": 4,
        "validate_every": 5,
        "sample_every": 10,
        "n_samples": 2,
        "n_sample_tokens": 6,
        "checkpoint_every": 4,
        "n_threads": 1,
        "device": "cpu",
    }
    return SftConfig(**options | changes)


def outcome(run: Path) -> tuple[Any, ...]:
    """What must not depend on interruptions: all but clocks, and checkpoints of other steps."""
    newest, rejected = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert not rejected
    tensors = [(newest / name).read_bytes() for name in (MODEL, OPTIM)]
    rows = read_metrics(run / "metrics.jsonl")
    timeless = [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows]
    return newest.name, tensors, timeless, (run / "samples.md").read_text()
