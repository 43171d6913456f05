"""Reinforcement learning with rewards that are computed: `train(config)`, from top to bottom.

A step samples completions of a task's questions from the model as it is, grades them, and makes
one or several updates on them; the algorithms of the literature differ in a few options
(`rslm.post.rl_presets`). The run folder is that of `rslm.post.setup`, and holds beside it
`rollouts/step_N.jsonl`, the samples that led to the weights after step N: written before their
updates, and taken up again by a run that was killed in these. `step` in the metrics counts
rollouts; whatever is random is a function of (seed, purpose, step).

Source: Shao et al. 2024, Algorithm 1 (arXiv:2402.03300); a KL penalty is part of the reward here,
see `rslm.post.losses.kl_returns`, and none is the default.
"""

import contextlib
import time
from dataclasses import replace

from rich.console import Console

from rslm.checkpoint import weights_hash
from rslm.distributed import Processes
from rslm.evaluate.prompts import build_prompt
from rslm.evaluate.tasks import Task
from rslm.model import Transformer
from rslm.post.rl_batch import select_rollouts
from rslm.post.rl_config import RESUMABLE, RlConfig
from rslm.post.rl_evaluation import evaluate_policy
from rslm.post.rl_rollouts import (
    collect_rollouts,
    have_equal_rewards,
    keep_rollouts,
    kept_rollouts,
    open_questions,
    questions_hash,
    require_room,
    rollout_measures,
)
from rslm.post.rl_update import (
    check_agreement,
    experience_measures,
    make_experience,
    make_updates,
)
from rslm.post.rollout import Sampler
from rslm.post.rollout_http import HttpSampler, publish_model_folder
from rslm.post.rollout_native import NativeSampler
from rslm.post.setup import PostResult, Run, Start, count_in, open_for, open_run, open_start
from rslm.post.update import (
    Update,
    close_run,
    is_due,
    is_saved,
    note_update,
    note_validation,
    save_run,
)
from rslm.run_folder import Row

SHOWN = {
    "reward": ".3f",
    "pass_at_k": ".3f",
    "entropy": ".3f",
    "zero_advantage_fraction": ".2f",
    "val_reward": ".3f",
    "val_pass_at_k": ".3f",
    "val_greedy_reward": ".3f",
}
CURVES = {"reward": "mean reward of a completion"}
"""Not the loss, which is near 0 wherever advantages are centred, however much is learned."""
EQUAL_STEPS_TO_WARN = 5
NOTHING = Update(loss=0.0, grad_norm=0.0)


def train(
    config: RlConfig,
    *,
    resume: bool = False,
    replays: bool = False,
    stop_at: int | None = None,
    console: Console | None = None,
) -> PostResult:
    """Trains a model on the rewards of a task, leaving everything in the run folder `config.out`.

    Equal configs and models give equal rollouts, rewards, weights and metrics (but for
    `CLOCK_KEYS`) on a CPU with the same number of threads, whether or not the run was stopped,
    killed and resumed between. SIGINT and SIGTERM end the step or, before its updates, leave
    it to the resumption; a second one acts at once.

    Args:
        config: the run.
        resume: continue the run in `config.out` instead of refusing an existing folder.
        replays: take all rollouts from the run folder, and sample none.
        stop_at: steps after which to end; those of the config unless given.
        console: where the display goes; standard error unless given.

    Raises:
        FileExistsError: the run folder exists and `resume` was not asked for.
        ValueError: the config does not fit the model or the task, or not the run that is resumed;
            or a replayed rollout was drawn by other weights.
        FormatError: the base or a checkpoint is damaged.
        FloatingPointError: sampler and trainer disagree; rewards, losses or gradients are not
            finite; or too many steps had equal rewards throughout.
        OSError: the disk is full; the checkpoints before still stand.
    """
    task = open_questions(config)
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(
            open_start(config, resume=resume, resumable=RESUMABLE, console=console)
        )
        processes = start.processes
        start = replace(start, config=start.config.resolved(processes.device.type))
        config = start.config
        check_processes(config, processes)
        require_room(task, start.base.chat_format, config)
        reference = open_reference(start)
        fingerprints: Row = {
            "n_questions": [len(task.train), len(task.test)],
            "questions": questions_hash(task),
        }
        if reference is not None:
            fingerprints["reference"] = weights_hash(reference)
        evaluates = config.n_evaluation_prompts > 0
        evaluate_every = config.evaluate_every if evaluates else None
        run = stack.enter_context(
            open_run(
                start,
                n_steps=config.n_steps,
                fingerprints=fingerprints,
                shown=SHOWN,
                drawn="reward",
                due={"evaluation": evaluate_every} if evaluates else {},
            )
        )
        sampler = open_sampler(run, task)
        counts = {name: count_in(run.state, name) for name in ("n_steps_skipped", "n_equal_steps")}

        while True:
            # `run.step` steps are made, and their rows written; the sampler has their weights.
            finished = run.step == stop_at
            stopping = finished or run.stop.requested()
            if stopping or is_saved(run, evaluate_every):
                save_run(run, **counts)
            if stopping:
                break
            if evaluates and (run.step == 0 or is_due(run, evaluate_every)):
                with run.clock.away(), run.display.doing("evaluating"):
                    greedy = open_native_sampler(run, task, 0.0)
                    scores, answers = evaluate_policy(run, task, sampler, greedy)
                note_validation(run, 1 - scores["val_reward"], **scores)
                run.samples.write(answers)
            if run.step == config.n_steps:
                finished = True
                break

            step = run.step + 1
            with run.display.doing("sampling"):
                collected = kept_rollouts(config, step, sampler, run.processes)
                if collected is None and replays:
                    raise ValueError(
                        f"rollouts to replay must be of this run's step {step} and drawn by the "
                        "weights it begins with, and these are not"
                    )
                if collected is None:
                    collected = collect_rollouts(
                        sampler, task, run.chat_format, config, step, run.processes
                    )
                    if run.processes.is_first:
                        keep_rollouts(config.out, step, collected.rollouts)
            measured = rollout_measures(collected, config)
            if run.stop.requested():
                continue  # The rollouts are kept, and their updates left to the resumption.

            began = time.perf_counter()
            chosen = select_rollouts(collected.rollouts, config)
            update, clipped = NOTHING, {"n_updates": 0}
            if chosen:
                experience = make_experience(run, chosen, reference)
                mismatch = check_agreement(experience, config, step)
                measured |= experience_measures(experience, mismatch)
                update, clipped = make_updates(run, experience, step)
                sampler.update_weights()
            measured |= clipped
            counts["n_steps_skipped"] += clipped["n_updates"] == 0
            is_equal = have_equal_rewards(collected.rollouts)
            counts["n_equal_steps"] = counts["n_equal_steps"] + 1 if is_equal else 0
            note_update(
                run,
                update,
                sum(len(each.prompt_ids) + len(each.token_ids) for each in collected.rollouts),
                **measured,
                **counts,
                train_seconds=time.perf_counter() - began,
            )
            check_rewards_differ(run, counts["n_equal_steps"])
            run.writer.check()
        return close_run(run, finished=finished, curves=CURVES)


def check_processes(config: RlConfig, processes: Processes) -> None:
    """Refuses, by a ValueError, what several processes cannot do together."""
    n = processes.world_size
    if config.prompts_per_step % n:
        raise ValueError(
            f"prompts_per_step must be a multiple of the {n} processes, "
            f"got {config.prompts_per_step}"
        )
    if n > 1 and config.server is not None:
        raise ValueError(f"server must be left out where {n} processes train, which sample")


def open_reference(start: Start[RlConfig]) -> Transformer | None:
    """The base model as it was, where the options ask for it."""
    config = start.config
    if not (config.reference or config.kl_coefficient > 0):
        return None
    base = open_for(config, config.base, start.processes.device)
    return base.model.requires_grad_(False)


def open_sampler(run: Run[RlConfig], task: Task) -> Sampler:
    """What draws the samples that are trained on: this process, or the server of the options.

    Raises:
        OSError: the server cannot be reached, or does not see the weights.
    """
    config = run.config
    if config.server is None or config.server_folder is None:
        return open_native_sampler(run, task, config.temperature)
    prompt = build_prompt(config.prompt, task.train[0], run.chat_format)
    sampler = HttpSampler(
        config.server,
        "",
        run.tokenizer,
        vocab_size=run.model.config.resolved_vocab_size,
        max_new_tokens=config.max_new_tokens,
        stop=prompt.stop,
        keep_stop=prompt.keep_stop,
        publish=publish_model_folder(
            run.model, run.tokenizer, config.server_folder, chat_format=config.chat_format
        ),
    )
    sampler.update_weights()
    return sampler


def open_native_sampler(run: Run[RlConfig], task: Task, temperature: float) -> NativeSampler:
    """What draws completions of the task's questions from the model as it is, in this process."""
    config = run.config
    prompt = build_prompt(config.prompt, task.train[0], run.chat_format)
    return NativeSampler(
        run.model,
        run.tokenizer,
        exact=bool(config.exact),
        max_new_tokens=config.max_new_tokens,
        temperature=temperature,
        stop_token_ids=prompt.stop_token_ids,
        stop=prompt.stop,
        keep_stop=prompt.keep_stop,
    )


def check_rewards_differ(run: Run[RlConfig], n_equal_steps: int) -> None:
    """Warns where nothing was learned for some steps, as all rewards were equal.

    Raises:
        FloatingPointError: for as many steps as the options allow.
    """
    most = run.config.max_equal_steps
    if n_equal_steps == EQUAL_STEPS_TO_WARN:
        run.display.warn(f"all rewards were equal for {n_equal_steps} steps: nothing is learned")
    if most is not None and n_equal_steps >= most:
        raise FloatingPointError(
            f"rewards must differ for something to be learned, and were all equal for "
            f"{n_equal_steps} steps (max_equal_steps)"
        )
