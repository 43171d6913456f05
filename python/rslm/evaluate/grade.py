"""Rules that mark a response: find the answer in it, then compare it with the gold one.

Nothing that a model writes is executed, and no formula is worked on in this process.
"""

from collections.abc import Callable

from rslm.evaluate.answers import ANSWER_FORMATS, AnswerFormat, extract
from rslm.evaluate.arithmetic import Node, evaluate, leaves, parse
from rslm.evaluate.equality import (
    EQUALITIES,
    Equality,
    Outcome,
    Symbolic,
    course_equal,
    rational_equal,
    text_equal,
)
from rslm.evaluate.example import Example, Grade

Check = Callable[[str, Example], Outcome]
Grader = Callable[[str | None, Example], Grade]

_SIGNS = {"+", "-", "*", "/", "negative"}


def make_grader(form: AnswerFormat, check: Check) -> Grader:
    """The rule that looks for the answer by `form` and marks it by `check`.

    A response without such an answer has format reward 0, and so has every other reward.

    Raises:
        ValueError: there is no such format.
    """
    if form not in ANSWER_FORMATS:
        raise ValueError(f"answer format must be one of {', '.join(ANSWER_FORMATS)}, got {form!r}")

    def grade(response: str | None, example: Example) -> Grade:
        answer = extract(response, form) if response is not None else None
        if answer is None:
            return Grade(0.0, 0.0, 0.0, "no answer")
        outcome = check(answer, example)
        reward = float(outcome == "right")
        return Grade(reward, 1.0, reward, outcome)

    return grade


def make_check(equality: Equality, symbolic: Symbolic | None = None) -> Check:
    """The comparison with each accepted answer, right if one of them is met.

    Args:
        equality: its rule.
        symbolic: compares formulas for "course", in another process; a timeout or a crash there
            counts only where no other accepted answer is met.

    Raises:
        ValueError: there is no such rule.
    """
    if equality not in EQUALITIES:
        raise ValueError(f"equality must be one of {', '.join(EQUALITIES)}, got {equality!r}")
    if equality == "course" and symbolic is None:
        raise ValueError("equality course needs a comparison of formulas")

    def compare(answer: str, gold: str) -> Outcome:
        if symbolic is not None and equality == "course":
            return course_equal(answer, gold, symbolic)
        equal = text_equal if equality == "text" else rational_equal
        return "right" if equal(answer, gold) else "wrong"

    def check(answer: str, example: Example) -> Outcome:
        outcome: Outcome = "wrong"
        for gold in (example.gold,) if isinstance(example.gold, str) else example.gold:
            found = compare(answer, gold)
            if found == "right":
                return found
            outcome = found if found != "wrong" else outcome
        return outcome

    return check


def check_countdown(answer: str, example: Example, *, use_all: bool) -> Outcome:
    """Whether an expression has the value asked for, and of the numbers given each once at most.

    `(3+5)*8 = 64` is read as well as `(3+5)*8`. Whole numbers, + - * / and brackets only.

    Args:
        answer: the expression.
        example: with the numbers that it may use.
        use_all: it must use every one.
    """
    expression, equals, value = answer.partition("=")
    target = str(example.gold)
    if equals and value.strip() != target:
        return "wrong"
    try:
        tree = parse(expression, implicit=False)
        is_right = evaluate(tree) == int(target)
    except ValueError:
        return "wrong"
    unused = list(map(str, example.numbers))
    for leaf in leaves(tree):
        number = str(leaf.value)
        if number not in unused:
            return "wrong"
        unused.remove(number)
    is_right = is_right and _only_signs(tree) and not (use_all and unused)
    return "right" if is_right else "wrong"


def _only_signs(tree: Node) -> bool:
    return not tree.operands or (tree.head in _SIGNS and all(map(_only_signs, tree.operands)))
