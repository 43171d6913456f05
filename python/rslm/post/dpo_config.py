"""The options of a run on preferences. No torch: a command line needs only these."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rslm.post.post_config import (
    POST_RESUMABLE,
    PostConfig,
    PostOptimizerConfig,
    require_counts,
)
from rslm.train_config import Schedule, require, require_finite

PreferenceKind = Literal[
    "sigmoid",
    "robust",
    "ipo",
    "hinge",
    "length_normalized",
    "nca",
    "apo_zero",
    "apo_down",
    "simpo",
    "orpo",
]
REFERENCE_FREE: tuple[PreferenceKind, ...] = ("simpo", "orpo")
"""The losses that know no reference model."""

RESUMABLE = POST_RESUMABLE | {"pairs", "valid_pairs"}
"""Options that may change at a resumption: they alter the order of floating-point sums at most.

Pairs may have moved; that they are the same is checked by their fingerprint.
"""


@dataclass(frozen=True, kw_only=True)
class DpoOptimizerConfig(PostOptimizerConfig):
    """AdamW, or Muon with AdamW, the schedule and clipping."""

    learning_rate: float = 5e-6
    """Peak learning rate; a small model may want a hundred times as much."""
    schedule: Schedule = "linear"
    """From the peak down: half a cosine, a line, flat and then a line, or that several times."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; embeddings and norms have none."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig(PostConfig):
    """One run: pairs of answers to one prompt, of which one is preferred."""

    pairs: Path
    """JSON Lines of {"prompt", "chosen", "rejected"}, or graded rollouts; a file or a folder."""
    valid_pairs: Path | None = None
    """The same, to validate on; some of pairs are held out unless given."""
    n_valid_pairs: int | None = None
    """Pairs to hold out, whole prompts of them; 200 and at most a tenth unless given, 0: none."""
    pairs_per_prompt: int = 4
    """Of rollouts: pairs of a better and a worse answer to a prompt at most."""
    truncate_prompts: bool = False
    """Cut the begin of prompts that are too long, alike for both answers; else refuse them."""
    loss: PreferenceKind = "sigmoid"
    """What is minimised: sigmoid is DPO; simpo and orpo know no reference model."""
    beta: float = 0.1
    """How much a difference from the reference counts; the smaller, the further it may go."""
    label_smoothing: float = 0.0
    """Share of the preferences to be taken for wrong; with sigmoid (conservative) or robust."""
    margin: float = 0.5
    """With simpo: by how much the chosen answer's reward should win."""
    ipo_average: bool = True
    """With ipo: compare means over an answer's tokens, not sums."""
    n_epochs: float = 1.0
    """How often each pair is seen."""
    n_steps: int | None = None
    """Updates; as many as n-epochs takes unless given."""
    batch_size: int = 64
    """Pairs of an update."""
    optimizer: DpoOptimizerConfig = field(default_factory=DpoOptimizerConfig)
    validate_every: int = 50
    """Steps between validations; there is one before and one at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = "pairs_per_prompt batch_size validate_every"
        require_counts(self, names, "n_steps")
        finite = 0 < self.n_epochs <= 1e9
        require(finite, "n_epochs", "above 0 and at most 1e9", self.n_epochs)
        n = self.n_valid_pairs
        require(n is None or 0 <= n < 2**63, "n_valid_pairs", "at least 0", n)
        require(
            self.valid_pairs is None or n is None, "n_valid_pairs", "left out with valid_pairs", n
        )
        require_finite("beta", self.beta)
        require(self.beta > 0, "beta", "above 0", self.beta)
        require_finite("margin", self.margin)
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "label_smoothing", "at least 0 and below 0.5", smoothing)
        fits = smoothing == 0 or self.loss in ("sigmoid", "robust")
        require(fits, "label_smoothing", "0 but with the losses sigmoid and robust", smoothing)
        require(
            self.margin == 0.5 or self.loss == "simpo",
            "margin",
            "left out but with the loss simpo",
            self.margin,
        )
        require(
            self.ipo_average or self.loss == "ipo",
            "ipo_average",
            "left on but with the loss ipo",
            False,
        )
