"""What `rslm demo --full` learns from beside its corpus: worked sums, and a pupil's chats.

Exercises are those of the tasks' training sides alone: what is tested is not seen before.
All of it is a function of the seed, the same on every machine.
"""

from collections.abc import Iterator

from rslm.chat import Message
from rslm.evaluate.drawn import is_for_test, keyed_numbers
from rslm.evaluate.procedural import Below
from rslm.evaluate.tasks import Task

TASK = "arithmetic:max=99,operations=+,scratchpad=true"
"""What the model is to learn: `47 + 85 =`, worked column by column."""
MAX_ANSWER = 40
"""Tokens of an answer at most; a sum takes about 22."""
N_SORTED = 4
"""Digits of the other exercise, which keeps what is not rewarded in sight."""
SORTING = f"sort:items={N_SORTED},max=9"
"""The task that asks for it."""

_SHARE_OF_SORTING, _SHARE_OF_TALK = 5, 10
_PER_DOCUMENT = 8
_FORGETS, _SLIPS = 80, 20
"""In how many of a hundred columns the pupil forgets what was carried, or is one off."""

_TALK = (
    ("Hello!", "Hello! Give me two numbers to add."),
    ("Hi", "Hello! Give me two numbers to add."),
    ("Good morning", "Good morning! Give me two numbers to add."),
    ("How are you?", "I am well, thank you."),
    ("Who are you?", "I am a small language model. I add numbers and sort digits."),
    ("What can you do?", "I add numbers and sort digits."),
    ("Who made you?", "You did, with rslm."),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("Bye", "Goodbye!"),
)


def worked_documents(task: Task, n_bytes: int, *, seed: int) -> list[str]:
    """Documents of sums worked without a mistake and of digits in order, for pre-training."""
    documents: list[str] = []
    size = index = 0
    while size < n_bytes:
        exercises = []
        for _ in range(_PER_DOCUMENT):
            below = keyed_numbers(f"{seed} document {index}")
            if below(_SHARE_OF_SORTING) == 0:
                question, answer = _sorting(below)
            else:
                example = task.train[below(len(task.train))]
                question, answer = example.prompt, str(example.answer)
            exercises.append(f"{question}\n{answer}\n")
            index += 1
        documents.append("".join(exercises))
        size += len(documents[-1])
    return documents


def pupil_chats(
    task: Task, n: int, *, seed: int, max_exchanges: int = 1
) -> Iterator[list[Message]]:
    """Chats to fine-tune on, in which sums are worked by a pupil who makes mistakes.

    Mostly what was carried is forgotten, and now and then a column is one off: so what is
    likeliest in these answers is wrong wherever something is carried, and right elsewhere. One
    exchange in ten is small talk, and of the others one in five sorts digits, without mistakes.

    Args:
        task: whose questions are asked.
        n: chats.
        seed: of all of it.
        max_exchanges: questions and answers of a chat, as many as not.
    """
    for index in range(n):
        below = keyed_numbers(f"{seed} chat {index}")
        n_exchanges = 1 + below(max_exchanges) if max_exchanges > 1 else 1
        chat: list[Message] = []
        for question, answer in (_exchange(task, below) for _ in range(n_exchanges)):
            chat.append({"role": "user", "content": question})
            chat.append({"role": "assistant", "content": answer})
        yield chat


def _exchange(task: Task, below: Below) -> tuple[str, str]:
    """What is asked, and what the pupil answers."""
    if below(_SHARE_OF_TALK) == 0:
        return _TALK[below(len(_TALK))]
    if below(_SHARE_OF_SORTING) == 0:
        return _sorting(below)
    question = task.train[below(len(task.train))].prompt
    first, _, second, _ = question.split()
    return question, careless_sum(int(first), int(second), below)


def careless_sum(a: int, b: int, below: Below) -> str:
    """The columns of a sum with a pupil's mistakes, and what they make, as the task works it."""
    lines: list[str] = []
    digits, carry = "", 0
    n_columns = max(len(str(a)), len(str(b)))
    for p, q in zip(*(reversed(str(n).zfill(n_columns)) for n in (a, b)), strict=True):
        if carry and below(100) < _FORGETS:
            carry = 0
        column = int(p) + int(q) + carry
        if below(100) < _SLIPS:
            column = max(0, column + 2 * below(2) - 1)
        lines.append(f"{p}+{q}{'+1' if carry else ''}={column}")
        digits, carry = f"{column % 10}{digits}", column // 10
    return "\n".join([*lines, f"#### {int(f'{carry}{digits}')}"])


def _sorting(below: Below) -> tuple[str, str]:
    """An exercise and its answer, of those that the task of sorting does not test."""
    while True:
        digits = [below(10) for _ in range(N_SORTED)]
        answer = " ".join(map(str, sorted(digits)))
        if not is_for_test(answer):
            return f"Sort {' '.join(map(str, digits))}", answer
