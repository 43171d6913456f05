"""The options of a pre-training run. No torch: a command line or a plan needs only these."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from rslm.architecture import (
    MAX_SIZE,
    AttentionImplementation,
    TransformerConfig,
    train_flops_per_token,
)
from rslm.group_rules import Algorithm, parse_group_rule
from rslm.packing_reference import PackingPolicy
from rslm.schedules import wsd_s_schedule

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "constant", "wsd", "wsd-s"]
TrackerName = Literal["tensorboard", "wandb"]
ParallelKind = Literal["none", "ddp", "sharded", "fsdp", "torch-ddp", "torch-fsdp2"]

MAX_THREADS = 1024


class RunOptions(Protocol):
    """What the checkpoints and trackers of a run read of its options, whichever loop it is of."""

    @property
    def out(self) -> Path:
        """The run folder."""

    @property
    def keep_checkpoints(self) -> int:
        """Newest checkpoints to keep."""

    @property
    def keep_best(self) -> bool:
        """Whether the best checkpoint is kept as well."""

    @property
    def log_every(self) -> int:
        """Steps between the rows that are shown."""

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """Where else they are shown."""

    @property
    def wandb_project(self) -> str:
        """Project at W&B."""


RESUMABLE = frozenset(
    {
        *("out", "data.train", "data.valid", "data.mixed_in", "device", "compile", "n_threads"),
        *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_best", "log_every"),
        *("batch_size", "micro_batch_size", "recompute_blocks", "optimizer.max_skipped_steps"),
        *("attention_implementation", "parallel", "trackers", "wandb_project", "reference_curve"),
    }
)
"""Options that may change at a resumption: they alter the order of floating-point sums at most,
but for `batch_size`, whose change is part of the run's record.

Data may have moved; that it is the same data is checked by its fingerprint.
"""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, as token files."""

    train: Path
    """Token file to train on."""
    valid: Path | None = None
    """Token file to validate on; none: no validation."""
    mixed_in: tuple[Path, ...] = ()
    """Further token files to train on, in turns with the first by weight."""
    weights: tuple[float, ...] = ()
    """Shares of train and of each of mixed-in; by their tokens unless given."""
    packing: PackingPolicy = "chunk"
    """Rows of a batch: cut wherever they end, of whole documents and one cut, or padded."""
    mask_documents: bool = False
    """Attention does not cross from one document of a row to another."""
    restart_positions: bool = False
    """With mask-documents: positions count from the begin of a document, not of the row."""

    def __post_init__(self) -> None:
        n_files, n_weights = 1 + len(self.mixed_in), len(self.weights)
        fits = n_weights in (0, n_files) and (n_weights == 0 or n_files > 1)
        require(fits, "weights", "one number for train and each of mixed_in", self.weights)
        # Positions that begin anew in a row that is one sequence would tell two tokens alike.
        fits = self.mask_documents or not self.restart_positions
        require(fits, "restart_positions", "off without mask_documents", True)


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon, for the matrices between embedding and head."""

    learning_rate: float | None = None
    """Peak learning rate, for about 0.02 with the convention original; AdamW's unless given."""
    convention: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """Factor on the rate: the root of rows over columns, or what lets AdamW's rate be kept."""
    weight_decay: float | None = None
    """Decoupled decay; that of the optimizer unless given."""
    momentum: float = 0.95
    """Decay rate of the momentum."""
    nesterov: bool = True
    """Look one step ahead."""
    polynomials: Literal["classic", "convergent", "polar_express"] = "polar_express"
    """What orthogonalises: Newton-Schulz in 5 or 12 steps, or the best polynomial at each of 5."""
    orthogonalization_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of its matrix products; auto: bfloat16, or float32 on a CPU without units for it."""
    normuon_beta2: float | None = None
    """Decay rate of NorMuon's second moment of each neuron, about 0.9; none: without."""
    cautious_decay: bool = False
    """Decay only entries that the update moves towards zero."""
    equilibrate_rows: bool = False
    """Equal norms for the rows before (MuonEq)."""
    renormalize: bool = False
    """The right Frobenius norm after (Muon+)."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            require_finite(f"muon.{name}", getattr(self, name))
        for name in ("momentum", "normuon_beta2"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"muon.{name}", "in [0, 1)", value)
        given = self.learning_rate is not None or self.convention != "original"
        require(given, "muon.learning_rate", "given with the convention original", None)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon with AdamW, the schedule and clipping."""

    algorithm: Algorithm = "adamw"
    """What updates the matrices between embedding and head; everything else is AdamW's."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_learning_rate: float | None = None
    """Learning rate of the last step; unless given a tenth of the peak for cosine, else 0."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    schedule: Schedule = "cosine"
    """From the peak: down half a cosine or a line; flat; flat, then a line, or that many times."""
    cooldown_fraction: float | None = None
    """Share of the run, with wsd-s of each stretch, that the line takes; 0.2 unless given."""
    decay_ends: tuple[int, ...] = ()
    """With wsd-s, the steps before the last at which the rate is at its minimum."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; embeddings and norms have none."""
    implementation: Literal["fused", "reference"] = "fused"
    """AdamW in one pass, or line by line."""
    groups: tuple[str, ...] = ()
    """Instead of the usual groups, one rule for each: PATTERN: OPTION=VALUE ..."""
    max_grad_norm: float = 1.0
    """Joint norm to which gradients are clipped; inf turns clipping off."""
    max_skipped_steps: int = 3
    """Steps in a row that may be skipped for infinite gradients; one more ends the run."""
    muon: MuonConfig = field(default_factory=MuonConfig)

    def __post_init__(self) -> None:
        names = "learning_rate warmup_steps epsilon weight_decay max_skipped_steps"
        for name in names.split():
            require_finite(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        require(self.max_grad_norm > 0, "max_grad_norm", "positive", self.max_grad_norm)
        low = self.min_learning_rate
        fits = low is None or 0 <= low <= self.learning_rate
        require(fits, "min_learning_rate", "between 0 and learning_rate", low)
        self._check_schedule()
        self._check_muon()

    def _check_schedule(self) -> None:
        share = self.cooldown_fraction
        has_cooldown = self.schedule in ("wsd", "wsd-s")
        fits = share is None or (has_cooldown and 0 <= share <= 1)
        require(fits, "cooldown_fraction", "in [0, 1], with schedule wsd or wsd-s", share)
        fits = self.min_learning_rate is None or self.schedule != "constant"
        require(fits, "min_learning_rate", "left out with schedule constant", "one")
        fits = not self.decay_ends or self.schedule == "wsd-s"
        require(fits, "decay_ends", "left out but with schedule wsd-s", self.decay_ends)

    def _check_muon(self) -> None:
        rules = [parse_group_rule(text) for text in self.groups]
        if self.algorithm == "adamw":
            # An option without effect is a mistake.
            fits = self.muon == MuonConfig() and all(rule.algorithm == "adamw" for rule in rules)
            require(fits, "algorithm", "muon where Muon's options or groups are given", "adamw")
        fits = self.muon.learning_rate is None or self.learning_rate > 0
        require(fits, "learning_rate", "positive where muon.learning_rate is given", 0.0)

    @property
    def resolved_min_learning_rate(self) -> float:
        """The learning rate of the last step."""
        if self.min_learning_rate is not None:
            return self.min_learning_rate
        shares = {"cosine": 0.1, "constant": 1.0}
        return shares.get(self.schedule, 0.0) * self.learning_rate

    @property
    def resolved_cooldown_fraction(self) -> float:
        """The share that the line down takes."""
        return 0.2 if self.cooldown_fraction is None else self.cooldown_fraction


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One pre-training run."""

    out: Path
    """Run folder, made by the run."""
    data: DataConfig
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    depth: int | None = None
    """One number that decides sizes, steps, batch and rates (rslm.depth_dial); others win."""
    n_steps: int = 5000
    """Optimizer updates."""
    batch_size: int = 32
    """Sequences per update; when a run is resumed with another one, the data's order goes on."""
    micro_batch_size: int | None = None
    """Sequences per forward pass, to save memory; divides batch_size."""
    recompute_blocks: int | None = None
    """Keep what enters every so many blocks only and compute the rest again, to save memory."""
    seed: int = 0
    """Seed of weights, data order and samples."""
    precision: Precision = "float32"
    """Dtype of matrix products; weights are always float32."""
    attention_implementation: AttentionImplementation = "auto"
    """How attention is computed; auto takes what is fastest on the device."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU when there is one."""
    compile: bool = False
    """Compile the training step; the first one then takes longer."""
    parallel: ParallelKind = "none"
    """How the processes of torchrun train together; one that is alone trains plainly."""
    validate_every: int = 250
    """Steps between validations; there is one at the end in any case."""
    n_validation_tokens: int | None = None
    """Tokens of the validation file to predict, from its start; all unless given."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is one before validation and samples in any case."""
    checkpoint_minutes: float = 30.0
    """Minutes between checkpoints at most; inf: steps alone decide."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest validation loss as well, as checkpoints/best."""
    sample_every: int | None = None
    """Steps between samples in samples.md; only at the end unless given."""
    sample_prompts: tuple[str, ...] = ("",)
    """Texts that samples continue, one for each; an empty one starts a document."""
    n_sample_tokens: int = 128
    """Tokens per sample."""
    log_every: int = 10
    """Steps between printed lines; metrics.jsonl has every step."""
    trackers: tuple[TrackerName, ...] = ()
    """Where else to show what the log shows; metrics.jsonl is written in any case."""
    wandb_project: str = "rslm"
    """Project at W&B; WANDB_MODE=offline in the environment needs no network."""
    reference_curve: Path | None = None
    """Measured losses to warn by (rslm runs band); those that ship are found by themselves."""
    n_threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    init_from: Path | None = None
    """Run folder or safetensors file whose weights to start from."""

    def __post_init__(self) -> None:
        names = "n_steps batch_size validate_every checkpoint_every keep_checkpoints log_every"
        names += " n_sample_tokens"
        optional = (
            "depth micro_batch_size n_validation_tokens sample_every n_threads recompute_blocks"
        )
        for name in [*names.split(), *optional.split()]:
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1", value)
            require(value is None or value <= MAX_SIZE, name, "below 2^63", value)
        require(bool(self.sample_prompts), "sample_prompts", "at least one text", "none")
        different = len(set(self.trackers)) == len(self.trackers)
        require(different, "trackers", "different from each other", ", ".join(self.trackers))
        threads = self.n_threads or 1
        require(threads <= MAX_THREADS, "n_threads", f"at most {MAX_THREADS}", threads)
        micro = self.micro_batch_size or self.batch_size
        require(self.batch_size % micro == 0, "micro_batch_size", "a divisor of batch_size", micro)
        warmup = self.optimizer.warmup_steps
        require(warmup <= self.n_steps, "warmup_steps", f"at most n_steps {self.n_steps}", warmup)
        require(0 <= self.seed < 2**64, "seed", "in [0, 2^64)", self.seed)
        cuts_matrices = self.parallel in ("fsdp", "torch-fsdp2")
        fits = not (cuts_matrices and self.optimizer.algorithm == "muon")
        what = "ddp, sharded or torch-ddp with Muon, which needs whole matrices"
        require(fits, "parallel", what, self.parallel)
        minutes = self.checkpoint_minutes
        require(minutes >= 0, "checkpoint_minutes", "at least 0", minutes)
        if self.optimizer.schedule in ("wsd", "wsd-s"):
            wsd_s_schedule(
                0,
                learning_rate=0.0,
                min_learning_rate=0.0,
                warmup_steps=warmup,
                decay_ends=(*self.optimizer.decay_ends, self.n_steps),
                cooldown_fraction=self.optimizer.resolved_cooldown_fraction,
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an update."""
        return self.batch_size * self.model.context_length

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.n_steps * self.tokens_per_step

    @property
    def train_flops(self) -> float:
        """FLOPs of the whole run, once the vocabulary is known."""
        return self.n_tokens * train_flops_per_token(self.model)


def require_finite(name: str, value: float | None) -> None:
    """Refuses an option that is negative or infinite, by a ValueError; None is none."""
    require(value is None or value >= 0, name, "at least 0", value)
    require(value is None or value < math.inf, name, "finite", value)


def require(holds: bool, name: str, what: str, value: object) -> None:
    """Refuses an option that is not `what` it must be, by a ValueError."""
    if not holds:
        raise ValueError(f"{name} must be {what}, got {value}")
