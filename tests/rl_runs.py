"""A small model that answers with a digit, and runs that teach it which one."""

import json
from pathlib import Path
from typing import Any

import torch

from rslm.architecture import TransformerConfig, parameter_shapes
from rslm.chat import CHAT_TOKENS, ChatFormat
from rslm.checkpoint import MODEL, OPTIM, model_tensors, newest_checkpoint
from rslm.infer.model_folder import ModelFolderConfig, write_model_folder
from rslm.model import Transformer
from rslm.optim import AdamW
from rslm.post.log_probs import label_log_probs
from rslm.post.rl_config import RlConfig, RlOptimizerConfig
from rslm.post.rows import make_rows
from rslm.run_folder import read_metrics
from rslm.run_log import CLOCK_KEYS
from rslm.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    specials = ["<|endoftext|>", *CHAT_TOKENS]
    words = [*(bytes([byte]) for byte in range(256)), *(name.encode() for name in specials)]
    return Tokenizer(dict(enumerate(words)), [], specials)


def make_base(folder: Path, *, n_steps: int = 60, d_model: int = 16) -> None:
    """A model folder whose model answers every question with a random digit."""
    tokenizer = byte_tokenizer()
    chat = ChatFormat.of(tokenizer)
    sizes = TransformerConfig(
        vocab_size=tokenizer.vocab_size, d_model=d_model, n_layers=1, n_heads=2, context_length=32
    )
    model = Transformer(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    prompts = [chat.prompt([{"role": "user", "content": f"q{i}"}]) for i in range(40)]
    optimizer = AdamW(model.parameters(), lr=0.02)
    for step in range(n_steps):
        answers = [[ord(str((i + step) % 10)), chat.stop_token_ids[0]] for i in range(40)]
        rows = make_rows(prompts, answers)
        found = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask)
        (-found.values.sum() / rows.mask.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = model_tensors(model)
    write_model_folder(
        folder,
        ModelFolderConfig(model=sizes, chat_format="rslm"),
        ((name, tensors[name]) for name in parameter_shapes(sizes)),
        tokenizer,
    )


def make_task(file: Path, *, gold: str = "7", n: int = 60) -> None:
    """Questions with one answer to all of them."""
    lines = [json.dumps({"prompt": f"q{i}", "gold": gold}) for i in range(n)]
    file.write_text("".join(f"{line}\n" for line in lines))


def rl_config(folder: Path, **changes: Any) -> RlConfig:
    """A run of some small steps on the base and the task in this folder."""
    options: dict[str, Any] = {
        "base": folder / "base",
        "task": str(folder / "task.jsonl"),
        "out": folder / "run",
        "n_steps": 3,
        "prompts_per_step": 4,
        "group_size": 4,
        "max_new_tokens": 4,
        "n_evaluation_prompts": 0,
        "optimizer": RlOptimizerConfig(learning_rate=0.01),
        "device": "cpu",
        "n_threads": 1,
    }
    return RlConfig(**(options | changes))


def weights_of(run: Path) -> list[bytes]:
    """The newest checkpoint's tensors, the optimizer's among them."""
    newest, rejected = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert not rejected
    return [newest.name.encode(), *((newest / name).read_bytes() for name in (MODEL, OPTIM))]


def timeless_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of the metrics without what clocks say."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in rows]


def outcome(run: Path) -> tuple[Any, ...]:
    """What must not depend on interruptions."""
    rollouts = {file.name: file.read_bytes() for file in (run / "rollouts").glob("step_*.jsonl")}
    return weights_of(run), timeless_rows(run), rollouts, (run / "samples.md").read_text()
