"""The adapter for lm-eval, by its own program on tasks made here."""

import json
import math
import types
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from rslm.evaluate.continuations import Continuation, score_plainly
from rslm.evaluate.lm_eval import lm_eval_model
from rslm.infer.sampler import generate
from rslm.tokenizer import Tokenizer

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("lm_eval.evaluator")

TOKENIZER = tiny_tokenizer(has_chat=True)
MODEL = tiny_model(TOKENIZER, context_length=48)
END = TOKENIZER.end_of_text


@pytest.fixture
def wrapped() -> Any:
    return lm_eval_model(MODEL, TOKENIZER, batch_size=4)


def requests(*args: Any) -> list[Any]:
    return [types.SimpleNamespace(args=each) for each in args]


def plain(before: list[int], after: list[int]) -> tuple[float, bool]:
    wanted = Continuation((*before, *after)[-48:], 0)
    first = len(wanted.token_ids) - len(after)
    (score,) = score_plainly(MODEL, [Continuation(wanted.token_ids, first)])
    return sum(score.log_probs), score.is_greedy


def ids(text: str) -> list[int]:
    return TOKENIZER.encode_ordinary(text)


@pytest.mark.filterwarnings("default")
def test_a_task_of_theirs_runs(wrapped, tmp_path: Path):
    rows = [
        {"question": f"{a} and {b} make", "choices": [str(a + b), str(a * b + 7)], "label": a % 2}
        for a in range(4)
        for b in range(3)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "sums.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    found = lm_eval.simple_evaluate(
        model=wrapped, tasks=[task], bootstrap_iters=0, log_samples=False, verbosity="ERROR"
    )
    n_right = 0
    for row in rows:
        sums = [plain([END, *ids(row["question"])], ids(f" {one}"))[0] for one in row["choices"]]
        n_right += sums.index(max(sums)) == row["label"]
    assert found["results"]["sums"]["acc,none"] == pytest.approx(n_right / len(rows))


def test_likelihoods_are_those_of_whole_sequences(wrapped):
    asked = [("The cat", " sees"), ("", "A dog"), ("The cat ", "hears"), ("x" * 60, "yes")]
    found = wrapped.loglikelihood(requests(*asked), disable_tqdm=True)
    expected = [
        plain([END, *ids("The cat")], ids(" sees")),
        plain([END], ids("A dog")),
        plain([END, *ids("The cat")], ids(" hears")),
        plain(ids("x" * 60), ids("yes")),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs)


def test_a_long_text_is_scored_whole(wrapped):
    text = "the moon sees a dog; " * 6
    (found,) = wrapped.loglikelihood_rolling(requests((text,)))
    assert -found / len(text) == pytest.approx(math.log(262), abs=1)
    (short,) = wrapped.loglikelihood_rolling(requests(("the moon",)))
    assert short == pytest.approx(plain([END], ids("the moon"))[0])


def test_answers_are_greedy_and_end_where_they_are_told(wrapped):
    prompt = [END, *ids("the cat")]
    drawn = list(generate(MODEL, prompt, max_new_tokens=6, temperature=0, stop_token_ids=[END]))
    text = TOKENIZER.decode([i for i in drawn if i != END])
    options = {"max_gen_toks": 6, "do_sample": False, "temperature": 0.7, "until": []}
    assert wrapped.generate_until(requests(("the cat", options))) == [text]
    stop = text[1:3]
    until = options | {"until": [stop]}
    assert wrapped.generate_until(requests(("the cat", until))) == [text[: text.index(stop)]]


def test_special_tokens_stay_text_until_a_template_is_asked_for(wrapped):
    assert wrapped.tok_encode("<|user|>") == [END, *ids("<|user|>")]
    text = wrapped.apply_chat_template([{"role": "user", "content": "hi"}])
    token_ids = wrapped.tok_encode(text)
    assert TOKENIZER.special_tokens["<|user|>"] in token_ids
    assert TOKENIZER.decode(token_ids) == text


def test_a_tokenizer_without_end_of_text_is_refused():
    bare = Tokenizer({i: bytes([i]) for i in range(256)}, [], [])
    with pytest.raises(ValueError, match=r"must have <\|endoftext\|>"):
        lm_eval_model(MODEL, bare)
