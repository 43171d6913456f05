"""Options, presets, rewards, the choice of questions and rollouts, and the cut into minibatches."""

import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rslm.config import check_record
from rslm.evaluate.example import Example, Grade
from rslm.evaluate.tasks import Task
from rslm.optimizer_setup import learning_rate_at
from rslm.post import losses, rl_config
from rslm.post.rl_batch import (
    Scores,
    micro_batches,
    minibatches,
    rollout_advantages,
    rollout_rows,
    sampler_log_probs,
    select_rollouts,
)
from rslm.post.rl_config import RlConfig, RlOptimizerConfig, reward_weights
from rslm.post.rl_evaluation import rate
from rslm.post.rl_presets import PRESETS
from rslm.post.rl_rewards import grade_rollouts, overlong_penalty
from rslm.post.rl_rollouts import Collected, rollout_measures, step_questions
from rslm.post.rollout import Rollout


def config(**changes: Any) -> RlConfig:
    return RlConfig(**({"base": Path("b"), "out": Path("o"), "task": "arithmetic"} | changes))


def rollout(prompt_id: int = 0, index: int = 0, **changes: Any) -> Rollout:
    options: dict[str, Any] = {
        "prompt_id": prompt_id,
        "sample_index": index,
        "step": 1,
        "prompt_ids": (1, 2),
        "token_ids": (3, 4),
        "log_probs": (-0.5, -0.25),
        "train_mask": (True, True),
        "finish_reason": "stop",
        "text": "7",
        "weights_hash": "",
        "seed": 100 * prompt_id + index,
        "reward": 1.0,
    }
    return Rollout(**(options | changes))


def grouped(*groups: tuple[float, ...]) -> list[Rollout]:
    return [
        rollout(prompt_id, index, reward=reward)
        for prompt_id, group in enumerate(groups)
        for index, reward in enumerate(group)
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_record_of_options(name: Any) -> None:
    record = check_record(RlConfig, PRESETS[name])
    made = config(**record)
    assert {key: getattr(made, key) for key in record} == record


def test_grpo_is_what_the_defaults_are() -> None:
    assert config() == config(**PRESETS["grpo"])


@pytest.mark.parametrize("name", ["Baseline", "Normalizer", "Ratio", "Aggregation"])
def test_choices_are_those_of_the_losses(name: str) -> None:
    assert typing.get_args(getattr(rl_config, name)) == typing.get_args(getattr(losses, name))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"group_size": 1}, "group_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"clip_range": (1.5, 0.2)}, "clip_range"),
        ({"dual_clip": 1.0}, "dual_clip"),
        ({"importance_cap": 0.5}, "importance_cap"),
        ({"kl_coefficient": -1.0}, "kl_coefficient"),
        ({"rewards": ()}, "rewards"),
        ({"rewards": ("task", "task=2")}, "rewards"),
        ({"rewards": ("length",)}, "rewards"),
        ({"rewards": ("task=heavy",)}, "rewards"),
        ({"rewards": ("task=nan",)}, "rewards"),
        ({"sampling_rounds": 2}, "sampling_rounds"),
        ({"keep": "right"}, "keep"),
        ({"server": "http://localhost"}, "server_folder"),
        ({"server": "h", "server_folder": Path("f"), "temperature": 0.5}, "temperature"),
        ({"minibatches_per_rollout": 257}, "minibatches_per_rollout"),
        ({"exact": True, "precision": "bfloat16"}, "precision"),
        ({"overlong_share": 1.5}, "overlong_share"),
        ({"n_evaluation_prompts": -1}, "n_evaluation_prompts"),
        ({"max_equal_steps": 0}, "max_equal_steps"),
    ],
)
def test_option_that_fits_nothing_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        config(**changes)


def test_constant_schedule_keeps_its_rate() -> None:
    optimizer = RlOptimizerConfig(learning_rate=0.1)
    assert {learning_rate_at(optimizer, step, 9) for step in range(9)} == {0.1}
    with pytest.raises(ValueError, match=r"^min_learning_rate must be left out"):
        RlOptimizerConfig(min_learning_rate=0.0)


def test_exact_mode_is_that_of_float32_on_a_cpu() -> None:
    assert config().resolved("cpu").exact is True
    assert config().resolved("cuda").exact is False
    assert config(precision="bfloat16").resolved("cpu").exact is False
    assert config(exact=False).resolved("cpu").exact is False


def test_reward_weights_are_what_is_written() -> None:
    assert reward_weights(("task", "format=-0.5")) == {"task": 1.0, "format": -0.5}


@pytest.mark.parametrize(("n", "penalty"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0)])
def test_overlong_penalty_falls_over_the_last_tokens(n: int, penalty: float) -> None:
    assert overlong_penalty(n, 100, 0.2) == pytest.approx(penalty)


def make_task(reason: str = "wrong") -> Task:
    examples = [Example(i, f"q{i}", "7") for i in range(9)]

    def grade(response: str, example: Example) -> Grade:
        is_right = response == example.gold
        return Grade(float(is_right), 1.0, float(is_right), "right" if is_right else reason)

    return Task("digits", examples, examples, grade)


def test_reward_is_the_weighted_sum_of_its_parts() -> None:
    asked = config(rewards=("task=2", "format=0.5", "overlong"), max_new_tokens=2)
    right, wrong = grade_rollouts(make_task(), [rollout(), rollout(text="8")], asked)
    assert right.reward == 2.0 + 0.5 - 1.0
    assert wrong.reward == 0.5 - 1.0
    assert right.reward_parts == {
        "task": 1.0,
        "answer": 1.0,
        "format": 1.0,
        "timeout": 0.0,
        "crash": 0.0,
        "overlong": -1.0,
    }


@pytest.mark.parametrize("reason", ["timeout", "crash"])
def test_grader_that_did_not_finish_gives_no_reward_and_is_counted(reason: str) -> None:
    drawn = [rollout(0, 0, text="8"), rollout(0, 1)]
    graded = grade_rollouts(make_task(reason), drawn, config())
    assert [each.reward for each in graded] == [0.0, 1.0]
    row = rollout_measures(Collected(rollouts=graded), config(group_size=2))
    counts = {"timeout": row["grader_timeouts"], "crash": row["grader_crashes"]}
    assert counts == {"timeout": 0, "crash": 0} | {reason: 1}


def test_random_reward_is_a_fair_coin_of_the_seed_alone() -> None:
    asked = config(rewards=("random",))
    drawn = [rollout(0, index) for index in range(400)]
    rewards = [each.reward for each in grade_rollouts(make_task(), drawn, asked)]
    others = [rollout(0, index, text="8", token_ids=(9, 9)) for index in reversed(range(400))]
    assert [each.reward for each in grade_rollouts(make_task(), others, asked)] == rewards[::-1]
    assert 150 < sum(reward or 0 for reward in rewards) < 250


def test_reward_that_is_not_finite_stops_the_step() -> None:
    def grade(response: str, example: Example) -> Grade:
        return Grade(float("nan"), 1.0, 1.0, "right")

    task = Task("broken", [Example(0, "q", "7")], (), grade)
    with pytest.raises(FloatingPointError, match="rewards must be finite, got nan for prompt 0"):
        grade_rollouts(task, [rollout()], config())


@given(
    n_questions=st.integers(1, 60),
    prompts=st.integers(1, 8),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_an_epoch_asks_no_question_twice(
    n_questions: int, prompts: int, rounds: int, seed: int
) -> None:
    n_questions = max(n_questions, prompts * rounds)
    keep = {"keep": "mixed", "sampling_rounds": rounds}
    asked = config(prompts_per_step=prompts, group_size=2, seed=seed, **keep)
    per_epoch = n_questions // (prompts * rounds)
    for epoch in (0, 1):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        found = [
            index
            for step in steps
            for round_ in range(rounds)
            for index in step_questions(n_questions, asked, step, round_)
        ]
        assert len(set(found)) == len(found) == per_epoch * prompts * rounds
        assert all(0 <= index < n_questions for index in found)


def test_mixed_groups_come_first_and_others_fill_up() -> None:
    asked = config(prompts_per_step=2, group_size=2, keep="mixed")
    sampled = grouped((1, 1), (0, 1), (0, 0), (1, 0), (0, 1))
    assert [each.prompt_id for each in select_rollouts(sampled, asked)] == [1, 1, 3, 3]
    sampled = grouped((1, 1), (0, 0), (0, 1))
    assert [each.prompt_id for each in select_rollouts(sampled, asked)] == [2, 2, 0, 0]


def test_right_completions_alone_are_kept_and_empty_ones_dropped() -> None:
    asked = config(**PRESETS["expert_iteration"])
    sampled = [rollout(), rollout(reward=0.0), rollout(text=" \n"), rollout(1, reward=0.5)]
    assert select_rollouts(sampled, asked) == [sampled[0], sampled[3]]


def test_all_is_kept_in_its_order() -> None:
    sampled = grouped((1, 0), (0, 0))
    assert select_rollouts(sampled, config(group_size=2)) == sampled


@given(
    n=st.integers(1, 100),
    parts=st.integers(1, 8),
    epochs=st.integers(1, 3),
    step=st.integers(1, 10**6),
)
def test_minibatches_go_through_every_row_once_in_an_epoch(
    n: int, parts: int, epochs: int, step: int
) -> None:
    asked = config(minibatches_per_rollout=parts, epochs_per_rollout=epochs)
    found = list(minibatches(n, asked, step))
    assert len(found) == epochs * min(n, parts)
    assert sorted(index for part in found for index in part) == sorted([*range(n)] * epochs)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert found == list(minibatches(n, asked, step))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), size=st.integers(1, 8))
def test_micro_batches_hold_every_row_and_no_needless_padding(
    lengths: list[int], size: int
) -> None:
    parts = micro_batches(range(len(lengths)), lengths, size)
    assert sorted(index for part in parts for index in part.indices) == [*range(len(lengths))]
    for part in parts:
        assert len(part.indices) <= size
        assert part.width == max(lengths[index] for index in part.indices)
    assert micro_batches([], lengths, size) == []


def test_log_probs_of_the_sampler_lie_under_their_labels() -> None:
    drawn = [
        rollout(token_ids=(5, 6, 7), log_probs=(-1.0, -9.0, -2.0), train_mask=(True, False, True)),
        rollout(prompt_ids=(1, 2, 3, 4), token_ids=(5,), log_probs=(-3.0,), train_mask=(True,)),
    ]
    rows = rollout_rows(drawn, torch.device("cpu"))
    found = sampler_log_probs(drawn, rows.mask)
    assert found.tolist() == [[0.0, -1.0, 0.0, -2.0], [0.0, 0.0, 0.0, -3.0]]
    assert rows.labels[rows.mask].tolist() == [5, 7, 5]


def test_penalty_lowers_the_advantage_of_ids_that_the_base_finds_unlikely() -> None:
    asked = config(group_size=2, kl_coefficient=0.5, normalizer="none")
    drawn = [rollout(reward=1.0), rollout(index=1, reward=0.0)]
    rows = rollout_rows(drawn, torch.device("cpu"))
    old = torch.tensor([[0.0, -1.0, -1.0], [0.0, -1.0, -1.0]])
    reference = torch.tensor([[0.0, -1.5, -2.0], [0.0, -1.0, -1.0]])
    scores = Scores(sampler=old, old=old, entropy=old, reference=reference)
    found = rollout_advantages(drawn, rows, scores, asked)
    # The penalties of an id and of those after it: 0.5 * (0.5 + 1) and 0.5 * 1.
    assert found[0, 1:].tolist() == pytest.approx([0.5 - 0.75, 0.5 - 0.5])
    assert found[1, 1:].tolist() == pytest.approx([-0.5, -0.5])


def test_rate_has_a_standard_error_over_questions() -> None:
    assert rate("right", [0.0, 1.0, 1.0, 1.0]) == {"right": 0.75, "right_stderr": 0.25}
    assert rate("right", [1.0]) == {"right": 1.0, "right_stderr": None}
