"""The algorithms of reinforcement learning, each as a few options of one loop. No torch.

| preset | advantage | ratio | token weight | else |
|---|---|---|---|---|
| grpo (arXiv:2402.03300) | (r-μ)/σ | clip .2 | sequence | |
| dr_grpo (2503.20783) | r-μ | clip .2 | constant | |
| dapo (2503.14476) | (r-μ)/σ | clip .2/.28 | token | prompts of mixed outcome; overlong penalty |
| rloo (2402.14740) | G/(G-1)·(r-μ) | none | constant | |
| reinforce (Williams 1992) | r | none | constant | |
| maxrl (2602.02710) | (r-μ)/μ | none | constant | |
| gspo (2507.18071) | (r-μ)/σ | of the sequence, 3e-4/4e-4 | sequence | |
| cispo (2506.13585) | (r-μ)/σ | cispo, 1.28 at most | token | |
| rft (2308.01825) | r | none | constant | with rewards of 0 and 1; as reinforce |
| expert_iteration (2203.14465) | r | none | token | right completions alone, several passes |

Where papers and the codes that people run differ, see `rslm.post.losses`: σ is unbiased. DAPO's
paper drops prompts until a batch is full; here `sampling_rounds` bounds how often more are drawn.
MaxRL's paper divides by the number of tokens. Expert iteration goes on with the model of the
round before, where STaR starts from the base model again.
"""

from typing import Any, Literal, get_args

Algorithm = Literal[
    "grpo",
    "dr_grpo",
    "dapo",
    "rloo",
    "reinforce",
    "maxrl",
    "gspo",
    "cispo",
    "rft",
    "expert_iteration",
]

_MEAN_STD = {"baseline": "mean", "normalizer": "std"}
_REWARD_ALONE = {"baseline": "none", "normalizer": "none", "ratio": "none"}

PRESETS: dict[Algorithm, dict[str, Any]] = {
    "grpo": _MEAN_STD | {"ratio": "clip", "aggregation": "sequence"},
    "dr_grpo": {
        "baseline": "mean",
        "normalizer": "none",
        "ratio": "clip",
        "aggregation": "constant",
    },
    "dapo": _MEAN_STD
    | {
        "ratio": "clip",
        "clip_range": (0.2, 0.28),
        "aggregation": "token",
        "keep": "mixed",
        "sampling_rounds": 4,
        "rewards": ("task", "overlong"),
    },
    "rloo": {
        "baseline": "leave_one_out",
        "normalizer": "none",
        "ratio": "none",
        "aggregation": "constant",
    },
    "reinforce": _REWARD_ALONE | {"aggregation": "constant"},
    "maxrl": {
        "baseline": "mean",
        "normalizer": "mean",
        "ratio": "none",
        "aggregation": "constant",
    },
    "gspo": _MEAN_STD | {"ratio": "gspo", "clip_range": (3e-4, 4e-4), "aggregation": "sequence"},
    "cispo": _MEAN_STD | {"ratio": "cispo", "clip_range": (0.2, 0.28), "aggregation": "token"},
    "rft": _REWARD_ALONE | {"aggregation": "constant"},
    "expert_iteration": _REWARD_ALONE
    | {
        "aggregation": "token",
        "keep": "right",
        "minibatches_per_rollout": 4,
        "epochs_per_rollout": 2,
    },
}
"""The options of `RlConfig` that each algorithm sets; the others keep their defaults."""

assert PRESETS.keys() == set(get_args(Algorithm))
