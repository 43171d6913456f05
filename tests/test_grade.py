"""Graders against responses that were made to hang them, or to be paid for nothing."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.evaluate.answers import ANSWER_FORMATS, AnswerFormat
from rslm.evaluate.equality import EQUALITIES
from rslm.evaluate.example import Example, Grade
from rslm.evaluate.grade import check_countdown, make_check, make_grader
from rslm.evaluate.tasks import open_task

QUESTION = Example(0, "What is 12 + 7, in apples of $1,000?", "19")
MANY_TAGS = "</think> <answer>" * 1000
# fmt: off
# Responses to QUESTION, none of which deserves a reward in any format.
WORTH_NOTHING = {
    "empty": "", "white space": " \n\t ", "none": "None", "null": "null", "null byte": "\x00",
    "nan": "nan", "inf": "inf", "minus inf": "-inf", "infinity": "Infinity",
    "overflow": "1e999999999", "huge power": "9**9**9**9", "huge power, LaTeX": "9^{9^{9^{9}}}",
    "factorials": "9!!!!!!", "deep brackets": "(" * 10**5 + "18" + ")" * 10**5,
    "deep fractions": "\\frac{" * 10**5, "deep boxes": "\\boxed{" * 10**5 + "18" + "}" * 10**5,
    "deep lists": "[" * 10**5, "a million digits": "1" * 10**6, "many signs": "-" * 10**5 + "18",
    "many sums": "1+" * 10**5 + "1", "many commas": "1,111" * 10**5,
    "many spaces": "1" + " " * 10**5 + "8", "many lines": "\n" * 10**5, "Arabic digits": "١٩",
    "wide digits": "１９", "digits as exponents": "¹⁹", "in circles": "⑲", "Roman": "XIX",
    "in words": "nineteen", "in two": "1 9", "in base 16": "0x13", "in two lines": "1\n9",
    "the question": "12 + 7", "the question asked": QUESTION.prompt, "a formula": "20-1",
    "formula in a box": "\\boxed{12+7}", "formula in tags": "</think> <answer>12+7</answer>",
    "code": "__import__('os').system('echo 19')", "code that ends": "exit(0)",
    "lambda": "(lambda:18)()", "format string": "{0.__class__}", "template": "{question}",
    "percent": "%s%n", "tags only": MANY_TAGS, "tags closed": MANY_TAGS + "</answer>" * 1000,
    "tags, other answer last": "</think> <answer>19</answer> <answer>18</answer>",
    "answers in one": "</think> <answer>18, 19, 20</answer>",
    "or": "</think> <answer>18 or 19</answer>",
    "an open tag": "</think> <answer>19 is what I would say if", "range": "\\boxed{1-18}",
    "box, other last": "\\boxed{19} \\boxed{18}", "boxes in one": "\\boxed{19 \\text{ or } 18}",
    "marks": "#### 18 #### 19", "marks in lines": "#### 18\n#### 19\n#### 18", "mark alone": "####",
    "next question": "18\nQuestion: what is 19?\nAnswer: 18", "surrogate": "\ud800",
    "right to left": "\u202e81", "zero width": "1\u200b8", "units alone": "apples",
    "scaled": "\\boxed{19 million}", "dozen": "</think> <answer>19 dozen</answer>",
    "not": "\\boxed{not 19}", "square": "\\boxed{19^2}", "root": "\\boxed{\\sqrt{19}}",
    "negative": "-19", "decimal": "19.0000001", "version": "19.0.1",
}
# fmt: on
# The last number is all that "flexible" looks at; these show why it is no reward to train on.
PAID_BY_FLEXIBLE = {"code", "or", "an open tag", "marks", "scaled", "dozen", "not", "root"}


@pytest.mark.parametrize("form", ANSWER_FORMATS)
@pytest.mark.parametrize("kind", WORTH_NOTHING)
def test_nothing_is_paid_for(kind: str, form: AnswerFormat):
    response, reward = WORTH_NOTHING[kind], float(form == "flexible" and kind in PAID_BY_FLEXIBLE)
    for equality in EQUALITIES:
        # Whatever gets as far as to be compared as a formula is refused there.
        check = make_check(equality, lambda *_: "timeout")
        grade = make_grader(form, check)(response, QUESTION)
        assert grade.reward == grade.answer_reward == reward, (equality, grade)


# fmt: off
PIECES = st.sampled_from([
    "</think> <answer>", "</answer>", "\\boxed{", "{", "}", "#### ", "\n", " ", "1", "98", "765",
    "0", "-", "/", ".", ",", "e", "^", "*", "(", ")", "$", "\\frac", "\\sqrt", "\\text{", " cm",
    "%", "x", "answer is ", "A", "\\", "٣", "=", "\nQuestion:",
])
# fmt: on


@given(st.lists(PIECES | st.characters(), max_size=30).map("".join))
def test_any_response_is_graded_and_none_of_chance_is_right(response: str):
    example = Example(0, "", ("987654321", "y^3"))
    for form in ANSWER_FORMATS:
        for equality in EQUALITIES:
            grade = make_grader(form, make_check(equality, lambda *_: "timeout"))
            assert grade(response, example).reason in ("wrong", "no answer", "timeout")


@pytest.mark.parametrize("form", ANSWER_FORMATS)
def test_no_response_has_no_answer(form: AnswerFormat):
    for response in (None, "", " "):
        grade = make_grader(form, make_check("text"))(response, QUESTION)
        assert grade == Grade(0.0, 0.0, 0.0, "no answer")


def test_a_right_answer_in_the_wrong_format_earns_nothing():
    grade = make_grader("r1", make_check("rational"))
    assert grade("19", QUESTION) == Grade(0.0, 0.0, 0.0, "no answer")
    assert grade("</think> <answer>18</answer>", QUESTION) == Grade(0.0, 1.0, 0.0, "wrong")
    assert grade("</think> <answer>19</answer>", QUESTION) == Grade(1.0, 1.0, 1.0, "right")


def test_any_of_the_accepted_answers_is_right():
    example = Example(0, "A half?", ("1/2", "one half", "x+1"))
    for equality, answer, reason in [
        ("rational", "0.50", "right"),
        ("rational", "one  half", "right"),
        ("text", "0.50", "wrong"),
        ("course", "1+x", "timeout"),
        ("course", "one half", "right"),
    ]:
        grade = make_grader("whole", make_check(equality, lambda *_: "timeout"))
        assert grade(answer, example).reason == reason


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="answer format must be one of whole, strict"):
        make_grader("words", make_check("text"))
    with pytest.raises(ValueError, match="equality must be one of text, rational, course"):
        make_check("about")
    with pytest.raises(ValueError, match="course needs a comparison"):
        make_check("course")


COUNTDOWN = Example(0, "", "64", numbers=(3, 5, 8, 8))


@pytest.mark.parametrize(
    ("answer", "all_used", "some_used"),
    [
        ("(3+5)*(8*8/8)", "wrong", "wrong"),  # One 8 too many.
        ("(3+5)*8", "wrong", "right"),
        ("8*8", "wrong", "right"),
        ("8*8 + 0", "wrong", "wrong"),
        ("8*8*(5-3)/(5-3)", "wrong", "wrong"),
        ("8*8*1", "wrong", "wrong"),
        ("(3+5)*8*8/8", "wrong", "wrong"),
        ("8*(5+3) = 64", "wrong", "right"),
        ("8*(5+3) = 65", "wrong", "wrong"),
        ("8*8 = 64 = 64", "wrong", "wrong"),
        ("64", "wrong", "wrong"),
        ("= 64", "wrong", "wrong"),
        ("88 - 3*5 - 8", "wrong", "wrong"),
        ("8^(5-3)", "wrong", "wrong"),
        ("8**(5-3)", "wrong", "wrong"),
        ("8(8)", "wrong", "wrong"),
        ("-(-8*8)", "wrong", "right"),
        ("8 × 8", "wrong", "right"),
        ("8.0*8", "wrong", "right"),
        ("abs(8*8)", "wrong", "wrong"),
        ("(5-3)*8 + 8*5", "wrong", "wrong"),
        ("8*8/(5-3-1)", "wrong", "wrong"),
        ("1/0", "wrong", "wrong"),
        ("", "wrong", "wrong"),
        ("(" * 10**5, "wrong", "wrong"),
        ("(8*(3+5))", "wrong", "right"),
        ("8*8 # 3 5", "wrong", "wrong"),
    ],
)
def test_countdown_uses_each_number_once(answer: str, all_used: str, some_used: str):
    assert check_countdown(answer, COUNTDOWN, use_all=True) == all_used
    assert check_countdown(answer, COUNTDOWN, use_all=False) == some_used


def test_countdown_with_every_number_is_right():
    example = Example(0, "", "80", numbers=(3, 5, 8, 2))
    for answer in ("(3+5)*(8+2)", "80 = 80", "(2+8)*(5+3) = 80"):
        assert check_countdown(answer, example, use_all=True) == (
            "wrong" if answer.startswith("80") else "right"
        )


@pytest.mark.parametrize("spec", ["arithmetic:answer=flexible", "countdown", "sort"])
def test_the_work_for_a_random_response_is_bounded(spec: str):
    task, draw = open_task(spec), random.Random(0)
    n_calls = 0

    def count(*_: object) -> None:
        nonlocal n_calls
        n_calls += 1

    worst = 0
    responses = [
        "".join(draw.choices("0123456789+-*/(){}[].,^ \\#\n$%frac<answer>", k=draw.randrange(200)))
        for _ in range(10_000 // 3)
    ]
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for response in responses:
            n_calls = 0
            task.grade(response, task.test[0])
            worst = max(worst, n_calls)
    finally:
        sys.setprofile(before)
    # Calls and returns, of 200 characters at most; the clock has no say.
    assert worst < 20_000
