"""Prompts of both dialects, by hand; what is dropped and cropped."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from rslm.evaluate.few_shot import Asked, Dialect, ask, choose_examples, cropped, draw_shots
from rslm.evaluate.questions import Question
from rslm.tokenizer import Tokenizer

BYTES = tiny_tokenizer(has_chat=False)
END = BYTES.end_of_text
CHOICE = Question("choice", (" Why? ",), ("so", " because"), 1)
SHOT = Question("choice", ("How? ",), ("thus", "else"), 0)
SCHEMA = Question("schema", ("The cat", "The dog"), ("barks. ",), 1)
LANGUAGE = Question("language", ("two and",), (" three",))


def shown(asked: Asked) -> list[tuple[str, str]]:
    """Text before and of each scored continuation; `$` is end of text."""

    def text(ids: tuple[int, ...]) -> str:
        return "".join("$" if i == END else chr(i) for i in ids)

    return [(text(ids[:first]), text(ids[first:])) for ids, first in asked.options]


def asked(question: Question, *shots: Question, dialect: Dialect, **options: Any) -> Asked:
    options = {"delimiter": " ", "context_length": 1000, **options}
    return ask(BYTES, question, shots, dialect=dialect, **options)


def test_gauntlet_strips_and_joins_with_a_line_end():
    found = asked(CHOICE, SHOT, SHOT, dialect="gauntlet", delimiter="\nA: ")
    before = "$How?\nA: thus\nHow?\nA: thus\nWhy?\nA:"
    assert shown(found) == [(before, " so"), (before, " because")]
    assert shown(asked(CHOICE, dialect="gauntlet")) == [("$Why?", " so"), ("$Why?", " because")]


def test_gauntlet_scores_what_follows_each_context():
    found = asked(SCHEMA, SCHEMA, dialect="gauntlet")
    before = "$The dog barks.\nThe "
    assert shown(found) == [(f"{before}cat", " barks."), (f"{before}dog", " barks.")]
    assert shown(asked(LANGUAGE, dialect="gauntlet")) == [("$two and", " three")]


def test_nanochat_scores_from_where_options_differ():
    found = asked(CHOICE, SHOT, dialect="nanochat", delimiter="\nA: ")
    before = "$How? \nA: thus\n\n Why? \nA: "
    assert shown(found) == [(before, "so"), (before, " because")]
    shared = Question("choice", ("q",), ("sun", "son"), 0)
    assert shown(asked(shared, dialect="nanochat")) == [("$q s", "un"), ("$q s", "on")]


def test_nanochat_scores_an_option_that_begins_another():
    begun = Question("choice", ("q",), ("a", "ab"), 0)
    assert shown(asked(begun, dialect="nanochat")) == [("$q ", "a"), ("$q a", "b")]


def test_nanochat_scores_the_common_end_of_a_schema():
    found = shown(asked(Question("schema", ("a cat", "a rat"), ("x",), 0), dialect="nanochat"))
    assert found == [("$a c", "at x"), ("$a r", "at x")]


def test_nanochat_language_is_scored_behind_the_stripped_prompt():
    question = Question("language", (" two and ",), ("three",))
    assert shown(asked(question, dialect="nanochat")) == [("$two and", " three")]


@pytest.mark.parametrize("dialect", ["gauntlet", "nanochat"])
def test_whole_shots_are_dropped_before_the_question_is_cropped(dialect: Dialect):
    other = Question("choice", ("Who? ",), ("me", "it"), 0)
    whole = asked(CHOICE, other, SHOT, dialect=dialect)
    longest = max(len(ids) for ids, _ in whole.options)
    assert (whole.n_dropped, whole.is_cropped) == (0, False)
    assert asked(CHOICE, other, SHOT, dialect=dialect, context_length=longest) == whole
    less = asked(CHOICE, other, SHOT, dialect=dialect, context_length=longest - 1)
    assert (less.n_dropped, less.is_cropped) == (1, False)
    assert less.options == asked(CHOICE, SHOT, dialect=dialect).options
    alone = asked(CHOICE, dialect=dialect)
    length = max(len(ids) for ids, _ in alone.options) - 2
    least = asked(CHOICE, SHOT, SHOT, dialect=dialect, context_length=length)
    assert (least.n_dropped, least.is_cropped, least.is_cut) == (2, True, False)
    for (ids, first), (kept, kept_first) in zip(alone.options, least.options, strict=True):
        assert (kept, kept_first) == (ids[2:], first - 2)


def test_an_option_longer_than_the_context_loses_its_begin():
    found = asked(LANGUAGE, dialect="gauntlet", context_length=4)
    assert found.is_cut
    assert shown(found) == [("h", "ree")]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    st.integers(1, 14),
)
def test_cropped_options_fit_and_keep_their_ends(sizes: list[tuple[int, int]], length: int):
    options = [(list(range(a + b)), a) for a, b in sizes]
    for (ids, first), (kept, kept_first) in zip(
        options, cropped(options, 0, length).options, strict=True
    ):
        assert len(kept) <= length
        assert kept == tuple(ids[-len(kept) :])
        if len(kept) > 1:
            assert 1 <= kept_first < len(kept)
            # What is scored is the continuation, or as much of its end as there is room for.
            assert len(kept) - kept_first == min(len(ids) - first, len(kept) - 1)


def test_an_empty_prompt_follows_end_of_text_or_some_id():
    empty = Question("choice", ("",), ("a", "b"), 0)
    assert shown(asked(empty, dialect="gauntlet")) == [("$", " a"), ("$", " b")]
    without = Tokenizer({i: bytes([i]) for i in range(256)}, [], [])
    for dialect in ("gauntlet", "nanochat"):
        found = ask(without, empty, [], delimiter="", dialect=dialect, context_length=9)
        assert [ids[0] for ids, _ in found.options] == [0, 0]
        assert [first for _, first in found.options] == [1, 1]


@pytest.mark.parametrize("dialect", ["gauntlet", "nanochat"])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_shots_are_others_and_all_different(n: int, dialect: Dialect):
    drawn = list(draw_shots(n, 10, dialect))
    assert len(drawn) == n
    for number, shots in enumerate(drawn):
        assert number not in shots
        assert len(set(shots)) == len(shots) == min(10, n - 1)
    assert drawn == list(draw_shots(n, 10, dialect))


def test_shots_are_those_of_the_dialects():
    """Once more as the two programs do it: one generator, or one for each shuffled place."""
    rng, expected = random.Random(1234), []
    for number in range(50):
        drawn = set(rng.sample(range(50), 3))
        if number in drawn:
            drawn.remove(number)
            other = rng.choice(range(50))
            while other in drawn or other == number:
                other = rng.choice(range(50))
            drawn.add(other)
        expected.append(list(drawn))
    assert list(draw_shots(50, 3, "gauntlet")) == expected
    order = list(range(50))
    random.Random(1337).shuffle(order)
    found = list(draw_shots(50, 3, "nanochat"))
    for place, number in enumerate(order):
        others = [i for i in range(50) if i != place]
        assert found[number] == [order[i] for i in random.Random(1234 + place).sample(others, 3)]


def test_chosen_examples_are_the_same_each_time_and_grow():
    assert choose_examples(5, None) == choose_examples(5, 9) == [0, 1, 2, 3, 4]
    few, more = choose_examples(100, 10), choose_examples(100, 30)
    assert few == choose_examples(100, 10) == sorted(few)
    assert set(few) < set(more)
