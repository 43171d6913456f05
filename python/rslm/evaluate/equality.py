r"""When two answers are equal: as text, as exact numbers, or as the course's graders have it.

"text": the same but for white space. "rational": the same number, written as it may be: `$1,080`,
`1080.00`, `3/4`, `1\frac{1}{2}`, `5 km`; formulas are no numbers, so a question handed back is not
its answer. "course": the same when normalised, or of difference 0 as formulas, where a fraction
must be in the form of the gold one, an integer takes an integer, and tuples go element by element.

Source: the graders of the MATH data set (Hendrycks et al. 2021, arXiv:2103.03874) and of Lightman
et al. 2023 (arXiv:2305.20050), whose rules "course" keeps. We differ in the parser, and in reading
no word of more than two letters as a product.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, get_args

from rslm.evaluate.arithmetic import Node, evaluate, is_bounded, parse

Equality = Literal["text", "rational", "course"]
EQUALITIES: tuple[Equality, ...] = get_args(Equality)
Outcome = Literal["right", "wrong", "timeout", "crash"]
"""How a comparison ended; only "right" earns a reward."""
Symbolic = Callable[[Node, Node], Outcome]
"""Says whether two formulas are equal for all values of their names."""

MAX_CHARACTERS = 1_000
"""Of an answer that is no plain text; a longer one is wrong."""

# Singular or plural; a word that scales a number, as "million", must never be among them.
_UNITS = (
    "degree deg cent dollar usd euro pound percent point unit hour hr h minute min second sec s "
    "day week month year meter metre m centimeter cm millimeter mm kilometer km mile mi foot feet "
    "ft inch inche in yard yd gram g kilogram kg mg lb ounce oz liter litre l ml gallon mph kph"
)
_UNIT = f"(?:{_UNITS.replace(' ', '|')})s?"
# In a formula a short word may be a product of names; three letters are never read as one.
_LONG_UNIT = f"(?:{'|'.join(unit for unit in _UNITS.split() if len(unit) > 2)})s?"
_SQUARED = r"(?:\^[23]|\^\{[23]\}|[²³])?"
_NOTHING = re.compile(r"\\[,!;: ]|\\?\$|\\[()\[\]]|\\(?:left|right|displaystyle)(?![A-Za-z])")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox)[ ]?\{([^{}]*)\}")
_TEXT_UNIT = re.compile(
    rf"\\(?:text|mathrm|textbf|mbox)[ ]?\{{[ ]?{_UNIT}(?:/{_UNIT})?[ ]?\}}{_SQUARED}(?=\.?$)"
)
_PERCENT = r"[ ]?\\?%|[ ]?°|[ ]?\^[ ]?(?:\\circ|\{[ ]?\\circ[ ]?\})"
_AFTER_NUMBER = re.compile(
    rf"(?:{_PERCENT}|(?:(?<=[0-9}}])|[ ])/?{_UNIT}(?:/{_UNIT})?{_SQUARED})$", re.IGNORECASE
)
_AFTER_FORMULA = re.compile(rf"(?:{_PERCENT}|[ ]{_LONG_UNIT}{_SQUARED})$")
_NUMERAL = re.compile(
    r"(?P<sign>[-+]?)[ ]?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?P<exponent>[eE][-+]?[0-9]{1,3})?(?:[ ]?/[ ]?(?P<below>[0-9]+))?"
)
_MIXED = re.compile(
    r"(?P<sign>[-+]?)[ ]?(?P<whole>[0-9]+(?=[ ]|\\))?[ ]?"
    r"(?:(?P<a>[0-9]+)/(?P<b>[0-9]+)"
    r"|\\[dt]?frac(?:\{[ ]?(?P<c>-?[0-9]+)[ ]?\}\{[ ]?(?P<d>[0-9]+)[ ]?\}"
    r"|(?P<e>[0-9])(?P<f>[0-9])))"
)
_INTEGER = re.compile(r"-?[0-9]+")
_FRACTION = re.compile(r"-?(?:[0-9]+/[0-9]+|\\frac\{-?[0-9]+\}\{-?[0-9]+\})")
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def text_equal(answer: str, gold: str) -> bool:
    """Whether two texts are the same but for the amount of white space."""
    return answer.split() == gold.split()


def parse_rational(text: str) -> Fraction | None:
    r"""The number that a text is, exactly; None if it is none, or is a formula.

    >>> parse_rational("$1,080.50"), parse_rational(r"-1\frac{1}{2}"), parse_rational("1,0")
    (Fraction(2161, 2), Fraction(-3, 2), None)
    """
    text = _plain(text, _AFTER_NUMBER)
    if match := _NUMERAL.fullmatch(text):
        value = Fraction(match["digits"].replace(",", "") + (match["exponent"] or ""))
        below = int(match["below"] or 1)
    elif match := _MIXED.fullmatch(text):
        top, under = (
            match["a"] or match["c"] or match["e"],
            match["b"] or match["d"] or match["f"],
        )
        below, whole = int(under), int(match["whole"] or 0)
        if whole and top.startswith("-"):
            return None
        value = Fraction(whole * below + int(top))
    else:
        return None
    if below == 0:
        return None
    return value / below * (-1 if match["sign"] == "-" else 1)


def rational_equal(answer: str, gold: str) -> bool:
    """Whether both are the same number; where the gold answer is none, the same text."""
    value = parse_rational(gold)
    return text_equal(answer, gold) if value is None else parse_rational(answer) == value


def course_equal(answer: str, gold: str, symbolic: Symbolic) -> Outcome:
    """Whether both are the same by the rules of "course"."""
    if len(answer) > MAX_CHARACTERS:
        return "wrong"
    answer, gold = normalise(answer), normalise(gold)
    if answer == gold and answer:
        return "right"
    given, wanted = _elements(answer), _elements(gold)
    if len(given) != len(wanted):
        return "wrong"
    if len(wanted) > 1 and (answer[0], answer[-1]) != (gold[0], gold[-1]):
        return "wrong"
    outcomes = (_element_equal(*pair, symbolic) for pair in zip(given, wanted, strict=True))
    # Lazily: behind the first that is not right nothing is looked at.
    return next((outcome for outcome in outcomes if outcome != "right"), "right")


def normalise(text: str) -> str:
    r"""The text without what carries no meaning: `$`, spaces, units, `\left`, a final full stop.

    >>> normalise(r"$x = \dfrac12$"), normalise(r"50\%"), normalise("1,080 dollars.")
    ('\\frac{1}{2}', '50', '1080')
    """
    text = _plain(text, _AFTER_FORMULA)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^[A-Za-z] ?= ?", "", text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    # In `1 2` and `\pi r` the space says something.
    text = re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", text)
    return re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", text)


def _plain(text: str, end: re.Pattern[str]) -> str:
    """The text in one line, without decoration and what `end` finds; "" where it is too long."""
    if len(text) > MAX_CHARACTERS:
        return ""
    text = text.replace("−", "-").replace("{,}", ",")
    text = _TEXT_UNIT.sub("", _NOTHING.sub("", text).strip())
    text = _TEXT.sub(r" \1", text)
    text = " ".join(text.split())
    text = text.removesuffix(".").rstrip()
    return end.sub("", text).rstrip()


def _elements(text: str) -> list[str]:
    """The elements of a tuple, list or interval; of anything else the one text."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return [text]
    parts, depth = [""], 0
    for character in text[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:  # The brackets at the ends are not a pair.
            return [text]
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts if len(parts) > 1 else [text]


def _element_equal(answer: str, gold: str, symbolic: Symbolic) -> Outcome:
    if answer == gold and answer:
        return "right"
    if _FRACTION.fullmatch(answer) and _FRACTION.fullmatch(gold):
        # A fraction has to be in the form of the gold one; only its notation is free.
        return "right" if _as_ratio(answer) == _as_ratio(gold) else "wrong"
    if _INTEGER.fullmatch(gold):
        same = _INTEGER.fullmatch(answer) is not None and int(answer) == int(gold)
        return "right" if same else "wrong"
    try:
        given, wanted = parse(answer), parse(gold)
    except ValueError:
        return "wrong"
    try:
        return "right" if evaluate(given) == evaluate(wanted) else "wrong"
    except ValueError:
        return symbolic(given, wanted) if is_bounded(given) and is_bounded(wanted) else "wrong"


def _as_ratio(fraction: str) -> tuple[int, int]:
    top, below = (int(number) for number in re.findall(r"-?[0-9]+", fraction))
    return (-top, below) if fraction.startswith("-\\") else (top, below)
