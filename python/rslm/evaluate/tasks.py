"""Tasks by name: questions to train and to test on, and the rule that marks a response.

`open_task("arithmetic:max=30,operations=+-")`; the part behind the colon sets options. The
procedural ones need no data: example i is a function of (seed, i), and no problem is in both
train and test, whatever the seeds: a hash of the problem decides on which side it is.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rslm.errors import hint_at_closest
from rslm.evaluate import procedural
from rslm.evaluate.answers import LETTERS, AnswerFormat
from rslm.evaluate.drawn import DrawnExamples, draw_test_examples, is_for_test
from rslm.evaluate.equality import Symbolic
from rslm.evaluate.example import Example, Grade
from rslm.evaluate.grade import Check, Grader, check_countdown, make_check, make_grader
from rslm.evaluate.task_files import (
    load_gsm8k,
    load_jsonl,
    load_mmlu,
    load_svamp,
    mmlu_text,
)

__all__ = ["Example", "Grade", "Task", "open_task"]

PROCEDURAL: dict[str, Any] = {
    "arithmetic": procedural.Arithmetic,
    "countdown": procedural.Countdown,
    "reverse": procedural.Reverse,
    "sort": procedural.Sort,
    "count_letters": procedural.CountLetters,
    "units": procedural.Units,
    "dates": procedural.Dates,
}
N_TRAIN, N_TEST = 100_000, 500
_JSONL = re.compile(r"(?P<path>.*\.jsonl(?:\.gz|\.xz)?)(?::(?P<options>[^/]*))?", re.DOTALL)
# The archive or folder that a data set comes in.
_SOURCES = {"gsm8k": "gsm8k", "svamp": "core", "mmlu": "mmlu"}
_PACKED = (".tar.xz", ".tar.gz", "")


@dataclass(frozen=True)
class Task:
    """Questions and the rule that marks responses; `test` shares no problem with `train`."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example]
    grade: Grader


def open_task(
    spec: str,
    *,
    seed: int = 0,
    data: Path | None = None,
    answer_format: AnswerFormat | None = None,
) -> Task:
    """The task that `spec` names: of those that draw their problems, of a data set, or of a file.

    Options stand behind a colon, as in `countdown:numbers=4,test=200`. Those that draw have the
    fields of their class in `procedural`, and `train` and `test`, how many examples there are;
    where there are fewer different problems to test on than that, `test` is shorter. A path of
    JSON lines of `prompt` and `gold` or `answer` has `equality` (text, rational, course); a hash
    of the prompt puts one in five into `test`. All have `answer`, one of the answer formats.

    `svamp` has nothing to train on, and `mmlu` its five examples for each subject.

    Args:
        spec: name or path, and options.
        seed: of the problems drawn.
        data: folder or archive of gsm8k, svamp and mmlu.
        answer_format: where in a response the answer is, `PROMPTS[...].answer_format` of how it
            is asked for; None is what the option `answer` says, or the task's own way.

    Raises:
        ValueError: there is no such task or option, or an option's value is out of range, or a
            file does not hold what it must.
        OSError: there is no such file.
    """
    if match := _JSONL.fullmatch(spec):
        return _open_jsonl(Path(match["path"]), match["options"] or "", answer_format)
    name, _, rest = spec.partition(":")
    options = _read_options(name, rest)
    if name in _SOURCES:
        return _open_files(name, options, data, answer_format)
    if name not in PROCEDURAL:
        names = [*PROCEDURAL, *_SOURCES]
        raise ValueError(
            f"task must be one of {', '.join(names)}, or a path of .jsonl, got {name!r:.80}"
            f"{hint_at_closest(name, names)}"
        )
    return _open_procedural(spec, name, options, seed, answer_format)


def _open_procedural(
    spec: str, name: str, options: dict[str, str], seed: int, answer_format: AnswerFormat | None
) -> Task:
    sizes = {"train": N_TRAIN, "test": N_TEST}
    for key in sizes.keys() & options.keys():
        sizes[key] = _to_type(key, options.pop(key), int)
        procedural.require_range(key, sizes[key], 1, 2**31)
    own: Any = options.pop("answer", None)
    kind = _with_options(name, options)
    train = DrawnExamples(kind, seed, sizes["train"])
    test = tuple(draw_test_examples(kind, seed, sizes["test"]))
    if not test or train.problem(0) is None:
        raise ValueError(f"{spec} leaves too few problems to train and to test on")
    own = own or ("strict" if getattr(kind, "scratchpad", False) else "whole")
    return Task(name, train, test, make_grader(answer_format or own, _check_of(kind)))


def _check_of(kind: Any) -> Check:
    match kind:
        case procedural.Countdown(use_all=use_all):
            return functools.partial(check_countdown, use_all=use_all)
        case procedural.Arithmetic() | procedural.CountLetters() | procedural.Units():
            return make_check("rational")
    return make_check("text")


def _open_files(
    name: str, options: dict[str, str], data: Path | None, answer_format: AnswerFormat | None
) -> Task:
    own: Any = _only(name, options, "answer").get("answer")
    if data is None:
        raise ValueError(f"task {name} needs data, a folder or archive that holds it, got none")
    source, check = find_source(data, _SOURCES[name]), make_check("rational")
    train: tuple[Example, ...] = ()
    if name == "gsm8k":
        own = own or "strict"
        train, test = load_gsm8k(source, "train"), load_gsm8k(source, "test")
    elif name == "svamp":
        own, test = own or "flexible", load_svamp(source)
    else:
        own, check = own or "letter", make_check("text")
        train, test = (tuple(_mmlu_examples(source, split)) for split in ("dev", "test"))
    return Task(name, train, test, make_grader(answer_format or own, check))


def _mmlu_examples(source: Path, split: Any) -> Iterator[Example]:
    questions = (one for subject in load_mmlu(source, split).values() for one in subject)
    for i, question in enumerate(questions):
        gold = LETTERS[question.gold]
        yield Example(i, mmlu_text(question), gold, f"The answer is {gold}.")


def find_source(data: Path, name: str) -> Path:
    """The archive or folder of that name at `data`, or below; else `data` itself."""
    places = [data / below / f"{name}{suffix}" for below in (".", "eval") for suffix in _PACKED]
    return next((place for place in places if place.exists()), data)


def _open_jsonl(path: Path, text: str, answer_format: AnswerFormat | None) -> Task:
    options = _only(path.name, _read_options(path.name, text), "answer", "equality")
    equality: Any = options.get("equality", "rational")
    own: Any = options.get("answer", "whole")
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in load_jsonl(path):
        side = sides[is_for_test(example.prompt)]
        side.append(replace(example, example_id=len(side)))
    check = make_check(equality, _symbolic() if equality == "course" else None)
    train, test = map(tuple, sides)
    return Task(path.name, train, test, make_grader(answer_format or own, check))


def _symbolic() -> Symbolic:
    # Loaded where it is wanted: SymPy is an extra, and most tasks compare no formulas.
    from rslm.evaluate.workers import Workers

    return Workers().equal


def _read_options(name: str, text: str) -> dict[str, str]:
    """`a=1,b=2` as a dict."""
    options: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key in options:
            raise ValueError(
                f"options of {name} must be written once each as name=value, got {part!r:.80}"
            )
        options[key] = value
    return options


def _only(name: str, given: dict[str, str], *known: str) -> dict[str, str]:
    """The options, all of them known."""
    if unknown := sorted(given.keys() - set(known)):
        raise _unknown_option(name, unknown[0], known)
    return given


def _unknown_option(name: str, given: str, known: Iterable[str]) -> ValueError:
    names = list(known)
    message = f"options of {name} are {', '.join(names)}, got {given!r:.80}"
    return ValueError(message + hint_at_closest(given, names))


def _with_options(name: str, given: dict[str, str]) -> Any:
    kind = PROCEDURAL[name]
    types = {field.name: field.type for field in fields(kind)}
    if unknown := sorted(given.keys() - types.keys()):
        raise _unknown_option(name, unknown[0], [*types, "train", "test", "answer"])
    return kind(**{key: _to_type(key, value, types[key]) for key, value in given.items()})


def _to_type(key: str, value: str, type_: Any) -> Any:
    if type_ is bool:
        if value not in ("true", "false"):
            raise ValueError(f"{key} must be true or false, got {value!r:.80}")
        return value == "true"
    if type_ is int:
        # `int` would take other scripts' digits and underscores.
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            raise ValueError(f"{key} must be a whole number, got {value!r:.80}")
        return int(value)
    return value
