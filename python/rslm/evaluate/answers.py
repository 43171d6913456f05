"""The answer in a response, by the mark that a prompt asks for; None where there is no such mark.

All run in time proportional to the response's length, whatever it holds.
"""

import re
from typing import Literal, get_args

AnswerFormat = Literal["whole", "strict", "flexible", "r1", "boxed", "letter"]
"""What in a response is the answer.

whole: the response. strict: what follows the first `####` on its line. flexible: the last number.
r1: what the last `<answer>` holds, after `</think> <answer>`. boxed: the last `\\boxed{}`.
letter: X of "answer is X", or of a line that is X.
"""
LETTERS = "ABCD"
"""Of the options of a question."""
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)

# A response that went on to a question of its own; its numbers are no answers to ours.
_NEXT_QUESTION = re.compile(r"^[ \t]*(?:Question|Q|Problem|User|Human)[ \t]*:", re.MULTILINE)
# Not within a word, a version number or a list without spaces; ASCII digits only.
_LAST_NUMBER = re.compile(
    r"""(?<![\w.,]) (?: (?<![)\]]) [-−] )? (?:\\?\$)?
    (?: [0-9]{1,3}(?:,[0-9]{3})+(?![0-9]) | [0-9]+ ) (?:\.[0-9]+)? (?:[eE][-+]?[0-9]+)?
    (?: [ ]?/[ ]?[0-9]+ )? (?![0-9]|[.,][0-9])""",
    re.VERBOSE,
)
_BRACES = re.compile(r"\\boxed[ ]?\{|\\.|[{}]", re.DOTALL)
_CLAIM = re.compile(
    r"""\b[Aa]nswer(?:[ ]is|[ ]?:|[ ]is:)[ ]{0,2} (?:\*\*)? \(? ([A-Z]) (?![\w'’]) """, re.VERBOSE
)


def extract(response: str, form: AnswerFormat) -> str | None:
    """The answer of a response, without white space around it; None if it has none."""
    answer = _EXTRACT[form](response)
    return answer.strip() or None if answer is not None else None


def whole(response: str) -> str:
    """The response itself."""
    return response


def strict(response: str) -> str | None:
    """What follows the first `####`, to the end of the line.

    The first: what comes after an answer answers some other question.
    """
    _, mark, rest = response.partition("####")
    return rest.partition("\n")[0] if mark else None


def flexible(response: str) -> str | None:
    """The last number before the response turns to a question of its own.

    `3/4` and `1e3` are one number, `..` is none, and of `5-3` the last is 3.
    """
    if end := _NEXT_QUESTION.search(response):
        response = response[: end.start()]
    found = None
    for found in _LAST_NUMBER.finditer(response):  # noqa: B007 - the last one is meant
        pass
    return found[0] if found else None


def r1(response: str) -> str | None:
    r"""What the last `<answer>` holds; what its last `\boxed{}` holds, where it has one.

    None unless `</think> <answer>`, with one space, and an end of the last answer are there.
    Tags that end an answer are dropped, and text behind them counts to the answer.
    """
    _, mark, answer = response.rpartition("<answer>")
    if not mark or "</think> <answer>" not in response or "</answer>" not in answer:
        return None
    answer = answer.replace("</answer>", "")
    return boxed(answer) if "\\boxed" in answer else answer


def boxed(response: str) -> str | None:
    r"""What the last `\boxed{}` holds whose braces match; an escaped brace is text."""
    open_braces: list[int | None] = []
    start = end = -1
    for match in _BRACES.finditer(response):
        if match[0].startswith("\\boxed"):
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces:
            begin = open_braces.pop()
            if begin is not None and begin > start:
                start, end = begin, match.start()
    return response[start:end] if start >= 0 else None


def letter(response: str, letters: str = LETTERS) -> str | None:
    """The letter that a response to a multiple-choice question claims.

    Where it claims several different ones, it claims none; "A long time ago" claims none either.
    """
    if end := _NEXT_QUESTION.search(response):
        response = response[: end.start()]
    claims = {match[1] for match in _CLAIM.finditer(response)}
    if not claims:
        lines = [line.strip() for line in response.strip().split("\n")]
        lone = {line.strip("()*.: ") for line in lines if len(line) <= 8}
        claims = {line for line in lone if len(line) == 1 and line in letters}
        if not claims and (match := re.match(r"\(?([A-Z])[).:](?!\w)", lines[0])):
            claims = {match[1]}
    claim = claims.pop() if len(claims) == 1 else ""
    return claim if claim and claim in letters else None


_EXTRACT = {
    "whole": whole,
    "strict": strict,
    "flexible": flexible,
    "r1": r1,
    "boxed": boxed,
    "letter": letter,
}
