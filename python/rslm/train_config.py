"""The options of a pre-training run. No torch: a command line or a plan needs only these."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rslm.architecture import TransformerConfig

Precision = Literal["float32", "bfloat16"]

MAX_THREADS = 1024

RESUMABLE = frozenset(
    {
        *("out", "data.train", "data.valid", "device", "compile", "n_threads", "micro_batch_size"),
        *("checkpoint_every", "keep_checkpoints", "log_every"),
    }
)
"""Options that may change at a resumption: they alter the order of floating-point sums at most.

Data may have moved; that it is the same data is checked by its fingerprint.
"""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, as token files."""

    train: Path
    """Token file to train on."""
    valid: Path | None = None
    """Token file to validate on; none: no validation."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and clipping."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_learning_rate: float | None = None
    """Learning rate of the last step; a tenth of the peak unless given."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; embeddings and norms have none."""
    max_grad_norm: float = 1.0
    """Joint norm to which gradients are clipped; inf turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_steps", "epsilon", "weight_decay"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        _require(self.max_grad_norm > 0, "max_grad_norm", "positive", self.max_grad_norm)
        low = self.min_learning_rate
        fits = low is None or 0 <= low <= self.learning_rate
        _require(fits, "min_learning_rate", "between 0 and learning_rate", low)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One pre-training run."""

    out: Path
    """Run folder, made by the run."""
    data: DataConfig
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_steps: int = 5000
    """Optimizer updates."""
    batch_size: int = 32
    """Sequences per update."""
    micro_batch_size: int | None = None
    """Sequences per forward pass, to save memory; divides batch_size."""
    seed: int = 0
    """Seed of weights, data order and samples."""
    precision: Precision = "float32"
    """Dtype of matrix products; weights are always float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU when there is one."""
    compile: bool = False
    """Compile the training step; the first one then takes longer."""
    validate_every: int = 250
    """Steps between validations; there is one at the end in any case."""
    n_validation_tokens: int | None = None
    """Tokens of the validation file to predict, from its start; all unless given."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is one at the end in any case."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    sample_every: int | None = None
    """Steps between samples in samples.md; only at the end unless given."""
    sample_prompt: str = ""
    """Text that samples continue; empty: they start a document."""
    n_sample_tokens: int = 128
    """Tokens per sample."""
    log_every: int = 10
    """Steps between printed lines; metrics.jsonl has every step."""
    n_threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    init_from: Path | None = None
    """Run folder or safetensors file whose weights to start from."""

    def __post_init__(self) -> None:
        names = "n_steps batch_size validate_every checkpoint_every keep_checkpoints log_every"
        names += " n_sample_tokens"
        optional = "micro_batch_size n_validation_tokens sample_every n_threads"
        for name in [*names.split(), *optional.split()]:
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        threads = self.n_threads or 1
        _require(threads <= MAX_THREADS, "n_threads", f"at most {MAX_THREADS}", threads)
        micro = self.micro_batch_size or self.batch_size
        _require(self.batch_size % micro == 0, "micro_batch_size", "a divisor of batch_size", micro)
        warmup = self.optimizer.warmup_steps
        _require(warmup <= self.n_steps, "warmup_steps", f"at most n_steps {self.n_steps}", warmup)
        _require(0 <= self.seed < 2**64, "seed", "in [0, 2^64)", self.seed)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {what}, got {value}")
