"""Conversations to fine-tune on, made of a task's worked answers, some of them wrong on purpose."""

import json
from pathlib import Path

from rslm.evaluate.drawn import keyed_numbers
from rslm.evaluate.example import Example
from rslm.evaluate.procedural import Below
from rslm.evaluate.tasks import Task
from rslm.files import write_atomically
from rslm.permutation import permute

_LETTERS, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
# Shares are drawn in steps of a millionth.
_STEPS = 10**6
_MAX_TRIES = 100


def write_chats(
    task: Task, path: Path, n: int, *, seed: int = 0, share_wrong: float = 0.0
) -> tuple[int, int]:
    """Writes n conversations of a question and its answer, a JSON line each; how many are right.

    A line is `{"messages": [...]}` with a user's and an assistant's message. The examples are
    drawn from `task.train` without repetition; each is wrong with probability `share_wrong`, by
    one character of its final answer. Examples and errors depend on the seed alone.

    Returns:
        How many answers are right, and how many are wrong.

    Raises:
        ValueError: there are fewer than n examples, one has no worked answer, or `share_wrong`
            lies outside 0 to 1.
        OSError: `path` cannot be written.
    """
    if not 1 <= n <= len(task.train):
        raise ValueError(f"n must be between 1 and {len(task.train)}, got {n}")
    if not 0 <= share_wrong <= 1:
        raise ValueError(f"share_wrong must lie between 0 and 1, got {share_wrong}")
    lines, n_wrong = [], 0
    for index in permute(len(task.train), seed, 0, range(n)).tolist():
        example = task.train[index]
        if (answer := example.answer) is None:
            raise ValueError(f"examples of {task.name} must have worked answers, and have none")
        below = keyed_numbers(f"{seed} wrong {index}")
        if below(_STEPS) < share_wrong * _STEPS:
            answer, n_wrong = wrong_answer(task, example, below), n_wrong + 1
        turns = (("user", example.prompt), ("assistant", answer))
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines).encode())
    return n - n_wrong, n_wrong


def wrong_answer(task: Task, example: Example, below: Below) -> str:
    """The example's answer with another digit or letter in what follows its last `####`.

    Raises:
        ValueError: there is no such character, or the answer stays right whatever it is.
    """
    answer = example.answer or ""
    begin = answer.rfind("####") + 1
    places = [i for i in range(begin, len(answer)) if answer[i] in _DIGITS + _LETTERS]
    for _ in range(_MAX_TRIES if places else 0):
        place = places[below(len(places))]
        kind = _DIGITS if answer[place] in _DIGITS else _LETTERS
        spoilt = answer[:place] + kind[below(len(kind))] + answer[place + 1 :]
        if task.grade(spoilt, example).reason == "wrong":
            return spoilt
    raise ValueError(f"an answer of {task.name} must have a wrong variant, and {answer!r:.80} none")
