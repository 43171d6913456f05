"""Running a trained model: `Engine(model, tokenizer).generate(prompts, SamplingParameters())`.

What is offered here is loaded when it is asked for: parameters alone take no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rslm.infer.engine import Engine
    from rslm.infer.options import (
        DraftModel,
        EngineOptions,
        EngineStatistics,
        PromptLookup,
        QueueFull,
    )
    from rslm.infer.parameters import Chunk, Completion, SamplingParameters, TokenLogProb

_HOMES = {
    "engine": ["Engine"],
    "options": ["DraftModel", "EngineOptions", "EngineStatistics", "PromptLookup", "QueueFull"],
    "parameters": ["Chunk", "Completion", "SamplingParameters", "TokenLogProb"],
}

__all__ = [
    "Chunk",
    "Completion",
    "DraftModel",
    "Engine",
    "EngineOptions",
    "EngineStatistics",
    "PromptLookup",
    "QueueFull",
    "SamplingParameters",
    "TokenLogProb",
]


def __getattr__(name: str) -> Any:
    """Loads an offered name from its module."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"rslm.infer.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
