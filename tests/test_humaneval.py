"""HumanEval on problems of its form: what passes, what does not, and the task's result."""

from dataclasses import replace
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from rslm.evaluate.generation import GenerationOptions
from rslm.evaluate.humaneval import evaluate_code, evaluate_humaneval, truncate_completion
from rslm.evaluate.sandbox import check_sandbox
from rslm.evaluate.task_files import CodeProblem
from rslm.infer.engine import Engine

# The tests' own bound against a machine that is busy.
LONG = 120.0

ADD = CodeProblem(
    "Mini/0",
    'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """ The sum. """\n',
    "add",
    "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert add(-1, 1) == 0\n",
    "    return a + b\n",
)
# As in three problems of HumanEval, the test calls a helper that the prompt defines.
DECODE = CodeProblem(
    "Mini/1",
    "def encode(text: str) -> str:\n    return text[::-1]\n\n\n"
    'def decode(text: str) -> str:\n    """ Undoes encode. """\n',
    "decode",
    "METADATA = {}\n\n\ndef check(candidate):\n"
    "    for text in ['', 'a', 'abc']:\n        assert candidate(encode(text)) == text\n",
    "    return text[::-1]\n",
)
LENGTHS = CodeProblem(
    "Mini/2",
    'def lengths(words: list) -> dict:\n    """ Word -> length. """\n',
    "lengths",
    "def check(candidate):\n    assert candidate(['a', 'bc']) == {'a': 1, 'bc': 2}\n"
    "    assert candidate([]) == {}\n",
    "    return {word: len(word) for word in words}\n",
)
PROBLEMS = [ADD, DECODE, LENGTHS]
TOKENIZER = tiny_tokenizer(has_chat=False)


@pytest.fixture(scope="module")
def walls() -> None:
    try:
        check_sandbox()
    except OSError as error:
        pytest.skip(str(error))


def statuses(problems: list[CodeProblem], completions: list[str]) -> list[str]:
    results = evaluate_code(problems, completions, timeout_seconds=LONG, n_workers=2)
    return [result.status for result in results]


def test_solutions_pass_and_others_do_not(walls: None) -> None:
    assert statuses(PROBLEMS, [problem.solution for problem in PROBLEMS]) == ["passed"] * 3
    assert statuses(PROBLEMS, ["    pass\n"] * 3) == ["failed"] * 3
    assert statuses([ADD] * 3, ["    return a - b", "    return a +", ""]) == ["failed"] * 3


def test_completion_cannot_change_what_tests_call(walls: None) -> None:
    cheat = "    return text\n\nencode = lambda text: text\n"
    assert statuses([DECODE], [cheat]) == ["failed"]
    early = "    pass\nimport sys\nsys.exit(0)\n"
    assert statuses([DECODE], [early]) == ["failed"]


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="as many as problems, got 1 and 3"):
        evaluate_code(PROBLEMS, [""])


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 1\n", "    return 1\n"),
        ("    return 1\n\n\ndef g():\n    pass", "    return 1\n\n"),
        ("    x = 1\n    if x:\n        print(x)\n    # c\n    return x", None),
        ("    return 1\n#", "    return 1"),
        ("    return 1\nprint(1)\nclass A: pass", "    return 1"),
        ("\nif True: pass", ""),
        ("", ""),
    ],
)
def test_completion_is_cut_outside_the_function(completion: str, kept: str | None) -> None:
    assert truncate_completion(completion) == (completion if kept is None else kept)


@pytest.fixture
def engine(walls: None) -> Engine:
    return Engine(tiny_model(TOKENIZER, context_length=256), TOKENIZER)


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


def test_right_and_wrong_completions(engine: Engine, monkeypatch) -> None:
    texts = [ADD.solution, "    return text\n", f"{LENGTHS.solution}\nprint('more')\n"]
    seen = writes(engine, texts, monkeypatch)
    result = evaluate_humaneval(PROBLEMS, engine, GenerationOptions(max_new_tokens=4))
    assert (result.name, result.n, result.metric) == ("humaneval", 3, "accuracy")
    assert result.value == pytest.approx(2 / 3)
    assert result.details == {"failed": 1, "passed": 2}
    ids, parameters = seen[0]
    assert ids == [TOKENIZER.end_of_text, *TOKENIZER.encode_ordinary(ADD.prompt)]
    assert "\ndef" in parameters.stop


def test_several_samples_give_pass_at_k(engine: Engine, monkeypatch) -> None:
    wrong = "    return None\n"
    writes(engine, [ADD.solution, wrong, wrong, wrong, wrong, wrong], monkeypatch)
    options = GenerationOptions(n_samples=2, temperature=1.0, max_new_tokens=4)
    result = evaluate_humaneval(PROBLEMS, engine, options)
    assert result.value == pytest.approx(1 / 6)
    assert result.details["pass@2"] == pytest.approx(1 / 3)
    assert (result.details["passed"], result.details["failed"]) == (1, 5)
