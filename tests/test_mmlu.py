"""MMLU: prompts by hand, letters and texts, micro and macro."""

from dataclasses import replace

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from rslm.evaluate.continuations import Continuation, ContinuationScorer, Scores, score_plainly
from rslm.evaluate.mmlu import evaluate_mmlu
from rslm.evaluate.task_files import MmluQuestion

BYTES = tiny_tokenizer(has_chat=False)


def question(subject: str, text: str, gold: int) -> MmluQuestion:
    return MmluQuestion(subject, text, ("one", "two", "three", "four"), gold)


EXAMPLES = {"a_b": [question("a_b", " 1+1? ", 1), question("a_b", "1+2?", 2)], "c": []}
ASKED = {
    "a_b": [question("a_b", "0+1?", 0), question("a_b", "3+1?", 3)],
    "c": [question("c", "2+1?", 2)],
}


class Likes:
    """Finds continuations with one text likely; keeps what it was asked."""

    def __init__(self, text: str) -> None:
        self.text, self.seen = text, list[tuple[str, str]]()

    def score(self, wanted: list[Continuation]) -> list[Scores]:
        found = []
        for ids, first in wanted:
            before, after = (
                bytes(i for i in part if i < 256) for part in (ids[:first], ids[first:])
            )
            self.seen.append((before.decode(), after.decode()))
            found.append(Scores((0.0 if after.decode() == self.text else -1.0,), is_greedy=False))
        return found


def test_letters_behind_the_subject_and_its_examples():
    likes = Likes(" D")
    result = evaluate_mmlu(ASKED, EXAMPLES, likes, BYTES, context_length=1000)
    options = "A. one\nB. two\nC. three\nD. four\nAnswer:"
    head = "The following are multiple choice questions (with answers) about a b.\n\n"
    shots = f"1+1?\n{options} B\n\n1+2?\n{options} C\n\n"
    asked = f"{head}{shots}0+1?\n{options}"
    assert likes.seen[:4] == [(asked, f" {letter}") for letter in "ABCD"]
    assert (result.value, result.n, result.n_shots) == (pytest.approx(1 / 3), 3, 2)
    assert result.details["subjects"] == {"a_b": 0.5, "c": 0.0}
    assert result.details["mean of subjects"] == 0.25


def test_texts_of_options_without_their_list():
    likes = Likes(" three")
    result = evaluate_mmlu(
        ASKED, EXAMPLES, likes, BYTES, context_length=1000, by_text=True, n_shots=1
    )
    head = "The following are questions (with answers) about a b.\n\n"
    asked = f"{head}1+1?\nAnswer: two\n\n0+1?\nAnswer:"
    assert likes.seen[:2] == [(asked, " one"), (asked, " two")]
    assert (result.name, result.value) == ("mmlu_text", pytest.approx(1 / 3))


def test_examples_without_room_are_dropped():
    likes = Likes(" D")
    result = evaluate_mmlu(ASKED, EXAMPLES, likes, BYTES, context_length=170)
    assert result.n_shots_dropped == 2
    assert result.n_cropped == 0
    assert "1+1?" not in likes.seen[0][0]
    short = evaluate_mmlu(ASKED, EXAMPLES, Likes(" D"), BYTES, context_length=20)
    assert (short.n_shots_dropped, short.n_cropped) == (4, 3)


def test_the_fast_way_decides_as_the_plain_one():
    model = tiny_model(BYTES, context_length=256)

    class Plain:
        def score(self, wanted: list[Continuation]) -> list[Scores]:
            return score_plainly(model, wanted)

    results = [
        evaluate_mmlu(ASKED, EXAMPLES, scorer, BYTES, context_length=256, by_text=by_text)
        for by_text in (False, True)
        for scorer in (Plain(), ContinuationScorer(model))
    ]
    results = [replace(result, seconds=0) for result in results]
    assert results[0] == results[1]
    assert results[2] == results[3]


def test_a_sample_is_the_same_each_time():
    likes = Likes(" A")
    few = evaluate_mmlu(ASKED, EXAMPLES, likes, BYTES, context_length=500, max_examples=2)
    assert few.n == 2
    again = evaluate_mmlu(ASKED, EXAMPLES, likes, BYTES, context_length=500, max_examples=2)
    assert few == replace(again, seconds=few.seconds)
