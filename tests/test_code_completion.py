"""HumanEval as a task, on problems of its form, judged in the sandbox."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from rslm.evaluate.code_completion import evaluate_humaneval
from rslm.evaluate.generation import GenerationOptions
from rslm.evaluate.sandbox import check_sandbox
from rslm.evaluate.task_files import CodeProblem, load_humaneval
from rslm.infer.engine import Engine

TOKENIZER = tiny_tokenizer(has_chat=False)
NAMES = ["double", "triple", "halve"]
RESULTS = ["2 * x", "3 * x", "x / 2"]


def write_problems(folder: Path) -> Path:
    rows = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'def {name}(x):\n    """{name}"""\n',
            "entry_point": name,
            "test": f"def check(f):\n    assert f(4) == {result.replace('x', '4')}\n",
            "canonical_solution": f"    return {result}\n",
        }
        for i, (name, result) in enumerate(zip(NAMES, RESULTS, strict=True))
    ]
    path = folder / "HumanEval.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> tuple[CodeProblem, ...]:
    return load_humaneval(write_problems(tmp_path))


@pytest.fixture
def engine() -> Engine:
    try:
        check_sandbox()
    except OSError as error:
        pytest.skip(f"the sandbox cannot be closed here: {error}")
    return Engine(tiny_model(TOKENIZER, context_length=128), TOKENIZER)


def writes(engine: Engine, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets the engine give these texts in turn; the prompts and parameters that it was given."""
    seen: list[Any] = []
    generate = engine.generate

    def given(prompts: Any, parameters: Any) -> Any:
        seen.extend(zip(prompts, parameters, strict=True))
        drawn = generate(prompts, parameters)
        return [replace(one, text=text) for one, text in zip(drawn, texts, strict=True)]

    monkeypatch.setattr(engine, "generate", given)
    return seen


def test_right_and_wrong_completions(problems, engine, monkeypatch):
    texts = ["    return 2 * x\n", "    return x\n", "    return x / 2\n\nprint('more')\n"]
    seen = writes(engine, texts, monkeypatch)
    result = evaluate_humaneval(problems, engine, GenerationOptions(max_new_tokens=4))
    assert (result.name, result.n, result.metric) == ("humaneval", 3, "accuracy")
    assert result.value == pytest.approx(2 / 3)
    assert result.details == {"failed": 1, "passed": 2}
    ids, parameters = seen[0]
    assert ids == [TOKENIZER.end_of_text, *TOKENIZER.encode_ordinary(problems[0].prompt)]
    assert "\ndef" in parameters.stop


def test_several_samples_give_pass_at_k(problems, engine, monkeypatch):
    right, wrong = "    return 2 * x\n", "    return None\n"
    writes(engine, [right, wrong, wrong, wrong, wrong, wrong], monkeypatch)
    options = GenerationOptions(n_samples=2, temperature=1.0, max_new_tokens=4)
    result = evaluate_humaneval(problems, engine, options)
    assert result.value == pytest.approx(1 / 6)
    assert result.details["pass@2"] == pytest.approx(1 / 3)
    assert result.details["failed"] == 5
