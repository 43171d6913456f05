"""Questions that are answered in the model's own words, and the marks of the answers."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rslm.chat import ChatFormat
from rslm.evaluate.choice import Progress
from rslm.evaluate.example import Example, Grade
from rslm.evaluate.few_shot import choose_examples, draw_shots
from rslm.evaluate.pass_at_k import mean_pass_at_k
from rslm.evaluate.prompts import BuiltPrompt, build_prompt
from rslm.evaluate.results import TaskResult, mean_and_error, with_errors
from rslm.infer.engine import Engine
from rslm.infer.parameters import Completion, SamplingParameters

Marker = Callable[[str, Example], Grade]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How answers are drawn.

    Attributes:
        prompt: one of `PROMPTS`.
        n_shots: answered examples before each question; only "plain" takes some.
        n_samples: answers to each question.
        temperature: 0 takes the likeliest token each time.
        max_new_tokens: of an answer. A model whose context has no room for so many and a prompt
            gives at least half of it to the prompt.
        seed: of the draws; those of a question do not depend on which others are asked.

    Raises:
        ValueError: a number is out of range, or several equal answers were to be drawn.
    """

    prompt: str = "plain"
    n_shots: int = 0
    n_samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        for name in ("n_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_shots < 0:
            raise ValueError(f"n_shots must be at least 0, got {self.n_shots}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if self.n_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"n_samples above 1 needs a temperature above 0, got {self.n_samples} and 0"
            )


@dataclass(frozen=True)
class Responses:
    """The answers to the questions that were asked.

    Attributes:
        examples: the questions.
        completions: of each question `n_samples`.
        n_shots_dropped: examples that the context had no room for.
        n_cropped: questions of which the begin was cut.
    """

    examples: Sequence[Example]
    completions: Sequence[Sequence[Completion]]
    n_shots_dropped: int
    n_cropped: int

    @property
    def n_truncated(self) -> int:
        """Answers that ended because of their length."""
        return sum(one.finish_reason == "length" for own in self.completions for one in own)


def respond(
    engine: Engine,
    examples: Sequence[Example],
    build: Callable[[Example, int], BuiltPrompt],
    options: GenerationOptions,
    *,
    progress: Progress = lambda done, n: None,
) -> Responses:
    """Draws the answers to some questions.

    Args:
        engine: of the model.
        examples: the questions.
        build: makes the prompt of a question without so many of its shots, the earliest first.
        options: how to draw.
        progress: told what is done.
    """
    context_length = engine.model.config.context_length
    room = context_length - min(options.max_new_tokens, context_length // 2)
    n_dropped = n_cropped = 0
    completions: list[list[Completion]] = []
    at_once = 4 * engine.options.max_sequences
    for start in range(0, len(examples), at_once):
        prompts, parameters = [], []
        for example in examples[start : start + at_once]:
            dropped, built = _fitting(example, build, options.n_shots, room)
            n_dropped += dropped
            n_cropped += len(built.token_ids) > room
            prompts.append(built.token_ids[-room:])
            parameters.append(_parameters(built, example, options))
        found = iter(engine.generate(prompts, parameters))
        completions += [[next(found) for _ in range(options.n_samples)] for _ in prompts]
        progress(len(completions), len(examples))
    return Responses(examples, completions, n_dropped, n_cropped)


def _fitting(
    example: Example, build: Callable[[Example, int], BuiltPrompt], n_shots: int, room: int
) -> tuple[int, BuiltPrompt]:
    """The prompt with as many shots as there is room for, and how many that leaves out."""
    for n_dropped in range(n_shots + 1):
        built = build(example, n_dropped)
        if len(built.token_ids) <= room:
            break
    return n_dropped, built


def _parameters(
    built: BuiltPrompt, example: Example, options: GenerationOptions
) -> SamplingParameters:
    key = f"{options.seed} {example.example_id}".encode()
    return SamplingParameters(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        stop=built.stop,
        stop_token_ids=built.stop_token_ids,
        keep_stop=built.keep_stop,
        seed=int.from_bytes(hashlib.blake2b(key, digest_size=6, person=b"evaluate").digest()),
        n=options.n_samples,
    )


def evaluate_generation(
    name: str,
    examples: Sequence[Example],
    shots: Sequence[Example],
    engine: Engine,
    chat_format: ChatFormat,
    markers: Mapping[str, Marker],
    options: GenerationOptions,
    *,
    max_examples: int | None = None,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """The share of right answers; with several a question also pass@k.

    Args:
        name: of the task.
        examples: the questions; those that are asked keep their draws whichever others are.
        shots: what examples before a question are taken from, the same for all; where there are
            none, from the other questions.
        engine: of the model.
        chat_format: how the model is talked to.
        markers: rules that mark an answer, by name; the first gives the score, the others stand
            in `details`.
        options: how to ask and draw.
        max_examples: questions to ask, the same ones each time; None asks all.
        progress: told what is done.
    """
    started = time.perf_counter()
    chosen = choose_examples(len(examples), max_examples)
    own = _own_shots(examples, shots, options.n_shots)

    def build(example: Example, n_dropped: int) -> BuiltPrompt:
        before = own[example.example_id][n_dropped:]
        return build_prompt(options.prompt, example, chat_format, shots=before)

    responses = respond(
        engine, [examples[number] for number in chosen], build, options, progress=progress
    )
    marks = {key: list(_marks(responses, marker)) for key, marker in markers.items()}
    n_unparsed = sum(
        grade.reason == "no answer"
        for own_marks in next(iter(marks.values()))
        for grade in own_marks
    )
    rewards = {
        key: [[grade.answer_reward for grade in of_one] for of_one in of_all]
        for key, of_all in marks.items()
    }
    n_shots = max((len(before) for before in own.values()), default=0)
    return result_of(
        name, rewards, responses, n_shots=n_shots, n_unparsed=n_unparsed, started=started
    )


def _own_shots(
    examples: Sequence[Example], shots: Sequence[Example], n_shots: int
) -> dict[int, list[Example]]:
    """The examples of each question, by its id."""
    if shots and n_shots:
        # A fixed few, and the same for all questions: the engine reads them once.
        few = [shots[number] for number in choose_examples(len(shots), n_shots)]
        return {example.example_id: few for example in examples}
    drawn = draw_shots(len(examples), n_shots, "gauntlet")
    return {
        example.example_id: [examples[number] for number in numbers]
        for example, numbers in zip(examples, drawn, strict=True)
    }


def _marks(responses: Responses, marker: Marker) -> Iterator[list[Grade]]:
    for example, own in zip(responses.examples, responses.completions, strict=True):
        yield [marker(one.text, example) for one in own]


def result_of(
    name: str,
    rewards: Mapping[str, Sequence[Sequence[float]]],
    responses: Responses,
    *,
    n_shots: int,
    n_unparsed: int,
    started: float,
) -> TaskResult:
    """The result of answers whose rewards are known, by rule, question and sample."""
    first, n_samples = next(iter(rewards)), len(responses.completions[0])
    scores = {
        key: mean_and_error([sum(own) / len(own) for own in of_all])
        for key, of_all in rewards.items()
    }
    counts = [(len(own), round(sum(own))) for own in rewards[first]]
    at_k = [2**i for i in range(1, n_samples.bit_length())]
    scores |= {f"pass@{k}": mean_pass_at_k(counts, k) for k in {*at_k, n_samples} - {1}}
    value, error = scores.pop(first)
    return TaskResult(
        name=name,
        metric="pass@1" if n_samples > 1 else first,
        value=value,
        stderr=error,
        n=len(counts),
        n_shots=n_shots,
        n_shots_dropped=responses.n_shots_dropped,
        n_cropped=responses.n_cropped,
        n_unparsed=n_unparsed,
        n_truncated=responses.n_truncated,
        seconds=time.perf_counter() - started,
        details=with_errors(scores),
    )
