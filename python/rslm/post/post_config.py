"""The options that fine-tuning on answers, preferences and rewards share. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rslm.architecture import MAX_SIZE, TransformerConfig
from rslm.chat import FormatName
from rslm.train_config import MAX_THREADS, OptimizerConfig, Precision, TrackerName, require

WARMUP_FRACTION = 0.03
"""Share of the steps in which the rate rises, where nothing says otherwise."""

POST_RESUMABLE = frozenset(
    {
        *("base", "out", "device", "compile", "n_threads", "parallel", "recompute_blocks"),
        *("micro_batch_size", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
        *("keep_best", "log_every", "trackers", "wandb_project", "optimizer.max_skipped_steps"),
    }
)
"""Options that may change at a resumption: they alter the order of floating-point sums at most."""


@dataclass(frozen=True, kw_only=True)
class PostOptimizerConfig(OptimizerConfig):
    """AdamW, or Muon with AdamW, the schedule and clipping."""

    learning_rate: float = 2e-5
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps of linear warm-up, instead of a share of them."""
    warmup_fraction: float | None = None
    """Share of the steps that warm up; 0.03 unless it or warmup-steps is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.warmup_fraction
        require(share is None or 0 <= share <= 1, "warmup_fraction", "in [0, 1]", share)
        fits = share is None or self.warmup_steps == 0
        require(fits, "warmup_fraction", "left out where warmup_steps is given", share)

    def resolved_warmup_steps(self, n_steps: int) -> int:
        """Steps of warm-up of a run of so many."""
        if self.warmup_steps:
            return self.warmup_steps
        share = WARMUP_FRACTION if self.warmup_fraction is None else self.warmup_fraction
        return round(share * n_steps)


@dataclass(frozen=True, kw_only=True)
class PostConfig:
    """What a run that begins with a trained model needs, whatever it is trained on."""

    base: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    """Run or model folder to begin with."""
    out: Path
    """Run folder, made by the run."""
    model: Annotated[TransformerConfig, tyro.conf.Suppress] = field(
        default_factory=TransformerConfig
    )
    """The sizes of the model, which the run takes from its base and writes down."""
    optimizer: PostOptimizerConfig = field(default_factory=PostOptimizerConfig)
    chat_format: FormatName | None = None
    """How conversations are rendered; as the base says, else rslm, whose tokens it then gets."""
    default_system: str | None = None
    """System message of conversations that begin without one; the base's unless given."""
    context_length: int | None = None
    """Longest sequence of the model, in tokens; the base's unless given."""
    micro_batch_size: int | None = None
    """Sequences per forward pass, to save memory; all of a process unless given."""
    recompute_blocks: int | None = None
    """Keep what enters every so many blocks only and compute the rest again, to save memory."""
    seed: int = 0
    """Seed of data order and samples."""
    precision: Precision = "float32"
    """Dtype of matrix products; weights are always float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU when there is one."""
    compile: bool = False
    """Compile the blocks of the model; the first steps then take longer."""
    parallel: Literal["none", "ddp"] = "none"
    """How the processes of torchrun train together; one that is alone trains plainly."""
    checkpoint_every: int = 100
    """Steps between checkpoints; there is one before validation and samples in any case."""
    checkpoint_minutes: float = 30.0
    """Minutes between checkpoints at most; inf: steps alone decide."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Keep the best checkpoint as well, as checkpoints/best."""
    log_every: int = 10
    """Steps between printed lines; metrics.jsonl has every step."""
    trackers: tuple[TrackerName, ...] = ()
    """Where else to show what the log shows; metrics.jsonl is written in any case."""
    wandb_project: str = "rslm"
    """Project at W&B; WANDB_MODE=offline in the environment needs no network."""
    n_threads: int | None = None
    """CPU threads; torch's own choice unless given."""

    def __post_init__(self) -> None:
        names = "checkpoint_every keep_checkpoints log_every"
        optional = "context_length micro_batch_size recompute_blocks n_threads"
        require_counts(self, names, optional)
        different = len(set(self.trackers)) == len(self.trackers)
        require(different, "trackers", "different from each other", ", ".join(self.trackers))
        threads = self.n_threads or 1
        require(threads <= MAX_THREADS, "n_threads", f"at most {MAX_THREADS}", threads)
        require(0 <= self.seed < 2**64, "seed", "in [0, 2^64)", self.seed)
        minutes = self.checkpoint_minutes
        require(minutes >= 0, "checkpoint_minutes", "at least 0", minutes)


def require_counts(config: object, names: str, optional: str = "") -> None:
    """Refuses options, named with blanks between, that are no counts from 1 on, by a ValueError.

    Those of `optional` may be None.
    """
    for name in [*names.split(), *optional.split()]:
        value = getattr(config, name)
        is_left_out = value is None and name in optional.split()
        require(is_left_out or value >= 1, name, "at least 1", value)
        require(is_left_out or value <= MAX_SIZE, name, "below 2^63", value)
