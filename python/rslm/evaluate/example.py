"""One question with its accepted answers, and the mark that a response to it gets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A question, what counts as right, and where there is one a worked answer to learn from."""

    example_id: int
    """Its place in its sequence: train and test are counted apart."""
    prompt: str
    gold: str | tuple[str, ...]
    """The right answer, or all that are accepted."""
    answer: str | None = None
    numbers: tuple[int, ...] = ()
    """Countdown only: the numbers that an answer may use."""


@dataclass(frozen=True)
class Grade:
    """The mark of a response; all three rewards are 0 or 1."""

    reward: float
    """What training maximises: 1 only for a right answer in the right format."""
    format_reward: float
    answer_reward: float
    reason: str
    """In a word why: "right", "wrong", "no answer", "timeout", "crash"."""
