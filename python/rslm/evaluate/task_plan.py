"""Tasks by name: what each reads, asks and draws, before any model answers.

Names: a task of CORE, `core` for all that are there, `mmlu`, `mmlu_text`, `gsm8k`, `svamp`,
`humaneval`, a task of `open_task` with its options, a path of JSON lines, `loss:TOKEN_FILE`,
`text:FILE`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rslm.chat import ChatFormat
from rslm.errors import hint_at_closest
from rslm.evaluate.archive import read_files
from rslm.evaluate.choice import Progress, evaluate_questions
from rslm.evaluate.continuations import ContinuationScorer
from rslm.evaluate.core import CORE_TASKS, core_files
from rslm.evaluate.evaluations import digest
from rslm.evaluate.example import Example
from rslm.evaluate.few_shot import Dialect
from rslm.evaluate.generation import GenerationOptions, Marker, evaluate_generation
from rslm.evaluate.grade import make_check, make_grader
from rslm.evaluate.humaneval import evaluate_humaneval
from rslm.evaluate.mmlu import N_SHOTS, evaluate_mmlu
from rslm.evaluate.prompts import PROMPTS, require_prompt
from rslm.evaluate.questions import Question, are_questions, read_questions
from rslm.evaluate.results import TaskResult
from rslm.evaluate.sandbox import check_sandbox
from rslm.evaluate.task_files import decoded, load_humaneval, load_mmlu
from rslm.evaluate.tasks import PROCEDURAL, find_source, open_task
from rslm.evaluate.text_loss import evaluate_text, evaluate_token_file
from rslm.infer.engine import Engine, EngineOptions
from rslm.model import Transformer
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer

SUITES = {"offline": ("core", "mmlu", "gsm8k"), "procedural": tuple(PROCEDURAL)}
_DATA_SETS = {"gsm8k": 8, "svamp": 5}
"""Questions whose answers are numbers, and how many examples are usual."""


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How tasks are asked.

    Attributes:
        data: folder with the tasks' folders or archives.
        max_examples: questions of a task, the same ones each time; None asks all.
        shots: examples before a question; None takes what is usual for the task.
        dialect: of questions with continuations.
        prompt: of questions that are answered in words; None is "plain", and for tasks that
            draw their problems "chat" where the model has a chat format.
        n_samples: answers to such a question.
        temperature: that they are drawn at.
        max_new_tokens: of such an answer.
        seed: of the draws and of the problems.

    Raises:
        ValueError: a number is out of range, or there is no such prompt.
    """

    data: Path | None = None
    max_examples: int | None = None
    shots: int | None = None
    dialect: Dialect = "gauntlet"
    prompt: str | None = None
    n_samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse to ask nothing."""
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError(f"max_examples must be at least 1, got {self.max_examples}")
        if self.shots is not None and self.shots < 0:
            raise ValueError(f"shots must be at least 0, got {self.shots}")
        if self.prompt is not None:
            require_prompt(self.prompt)
        self.generation(0)

    def generation(self, n_shots: int) -> GenerationOptions:
        """How answers in words are drawn."""
        return GenerationOptions(
            prompt=self.prompt or "plain",
            n_shots=n_shots,
            n_samples=self.n_samples,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )


class Examinee:
    """A model that is examined, and what scores and answers for it, made when it is needed.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        chat_format: how the model is talked to; None takes what its tokens suggest.
        batch_size: sequences that are computed at once.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        chat_format: ChatFormat | None = None,
        batch_size: int = 64,
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.chat_format = chat_format or ChatFormat.of(tokenizer)
        self.context_length = model.config.context_length

    @cached_property
    def scorer(self) -> ContinuationScorer:
        """Of continuations."""
        return ContinuationScorer(self.model, batch_size=self.batch_size)

    @cached_property
    def engine(self) -> Engine:
        """That writes answers."""
        return Engine(self.model, self.tokenizer, EngineOptions(max_sequences=self.batch_size))


@dataclass(frozen=True)
class PlannedTask:
    """A task that has been read.

    Attributes:
        name: of its result.
        options: what decides the result beside the model, plain data.
        run: evaluates it; told whom, and whom to tell of progress.
    """

    name: str
    options: dict[str, Any]
    run: Callable[[Examinee, Progress], TaskResult]


def plan_tasks(specs: Sequence[str], settings: EvalSettings) -> list[PlannedTask]:
    """Reads all tasks before the first is evaluated; each once, however often it is named.

    Raises:
        ValueError: there is no such task, or a file does not hold what it must.
        OSError: there is no such file.
    """
    planned: dict[str, PlannedTask] = {}
    for spec in specs:
        for task in _plan(spec, settings):
            if planned.setdefault(task.name, task).options != task.options:
                raise ValueError(f"tasks must have different names, got two of {task.name}")
    if not planned:
        raise ValueError("tasks must name at least one task, got none")
    return list(planned.values())


def _plan(spec: str, settings: EvalSettings) -> Iterator[PlannedTask]:
    kind, _, rest = spec.partition(":")
    core_names = {task.name for task in CORE_TASKS}
    if spec in SUITES:
        for name in SUITES[spec]:
            yield from _plan(name, settings)
    elif spec == "core" or spec in core_names:
        yield from _plan_core(spec, settings)
    elif spec in ("mmlu", "mmlu_text"):
        yield _plan_mmlu(spec, settings)
    elif spec == "humaneval":
        yield _plan_humaneval(settings)
    elif kind == "loss" and rest:
        yield _plan_loss(Path(rest))
    elif kind == "text" and rest:
        yield _plan_text(Path(rest))
    elif spec.endswith(".jsonl") and (questions := _own_questions(Path(spec))):
        yield _plan_questions(Path(spec).name, questions, settings, settings.shots or 0, " ")
    elif kind in PROCEDURAL or kind in _DATA_SETS or ".jsonl" in spec:
        yield _plan_words(spec, kind, settings)
    else:
        others = ["core", "mmlu", "mmlu_text", "humaneval", *_DATA_SETS, *PROCEDURAL]
        raise ValueError(
            f"tasks must be one of {', '.join(others)}, a task of core, FILE.jsonl, "
            f"loss:TOKEN_FILE or text:FILE, got {spec!r:.80}"
            f"{hint_at_closest(kind, [*others, *core_names])}"
        )


def _plan_core(spec: str, settings: EvalSettings) -> Iterator[PlannedTask]:
    files = core_files(_require_data(spec, settings))
    for task in CORE_TASKS:
        if spec not in ("core", task.name):
            continue
        if task.file in files:
            questions = read_questions(files[task.file], f"{task.file}.jsonl")
            n_shots = task.n_shots if settings.shots is None else settings.shots
            yield _plan_questions(task.name, questions, settings, n_shots, task.delimiter)
        elif spec == task.name:
            raise ValueError(f"{settings.data} must hold {task.file}.jsonl for the task {spec}")


def _plan_questions(
    name: str,
    questions: Sequence[Question],
    settings: EvalSettings,
    n_shots: int,
    delimiter: str,
) -> PlannedTask:
    options = {
        "n_shots": n_shots,
        "delimiter": delimiter,
        "dialect": settings.dialect,
        "max_examples": settings.max_examples,
    }

    def run(examinee: Examinee, progress: Progress) -> TaskResult:
        return evaluate_questions(
            name,
            questions,
            examinee.scorer,
            examinee.tokenizer,
            context_length=examinee.context_length,
            n_shots=n_shots,
            delimiter=delimiter,
            dialect=settings.dialect,
            max_examples=settings.max_examples,
            progress=progress,
        )

    return PlannedTask(name, options | {"data": digest(questions)}, run)


def _own_questions(path: Path) -> list[Question]:
    """The questions with continuations of a file; none if it is of another form."""
    ((name, content),) = read_files(path, lambda name: name == path.name)
    return read_questions(content, str(path)) if are_questions(content, name) else []


def _plan_mmlu(name: str, settings: EvalSettings) -> PlannedTask:
    source = find_source(_require_data(name, settings), "mmlu")
    questions, examples = load_mmlu(source, "test"), load_mmlu(source, "dev")
    n_shots = N_SHOTS if settings.shots is None else settings.shots
    options = {"n_shots": n_shots, "max_examples": settings.max_examples}

    def run(examinee: Examinee, progress: Progress) -> TaskResult:
        return evaluate_mmlu(
            questions,
            examples,
            examinee.scorer,
            examinee.tokenizer,
            context_length=examinee.context_length,
            by_text=name == "mmlu_text",
            n_shots=n_shots,
            max_examples=settings.max_examples,
            progress=progress,
        )

    return PlannedTask(name, options | {"data": digest((questions, examples))}, run)


def _plan_words(spec: str, kind: str, settings: EvalSettings) -> PlannedTask:
    """A task that is answered in the model's own words."""
    answer_format = None if settings.prompt is None else PROMPTS[settings.prompt].answer_format
    task = open_task(spec, seed=settings.seed, data=settings.data, answer_format=answer_format)
    takes_shots = settings.prompt in (None, "plain")
    n_shots = settings.shots
    if n_shots is None:
        n_shots = _DATA_SETS.get(kind, 0) if takes_shots else 0
    if n_shots and not takes_shots:
        raise ValueError(f"only the prompt plain takes shots, got {n_shots} and {settings.prompt}")
    if not task.test:
        raise ValueError(f"task {spec} must have questions to test on, and has none")
    options = settings.generation(n_shots)
    markers: dict[str, Marker] = {"strict" if kind == "gsm8k" else "accuracy": task.grade}
    if kind == "gsm8k" and answer_format is None:
        markers["flexible"] = make_grader("flexible", make_check("rational"))
    shots: Sequence[Example] = task.train[:64] if n_shots else ()
    prompts_by_chat = settings.prompt is None and kind in PROCEDURAL and not n_shots

    def run(examinee: Examinee, progress: Progress) -> TaskResult:
        by_chat = prompts_by_chat and examinee.chat_format.is_injection_proof
        return evaluate_generation(
            spec,
            task.test,
            shots,
            examinee.engine,
            examinee.chat_format,
            markers,
            replace(options, prompt="chat") if by_chat else options,
            max_examples=settings.max_examples,
            progress=progress,
        )

    decides = asdict(options) | {
        "prompt": settings.prompt,
        "max_examples": settings.max_examples,
        "data": digest((task.test, shots)),
    }
    return PlannedTask(spec, decides, run)


def _plan_humaneval(settings: EvalSettings) -> PlannedTask:
    problems = load_humaneval(find_source(_require_data("humaneval", settings), "humaneval"))
    check_sandbox()
    options = settings.generation(0)

    def run(examinee: Examinee, progress: Progress) -> TaskResult:
        return evaluate_humaneval(
            problems,
            examinee.engine,
            options,
            max_examples=settings.max_examples,
            progress=progress,
        )

    decides = asdict(options) | {"max_examples": settings.max_examples}
    return PlannedTask("humaneval", decides | {"data": digest(problems)}, run)


def _plan_loss(path: Path) -> PlannedTask:
    name, token_file = f"loss:{path.name}", TokenFile.open(path)

    def run(examinee: Examinee, progress: Progress) -> TaskResult:
        return evaluate_token_file(
            name,
            token_file,
            examinee.model,
            examinee.tokenizer,
            # Whole contexts: as many as sequences of other tasks would be too much memory.
            batch_size=min(examinee.batch_size, 8),
            progress=progress,
        )

    return PlannedTask(name, {"data": token_file.fingerprint}, run)


def _plan_text(path: Path) -> PlannedTask:
    name, text = f"text:{path.name}", decoded(path.read_bytes(), str(path))

    def run(examinee: Examinee, progress: Progress) -> TaskResult:
        return evaluate_text(name, text, examinee.scorer, examinee.tokenizer, progress=progress)

    return PlannedTask(name, {"data": digest(text)}, run)


def _require_data(name: str, settings: EvalSettings) -> Path:
    if settings.data is None:
        raise ValueError(f"task {name} needs data, a folder or archive that holds it, got none")
    return settings.data
