"""Questions from files that are on this machine: GSM8K, SVAMP, MMLU, HumanEval, JSON lines.

Each loader takes a folder, an archive or one file, as published; nothing is fetched. What is
wrong with a file is told with the number of the line.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rslm.errors import FormatError
from rslm.evaluate.answers import LETTERS
from rslm.evaluate.archive import read_files
from rslm.evaluate.example import Example

# What a calculator was asked in GSM8K's solutions, as <<48/2=24>>.
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class MmluQuestion:
    """A question of MMLU with its four options."""

    subject: str
    question: str
    options: tuple[str, ...]
    gold: int
    """The place of the right option."""


@dataclass(frozen=True)
class CodeProblem:
    """A problem of HumanEval: the head of a function, and a program that checks its body."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    solution: str


def load_gsm8k(source: Path, split: Literal["train", "test"]) -> tuple[Example, ...]:
    """Questions of GSM8K (Cobbe et al. 2021, arXiv:2110.14168); gold is what follows `####`.

    Worked answers are the solutions without the marks for a calculator.

    Raises:
        OSError: there is nothing at `source`.
        FormatError: a line is no question with a solution that ends so.
    """
    examples: list[Example] = []
    for place, row in _rows(source, f"{split}.jsonl"):
        question, solution = (_text(row, field, place) for field in ("question", "answer"))
        _, mark, gold = solution.rpartition("####")
        if not mark or not gold.strip():
            raise FormatError(f"{place}: answer must end with #### and a number")
        worked = _CALCULATOR.sub("", solution).strip()
        examples.append(Example(len(examples), question, gold.strip(), worked))
    return tuple(examples)


def load_svamp(source: Path) -> tuple[Example, ...]:
    """Questions of SVAMP (Patel et al. 2021, arXiv:2103.07191), `context` and `answer`.

    Raises:
        OSError: there is nothing at `source`.
        FormatError: a line is no such question.
    """
    rows = _rows(source, "svamp.jsonl")
    return tuple(
        Example(i, _text(row, "context", place), _text(row, "answer", place))
        for i, (place, row) in enumerate(rows)
    )


def load_jsonl(source: Path) -> tuple[Example, ...]:
    """Questions of JSON lines with `prompt`, and `gold` or `answer`.

    `gold` is a string, a number or a list of those that are accepted. Where there is none,
    `answer` is it; beside it, `answer` is the worked one.

    Raises:
        OSError: there is nothing at `source`.
        FormatError: a line is no such question.
    """
    examples: list[Example] = []
    name = source.name.removesuffix(".gz").removesuffix(".xz")
    for place, row in _rows(source, name):
        prompt = _text(row, "prompt", place)
        answer = _text(row, "answer", place) if "gold" not in row or "answer" in row else None
        gold = row.get("gold", answer)
        if isinstance(gold, list):
            accepted = tuple(_text({"gold": one}, "gold", place) for one in gold)
            if not accepted:
                raise FormatError(f"{place}: gold must hold at least one answer")
            examples.append(Example(len(examples), prompt, accepted, answer or accepted[0]))
        else:
            one = _text({"gold": gold}, "gold", place)
            examples.append(Example(len(examples), prompt, one, answer or one))
    return tuple(examples)


def load_mmlu(
    source: Path, split: Literal["dev", "val", "test"]
) -> dict[str, tuple[MmluQuestion, ...]]:
    """Questions of MMLU (Hendrycks et al. 2021, arXiv:2009.03300), by subject in order of name.

    Tables have no head; a row is the question, four options and the letter of the right one.

    Raises:
        OSError: there is nothing at `source`.
        FormatError: there are none of this split, or a row is no such question.
    """
    suffix = f"_{split}.csv"
    subjects = {
        name.removesuffix(suffix): tuple(_mmlu_questions(source, name, content, suffix))
        for name, content in read_files(source, lambda name: name.endswith(suffix))
    }
    if not subjects:
        raise FormatError(f"{source} must hold files whose names end in {suffix}")
    return dict(sorted(subjects.items()))


def _mmlu_questions(source: Path, name: str, content: bytes, suffix: str) -> Iterator[MmluQuestion]:
    reader = csv.reader(io.StringIO(decoded(content, f"{source}: {name}"), newline=""), strict=True)
    while True:
        place = f"{source}: {name}: line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise FormatError(f"{place}: must be a row of a CSV table: {error}") from error
        if row is None:
            return
        if len(row) != 6 or row[5] not in [*LETTERS]:
            raise FormatError(
                f"{place}: must hold a question, four options and a letter of {LETTERS}, "
                f"got {len(row)} fields"
            )
        yield MmluQuestion(
            name.removesuffix(suffix), row[0], tuple(row[1:5]), LETTERS.index(row[5])
        )


def mmlu_text(question: MmluQuestion) -> str:
    """The question and its options, a lettered line each."""
    options = (f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=True))
    return "\n".join([question.question.strip(), *options])


def load_humaneval(source: Path) -> tuple[CodeProblem, ...]:
    """Problems of HumanEval (Chen et al. 2021, arXiv:2107.03374); none of it is run here.

    Raises:
        OSError: there is nothing at `source`.
        FormatError: a line is no such problem.
    """
    fields = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
    return tuple(
        CodeProblem(*(_text(row, field, place) for field in fields))
        for place, row in _rows(source, "HumanEval.jsonl")
    )


def _rows(source: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place for messages."""
    contents = dict(read_files(source, lambda found: found == name))
    if not contents:
        raise FormatError(f"{source} must hold a file {name}")
    (content,) = contents.values()
    yield from parse_rows(content, f"{source}" if source.is_file() else f"{source}/{name}")


def parse_rows(content: bytes, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, each with its place for messages, which `place` begins.

    Raises:
        FormatError: a line is no JSON object in UTF-8, or there is none.
    """
    n_rows = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        here = f"{place}: line {number}"
        try:
            row = json.loads(decoded(line, here))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{here}: must be a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise FormatError(f"{here}: must be a JSON object, got a {type(row).__name__}")
        n_rows += 1
        yield here, row
    if not n_rows:
        raise FormatError(f"{place} must hold at least one line")


def decoded(content: bytes, place: str) -> str:
    """Bytes as text, which `place` names in messages.

    Raises:
        FormatError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{place}: must be UTF-8: {error}") from error


def _text(row: dict[str, Any], field: str, place: str) -> str:
    """A field as text that can be encoded; a number as it is written."""
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if not isinstance(value, str) or not value.strip():
        shown = "none" if value is None else f"{value!r:.40}"
        raise FormatError(f"{place}: {field} must be a text, got {shown}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{place}: {field} must be text, got half a surrogate pair") from error
    return value
