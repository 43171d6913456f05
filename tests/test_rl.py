"""The loop of reinforcement learning: what it learns, measures, keeps and refuses."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_runs import make_base, make_task, outcome, rl_config, timeless_rows, weights_of
from servers import running

from rslm.checkpoint import read_safetensors, weights_hash
from rslm.evaluate.example import Grade
from rslm.infer.engine import EngineOptions
from rslm.infer.load import find_models, load_run
from rslm.infer.serving import model_loader
from rslm.post import rl, rl_update
from rslm.post.base_model import open_base
from rslm.post.rl_config import RlConfig, RlOptimizerConfig
from rslm.post.rl_presets import PRESETS
from rslm.post.rl_rollouts import rollouts_file, step_questions
from rslm.post.rollout import read_rollouts
from rslm.post.rollout_native import NativeSampler
from rslm.post.rows import make_rows
from rslm.run_folder import read_metrics

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    make_base(folder / "base")
    make_task(folder / "task.jsonl")
    return folder


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[..., RlConfig]:
    return lambda **changes: rl_config(folder, **({"out": tmp_path / "run"} | changes))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rslm.post.setup.peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("rslm.post.update.write_curve", lambda *_: None)


def train(config: RlConfig) -> list[Row]:
    rl.train(config)
    return [row for row in timeless_rows(config.out) if "loss" in row]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    (file,) = sorted((run / "checkpoints").glob("step_*/model.safetensors"))[-1:]
    return read_safetensors(file)[0]


def assert_close(run: Path, other: Path, tolerance: float) -> None:
    """Weights are equal to within a relative error of their norms."""
    wanted = tensors_of(other)
    for name, tensor in tensors_of(run).items():
        distance = (tensor - wanted[name]).norm() / wanted[name].norm()
        assert distance <= tolerance, name


def test_picture_is_of_the_reward(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("rslm.post.update.write_curve", lambda *given: drawn.append(given[2]))
    rl.train(make(n_steps=1))
    assert drawn == ["reward"]


def test_rewards_rise(make: Callable[..., RlConfig]) -> None:
    rows = train(make(n_steps=12, group_size=8))
    assert rows[0]["reward"] < 0.4
    assert rows[-1]["reward"] > 0.7
    assert rows[-1]["entropy"] < rows[0]["entropy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_learns(make: Callable[..., RlConfig], name: Any) -> None:
    preset = PRESETS[name] | {"rewards": ("task",)}
    rows = train(make(n_steps=30, group_size=8, prompts_per_step=8, **preset))
    assert sum(row["reward"] for row in rows[-3:]) / 3 > 0.8


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_steps(make: Callable[..., RlConfig], name: Any) -> None:
    rows = train(make(n_steps=2, **PRESETS[name]))
    assert [row["step"] for row in rows] == [1, 2]
    numbers = [row[key] for row in rows for key in ("loss", "grad_norm", "reward", "mismatch_max")]
    assert all(abs(number) < 100 for number in numbers)
    assert any(row["n_updates"] for row in rows)


@pytest.mark.slow
def test_random_rewards_teach_nothing(make: Callable[..., RlConfig]) -> None:
    rows = train(make(n_steps=30, group_size=8, prompts_per_step=8, rewards=("random",)))
    assert sum(row["answer_reward"] for row in rows[-3:]) / 3 < 0.5


def test_equal_runs_are_equal_bit_for_bit(make: Callable[..., RlConfig], tmp_path: Path) -> None:
    config = make(n_evaluation_prompts=4, minibatches_per_rollout=2)
    for name in ("one", "two"):
        rl.train(replace(config, out=tmp_path / name))
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert timeless_rows(tmp_path / "one")[0]["step"] == 0
    other = replace(config, out=tmp_path / "three", seed=1)
    rl.train(other)
    assert outcome(other.out) != outcome(tmp_path / "one")


def test_metrics_say_what_is_in_the_rollouts(make: Callable[..., RlConfig]) -> None:
    config = make(n_steps=2)
    row, _ = train(config)
    rollouts = read_rollouts(rollouts_file(config.out, 1))
    assert len(rollouts) == 16
    base, _ = load_run(config.base, device="cpu")
    assert {each.weights_hash for each in rollouts} == {weights_hash(base)}
    then = {each.weights_hash for each in read_rollouts(rollouts_file(config.out, 2))}
    assert len(then) == 1
    assert then != {weights_hash(base)}
    rewards = [each.reward for each in rollouts]
    assert row["reward"] == pytest.approx(sum(reward or 0 for reward in rewards) / 16)
    assert row["n_completion_tokens"] == sum(len(each.token_ids) for each in rollouts)
    assert row["pass_at_k"] == len({each.prompt_id for each in rollouts if each.reward}) / 4
    assert [(each.step, each.sample_index) for each in rollouts[:5]] == [
        *((1, i) for i in range(4)),
        (1, 0),
    ]
    assert len({each.seed for each in rollouts}) == 16
    assert row["mismatch_max"] == 0
    assert row["n_equal_steps"] == row["n_steps_skipped"] == 0


def test_samples_do_not_depend_on_how_many_are_drawn(
    make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    first = make(n_steps=1)
    second = make(n_steps=1, prompts_per_step=8, group_size=2, out=tmp_path / "other")
    drawn = []
    for config in (first, second):
        rl.train(config)
        found = read_rollouts(rollouts_file(config.out, 1))
        drawn.append({(each.prompt_id, each.sample_index): each.token_ids for each in found})
    shared = drawn[0].keys() & drawn[1].keys()
    assert len(shared) == 8
    assert all(drawn[0][key] == drawn[1][key] for key in shared)


@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_change_no_gradient(
    make: Callable[..., RlConfig], tmp_path: Path, name: Any
) -> None:
    options: dict[str, Any] = PRESETS[name] | {"n_steps": 1, "rewards": ("random",)}
    options |= {"minibatches_per_rollout": 1, "epochs_per_rollout": 1}
    (whole,) = train(make(**options))
    (cut,) = train(make(out=tmp_path / "cut", micro_batch_size=3, **options))
    assert cut["n_updates"] == 1
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-6, abs=1e-7)
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-6)


def test_micro_batches_change_no_weight(make: Callable[..., RlConfig], tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_steps": 2, "prompts_per_step": 8}
    rl.train(make(**options))
    rl.train(make(out=tmp_path / "cut", micro_batch_size=3, **options))
    # An AdamW step makes much of the rounding of a gradient near 0.
    assert_close(tmp_path / "cut", tmp_path / "run", 1e-4)


def test_rows_without_an_advantage_are_counted_and_move_nothing(
    make: Callable[..., RlConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = train(make(n_steps=1, aggregation="token"))
    assert 0 < pruned[0]["zero_advantage_fraction"] < 1
    # So small an advantage leaves the row in, and its gradient out.
    advantages = rl_update.rollout_advantages
    monkeypatch.setattr(rl_update, "rollout_advantages", lambda *args: advantages(*args).add(1e-30))
    kept = train(make(n_steps=1, aggregation="token", out=tmp_path / "kept"))
    assert kept[0]["zero_advantage_fraction"] == 0
    assert kept[0]["grad_norm"] == pytest.approx(pruned[0]["grad_norm"], rel=1e-5)
    assert_close(tmp_path / "kept", tmp_path / "run", 1e-4)


def test_step_with_nothing_to_learn_moves_nothing_and_is_counted(
    make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    decays = RlOptimizerConfig(learning_rate=0.01, weight_decay=0.5)
    config = make(n_steps=2, rewards=("format",), optimizer=decays)
    rows = train(config)
    assert [row["n_steps_skipped"] for row in rows] == [1, 2]
    assert [row["n_equal_steps"] for row in rows] == [1, 2]
    assert [row["n_updates"] for row in rows] == [0, 0]
    assert [row["loss"] for row in rows] == [0, 0]
    before, _ = load_run(config.base, device="cpu")
    after, _ = load_run(config.out, device="cpu")
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_of_equal_rewards_end_the_run_where_that_is_asked(
    make: Callable[..., RlConfig],
) -> None:
    config = make(n_steps=9, rewards=("format",), max_equal_steps=2)
    with pytest.raises(FloatingPointError, match=r"equal for 2 steps \(max_equal_steps\)"):
        rl.train(config)


def test_several_updates_go_through_the_rollout_with_old_log_probs_of_its_start(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_scored, given = 0, []
    score, loss = rl_update.score_rollouts, rl_update.policy_loss

    def scored(*args: Any) -> Any:
        nonlocal n_scored
        n_scored += 1
        return score(*args)

    def lossed(*args: Any, **options: Any) -> Any:
        given.append((options["old_log_probs"], args[1].detach(), options["mask"]))
        return loss(*args, **options)

    monkeypatch.setattr(rl_update, "score_rollouts", scored)
    monkeypatch.setattr(rl_update, "policy_loss", lossed)
    config = make(n_steps=1, minibatches_per_rollout=2, epochs_per_rollout=2, rewards=("random",))
    (row,) = train(config)
    assert n_scored == 1
    assert row["n_updates"] == len(given) == 4
    assert given[0][0] is None
    old, new, mask = given[3]
    assert (old[mask] - new[mask]).abs().max() > 1e-3
    assert row["clip_fraction_low"] + row["clip_fraction_high"] > 0


def gradient_of_definition(config: RlConfig) -> float:
    """The norm of the gradient of a first update, row by row from the rollouts' file."""
    base = open_base(config.base, device="cpu")
    rollouts = read_rollouts(rollouts_file(config.out, 1))
    n_trained = [len(each.token_ids) for each in rollouts]
    loss = torch.zeros(())
    for place, each in enumerate(rollouts):
        group = [one.reward or 0.0 for one in rollouts if one.prompt_id == each.prompt_id]
        spread = torch.tensor(group).std() + 1e-6
        advantage = (rollouts[place].reward or 0.0) - sum(group) / len(group)
        ids = torch.tensor([*each.prompt_ids, *each.token_ids])
        logits = base.model(ids[None, :-1])[0, len(each.prompt_ids) - 1 :] / config.temperature
        log_probs = logits.log_softmax(-1).gather(-1, ids[len(each.prompt_ids) :, None])
        weight = {
            "sequence": 1 / (len(rollouts) * n_trained[place]),
            "token": 1 / sum(n_trained),
            "constant": 1 / (len(rollouts) * config.max_new_tokens),
        }[config.aggregation]
        loss = loss - weight * advantage / spread * log_probs.sum()
    loss.backward()
    norms = [each.grad.norm() for each in base.model.parameters() if each.grad is not None]
    return float(torch.stack(norms).norm())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_update_follows_the_gradient_of_the_definition(
    make: Callable[..., RlConfig], temperature: float, aggregation: str
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "aggregation": aggregation}
    config = make(n_steps=1, rewards=("random",), micro_batch_size=5, **options)
    (row,) = train(config)
    assert row["mismatch_max"] == 0
    assert row["grad_norm"] == pytest.approx(gradient_of_definition(config), rel=1e-5)


def test_minibatch_is_weighed_by_its_own_counts(make: Callable[..., RlConfig]) -> None:
    rows = make_rows([[1]] * 5, [[2] * n for n in (1, 2, 3, 4, 0)])
    for aggregation, expected in {
        "token": {1: 1 / 6, 3: 1 / 6, 4: 0},
        "sequence": {1: 1 / 4, 3: 1 / 8, 4: 0},
        "constant": {1: 1 / 8, 3: 1 / 8, 4: 0},
    }.items():
        config = make(aggregation=aggregation)
        assert rl_update.minibatch_weights(rows, [1, 3, 4], config) == pytest.approx(expected)


@pytest.mark.parametrize("exact", [True, False])
def test_log_prob_that_is_not_a_number_ends_the_run_and_moves_nothing(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    nudge_sampler(monkeypatch, math.nan)
    config = make(exact=exact)
    with pytest.raises(ValueError, match="numbers must be finite, got NaN"):
        rl.train(config)
    # A trainer's own.
    monkeypatch.undo()
    score = rl_update.label_log_probs

    def scored(*args: Any, **options: Any) -> Any:
        found = score(*args, **options)
        return replace(found, values=found.values * math.nan)

    monkeypatch.setattr(rl_update, "label_log_probs", scored)
    with pytest.raises(FloatingPointError, match="sampler and trainer must agree"):
        rl.train(config, resume=True)
    assert not list((config.out / "checkpoints").glob("step_*"))


def test_sampler_that_disagrees_ends_an_exact_run(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    nudge_sampler(monkeypatch, 1e-6)
    with pytest.raises(FloatingPointError, match="must agree bit for bit, and at step 1 1 of"):
        rl.train(make())


def test_sampler_that_disagrees_is_corrected_and_then_refused(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nudge_sampler(monkeypatch, 0.5)
    plain, corrected = [], []
    loss, add = rl_update.policy_loss, rl_update.batch_loss

    def lossed(*args: Any, **options: Any) -> Any:
        found = loss(*args, **options)
        plain.append(found.per_token.detach())
        return found

    def added(per_token: torch.Tensor, *args: Any) -> torch.Tensor:
        corrected.append(per_token.detach())
        return add(per_token, *args)

    monkeypatch.setattr(rl_update, "policy_loss", lossed)
    monkeypatch.setattr(rl_update, "batch_loss", added)
    (row,) = train(make(n_steps=1, exact=False, rewards=("random",)))
    assert row["mismatch_max"] == pytest.approx(0.5, abs=1e-4)
    assert row["mismatch_mean_k3"] > 0
    # The policy finds one id likelier than the sampler said it was.
    factors = (corrected[0] / plain[0])[plain[0] != 0]
    assert sorted(factors.tolist())[-1] == pytest.approx(math.exp(0.5), rel=1e-4)
    assert sorted(factors.tolist())[-2] == pytest.approx(1.0, rel=1e-4)
    strict = make(exact=False, max_mismatch=1e-4, out=tmp_path / "strict")
    with pytest.raises(FloatingPointError, match=r"within max_mismatch 0\.0001 nats"):
        rl.train(strict)


def nudge_sampler(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """Makes one log-probability of each sampling wrong."""
    sample = NativeSampler.sample

    def nudged(self: NativeSampler, requests: Sequence[Any]) -> Any:
        first, *others = sample(self, requests)
        log_probs = (first.log_probs[0] - amount, *first.log_probs[1:])
        return [replace(first, log_probs=log_probs), *others]

    monkeypatch.setattr(NativeSampler, "sample", nudged)


def test_sampler_with_older_weights_is_found_out(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_a_copy(model: Any, *args: Any, **options: Any) -> NativeSampler:
        return NativeSampler(copy.deepcopy(model), *args, **options)

    monkeypatch.setattr(rl, "NativeSampler", of_a_copy)
    with pytest.raises(FloatingPointError, match="at step 2"):
        rl.train(make())


def test_divergence_from_the_base_is_measured_and_held_down(
    make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"n_steps": 6, "group_size": 8}
    free = train(make(reference=True, **options))
    assert free[0]["reference_kl"] < 1e-9
    held = train(make(kl_coefficient=3.0, out=tmp_path / "held", **options))
    assert 0 < held[-1]["reference_kl"] < free[-1]["reference_kl"]


def test_dynamic_sampling_draws_more_questions_and_trains_on_a_step_of_them(
    make: Callable[..., RlConfig],
) -> None:
    config = make(n_steps=2, keep="mixed", sampling_rounds=3, group_size=2)
    rows = train(config)
    assert all(row["n_prompts"] in (4, 8, 12) for row in rows)
    assert rows[0]["n_prompts"] > 4
    assert rows[0]["zero_advantage_fraction"] < 0.5
    found = read_rollouts(rollouts_file(config.out, 1))
    assert len(found) == rows[0]["n_prompts"] * 2


def test_evaluations_have_noise_of_their_own(make: Callable[..., RlConfig], tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_steps": 2, "n_evaluation_prompts": 6, "evaluate_every": 1}
    scores = []
    for name, prompts in (("one", 4), ("two", 8)):
        config = make(out=tmp_path / name, prompts_per_step=prompts, **options)
        rl.train(config)
        rows = read_metrics(config.out / "metrics.jsonl")
        scores.append([row for row in rows if "val_reward" in row])
    first, second = scores
    assert [row["step"] for row in first] == [0, 1, 2]
    for key in ("val_reward", "val_reward_stderr", "val_pass_at_k", "val_greedy_reward"):
        assert first[0][key] == second[0][key]
    assert first[0]["val_reward"] <= first[0]["val_pass_at_k"]
    texts = [(tmp_path / name / "samples.md").read_text() for name in ("one", "two")]
    samples, other = texts
    assert samples.split("## Step 1")[0] == other.split("## Step 1")[0]
    assert samples.count("## Step") == 3
    assert "greedy:" in samples


def test_model_that_was_trained_answers_like_any_other(make: Callable[..., RlConfig]) -> None:
    config = make(n_steps=1)
    rl.train(config)
    model, tokenizer = load_run(config.out, device="cpu")
    assert model.config.resolved_vocab_size == tokenizer.vocab_size


def test_reward_that_is_not_a_number_ends_the_run_and_moves_nothing(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = Grade(float("nan"), 1.0, 1.0, "right")
    opened = rl.open_questions
    monkeypatch.setattr(
        rl, "open_questions", lambda config: replace(opened(config), grade=lambda *_: nan)
    )
    config = make()
    with pytest.raises(FloatingPointError, match="rewards must be finite"):
        rl.train(config)
    assert not list((config.out / "checkpoints").glob("step_*"))


def test_rollout_without_a_trained_id_ends_the_run(
    make: Callable[..., RlConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = NativeSampler.sample

    def untrained(self: NativeSampler, requests: Sequence[Any]) -> Any:
        drawn = sample(self, requests)
        return [replace(each, train_mask=(False,) * len(each.token_ids)) for each in drawn]

    monkeypatch.setattr(NativeSampler, "sample", untrained)
    with pytest.raises(ValueError, match="a batch must have trained tokens"):
        rl.train(make())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "knitting"}, "task must be"),
        ({"prompt": "shout"}, "prompt must be one of chat"),
        ({"prompts_per_step": 500}, "must have at least the 500 questions of a step"),
        ({"max_new_tokens": 4, "prompt": "r1_zero"}, "context_length 32"),
    ],
)
def test_run_that_cannot_be_is_refused_and_leaves_nothing(
    make: Callable[..., RlConfig], changes: dict[str, Any], message: str
) -> None:
    config = make(**changes)
    with pytest.raises(ValueError, match=message):
        rl.train(config)
    assert not config.out.exists()


@pytest.mark.parametrize("changes", [{}, {"keep": "mixed", "sampling_rounds": 2}, {"n_steps": 30}])
def test_question_that_leaves_no_room_is_refused_before_the_run(
    make: Callable[..., RlConfig], tmp_path: Path, changes: dict[str, Any]
) -> None:
    make_task(tmp_path / "task.jsonl")
    config = make(task=str(tmp_path / "task.jsonl"), **changes)
    questions = rl.open_questions(config).train
    last = step_questions(len(questions), config, config.n_steps - 1, config.sampling_rounds - 1)
    text = (tmp_path / "task.jsonl").read_text()
    # A hash puts this one among those to train on, too.
    longer = text.replace(f'"{questions[last[-1]].prompt}"', f'"{"r" * 28}"')
    (tmp_path / "task.jsonl").write_text(longer)
    with pytest.raises(ValueError, match=r"than context_length 32, got 32 for the question 'rrr"):
        rl.train(config)
    assert not config.out.exists()


def test_other_questions_are_refused_at_a_resumption(
    make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    make_task(tmp_path / "task.jsonl")
    config = make(task=str(tmp_path / "task.jsonl"))
    rl.train(config, stop_at=1)
    make_task(tmp_path / "task.jsonl", gold="8")
    with pytest.raises(ValueError, match="the data must be what the run began with"):
        rl.train(config, resume=True)


def test_samples_of_a_server_are_those_of_the_run_itself(
    make: Callable[..., RlConfig], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"n_steps": 2, "prompts_per_step": 2}
    rl.train(make(**options))
    folder = tmp_path / "served"
    folder.mkdir()
    loader = model_loader("cpu", EngineOptions(exact=True))
    with running(lambda: find_models(folder), loader) as server:
        served = {"server": server.url, "server_folder": folder}
        rl.train(make(out=tmp_path / "other", **served, **options))
    assert outcome(tmp_path / "other") == outcome(tmp_path / "run")


def test_base_is_left_as_it_was(make: Callable[..., RlConfig], folder: Path) -> None:
    before = (folder / "base" / "model.safetensors").read_bytes()
    rl.train(make(n_steps=1))
    assert (folder / "base" / "model.safetensors").read_bytes() == before
    assert weights_of(make().out)
