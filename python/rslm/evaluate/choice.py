"""Questions that are answered by the likeliest of given continuations, or by writing one."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from rslm.evaluate.continuations import Continuation, Scores
from rslm.evaluate.few_shot import Asked, Dialect, ask, choose_examples, draw_shots
from rslm.evaluate.questions import Question
from rslm.evaluate.results import TaskResult, mean_and_error, require_numbers
from rslm.tokenizer import Tokenizer

_AT_ONCE = 32
"""Questions whose ids are held at once, and after which progress is told."""

Progress = Callable[[int, int], object]
"""Told how many questions are done, and of how many."""


class Scorer(Protocol):
    """What scores continuations: `ContinuationScorer`, or the plain way."""

    def score(self, wanted: Sequence[Continuation]) -> list[Scores]:
        """The scores of each."""
        ...


@dataclass
class Answers:
    """Which questions were answered right, and what was done to their prompts."""

    is_right: list[bool] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    n_shots_dropped: int = 0
    n_cropped: int = 0

    def result(self, name: str, *, n_shots: int, seconds: float) -> TaskResult:
        """The accuracy."""
        value, error = mean_and_error(self.is_right)
        return TaskResult(
            name=name,
            metric="accuracy",
            value=value,
            stderr=error,
            n=len(self.is_right),
            n_shots=n_shots,
            n_shots_dropped=self.n_shots_dropped,
            n_cropped=self.n_cropped,
            seconds=seconds,
        )


def answer(
    scorer: Scorer,
    asked: Iterator[tuple[Question, Asked]],
    n: int,
    *,
    progress: Progress = lambda done, n: None,
) -> Answers:
    """The model's answers: the continuation of the lowest mean loss, the first of equals.

    A continuation to be written is right if each of its tokens is the likeliest at its place.

    Raises:
        FloatingPointError: the model's logits are no numbers.
    """
    answers = Answers()
    while some := list(islice(asked, _AT_ONCE)):
        scores = iter(scorer.score([option for _, each in some for option in each.options]))
        for question, each in some:
            own = [next(scores) for _ in each.options]
            require_numbers(score.mean_loss for score in own)
            if question.kind == "language":
                chosen = 0
                # Of what was cut off nobody knows whether it would have been written.
                is_right = own[0].is_greedy and not each.is_cut
            else:
                chosen = min(range(len(own)), key=lambda i: own[i].mean_loss)
                is_right = chosen == question.gold
            answers.is_right.append(is_right)
            answers.chosen.append(chosen)
            answers.n_shots_dropped += each.n_dropped
            answers.n_cropped += each.is_cropped
        progress(len(answers.is_right), n)
    return answers


def evaluate_questions(
    name: str,
    questions: Sequence[Question],
    scorer: Scorer,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    n_shots: int = 0,
    delimiter: str = " ",
    dialect: Dialect = "gauntlet",
    max_examples: int | None = None,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """The accuracy on a task whose questions serve each other as examples.

    Args:
        name: of the task.
        questions: all of them, whichever are asked.
        scorer: of the model.
        tokenizer: the model's.
        context_length: of the model.
        n_shots: examples before each question.
        delimiter: between context and continuation.
        dialect: how examples are drawn and prompts are made.
        max_examples: questions to ask, the same ones each time; None asks all.
        progress: told what is done.

    Raises:
        FloatingPointError: the model's logits are no numbers.
    """
    started = time.perf_counter()
    chosen = choose_examples(len(questions), max_examples)
    wanted = set(chosen)

    def asked() -> Iterator[tuple[Question, Asked]]:
        for number, shots in enumerate(draw_shots(len(questions), n_shots, dialect)):
            if number in wanted:
                yield (
                    questions[number],
                    ask(
                        tokenizer,
                        questions[number],
                        [questions[shot] for shot in shots],
                        delimiter=delimiter,
                        dialect=dialect,
                        context_length=context_length,
                    ),
                )

    answers = answer(scorer, asked(), len(chosen), progress=progress)
    n_shots = min(n_shots, len(questions) - 1)
    return answers.result(name, n_shots=n_shots, seconds=time.perf_counter() - started)
