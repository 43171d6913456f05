"""How well held-out questions are answered: sampled, by the best of k, and greedily."""

from collections.abc import Sequence

from rslm.batches import counter_seed
from rslm.evaluate.results import finite, mean_and_error
from rslm.evaluate.tasks import Task
from rslm.post.rl_config import RlConfig
from rslm.post.rl_rollouts import gather_rollouts, sample_requests
from rslm.post.rollout import Rollout, Sampler
from rslm.post.setup import Run
from rslm.run_folder import Row

N_SHOWN = 3


def evaluate_policy(
    run: Run[RlConfig], task: Task, sampler: Sampler, greedy: Sampler
) -> tuple[Row, str]:
    """Scores on the first held-out questions, and some answers to read.

    The noise of a sample is a function of seed, question and index: evaluations of a run differ
    by its weights alone, and nothing that is trained on shares it. Rates are of right answers;
    errors are standard errors over questions.
    """
    config, processes = run.config, run.processes
    indices = range(min(config.n_evaluation_prompts, len(task.test)))
    mine = indices[processes.rank :: processes.world_size]

    def rollouts_of(sampler: Sampler, n: int) -> list[Rollout]:
        requests = sample_requests(
            [task.test[index] for index in mine],
            mine,
            run.chat_format,
            config,
            run_seed=counter_seed(config.seed, "evaluation"),
            step=0,
            n=n,
        )
        drawn = gather_rollouts(sampler.sample(requests), processes)
        return sorted(drawn, key=lambda each: (each.prompt_id, each.sample_index))

    sampled = rollouts_of(sampler, config.n_evaluation_samples)
    best = rollouts_of(greedy, 1)
    rights = right_answers(task, sampled)
    groups = [
        rights[first : first + config.n_evaluation_samples]
        for first in range(0, len(rights), config.n_evaluation_samples)
    ]
    row = {
        **rate("val_reward", [sum(group) / len(group) for group in groups]),
        **rate("val_pass_at_k", [float(any(group)) for group in groups]),
        **rate("val_greedy_reward", [float(right) for right in right_answers(task, best)]),
    }
    return row, shown_answers(task, sampled, best, run.step)


def right_answers(task: Task, rollouts: Sequence[Rollout]) -> list[bool]:
    """Which answers to held-out questions are right."""
    return [task.grade(each.text, task.test[each.prompt_id]).reward > 0 for each in rollouts]


def rate(name: str, values: Sequence[float]) -> Row:
    """The mean over questions and its standard error; no error of a single question.

    >>> rate("right", [0.0, 1.0, 1.0, 1.0])
    {'right': 0.75, 'right_stderr': 0.25}
    """
    mean, error = mean_and_error(values)
    return {name: mean, f"{name}_stderr": finite(error)}


def shown_answers(
    task: Task, sampled: Sequence[Rollout], greedy: Sequence[Rollout], step: int
) -> str:
    """A section of `samples.md`: the first questions with one sampled answer and the greedy one."""
    by_question = {each.prompt_id: each for each in reversed(sampled)}
    parts = [f"## Step {step:,}\n"]
    for answer in greedy[:N_SHOWN]:
        example = task.test[answer.prompt_id]
        texts = {
            "question": example.prompt,
            "sampled": by_question[answer.prompt_id].text,
            "greedy": answer.text,
        }
        lines = [
            f"    {name + ':' if not number else '':<10}{line}\n"
            for name, text in texts.items()
            for number, line in enumerate(text.splitlines() or [""])
        ]
        parts.append("".join(lines))
    return "\n".join(parts) + "\n"
