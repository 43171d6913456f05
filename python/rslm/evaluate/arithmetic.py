r"""Formulas as our own syntax tree, and their exact value as a fraction.

What a model writes is never handed to `eval` or to a parser of somebody else. Plain notation and
the LaTeX of answers are read: `3*(4-1)`, `\frac{3}{4}`, `2\sqrt{3}`, `x^2`. Length, nesting and
the size of every number on the way are bounded, so that no text takes long.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS, MAX_NODES, MAX_DEPTH = 1_000, 200, 40
MAX_BITS = 4_096
"""The longest numerator or denominator on the way to a value."""

_TOKENS = re.compile(
    r"""\s+ | \\[,;:!\ ] | \\(?:left|right|displaystyle)(?![A-Za-z])  # between which nothing stands
    | (?P<number> (?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+) (?:[eE][+-]?(?P<exponent>[0-9]+))? )
    | (?P<word> \\?[A-Za-z]+ )
    | (?P<sign> \*\*|[-+*/^(){}\[\]] )""",
    re.VERBOSE,
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "π": " pi "})
_COMMANDS = {"cdot": "*", "times": "*", "div": "/", "dfrac": "frac", "tfrac": "frac"}
FUNCTIONS = ("sqrt", "sin", "cos", "tan", "log", "ln", "exp", "abs")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 4}
_PREFIX = 3
_CLOSING = {"(": ")", "{": "}"}


class TooLargeError(ValueError):
    """A number on the way to a value has more than `MAX_BITS`."""


@dataclass(frozen=True)
class Node:
    """A number where `value` is set, else a name where there are no operands, else an operation.

    Operations: + - * / ^ of two operands, "negative" and `FUNCTIONS` of one, "root" of two.
    """

    head: str
    operands: tuple["Node", ...] = ()
    value: Fraction | None = None


def parse(text: str, *, implicit: bool = True) -> Node:
    r"""The tree of a formula.

    Args:
        text: the whole of it.
        implicit: `2x` and `3(4+1)` are products, and `1\frac{1}{2}` is a sum.

    Raises:
        ValueError: it is none, or larger than the bounds of this module.
    """
    parser = _Parser(_tokens(text), implicit)
    tree = parser.expression(1)
    if parser.next() is not None:
        raise ValueError(f"formula must end, got {parser.next()!r:.20} after it")
    return tree


def evaluate(tree: Node) -> Fraction:
    """The exact value of a tree without names and functions.

    Raises:
        TooLargeError: a number on the way exceeds `MAX_BITS`.
        ValueError: there is no rational value.
    """
    if tree.value is not None:
        return _bounded(tree.value)
    values = [evaluate(operand) for operand in tree.operands]
    match tree.head, values:
        case "negative", [a]:
            return -a
        case "+", [a, b]:
            return _bounded(a + b)
        case "-", [a, b]:
            return _bounded(a - b)
        case "*", [a, b]:
            return _bounded(a * b)
        case "/", [a, b] if b:
            return _bounded(a / b)
        case "^", [a, b]:
            return _bounded(_power(a, b))
    raise ValueError(f"formula must have a rational value, but {tree.head!r} has none here")


def is_bounded(tree: Node) -> bool:
    """Whether no part of a tree, names and functions or not, has a value beyond `MAX_BITS`."""
    try:
        evaluate(tree)
    except TooLargeError:
        return False
    except ValueError:
        return all(map(is_bounded, tree.operands))
    return True


def leaves(tree: Node) -> list[Node]:
    """The numbers and names of a tree, from left to right."""
    return [leaf for part in tree.operands for leaf in leaves(part)] if tree.operands else [tree]


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        raise ValueError(f"a power must have a rational value, got {base} ^ {exponent}")
    n_bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    # Before it is computed: 9^9^9 alone has 370 million digits. Powers of 1 stay small.
    if n_bits > 1 and n_bits * abs(exponent.numerator) > 2 * MAX_BITS:
        raise TooLargeError(f"numbers of a formula must have at most {MAX_BITS} bits")
    return Fraction(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLargeError(f"numbers of a formula must have at most {MAX_BITS} bits")
    return value


def _tokens(text: str) -> list[str]:
    """Numbers, words without their backslash, and signs."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"formula must have at most {MAX_CHARACTERS} characters, got {len(text)}")
    tokens: list[str] = []
    text, place = text.translate(_SIGNS), 0
    while place < len(text):
        if not (match := _TOKENS.match(text, place)):
            raise ValueError(f"formula must not contain {text[place]!r}")
        place = match.end()
        if len(match["exponent"] or "") > 3:
            raise ValueError(f"formula must not contain {match[0]!r:.20}")
        if (word := match["word"]) is not None:
            tokens += _split_word(word)
        elif match["number"] or match["sign"]:
            tokens.append("^" if match[0] == "**" else match[0])
    return tokens


def _split_word(word: str) -> list[str]:
    name = word.removeprefix("\\")
    name = _COMMANDS.get(name, name) if word != name else name
    if name in FUNCTIONS or name in ("pi", "*", "/") or (name == "frac" and word != name):
        return [name]
    # ABC may be an order and "cab" a car: only short products are taken for what they seem.
    if word == name and (len(name) == 1 or (len(name) == 2 and name.islower())):
        return list(name)
    raise ValueError(f"formula must not contain {word!r:.40}")


class _Parser:
    """Precedence climbing: two calls for each level of nesting."""

    def __init__(self, tokens: list[str], implicit: bool) -> None:
        self._tokens, self._implicit = tokens, implicit
        self._place = self._depth = self._n_nodes = 0

    def next(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def expression(self, lowest: int) -> Node:
        """What stands here, as far as its operations bind at least as closely as `lowest`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"formula must be nested at most {MAX_DEPTH} deep")
        left = self._operand()
        while (token := self.next()) is not None:
            operation = token if token in _PRECEDENCE else self._unwritten(left, token)
            if operation is None or _PRECEDENCE[operation] < lowest:
                break
            self._place += token in _PRECEDENCE
            closest = _PRECEDENCE[operation] + (operation != "^")
            # Nothing is joined more closely to what a sum or product was left out before.
            right = self.expression(closest if token in _PRECEDENCE else _PREFIX)
            left = self._node(operation, left, right)
        self._depth -= 1
        return left

    def _unwritten(self, left: Node, token: str) -> str | None:
        """The product between `2` and `x`; never between two numbers."""
        begins = token[0].isalnum() or token[0] in ".({"
        if not self._implicit or not begins or (_is_number(token) and left.value is not None):
            return None
        return "*"

    def _operand(self) -> Node:
        token = self._take()
        if token in ("-", "+"):
            operand = self.expression(_PREFIX)
            return operand if token == "+" else self._node("negative", operand)
        if token in _CLOSING:
            inner = self.expression(1)
            self._expect(_CLOSING[token])
            return inner
        if token == "frac":
            return self._node("/", self._part(), self._part())
        if token == "sqrt" and self.next() == "[":
            self._place += 1
            degree = self.expression(1)
            self._expect("]")
            return self._node("root", self._argument(), degree)
        if token in FUNCTIONS:
            return self._node(token, self._argument())
        if _is_number(token):
            self._count()
            number = Node("number", value=Fraction(token))
            # Here, so that a sign before it is one of the whole.
            return self._mixed(number) if self._implicit and self.next() == "frac" else number
        if token.isalpha():
            return self._node(token)
        raise ValueError(f"formula must not have {token!r} here")

    def _mixed(self, number: Node) -> Node:
        """One and a half, or a product where what follows is no fraction of numbers."""
        fraction = self._argument()
        whole = number.value is not None and number.value.denominator == 1
        is_mixed = whole and all(part.value is not None for part in fraction.operands)
        return self._node("+" if is_mixed else "*", number, fraction)

    def _part(self) -> Node:
        r"""A part of a fraction: of `\frac12` it is one digit."""
        token = self.next()
        if token is not None and token.isdigit():
            self._tokens[self._place : self._place + 1] = list(token)
        elif token is not None and _is_number(token):
            raise ValueError(f"formula must have brackets around {token!r:.20} here")
        return self._argument()

    def _argument(self) -> Node:
        """What follows a function: something in brackets, a number or a name."""
        if self.next() in ("-", "+"):
            raise ValueError("formula must have brackets around a sign here")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"formula must be nested at most {MAX_DEPTH} deep")
        operand = self._operand()
        self._depth -= 1
        return operand

    def _take(self) -> str:
        if (token := self.next()) is None:
            raise ValueError("formula must not end here")
        self._place += 1
        return token

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise ValueError(f"formula must have {token!r} here, got {found!r:.20}")

    def _node(self, head: str, *operands: Node) -> Node:
        self._count()
        return Node(head, operands)

    def _count(self) -> None:
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise ValueError(f"formula must have at most {MAX_NODES} parts")


def _is_number(token: str) -> bool:
    return token[0].isdigit() or token[0] == "."
