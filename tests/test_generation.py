"""Answers in words: prompts that fit, draws that depend on the question alone, marks."""

from dataclasses import replace
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from rslm.chat import ChatFormat
from rslm.evaluate.example import Example, Grade
from rslm.evaluate.generation import GenerationOptions, Responses, evaluate_generation, respond
from rslm.evaluate.prompts import build_prompt
from rslm.infer.engine import Engine, EngineOptions

TOKENIZER = tiny_tokenizer(has_chat=True)
MODEL = tiny_model(TOKENIZER, context_length=200)
CHAT = ChatFormat.of(TOKENIZER)
EXAMPLES = [Example(i, f"What is {i} + {i}?", str(2 * i)) for i in range(12)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(MODEL, TOKENIZER, EngineOptions(max_sequences=3))


def drawn(engine: Engine, examples: list[Example], **options: Any) -> Responses:
    made = GenerationOptions(**{"max_new_tokens": 8, **options})
    build = lambda example, n_dropped: build_prompt("plain", example, CHAT)  # noqa: E731
    return respond(engine, examples, build, made)


def texts(responses: Responses) -> list[list[str]]:
    return [[one.text for one in own] for own in responses.completions]


def test_draws_depend_on_seed_and_question_alone(engine):
    options = {"temperature": 1.0, "n_samples": 3}
    found = texts(drawn(engine, EXAMPLES, **options))
    assert texts(drawn(engine, EXAMPLES[4:7], **options)) == found[4:7]
    assert all(len(set(own)) == 3 for own in found)
    assert texts(drawn(engine, EXAMPLES, seed=1, **options)) != found
    equal = texts(drawn(engine, [replace(EXAMPLES[0], example_id=i) for i in range(4)], **options))
    assert len({text for own in equal for text in own}) == 12


def test_long_prompts_lose_shots_and_then_their_begin(engine):
    def build(example: Example, n_dropped: int):
        return build_prompt("plain", example, CHAT, shots=EXAMPLES[:3][n_dropped:])

    n_whole = len(build(EXAMPLES[5], 0).token_ids)
    n_less = len(build(EXAMPLES[5], 1).token_ids)
    # An answer may take half of the context, no more.
    assert 100 < n_less < n_whole
    assert len(build(EXAMPLES[5], 2).token_ids) < 100
    for n_new, n_dropped in [(200 - n_whole, 0), (201 - n_whole, 1), (1000, 2)]:
        options = GenerationOptions(n_shots=3, max_new_tokens=n_new)
        found = respond(engine, [EXAMPLES[5]], build, options)
        assert (found.n_shots_dropped, found.n_cropped) == (n_dropped, 0)
    long = Example(0, "x" * 100, "y")
    found = respond(engine, [long], build, GenerationOptions(n_shots=3, max_new_tokens=1000))
    assert (found.n_shots_dropped, found.n_cropped) == (3, 1)
    assert found.completions[0][0].prompt_ids == tuple(build(long, 3).token_ids[-100:])


def mark_length(response: str | None, example: Example) -> Grade:
    """Right are the answers to even questions, no answer those to the first."""
    if example.example_id == 0:
        return Grade(0.0, 0.0, 0.0, "no answer")
    right = float(example.example_id % 2 == 0)
    return Grade(right, 1.0, right, "right" if right else "wrong")


def test_the_score_of_greedy_answers(engine):
    always = Grade(1.0, 1.0, 1.0, "right")
    result = evaluate_generation(
        "sums",
        EXAMPLES,
        EXAMPLES,
        engine,
        CHAT,
        {"strict": mark_length, "flexible": lambda response, example: always},
        GenerationOptions(n_shots=1, max_new_tokens=4),
    )
    assert (result.metric, result.n, result.n_shots) == ("strict", 12, 1)
    assert result.value == pytest.approx(5 / 12)
    assert (result.n_unparsed, result.n_truncated) == (1, 12)
    assert result.details == {"flexible": 1.0, "flexible_stderr": 0.0}


def test_several_answers_give_pass_at_k(engine):
    seen: dict[int, int] = {}

    def first_is_right(response: str | None, example: Example) -> Grade:
        n = seen[example.example_id] = seen.get(example.example_id, 0) + 1
        right = float(n == 1 and example.example_id % 2 == 0)
        return Grade(right, 1.0, right, "right" if right else "wrong")

    result = evaluate_generation(
        "sums",
        EXAMPLES,
        [],
        engine,
        CHAT,
        {"accuracy": first_is_right},
        GenerationOptions(n_samples=6, temperature=1.0, max_new_tokens=4),
    )
    assert result.metric == "pass@1"
    assert result.value == pytest.approx(0.5 / 6)
    # Of six answers to each second question one is right.
    assert [result.details[f"pass@{k}"] for k in (2, 4, 6)] == pytest.approx([1 / 6, 1 / 3, 0.5])
    assert result.details["pass@6_stderr"] == pytest.approx(0.5 * (1 / 11) ** 0.5)


def test_without_examples_of_their_own_questions_serve_each_other(engine, monkeypatch):
    seen = []
    generate = engine.generate

    def watched(prompts, parameters):
        seen.extend(TOKENIZER.decode(list(ids)) for ids in prompts)
        return generate(prompts, parameters)

    monkeypatch.setattr(engine, "generate", watched)
    options = GenerationOptions(n_shots=2, max_new_tokens=4)
    asked = (EXAMPLES, [], engine, CHAT, {"accuracy": mark_length}, options)
    evaluate_generation("sums", *asked)
    for example, prompt in zip(EXAMPLES, seen, strict=True):
        assert prompt.count("Question:") == 3
        assert prompt.count(f"Question: {example.prompt}\n") == 1
        assert prompt.endswith(f"Question: {example.prompt}\nAnswer:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"n_shots": -1}, "n_shots must be at least 0"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"n_samples": 2}, "n_samples above 1 needs a temperature above 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)
