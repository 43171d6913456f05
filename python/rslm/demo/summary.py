"""What pre-training reached: bits per byte beside two compressors, and samples."""

import gzip
import json
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rslm.architecture import n_parameters
from rslm.evaluate.loss import evaluate_loss
from rslm.files import END_OF_TEXT, write_atomically
from rslm.infer.load import end_ids
from rslm.infer.sampler import generate_text
from rslm.model import Transformer
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer
from rslm.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a demo reached; the bits per byte are those of the held-out text."""

    n_parameters: int
    n_tokens: int
    training_seconds: float
    n_valid_bytes: int
    bits_per_byte: dict[str, float]


def summarise(
    config: TrainConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    valid_file: Path,
    seconds: float,
) -> Summary:
    """Scores the model and the compressors on the same text, and keeps the result.

    The compressors get all held-out documents as one stream, without anything between them.
    The model is charged for the end-of-text tokens as well, though they stand for no byte: what
    doubt there is about the borders of documents goes against the model.
    """
    text = valid_file.read_bytes().replace(END_OF_TEXT.encode(), b"")
    summary = Summary(
        n_parameters=n_parameters(model.config),
        n_tokens=config.n_steps * config.batch_size * config.model.context_length,
        training_seconds=seconds,
        n_valid_bytes=len(text),
        bits_per_byte={
            "rslm": model_score(model, tokenizer, config),
            "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
            "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        },
    )
    write_atomically(
        config.out / "summary.json", json.dumps(vars(summary), indent=2).encode() + b"\n"
    )
    return summary


def model_score(model: Transformer, tokenizer: Tokenizer, config: TrainConfig) -> float:
    """The model's bits per byte on the whole held-out token file."""
    assert config.data.valid is not None
    evaluation = evaluate_loss(
        model,
        TokenFile.open(config.data.valid, tokenizer=tokenizer),
        batch_size=16,
        token_byte_lengths=tokenizer.token_byte_lengths,
        autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
    )
    assert evaluation is not None
    return evaluation.bits_per_byte or math.nan


def print_scores(summary: Summary) -> None:
    """Prints a bar for each score."""
    longest = max(summary.bits_per_byte.values())
    for name, score in summary.bits_per_byte.items():
        bar = "█" * round(40 * score / longest)
        print(f"   {name:<8} {score:6.3f}  {bar}")
    change = 1 - summary.bits_per_byte["rslm"] / summary.bits_per_byte["gzip -9"]
    print(f"   {abs(change):.0%} {'fewer' if change > 0 else 'more'} bits than gzip", flush=True)


def print_sample(
    model: Transformer, tokenizer: Tokenizer, prompt: str, n_tokens: int, seed: int
) -> None:
    """Prints a new document, or a prompt with its continuation, as it is drawn."""
    end = tokenizer.end_of_text
    assert end is not None
    print(f"\n--- {f'continuing {prompt!r}' if prompt else 'a new document'}\n{prompt}", end="")
    pieces = generate_text(
        model,
        [end, *tokenizer.encode(prompt)],
        tokenizer.stream_decoder(),
        max_new_tokens=n_tokens,
        temperature=0.7,
        stop_token_ids=end_ids(model, tokenizer),
        seed=seed,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def beginnings(valid_file: Path, n: int) -> Sequence[str]:
    """The first lines of some held-out documents, cut at a word."""
    documents = valid_file.read_bytes()[: 8 << 20].decode(errors="ignore").split(END_OF_TEXT)
    chosen = documents[:: max(1, len(documents) // n)][:n]
    return [
        document.strip()[:60].rpartition(" ")[0] or document.strip()[:60] for document in chosen
    ]
