"""The rollouts of a step: which questions, sampled, graded, gathered, and kept in a file."""

import hashlib
import io
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rslm.architecture import TransformerConfig
from rslm.batches import counter_seed
from rslm.chat import ChatFormat
from rslm.distributed import Processes
from rslm.errors import FormatError
from rslm.evaluate.prompts import PROMPTS, build_prompt, require_prompt
from rslm.evaluate.tasks import Example, Task, open_task
from rslm.permutation import permute
from rslm.post.rl_batch import complete_groups, is_mixed
from rslm.post.rl_config import RlConfig
from rslm.post.rl_rewards import grade_rollouts, is_right
from rslm.post.rollout import (
    Rollout,
    Sampler,
    SampleRequest,
    decode_rollouts,
    encode_rollouts,
    read_rollouts,
    sampling_seed,
    truncated_fraction,
    write_rollouts,
)
from rslm.run_folder import Row

N_HASHED = 1000
"""Questions that tell a task from others, of those to train on and of those held out."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The rollouts of a step.

    Attributes:
        rollouts: all that were sampled, in every process the same; the groups of the first
            round come first.
        generate_seconds: that sampling took; None where they were read from a file.
        grade_seconds: likewise of grading.
    """

    rollouts: list[Rollout]
    generate_seconds: float | None = None
    grade_seconds: float | None = None


def open_questions(config: RlConfig) -> Task:
    """The task of a run, its answers marked as the prompt asks for them.

    Raises:
        ValueError: there is no such task or prompt, or the task has fewer questions than a step
            asks: a question that is asked twice has the same samples.
        OSError: its data cannot be read.
    """
    require_prompt(config.prompt)
    task = open_task(
        config.task,
        seed=config.task_seed,
        data=config.task_data,
        answer_format=PROMPTS[config.prompt].answer_format,
    )
    needed = config.prompts_per_step * config.sampling_rounds
    if len(task.train) < needed:
        raise ValueError(
            f"the task {task.name} must have at least the {needed} questions of a step "
            f"(prompts_per_step x sampling_rounds), got {len(task.train)}"
        )
    if config.n_evaluation_prompts and not task.test:
        raise ValueError(f"n_evaluation_prompts must be 0 for {task.name}, which holds out none")
    return task


def require_room(task: Task, chat_format: ChatFormat, config: RlConfig) -> None:
    """Refuses a run of which a prompt would leave no room for an id of an answer.

    Looks at all that the run will ask, which takes far less than to answer it.

    Raises:
        ValueError: there is one; the first of them is named.
    """
    n = len(task.train)
    rounds = itertools.product(range(config.n_steps), range(config.sampling_rounds))
    asks_all = config.n_steps * config.sampling_rounds * config.prompts_per_step >= n
    trained: Iterable[int] = range(n)
    if not asks_all:
        trained = {index for each in rounds for index in step_questions(n, config, *each)}
    held_out = range(min(config.n_evaluation_prompts, len(task.test)))
    for examples, indices in ((task.train, trained), (task.test, held_out)):
        for index in indices:
            prompt = build_prompt(config.prompt, examples[index], chat_format)
            if len(prompt.token_ids) >= config.model.context_length:
                raise ValueError(
                    f"a prompt must have fewer tokens than context_length "
                    f"{config.model.context_length}, got {len(prompt.token_ids)} for the question "
                    f"{examples[index].prompt!r:.80}"
                )


def questions_hash(task: Task) -> str:
    """A hash of the questions and their answers; of many, of so many at equal distances."""
    digest = hashlib.sha256()
    for examples in (task.train, task.test):
        for index in range(0, len(examples), 1 + len(examples) // N_HASHED):
            digest.update(repr((examples[index].prompt, examples[index].gold)).encode())
    return digest.hexdigest()


def step_questions(n_questions: int, config: RlConfig, step: int, round_: int) -> list[int]:
    """Indices of the questions that a step asks in one of its rounds.

    Every epoch goes through the questions in a random order of its own, and leaves out those at
    its end that would fill no step. A function of seed, step and round: rounds that are not
    needed leave their questions for other epochs.
    """
    per_step = config.prompts_per_step * config.sampling_rounds
    epoch, place = divmod(step, n_questions // per_step)
    first = place * per_step + round_ * config.prompts_per_step
    places = np.arange(first, first + config.prompts_per_step)
    order = counter_seed(config.seed, "questions")
    return [int(index) for index in permute(n_questions, order, epoch, places)]


def collect_rollouts(
    sampler: Sampler,
    task: Task,
    chat_format: ChatFormat,
    config: RlConfig,
    step: int,
    processes: Processes,
) -> Collected:
    """Samples and grades the questions of a step; every process its share, and gets all.

    With `keep` "mixed" more questions are drawn until enough groups have rewards that differ, or
    the rounds are used up.

    Raises:
        FloatingPointError: a reward is not finite.
        ValueError: a prompt leaves no room in the model's context.
    """
    rollouts: list[Rollout] = []
    generating = grading = 0.0
    for round_ in range(config.sampling_rounds):
        questions = step_questions(len(task.train), config, step - 1, round_)
        share = processes.share_of(len(questions))
        began = time.perf_counter()
        requests = sample_requests(
            [task.train[index] for index in questions[share]],
            questions[share],
            chat_format,
            config,
            run_seed=counter_seed(config.seed, "rollouts"),
            step=step,
            n=config.group_size,
        )
        drawn = sampler.sample(requests)
        sampled = time.perf_counter()
        graded = grade_rollouts(task, drawn, config)
        generating += sampled - began
        grading += time.perf_counter() - sampled
        rollouts += gather_rollouts(graded, processes)
        if config.keep != "mixed":
            break
        n_mixed = sum(map(is_mixed, complete_groups(rollouts, config.group_size)))
        if n_mixed >= config.prompts_per_step:
            break
    return Collected(rollouts=rollouts, generate_seconds=generating, grade_seconds=grading)


def sample_requests(
    examples: Sequence[Example],
    indices: Sequence[int],
    chat_format: ChatFormat,
    config: RlConfig,
    *,
    run_seed: int,
    step: int,
    n: int,
) -> list[SampleRequest]:
    """What a sampler is asked for these questions; the index names a question."""
    return [
        SampleRequest(
            run_seed=run_seed,
            step=step,
            prompt_id=index,
            prompt_ids=build_prompt(config.prompt, example, chat_format).token_ids,
            n=n,
        )
        for index, example in zip(indices, examples, strict=True)
    ]


def gather_rollouts(rollouts: Sequence[Rollout], processes: Processes) -> list[Rollout]:
    """The rollouts of all processes, in order of rank, in the form a file gives them."""
    if processes.world_size == 1:
        return list(rollouts)
    parts = processes.gather_bytes(encode_rollouts(rollouts))
    return [
        rollout
        for rank, part in enumerate(parts)
        for rollout in decode_rollouts(io.BytesIO(part), f"process {rank}")
    ]


def rollouts_file(out: Path, step: int) -> Path:
    """Where the rollouts that lead to the weights after `step` steps are kept."""
    return out / "rollouts" / f"step_{step}.jsonl"


def keep_rollouts(out: Path, step: int, rollouts: Sequence[Rollout]) -> None:
    """Writes the rollouts of a step, whole or not at all."""
    file = rollouts_file(out, step)
    file.parent.mkdir(exist_ok=True)
    write_rollouts(file, rollouts)


def kept_rollouts(
    config: RlConfig, step: int, sampler: Sampler, processes: Processes
) -> Collected | None:
    """Rollouts of a step that was begun, if these weights drew them; in every process the same.

    Where arithmetic is not repeatable, weights that were made again differ, and so do their
    samples: then these are of no use.
    """
    file = rollouts_file(config.out, step)
    rollouts = read_kept(file, config, step, sampler) if processes.is_first else []
    rollouts = gather_rollouts(rollouts, processes)
    return Collected(rollouts=rollouts) if rollouts else None


def read_kept(file: Path, config: RlConfig, step: int, sampler: Sampler) -> list[Rollout]:
    """The rollouts of a file, or none where it is not whole or not of this step and sampler."""
    try:
        rollouts = read_rollouts(file)
    except (FormatError, FileNotFoundError):
        return []
    seed, size = counter_seed(config.seed, "rollouts"), config.group_size
    fits = len(rollouts) % (config.prompts_per_step * size) == 0
    for number, each in enumerate(rollouts):
        # A group is compared within itself, so it must be one, in its order.
        first = rollouts[number - number % size]
        fits = fits and each.prompt_id == first.prompt_id and each.sample_index == number % size
        named = sampling_seed(seed, step, each.prompt_id, each.sample_index)
        fits = fits and each.seed == named and each.weights_hash == sampler.weights_hash
        fits = fits and each.reward is not None and each.reward_parts is not None
        fits = fits and is_readable(each, config.model)
    return rollouts if fits else []


def is_readable(rollout: Rollout, model: TransformerConfig) -> bool:
    """Whether a model of these sizes has the ids of a rollout, and room for them."""
    token_ids = rollout.prompt_ids + rollout.token_ids
    return max(token_ids) < model.resolved_vocab_size and len(token_ids) <= model.context_length + 1


def rollout_measures(collected: Collected, config: RlConfig) -> Row:
    """What the metrics say of the rollouts of a step, all that were sampled among them."""
    rollouts = collected.rollouts
    groups = complete_groups(rollouts, config.group_size)
    lengths = {
        right: [len(each.token_ids) for each in rollouts if is_right(each) == right]
        for right in (True, False)
    }
    n_tokens = sum(len(each.token_ids) for each in rollouts)
    seconds = collected.generate_seconds
    return {
        "reward": statistics.fmean(each.reward or 0.0 for each in rollouts),
        **{f"{name}_reward": mean_part(rollouts, name) for name in ("answer", "format")},
        "pass_at_k": statistics.fmean(any(map(is_right, group)) for group in groups),
        "n_prompts": len(groups),
        "n_completion_tokens": n_tokens,
        "length_right": statistics.fmean(lengths[True]) if lengths[True] else None,
        "length_wrong": statistics.fmean(lengths[False]) if lengths[False] else None,
        "truncated_fraction": truncated_fraction(rollouts),
        "grader_timeouts": round(mean_part(rollouts, "timeout") * len(rollouts)),
        "grader_crashes": round(mean_part(rollouts, "crash") * len(rollouts)),
        "generate_tokens_per_second": n_tokens / seconds if seconds else None,
        "generate_seconds": seconds,
        "grade_seconds": collected.grade_seconds,
    }


def mean_part(rollouts: Sequence[Rollout], name: str) -> float:
    """The mean of a part of the rewards; 0 for what is missing."""
    return statistics.fmean((each.reward_parts or {}).get(name, 0.0) for each in rollouts)


def have_equal_rewards(rollouts: Sequence[Rollout]) -> bool:
    """Whether nothing in a rollout tells better completions from worse ones."""
    return len({each.reward for each in rollouts}) == 1
