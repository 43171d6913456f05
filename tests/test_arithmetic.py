import contextlib
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.evaluate import arithmetic
from rslm.evaluate.arithmetic import (
    MAX_DEPTH,
    Node,
    TooLargeError,
    evaluate,
    is_bounded,
    leaves,
    parse,
)

Formula = tuple[str, Fraction]


def value_of(text: str) -> Fraction:
    return evaluate(parse(text))


def number(n: int, scale: int) -> Formula:
    return (f"{n / scale:.2f}" if scale > 1 else f"{n}"), Fraction(n, scale)


def join(left: Formula, right: Formula, kind: str, exponent: int) -> Formula:
    """Two formulas as one; where the kind has no value, their sum."""
    (text, a), (other, b) = left, right
    match kind:
        case "/" if b:
            return f"({text}) / ({other})", a / b
        case "frac" if b:
            return rf"\frac{{{text}}}{{{other}}}", a / b
        case "^" if (a or exponent > 0) and len(text) < 20:
            return f"({text})^{{{exponent}}}", a**exponent
        case "negative":
            return f"-({text})", -a
        case "implicit":
            return f"({text}) ({other})", a * b
        case "-":
            return f"({text})-({other})", a - b
        case "*":
            return f"({text}) \\cdot ({other})", a * b
    return f"({text})  +({other})", a + b


KINDS = st.sampled_from(["+", "-", "*", "/", "^", "negative", "frac", "implicit"])
FORMULAS = st.recursive(
    st.builds(number, st.integers(0, 999), st.sampled_from([1, 10, 100])),
    lambda parts: st.builds(join, parts, parts, KINDS, st.integers(-3, 3)),
    max_leaves=12,
)


@given(FORMULAS)
def test_the_value_is_that_of_fractions(formula: Formula):
    text, expected = formula
    assert value_of(text) == expected


@given(st.lists(st.tuples(st.sampled_from("+-*/^"), st.integers(1, 9)), min_size=1, max_size=6))
def test_precedence_is_that_of_python(rest: list[tuple[str, int]]):
    text = "7" + "".join(f"{sign}{n}" for sign, n in rest)
    # The oracle gets digits and signs alone, which this test wrote.
    wrapped = "F(7)" + "".join(f"{'**' if s == '^' else s}F({n})" for s, n in rest)
    try:
        found = value_of(text)
    except TooLargeError:
        return
    assert found == eval(wrapped, {"F": Fraction})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2**3", 8),
        ("2^-1", "1/2"),
        ("8/4/2", 1),
        ("1-2-3", -4),
        ("--5", 5),
        ("+5", 5),
        (r"\frac12", "1/2"),
        (r"\frac{1}{2}\frac{1}{3}", "1/6"),
        (r"1\frac{1}{2}", "3/2"),
        (r"-1\frac{1}{2}", "-3/2"),
        (r"\left(3\right)\,(4)", 12),
        ("3(4+1)", 15),
        ("6 ÷ 2 × 3 − 1", 8),
        (".5 + 5.", "11/2"),
        ("1e3", 1000),
        ("25e-2", "1/4"),
        ("(((1)))", 1),
        ("1^999999999999", 1),
        ("(-1)^3", -1),
        ("0^5", 0),
        ("0^0", 1),
    ],
)
def test_notations(text: str, value: int | str):
    assert value_of(text) == Fraction(value)


# fmt: off
NO_FORMULAS = [
    "", " ", "1+", "*2", "1 2", "(1", "1)", "(]", "{1)", "1..2", "1.2.3", "٣", "½", "1e+9999",
    "__import__('os')", "a.b", "x=1", "lambda", "apple", "ABC", "\\input{x}", "\\frac{1}", "nan",
    "inf", "1e9999", "10" * 600, "\x00", "1;2", "#", "1 \\frac", "\\frac-12", "\\frac.52", "'1'",
    "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "-" * 500 + "1", "2^" * 300 + "2",
    "\\frac" * 150, "\\sqrt" * 150, "1+" * 300 + "1", "1" * 10**6,
]
# fmt: on


@pytest.mark.parametrize("text", NO_FORMULAS)
def test_what_is_no_formula_or_too_large_is_refused(text: str):
    with pytest.raises(ValueError, match=r"formula must"):
        parse(text)


@pytest.mark.parametrize("text", ["1/0", "0^-1", "2^(1/2)", "x", "pi", r"\sqrt{4}", "0/(1-1)"])
def test_what_has_no_rational_value_is_refused(text: str):
    with pytest.raises(ValueError, match="must have a rational value"):
        value_of(text)


@pytest.mark.parametrize(
    "text", ["9**9**9**9", "9^9^9", "2^9999", "(1/3)^9999", "7^4000", "2^-9999", "(9^999)^9"]
)
def test_huge_powers_are_refused_before_they_are_computed(text: str):
    with pytest.raises(TooLargeError, match="bits"):
        value_of(text)


@pytest.mark.parametrize("text", ["x+9^9^9", "sin(9^9^9)", r"\sqrt{x^{9^{9^9}}}"])
def test_a_huge_part_makes_a_formula_unbounded(text: str):
    assert not is_bounded(parse(text))
    assert is_bounded(parse("x^2 + sin(3^5)"))


def test_products_of_letters_are_read_only_where_they_can_be_nothing_else():
    assert parse("xy") == parse("x*y")
    for text in ("XY", "cat", "CAB"):
        with pytest.raises(ValueError, match="formula must not contain"):
            parse(text)


def test_without_implicit_products_two_things_side_by_side_are_refused():
    for text in ("2(3)", "2x", "(1)(2)", r"1\frac{1}{2}"):
        parse(text)
        with pytest.raises(ValueError, match="formula must"):
            parse(text, implicit=False)


def test_a_function_takes_the_whole_number_behind_it():
    assert parse("sin 30") == parse("sin(30)")
    assert parse(r"\sqrt12") == parse(r"\sqrt{12}")
    assert parse(r"\frac123") == parse(r"\frac{1}{2}3")


def test_leaves_are_the_numbers_and_names_in_order():
    assert [leaf.value or leaf.head for leaf in leaves(parse("3*(x-1)+3"))] == [3, "x", 1, 3]


@given(st.text(max_size=80) | st.text("0123456789+-*/^(){}[]., \\fracsqtxpi", max_size=80))
def test_any_text_is_read_or_refused_in_one_way(text: str):
    try:
        tree = parse(text)
    except ValueError:
        return
    assert isinstance(tree, Node)
    try:
        value = evaluate(tree)
    except ValueError:
        return
    assert max(value.numerator.bit_length(), value.denominator.bit_length()) <= arithmetic.MAX_BITS


def test_the_work_for_a_text_is_bounded_by_its_length(monkeypatch: pytest.MonkeyPatch):
    looks = 0

    def counted(self: arithmetic._Parser) -> str | None:
        nonlocal looks
        looks += 1
        return original(self)

    original = arithmetic._Parser.next
    monkeypatch.setattr(arithmetic._Parser, "next", counted)
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("0123456789+-*/^(){}x ", k=draw.randrange(1, 1000)))
        looks = 0
        with contextlib.suppress(ValueError):
            parse(text)
        assert looks <= 8 * len(text) + 8
