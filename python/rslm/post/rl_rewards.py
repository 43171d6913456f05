"""What a completion is worth: the task's grade, and other parts, each with a weight."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rslm.batches import counter_seed
from rslm.evaluate.tasks import Task
from rslm.post.rl_config import RlConfig, reward_weights
from rslm.post.rollout import Rollout


def grade_rollouts(task: Task, rollouts: Sequence[Rollout], config: RlConfig) -> list[Rollout]:
    """The rollouts with their reward and its parts.

    Parts are the task's "task", "answer" and "format"; "timeout" and "crash", 1 where a grader
    had no time to come to an end or did not live to it, for which nobody calls the answer wrong;
    and those that the options name beside them. Each is a function of the rollout alone.

    Raises:
        FloatingPointError: a reward is not finite.
    """
    weights = reward_weights(config.rewards)
    graded = []
    for rollout in rollouts:
        parts = _parts(task, rollout, config, weights)
        reward = sum(weight * parts[name] for name, weight in weights.items())
        graded.append(replace(rollout, reward=require_finite(reward, rollout), reward_parts=parts))
    return graded


def _parts(
    task: Task, rollout: Rollout, config: RlConfig, weights: Mapping[str, float]
) -> dict[str, float]:
    grade = task.grade(rollout.text, task.train[rollout.prompt_id])
    parts = {
        "task": float(grade.reward),
        "answer": float(grade.answer_reward),
        "format": float(grade.format_reward),
        **{reason: float(grade.reason == reason) for reason in ("timeout", "crash")},
    }
    if "random" in weights:
        parts["random"] = float(counter_seed(rollout.seed, "random reward") % 2)
    if "overlong" in weights:
        n_tokens, most = len(rollout.token_ids), config.max_new_tokens
        parts["overlong"] = overlong_penalty(n_tokens, most, config.overlong_share)
    return parts


def overlong_penalty(n_tokens: int, max_new_tokens: int, share: float) -> float:
    """From 0 down to -1 over the last `share` of the tokens that a completion may have.

    >>> [overlong_penalty(n, 100, 0.2) for n in (80, 90, 100)]
    [0.0, -0.5, -1.0]

    Source: Yu et al. 2025, DAPO, equation 13 (arXiv:2503.14476).
    """
    return max(-1.0, min(0.0, (max_new_tokens - n_tokens) / (share * max_new_tokens) - 1.0))


def require_finite(reward: float, rollout: Rollout) -> float:
    """The reward itself.

    Raises:
        FloatingPointError: it is not finite.
    """
    if not abs(reward) < float("inf"):
        raise FloatingPointError(
            f"rewards must be finite, got {reward} for prompt {rollout.prompt_id}, sample "
            f"{rollout.sample_index} of step {rollout.step}"
        )
    return reward


def is_right(rollout: Rollout) -> bool:
    """Whether the task marked it as right, whatever else its reward is made of."""
    return (rollout.reward_parts or {}).get("task", 0.0) > 0
