"""Questions read from JSON lines, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.errors import FormatError
from rslm.evaluate.questions import Question, are_questions, read_questions

CHOICE = {"query": "Two and two are", "choices": ["three", "four"], "gold": 1}
SCHEMA = {"context_options": ["The cat", "The dog"], "continuation": "barks.", "gold": 1}
LANGUAGE = {"context": "Two and two are", "continuation": "four"}


def lines(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_each_kind_is_read():
    (choice,) = read_questions(lines(CHOICE | {"category": "sums"}), "a")
    assert choice == Question("choice", ("Two and two are",), ("three", "four"), 1)
    assert choice.answered == ("Two and two are", "four")
    (schema,) = read_questions(lines(SCHEMA), "a")
    assert schema.pairs == [("The cat", "barks."), ("The dog", "barks.")]
    assert schema.answered == ("The dog", "barks.")
    (language,) = read_questions(lines(LANGUAGE), "a")
    assert language == Question("language", ("Two and two are",), ("four",))


def test_contexts_may_be_empty_and_options_begin_alike():
    (question,) = read_questions(lines({"query": "", "choices": ["a", "ab"], "gold": 0}), "a")
    assert question.contexts == ("",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (CHOICE | {"gold": 2}, "gold must be a whole number from 0 to 1, got 2"),
        (CHOICE | {"gold": -1}, "got -1"),
        (CHOICE | {"gold": True}, "got True"),
        (CHOICE | {"gold": "1"}, "got '1'"),
        (CHOICE | {"gold": 1.0}, "got 1.0"),
        (CHOICE | {"choices": ["one"]}, "choices must be a list of 2 to 1000 texts"),
        (CHOICE | {"choices": ["x"] * 1001}, "choices must be a list of 2 to 1000 texts"),
        (CHOICE | {"choices": "ab"}, "choices must be a list"),
        (CHOICE | {"choices": ["a", ""]}, "choices must be text that is not empty, got ''"),
        (CHOICE | {"choices": ["a", " \n"]}, "not empty"),
        (CHOICE | {"choices": ["a", None]}, "got None"),
        (CHOICE | {"query": 7}, "query must be text, got 7"),
        (CHOICE | {"query": "x" * (1 << 21)}, "query must have at most 1048576 characters"),
        (CHOICE | {"query": "\ud800"}, "half a surrogate pair"),
        (SCHEMA | {"continuation": " "}, "continuation must be text that is not empty"),
        (SCHEMA | {"context_options": {}}, "context_options must be a list"),
        (LANGUAGE | {"context": ["a"]}, "context must be text"),
        ({"question": "?"}, "must have the keys of one kind"),
        ([1, 2], "must be a JSON object"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_number(row: object, message: str):
    good = CHOICE if not isinstance(row, dict) or "context" not in row else LANGUAGE
    with pytest.raises(FormatError, match=r"^tasks\.jsonl: line 3: ") as caught:
        read_questions(lines(good) + b"\n\n" + lines(row), "tasks.jsonl")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_lines_must_be_of_one_kind():
    with pytest.raises(FormatError, match="line 2: all lines must be of the kind of the first"):
        read_questions(lines(CHOICE, SCHEMA), "a")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_json_is_refused(content: bytes):
    with pytest.raises(FormatError):
        read_questions(content, "a")


def test_other_rows_are_told_apart():
    assert are_questions(lines(CHOICE), "a")
    assert not are_questions(lines({"prompt": "2+2", "gold": "4"}), "a")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*CHOICE, *SCHEMA, *LANGUAGE]), inner, max_size=5)
        ),
    )
)
def test_any_json_is_read_or_refused(row: object):
    try:
        (question,) = read_questions(lines(row), "a")
    except FormatError:
        return
    assert 0 <= question.gold < len(question.pairs)
