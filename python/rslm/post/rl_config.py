"""The options of a run of reinforcement learning. No torch: a command line needs only these."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rslm.post.post_config import (
    POST_RESUMABLE,
    PostConfig,
    PostOptimizerConfig,
    require_counts,
)
from rslm.train_config import Schedule, require

Baseline = Literal["none", "mean", "leave_one_out"]
Normalizer = Literal["none", "std", "mean"]
Ratio = Literal["none", "no_clip", "clip", "dual", "gspo", "cispo"]
Aggregation = Literal["sequence", "token", "constant"]
Keep = Literal["all", "mixed", "right"]

REWARD_PARTS = ("task", "answer", "format", "random", "overlong")

RESUMABLE = POST_RESUMABLE | {
    "task_data",
    "server",
    "server_folder",
    "max_mismatch",
    "max_equal_steps",
}
"""Options that may change at a resumption: they alter the order of floating-point sums at most."""


@dataclass(frozen=True, kw_only=True)
class RlOptimizerConfig(PostOptimizerConfig):
    """AdamW, or Muon with AdamW, the schedule and clipping."""

    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """From the peak: down half a cosine or a line; flat; flat, then a line, or that many times."""
    warmup_fraction: float | None = 0.0
    """Share of the steps that warm up."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; embeddings and norms have none."""


@dataclass(frozen=True, kw_only=True)
class RlConfig(PostConfig):
    """One run: prompts of a task, completions by the model, rewards, updates.

    A step draws `prompts_per_step` prompts, samples `group_size` completions of each, grades
    them, and makes `minibatches_per_rollout` times `epochs_per_rollout` updates. What the
    algorithms of the literature set is in `rslm.post.rl_presets`; the defaults are GRPO's.
    """

    task: str
    """What is asked and how answers are graded: arithmetic, countdown, gsm8k, a jsonl file, ..."""
    task_data: Path | None = None
    """File or folder with the task's data, where it needs any."""
    task_seed: int = 0
    """Seed of a task that makes up its own questions."""
    prompt: str = "chat"
    """How a question is put: chat, r1_zero, r1_zero_three_shot, question_only, plain."""
    n_steps: int = 100
    """Rollouts, each with its updates."""
    prompts_per_step: int = 32
    """Questions of a rollout."""
    group_size: int = 8
    """Completions of each question, which are compared with each other."""
    max_new_tokens: int = 64
    """Ids of a completion at most."""
    temperature: float = 1.0
    """Divides the logits where completions are sampled, and where they are scored."""
    server: str | None = None
    """Address of `rslm serve FOLDER --exact` that draws the samples; unless given the run does."""
    server_folder: Path | None = None
    """That FOLDER, on a disk that both see: the weights of each step are put there."""
    rewards: tuple[str, ...] = ("task",)
    """Parts of the reward, NAME or NAME=WEIGHT: task, answer, format, random, overlong."""
    overlong_share: float = 0.2
    """Last share of max-new-tokens over which the part overlong falls from 0 to -1."""
    keep: Keep = "all"
    """Completions to train on: all, those of prompts of mixed outcome, or the right ones."""
    sampling_rounds: int = 1
    """With keep mixed: times that prompts are drawn at most to fill a step."""
    baseline: Baseline = "mean"
    """What is taken off a reward: nothing, the group's mean, or the mean of the others."""
    normalizer: Normalizer = "std"
    """What divides it then: nothing, or the group's standard deviation or mean."""
    ratio: Ratio = "clip"
    """How new probabilities over old ones enter the loss."""
    clip_range: tuple[float, float] = (0.2, 0.2)
    """How far the ratio may go below and above 1."""
    dual_clip: float = 3.0
    """With ratio dual: bound of the ratio where the advantage is negative."""
    aggregation: Aggregation = "sequence"
    """What weighs the same: completions, tokens, or tokens of a constant number."""
    minibatches_per_rollout: int = 1
    """Parts of a rollout, with an update for each."""
    epochs_per_rollout: int = 1
    """Times that a rollout is gone through."""
    kl_coefficient: float = 0.0
    """Weight of the divergence from the base model, as a part of the reward of each token."""
    reference: bool = False
    """Keep the base model beside the trained one to log the divergence."""
    exact: bool | None = None
    """Sampler and trainer agree bit for bit, or the run ends; on a CPU in float32 unless given."""
    importance_cap: float = 2.0
    """Bound of the weights that correct where they do not; inf: no bound, 0: no correction."""
    max_mismatch: float = 0.1
    """Mean divergence (k3) of sampler and trainer in nats beyond which the run ends."""
    max_equal_steps: int | None = None
    """Steps in a row with all rewards equal that end the run; unless given they are warned of."""
    optimizer: RlOptimizerConfig = field(default_factory=RlOptimizerConfig)
    evaluate_every: int = 10
    """Steps between evaluations on held-out questions; there is one before and one at the end."""
    n_evaluation_prompts: int = 128
    """Held-out questions; 0: no evaluations."""
    n_evaluation_samples: int = 8
    """Completions of each, of which pass@k is estimated; beside them a greedy one."""
    checkpoint_every: int = 20
    """Steps between checkpoints; there is one before evaluations and at the end in any case."""
    log_every: int = 1
    """Steps between printed lines; metrics.jsonl has every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = "n_steps prompts_per_step group_size max_new_tokens sampling_rounds"
        names += " minibatches_per_rollout epochs_per_rollout evaluate_every n_evaluation_samples"
        require_counts(self, names, "max_equal_steps")
        n_prompts = self.n_evaluation_prompts
        require(n_prompts >= 0, "n_evaluation_prompts", "at least 0", n_prompts)
        for name in ("temperature", "overlong_share", "max_mismatch"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, "positive and finite", value)
        require(self.overlong_share <= 1, "overlong_share", "at most 1", self.overlong_share)
        kl = self.kl_coefficient
        require(0 <= kl < math.inf, "kl_coefficient", "at least 0 and finite", kl)
        cap = self.importance_cap
        require(cap == 0 or cap >= 1, "importance_cap", "at least 1, or 0", cap)
        n_rows = self.prompts_per_step * self.group_size
        parts = self.minibatches_per_rollout
        require(parts <= n_rows, "minibatches_per_rollout", f"at most {n_rows} rows", parts)
        reward_weights(self.rewards)
        self._check_algorithm()

    def _check_algorithm(self) -> None:
        compares = self.baseline != "none" or self.normalizer == "std"
        fits = self.group_size > 1 or not compares
        require(fits, "group_size", "above 1 where completions are compared", self.group_size)
        low, high = self.clip_range
        fits = 0 <= low <= 1 and 0 <= high < math.inf
        require(fits, "clip_range", "in [0, 1] below and at least 0 above", self.clip_range)
        require(self.dual_clip > 1, "dual_clip", "above 1", self.dual_clip)
        fits = (self.server is None) == (self.server_folder is None)
        require(fits, "server_folder", "given with server, and only then", self.server_folder)
        fits = self.server is None or self.temperature == 1
        require(fits, "temperature", "1 with a server, which tells no other", self.temperature)
        fits = self.keep == "mixed" or self.sampling_rounds == 1
        require(fits, "sampling_rounds", "1 but with keep mixed", self.sampling_rounds)
        # What is left of a group has no mean of its own.
        fits = self.keep != "right" or (not compares and self.normalizer == "none")
        require(fits, "keep", "right only with baseline and normalizer none", self.keep)
        fits = not self.exact or self.precision == "float32"
        require(fits, "precision", "float32 with exact", self.precision)

    def resolved(self, device_type: str) -> "RlConfig":
        """The options on a device, with `exact` decided."""
        if self.exact is not None:
            return self
        return replace(self, exact=device_type == "cpu" and self.precision == "float32")


def reward_weights(rewards: tuple[str, ...]) -> dict[str, float]:
    """The weight of each part of a reward.

    >>> reward_weights(("task", "format=0.1"))
    {'task': 1.0, 'format': 0.1}

    Raises:
        ValueError: a part is unknown or named twice, or its weight is no finite number.
    """
    weights: dict[str, float] = {}
    for text in rewards:
        name, equals, number = text.partition("=")
        known = name in REWARD_PARTS and name not in weights
        require(known, "rewards", f"different ones of {', '.join(REWARD_PARTS)}", repr(text))
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            weights[name] = math.nan
        fits = math.isfinite(weights[name])
        require(fits, "rewards", "NAME or NAME=WEIGHT with a finite weight", repr(text))
    require(bool(weights), "rewards", "at least one part", "none")
    return weights
