"""The options of supervised fine-tuning. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rslm.post.post_config import POST_RESUMABLE, PostConfig, require_counts
from rslm.train_config import require

SFT_RESUMABLE = POST_RESUMABLE | {"data", "valid"}
"""Options that may change at a resumption. The conversations were stored in the run folder by
then, and are not looked at again."""


@dataclass(frozen=True, kw_only=True)
class SftConfig(PostConfig):
    """One run of supervised fine-tuning."""

    data: tuple[Path, ...]
    """Files of conversations to train on, each line {"messages": [...]} or {"prompt", "answer"}."""
    valid: tuple[Path, ...] = ()
    """Files of held-out conversations; none: no validation."""
    n_epochs: float = 1.0
    """How often each conversation is seen."""
    n_steps: int | None = None
    """Optimizer updates; as many as n-epochs takes unless given."""
    batch_size: int = 16
    """Rows per update: packed rows, or conversations without packing."""
    packing: Literal["best-fit", "none"] = "best-fit"
    """Rows of several conversations that do not see each other, or of one and padding."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """What weighs alike in a batch: tokens; conversations; tokens, however long answers are."""
    too_long: Literal["cut", "leave-out", "refuse"] = "cut"
    """Conversations longer than the context: cut at their end, left out, or refused."""
    validate_every: int = 100
    """Steps between validations; there is one at the end in any case."""
    sample_every: int | None = None
    """Steps between samples in samples.md; only at the end unless given."""
    n_samples: int = 4
    """Answers to sample each time, to the first conversations that are held out."""
    n_sample_tokens: int = 128
    """Tokens of a sampled answer at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = "batch_size validate_every n_samples n_sample_tokens"
        require_counts(self, names, "n_steps sample_every")
        require(bool(self.data), "data", "at least one file", "none")
        finite = 0 < self.n_epochs <= 1e9
        require(finite, "n_epochs", "above 0 and at most 1e9", self.n_epochs)
