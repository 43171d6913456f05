"""Rollouts of the engine: the same whatever runs beside them, and scored alike by the trainer."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import END, TOKENIZER, tiny_model
from processes import run_processes
from torch import Tensor

from rslm.checkpoint import weights_hash
from rslm.model import Transformer
from rslm.post.log_probs import label_log_probs
from rslm.post.rollout import (
    Rollout,
    SampleRequest,
    count_flips,
    measure_mismatch,
    read_rollouts,
    write_rollouts,
)
from rslm.post.rollout_native import NativeSampler
from rslm.post.rows import make_rows


def requests(n_prompts: int, n: int, *, step: int = 0) -> list[SampleRequest]:
    """Prompts of 1 to 30 ids, some with a common beginning."""
    draw = random.Random(4)
    beginning = [draw.randrange(256) for _ in range(20)]
    return [
        SampleRequest(
            run_seed=1,
            step=step,
            prompt_id=i,
            prompt_ids=beginning[: draw.randrange(21)]
            + [draw.randrange(256) for _ in range(draw.randint(1, 10))],
            n=n,
        )
        for i in range(n_prompts)
    ]


def sampler(model: Transformer, **options: Any) -> NativeSampler:
    return NativeSampler(model, TOKENIZER, **{"exact": True, "max_new_tokens": 14} | options)


def scored(
    model: Transformer, rollouts: list[Rollout], **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampler's log-probs, the trainer's, and which count, one row a rollout."""
    rows = make_rows([r.prompt_ids for r in rollouts], [r.token_ids for r in rollouts])
    found = label_log_probs(model, rows.input_ids, rows.labels, mask=rows.mask, **options)
    drawn = torch.tensor([x for rollout in rollouts for x in rollout.log_probs])
    return torch.zeros(rows.mask.shape).masked_scatter(rows.mask, drawn), found.values, rows.mask


def train_step(model: Transformer, optimizer: torch.optim.Optimizer, found: list[Rollout]) -> None:
    _, values, _ = scored(model, found, exact=True)
    advantages = torch.linspace(-1, 1, len(found))
    optimizer.zero_grad()
    (-(values * advantages[:, None]).mean()).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "options", [{}, {"max_sequences": 1}, {"max_sequences": 3}, {"draft_tokens": 3}]
)
def test_a_sample_depends_on_its_seed_alone(options: dict[str, Any]):
    model = tiny_model()
    asked = requests(6, 3)
    expected = sampler(model, max_sequences=8).sample(asked)
    assert len({rollout.token_ids for rollout in expected}) > 10
    shuffled = random.Random(0).sample(asked, len(asked))
    found = sampler(model, **options).sample(shuffled)
    key = {(rollout.prompt_id, rollout.sample_index): rollout for rollout in found}
    assert [key[each.prompt_id, each.sample_index] for each in expected] == expected


def test_each_sample_is_that_of_a_request_alone():
    model = tiny_model()
    asked = requests(3, 4)
    together = sampler(model).sample(asked)
    one_by_one = [found for request in asked for found in sampler(model).sample([request])]
    assert one_by_one == together
    assert count_flips(together, one_by_one).n_flipped == 0
    later = sampler(model).sample([replace(request, step=1) for request in asked])
    assert {r.token_ids for r in later}.isdisjoint(r.token_ids for r in together if r.token_ids[1:])


def sample_share(processes: Any) -> list[tuple[int, int, tuple[int, ...], tuple[float, ...]]]:
    asked = requests(4, 3)[processes.rank :: processes.world_size]
    found = sampler(tiny_model()).sample(asked)
    return [(r.prompt_id, r.sample_index, r.token_ids, r.log_probs) for r in found]


def test_two_processes_draw_what_one_draws():
    shares = run_processes(sample_share, n=2)
    expected = sampler(tiny_model()).sample(requests(4, 3))
    assert sorted(row for share in shares for row in share) == [
        (r.prompt_id, r.sample_index, r.token_ids, r.log_probs) for r in expected
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trainer_and_sampler_agree_bit_for_bit_after_each_optimizer_step(temperature: float):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    native = sampler(model, temperature=temperature)
    for step in range(4):
        found = native.sample(requests(4, 3, step=step))
        assert {rollout.weights_hash for rollout in found} == {weights_hash(model)}
        drawn, values, mask = scored(model, found, exact=True, temperature=temperature)
        assert torch.equal(drawn, values)
        mismatch = measure_mismatch(drawn, values, mask)
        assert (mismatch.n_different, mismatch.largest, mismatch.mean_k3) == (0, 0.0, 0.0)
        train_step(model, optimizer, found)
        native.update_weights()


@pytest.mark.slow  # Two thousand rollouts.
def test_trainer_and_sampler_agree_bit_for_bit_over_many_rollouts():
    model = tiny_model(context_length=128)
    native = sampler(model, max_new_tokens=80)
    for step in range(8):
        found = native.sample(requests(32, 8, step=step))
        drawn, values, _ = scored(model, found, exact=True)
        assert torch.equal(drawn, values)


def test_the_ordinary_pass_agrees_up_to_rounding():
    model = tiny_model()
    drawn, values, mask = scored(model, sampler(model, exact=False).sample(requests(4, 3)))
    mismatch = measure_mismatch(drawn, values, mask)
    assert 0 < mismatch.largest < 1e-4
    assert mismatch.mean_k3 < 1e-9


def test_weights_that_were_not_taken_over_are_seen():
    model = tiny_model()
    native = sampler(model)
    with torch.no_grad():
        model.ln_final.weight += 0.5
    (found,) = native.sample(requests(1, 1))
    assert found.weights_hash != weights_hash(model)
    native.update_weights()
    (found,) = native.sample(requests(1, 1))
    assert found.weights_hash == weights_hash(model)
    drawn, values, _ = scored(model, [found], exact=True)
    assert torch.equal(drawn, values)


def test_a_replayed_file_gives_the_same_gradient(tmp_path: Path):
    model = tiny_model()
    found = sampler(model).sample(requests(4, 3))
    write_rollouts(tmp_path / "step_0.jsonl", found)
    again = read_rollouts(tmp_path / "step_0.jsonl")
    assert again == found

    def gradients(rollouts: list[Rollout], exact: bool) -> list[Tensor]:
        drawn, values, mask = scored(model, rollouts, exact=exact)
        ratio = (values - drawn).exp()
        loss = -(ratio * torch.linspace(-1, 1, len(rollouts))[:, None])[mask].mean()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    for exact in (True, False):
        for a, b in zip(gradients(found, exact), gradients(again, exact), strict=True):
            assert torch.equal(a, b)


def test_samples_end_at_stops_and_say_so():
    model = tiny_model()
    asked = requests(8, 4)
    free = sampler(model, end_ids=[]).sample(asked)
    text = next(r.text for r in free if len(r.text) > 6 and "\ufffd" not in r.text[2:5])[2:5]
    stopped = sampler(model, end_ids=[], stop=[text]).sample(asked)
    cut = sampler(model, end_ids=[], stop=[text], keep_stop=False).sample(asked)
    n_stopped = 0
    for a, b, c in zip(free, stopped, cut, strict=True):
        assert a.token_ids[: len(b.token_ids)] == b.token_ids == c.token_ids
        assert a.log_probs[: len(b.log_probs)] == b.log_probs
        assert len(b.train_mask) == len(b.token_ids)
        assert all(b.train_mask)
        if text in a.text:
            n_stopped += 1
            assert b.finish_reason == "stop"
            assert b.text.endswith(text)
            assert c.text == b.text.removesuffix(text)
        else:
            assert b.finish_reason == "length"
    assert n_stopped
    end = free[0].token_ids[3]
    ended = sampler(model, stop_token_ids=[end]).sample(asked)[0]
    assert ended.token_ids == free[0].token_ids[: free[0].token_ids.index(end) + 1]
    assert ended.finish_reason == "stop"


def test_the_end_of_text_is_drawn_and_trained():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[END] *= 4
    found = sampler(model).sample(requests(8, 4))
    ended = [rollout for rollout in found if rollout.finish_reason == "stop"]
    assert ended
    for rollout in ended:
        assert rollout.token_ids[-1] == END
        assert rollout.train_mask[-1]
        assert END not in rollout.token_ids[:-1]


def test_no_temperature_takes_the_likeliest_and_scores_it_at_1():
    model = tiny_model()
    found = sampler(model, temperature=0).sample(requests(4, 2))
    drawn, values, _ = scored(model, found, exact=True)
    assert torch.equal(drawn, values)
    assert found[0].token_ids == found[1].token_ids


def test_what_cannot_be_sampled_is_refused():
    model = tiny_model()
    native = sampler(model)
    for prompt, said in (([], "at least one"), ([257], "must lie in"), ([1] * 64, "at most 63")):
        asked = SampleRequest(run_seed=0, step=0, prompt_id=0, prompt_ids=prompt)
        with pytest.raises(ValueError, match=said):
            native.sample([*requests(2, 2), asked])
    assert native.sample([]) == []
    with pytest.raises(ValueError, match="float32 on a CPU"):
        sampler(model.bfloat16())


@pytest.mark.slow
def test_bench_has_each_mode_and_what_exact_values_cost():
    program = Path(__file__).parents[1] / "benches" / "rollouts.py"
    finished = subprocess.run(
        [sys.executable, program, "--rounds", "1", "--prompts", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    cells = [line.split("|")[1:-1] for line in finished.stdout.splitlines() if "|" in line]
    names = [row[0].strip() for row in cells]
    assert names[2:5] == ["exact, float32", "fast, float32", "fast, bfloat16"]
    assert names[7:] == ["forward", "forward and backward"]
    assert [cell.strip() for cell in cells[2][2:]] == ["0/16", "0.0e+00", "0.0%"] + ["0.0e+00"] * 2
