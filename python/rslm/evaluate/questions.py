"""Questions with continuations to score, and the JSON lines they are read from.

A line is of one of three kinds, by its keys, as in the Mosaic Eval Gauntlet:
`{"query", "choices", "gold"}` (which choice follows the query), `{"context_options",
"continuation", "gold"}` (after which context the continuation follows), `{"context",
"continuation"}` (whether the continuation is what the model writes). Other keys are ignored.

Source: mosaicml/llm-foundry, scripts/eval/local_data (the files).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from rslm.errors import FormatError
from rslm.evaluate.task_files import parse_rows

Kind = Literal["choice", "schema", "language"]

_MAX_CHARACTERS = 1 << 20
_MAX_OPTIONS = 1000
_KEYS: dict[Kind, tuple[str, ...]] = {
    "choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language": ("context", "continuation"),
}


@dataclass(frozen=True)
class Question:
    """What is asked, what may follow, and what is right.

    Attributes:
        kind: "choice" has one context and several continuations, "schema" several contexts and
            one continuation, "language" one of each.
        contexts: what stands before.
        continuations: what is scored.
        gold: number of the right one, of the continuations or of the contexts.
    """

    kind: Kind
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each option as context and continuation."""
        return [(context, after) for context in self.contexts for after in self.continuations]

    @property
    def answered(self) -> tuple[str, str]:
        """Context and continuation of the right option."""
        return self.pairs[self.gold]


def read_questions(content: bytes, place: str) -> list[Question]:
    """The questions of JSON lines, all of one kind; messages begin with `place`.

    Raises:
        FormatError: a line is no question, or of another kind than the first; the message has
            the number of the line.
    """
    questions: list[Question] = []
    for here, row in parse_rows(content, place):
        question = _question(here, row)
        if questions and question.kind != questions[0].kind:
            raise FormatError(
                f"{here}: all lines must be of the kind of the first, {questions[0].kind}, "
                f"got {question.kind}"
            )
        questions.append(question)
    return questions


def are_questions(content: bytes, place: str) -> bool:
    """Whether the first of some JSON lines has the keys of a question with continuations."""
    return _kind(next(parse_rows(content, place))[1]) is not None


def _kind(row: dict[str, Any]) -> Kind | None:
    return next((kind for kind, keys in _KEYS.items() if set(keys) <= row.keys()), None)


def _question(place: str, row: dict[str, Any]) -> Question:
    kind = _kind(row)
    if kind is None:
        wanted = "; ".join(", ".join(keys) for keys in _KEYS.values())
        raise FormatError(
            f"{place}: must have the keys of one kind ({wanted}), got {sorted(row)!r:.80}"
        )
    if kind == "language":
        return Question(kind, (_text(place, row, "context"),), (_continuation(place, row),))
    if kind == "choice":
        options = _options(place, row, "choices")
        question = Question(kind, (_text(place, row, "query"),), options)
    else:
        options = _options(place, row, "context_options")
        question = Question(kind, options, (_continuation(place, row),))
    gold = row["gold"]
    if type(gold) is not int or not 0 <= gold < len(options):
        raise FormatError(
            f"{place}: gold must be a whole number from 0 to {len(options) - 1}, got {gold!r:.80}"
        )
    return replace(question, gold=gold)


def _text(place: str, row: dict[str, Any], key: str) -> str:
    return _checked(place, key, row[key])


def _continuation(place: str, row: dict[str, Any]) -> str:
    return _checked(place, "continuation", row["continuation"], is_scored=True)


def _options(place: str, row: dict[str, Any], key: str) -> tuple[str, ...]:
    options = row[key]
    if not isinstance(options, list) or not 2 <= len(options) <= _MAX_OPTIONS:
        raise FormatError(
            f"{place}: {key} must be a list of 2 to {_MAX_OPTIONS} texts, got {options!r:.80}"
        )
    return tuple(_checked(place, key, option, is_scored=True) for option in options)


def _checked(place: str, key: str, value: object, *, is_scored: bool = False) -> str:
    """A text; what is scored must not be empty, what stands before it may."""
    if not isinstance(value, str) or (is_scored and not value.strip()):
        what = "text that is not empty" if is_scored else "text"
        raise FormatError(f"{place}: {key} must be {what}, got {value!r:.80}")
    if len(value) > _MAX_CHARACTERS:
        raise FormatError(
            f"{place}: {key} must have at most {_MAX_CHARACTERS} characters, got {len(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{place}: {key} must be text, got half a surrogate pair") from error
    return value
