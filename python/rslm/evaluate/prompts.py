r"""How a question is put to a model, and what ends the answer.

"chat" is for models that were fine-tuned; the others are text for base models. The format that a
prompt asks for is what its answers are marked by: `open_task(..., answer_format=...)`.
Source: "r1_zero" takes its tags and its end from the template of DeepSeek-AI 2025, table 1
(arXiv:2501.12948); the rest of its words are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rslm.chat import ChatFormat
from rslm.errors import hint_at_closest
from rslm.evaluate.answers import AnswerFormat
from rslm.evaluate.example import Example

_QUESTION = "{question}"


@dataclass(frozen=True)
class Prompt:
    """One way to ask."""

    template: str | None
    """Text with `{question}` in it; None asks in a user message."""
    answer_format: AnswerFormat | None
    """What the answer is in a response; None is the task's own way."""
    stop: tuple[str, ...] = ()
    keep_stop: bool = False


class BuiltPrompt(NamedTuple):
    """A prompt for one question, and what ends its answer."""

    token_ids: list[int]
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    keep_stop: bool


_R1_ZERO = """\
The User asks a question and the Assistant answers it. First the Assistant thinks the question \
through, then it gives the User the answer. The thoughts stand within <think> </think> and the \
answer within <answer> </answer>, as in <think> thoughts </think> <answer> answer </answer>.
"""
_R1_ZERO_QUESTION = f"User: {_QUESTION}\nAssistant: <think>"
_R1_ZERO_SHOTS = (
    (
        "A shelf has 4 rows of 6 cups, and 5 of the cups are chipped. How many are whole?",
        "There are 4 * 6 = 24 cups. Of these 24 - 5 = 19 are whole.",
        "19",
    ),
    (
        "Ida reads 15 pages a day. How many days does a book of 120 pages take her?",
        "She needs 120 / 15 = 8 days.",
        "8",
    ),
    (
        "A ticket costs $12, half of that for children. What do 2 adults and 3 children pay?",
        "A child pays 12 / 2 = 6 dollars. Together that is 2 * 12 + 3 * 6 = 24 + 18 = 42 dollars.",
        "42",
    ),
)

PROMPTS: dict[str, Prompt] = {
    "chat": Prompt(None, None),
    "r1_zero": Prompt(_R1_ZERO + _R1_ZERO_QUESTION, "r1", ("</answer>",), keep_stop=True),
    "r1_zero_three_shot": Prompt(
        _R1_ZERO
        + "".join(
            _R1_ZERO_QUESTION.replace(_QUESTION, question)
            + f" {thoughts} </think> <answer> {answer} </answer>\n"
            for question, thoughts, answer in _R1_ZERO_SHOTS
        )
        + _R1_ZERO_QUESTION,
        "r1",
        ("</answer>",),
        keep_stop=True,
    ),
    "question_only": Prompt(
        f"{_QUESTION}\nReason step by step, and put the final answer within \\boxed{{}}.\n", "boxed"
    ),
    "plain": Prompt(f"Question: {_QUESTION}\nAnswer:", None, ("\nQuestion:",)),
}


def require_prompt(name: str) -> None:
    """Refuses a name that no prompt has, by a ValueError."""
    if name not in PROMPTS:
        message = f"prompt must be one of {', '.join(PROMPTS)}, got {name!r:.80}"
        raise ValueError(message + hint_at_closest(name, PROMPTS))


def prompt_text(name: str, question: str, shots: Sequence[Example] = ()) -> str:
    """The text of a prompt; of "chat" the user message.

    Args:
        name: one of `PROMPTS`.
        question: put in as it is, whatever it holds.
        shots: of "plain" only: examples that stand before it with their answers.

    Raises:
        ValueError: there is no such prompt, or it takes no shots.
    """
    require_prompt(name)
    if shots and name != "plain":
        raise ValueError(f"only the prompt plain takes shots, and {name} was given {len(shots)}")
    before = "".join(f"{_asked(name, shot.prompt)} {_answer(shot)}\n\n" for shot in shots)
    return before + _asked(name, question)


def build_prompt(
    name: str, example: Example, chat_format: ChatFormat, *, shots: Sequence[Example] = ()
) -> BuiltPrompt:
    """The ids of a prompt, and what ends the answer to it.

    Special tokens in the question stay text. The ids begin as the chat format's do.

    Raises:
        ValueError: as of `prompt_text`.
    """
    text = prompt_text(name, example.prompt, shots)
    prompt, ends = PROMPTS[name], chat_format.stop_token_ids
    if prompt.template is None:
        token_ids = chat_format.prompt([{"role": "user", "content": text}])
        return BuiltPrompt(token_ids, chat_format.stop, ends, keep_stop=False)
    begin = [] if chat_format.begin_id is None else [chat_format.begin_id]
    token_ids = begin + chat_format.tokenizer.encode_ordinary(text)
    return BuiltPrompt(token_ids, prompt.stop, ends, prompt.keep_stop)


def _asked(name: str, question: str) -> str:
    template = PROMPTS[name].template
    return question if template is None else template.replace(_QUESTION, question)


def _answer(shot: Example) -> str:
    if shot.answer is not None:
        return shot.answer
    return shot.gold if isinstance(shot.gold, str) else shot.gold[0]
