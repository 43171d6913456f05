from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.evaluate.answers import ANSWER_FORMATS, extract, letter
from rslm.evaluate.equality import course_equal, normalise, parse_rational, rational_equal


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so\n#### 72", "72"),
        # nanochat's pattern gives "10." for the first, and nothing for the second.
        ("#### 10.", "10."),
        ("#### $10", "$10"),
        ("####-5\nmore", "-5"),
        ("#### 5\n\nQuestion: next?\n#### 7", "5"),
        ("#### 1 #### 2", "1 #### 2"),
        ("### 5", None),
        ("5", None),
        ("####", None),
        ("", None),
    ],
)
def test_strict_takes_what_follows_the_first_mark(response: str, answer: str | None):
    assert extract(response, "strict") == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        # lm-eval's pattern gives ".." for the first, 4 for the second and 3 for the third.
        ("ok .. done", None),
        ("it is 3/4", "3/4"),
        ("it is 1e3", "1e3"),
        ("5\n\nQuestion: what is 7?", "5"),
        ("5\nQ: and 8", "5"),
        ("10.", "10"),
        ("$1,234.50 in all", "$1,234.50"),
        ("5-3", "3"),
        ("= -3", "-3"),
        ("(4) - (5)", "5"),
        ("12 apples", "12"),
        ("1.2.3", None),
        ("1,2,3", None),
        ("x2 and CO2", None),
        ("٣ or ３ or ½", None),
        ("12%", "12"),
        ("no number", None),
        ("", None),
    ],
)
def test_flexible_takes_the_last_number(response: str, answer: str | None):
    assert extract(response, "flexible") == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so </think> <answer> 5 </answer>", "5"),
        (r"so </think> <answer>\boxed{5}</answer>", "5"),
        (r"so </think> <answer>is \boxed{5</answer>", None),
        ("so </think>  <answer>5</answer>", None),  # Two spaces.
        ("so </think><answer>5</answer>", None),
        ("so <answer>5</answer>", None),
        ("so </think> <answer>5", None),
        ("so </think> <answer>5</answer> <answer>6", None),
        ("so </think> <answer>5</answer> <answer>6</answer>", "6"),
        ("</think> <answer>5</answer></answer>", "5"),
        ("</think> <answer></answer>", None),
        ("</think> <answer>5</answer> or 6", "5 or 6"),
        ("", None),
    ],
)
def test_r1_takes_the_last_answer_in_the_literal_format(response: str, answer: str | None):
    assert extract(response, "r1") == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed {5}", "5"),
        (r"}}} \boxed{5} {{{", "5"),
        (r"\boxed{}", None),
        (r"\boxed 5", None),
        (r"\\boxed{5}", None),
        ("boxed{5}", None),
    ],
)
def test_boxed_takes_the_last_balanced_one(response: str, answer: str | None):
    assert extract(response, "boxed") == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is B.", "B"),
        ("the correct answer is (C)", "C"),
        ("Answer: D", "D"),
        ("answer is **A**", "A"),
        ("B", "B"),
        (" (B) ", "B"),
        ("Let us think.\nB.", "B"),
        ("B. The first pharyngeal arch", "B"),
        ("A long time ago", None),
        ("A. A. Milne wrote it", "A"),
        ("A.M. and P.M.", None),
        ("the answer is a matter of taste", None),
        ("the answer is Beryl", None),
        ("The answer is not B", None),
        ("E", None),
        ("The answer is E.", None),
        ("The answer is A, or the answer is B.", None),
        ("A\nB\nC\nD", None),
        ("The answer is B.\nQuestion: next\nAnswer: C", "B"),
        ("The answer is B. Yes, the answer is B.", "B"),
        ("", None),
    ],
)
def test_letter_takes_a_claim_or_a_lone_letter(response: str, answer: str | None):
    assert extract(response, "letter") == answer


def test_letter_knows_how_many_options_there_are():
    assert letter("The answer is J", "ABCDEFGHIJ") == "J"


# fmt: off
HOSTILE = [
    "\\boxed{", "<answer>", "</think> <answer>", "#### ", "1,111", "1.", "{", "}", "\\", " ", "\n",
    "\n ", "answer is ", "answer is A ", "1e", "1/", "-", "$", "Question",
]
# fmt: on


@pytest.mark.parametrize("form", ANSWER_FORMATS)
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_long_row_of_one_piece_takes_linear_time(form: str, piece: str):
    text = piece * (2 * 10**5 // len(piece))
    # A quadratic search would take a hundred thousand times as long, and meet the test's timeout.
    assert extract(text + "!", form) is None or len(text) > 10**5


@given(st.text(max_size=200), st.sampled_from(ANSWER_FORMATS))
def test_an_answer_is_part_of_the_response(response: str, form: str):
    answer = extract(response, form)
    assert answer is None or (answer and answer in response.replace("</answer>", ""))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10.", "10"),
        ("$10", "10"),
        ("-$1,080.50", "-2161/2"),
        (r"\$5", "5"),
        ("3/4", "3/4"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-3/2"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac34", "-3/4"),
        (r"2\frac{1}{2}", "5/2"),
        (r"\(\frac{-1}{2}\)", "-1/2"),
        ("1e3", "1000"),
        (".5", "1/2"),
        ("5 km", "5"),
        ("5km", "5"),
        ("30 degrees", "30"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"5\text{ cm}", "5"),
        ("12 cm^2", "12"),
        (r"50\%", "50"),
        ("50 percent.", "50"),
        ("1{,}080", "1080"),
        (r"10\,000", "10000"),
        ("−5", "-5"),
        ("007", "7"),
        ("60 km/h", "60"),
        ("$12/hour", "12"),
        (r"12\text{ km/h}.", "12"),
        ("- 5", "-5"),
    ],
)
def test_a_number_is_read_whatever_it_is_decorated_with(text: str, value: str):
    assert parse_rational(text) == Fraction(value)


# fmt: off
NO_NUMBERS = [
    "", " ", "nan", "inf", "-inf", "Infinity", "None", "1,2", "1,00", "1 2", "10 million",
    "2 dozen", "3 or 4", "about 5", "5 apples", "12+7", "12 + 7 =", "3*4", "2^3", "--5", "3/0",
    "1_000", "0x10", "٣", "３", "½", "²", "1e9999", "1e", "e3", "1.2.3", "..", ".", "-", "$", "%",
    "1/2/3", "9" * 2000, "5!", "sqrt(4)", "five", "1\x002", r"2\frac{-1}{2}", "1 1/0",
]
# fmt: on


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_none(text: str):
    assert parse_rational(text) is None
    assert not rational_equal(text, "5")


@given(st.fractions())
def test_every_fraction_is_read_as_itself(value: Fraction):
    assert parse_rational(f"{value}") == value
    assert parse_rational(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.integers(-(10**12), 10**12))
def test_thousands_are_read_with_their_commas(n: int):
    assert parse_rational(f"${n:,}") == n


@given(st.text(max_size=60))
def test_no_text_equals_a_number_it_does_not_contain(text: str):
    assert not rational_equal(text, "987654321") or "987" in text


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("2/4", "1/2", "wrong"),  # Two fractions must be in the same form,
        (r"\frac{1}{2}", "1/2", "right"),  # whatever their notation.
        (r"-\frac{1}{2}", r"\frac{-1}{2}", "right"),
        ("0.5", "1/2", "right"),
        ("4/2", "2", "wrong"),  # An integer takes an integer.
        ("1+1", "2", "wrong"),
        ("2.0", "2", "wrong"),
        ("02", "2", "right"),
        ("1,000", "1000", "right"),
        ("(1, 2)", "(1,2)", "right"),
        ("(1, 2]", "(1,2)", "wrong"),
        ("(1,2,3)", "(1,2)", "wrong"),
        ("(2,1)", "(1,2)", "wrong"),
        ("((1,2),3)", "((1,2),3)", "right"),
        ("(1+x, 2)", "(x+1, 2)", "asked"),
        ("(1+x, 3)", "(y+1, 2)", "asked"),
        ("(3, 1+x)", "(2, 1+y)", "wrong"),
        ("x = 5", "5", "right"),
        (r"5\text{ cm}", "5", "right"),
        (r"12\text{ cm}^2", "12", "right"),
        ("30 degrees", "30", "right"),
        (r"30^{\circ}", "30", "right"),
        (r"\text{yes}", "yes", "right"),
        ("2h", "2", "wrong"),  # Names, not units,
        (r"2\pi r", r"2\pi r h", "asked"),  # in a formula.
        ("sin 30", "0", "wrong"),
        ("sin 30 x", "0x", "asked"),
        ("1 2", "12", "wrong"),
        ("x+1", "1+x", "asked"),
        ("CAB", "ABC", "wrong"),
        ("yes", "no", "wrong"),
        ("", "", "wrong"),
        ("x+9**9**9", "x", "wrong"),
        ("x" * 2000, "x", "wrong"),
        ("(1)(2)", "(1)(3)", "wrong"),
    ],
)
def test_course_has_the_rules_of_its_graders(answer: str, gold: str, outcome: str):
    assert course_equal(answer, gold, lambda *_: "asked") == outcome


@given(st.text(max_size=100), st.text(max_size=100))
def test_course_never_fails(answer: str, gold: str):
    outcome = course_equal(answer, gold, lambda *_: "timeout")
    assert outcome in ("right", "wrong", "timeout")
    if normalise(answer):
        assert course_equal(answer, answer, lambda *_: "wrong") == "right"
