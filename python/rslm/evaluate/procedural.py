"""Tasks that draw their own problems: arithmetic, countdown, letters, numbers, units, dates.

Each is a frozen dataclass whose fields are the options of `open_task`, and whose `draw` makes a
problem of numbers that it is given; none holds state.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from typing import Protocol

Below = Callable[[int], int]
"""`below(n)`: the next number of a stream, uniform in 0..n-1."""


@dataclass(frozen=True)
class Problem:
    """What is asked, and the right answer; `key` is the same for problems that are one in truth."""

    prompt: str
    gold: str
    answer: str
    key: str
    numbers: tuple[int, ...] = ()


class Kind(Protocol):
    """What all kinds of tasks here have in common."""

    def draw(self, below: Below) -> Problem | None:
        """A problem made of the numbers that `below` gives; None where they make none."""


@dataclass(frozen=True)
class Arithmetic:
    """Sums, differences and products of two whole numbers of 0 to `max`."""

    max: int = 30
    operations: str = "+-*"
    scratchpad: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("max", self.max, 1, 10**9)
        if not self.operations or set(self.operations) - set("+-*"):
            raise ValueError(f"operations must be some of + - *, got {self.operations!r}")

    def draw(self, below: Below) -> Problem:
        """A problem as `12 + 7 =`; a + b and b + a are one."""
        operation = self.operations[below(len(self.operations))]
        a, b = below(self.max + 1), below(self.max + 1)
        result = {"+": a + b, "-": a - b, "*": a * b}[operation]
        worked = f"{result}"
        if self.scratchpad:
            worked = "\n".join([*_STEPS[operation](a, b), f"#### {result}"])
        low, high = sorted((a, b)) if operation != "-" else (a, b)
        return Problem(f"{a} {operation} {b} =", f"{result}", worked, f"{low}{operation}{high}")


def _sum_steps(a: int, b: int) -> list[str]:
    """Column by column from the right, the carry last: 47 + 85 is `7+5=12`, `4+8+1=13`."""
    steps, carry = [], 0
    columns = max(len(str(a)), len(str(b)))
    for p, q in zip(*(reversed(str(n).zfill(columns)) for n in (a, b)), strict=True):
        column = int(p) + int(q) + carry
        steps.append(f"{p}+{q}{'+1' if carry else ''}={column}")
        carry = column // 10
    return steps


def _difference_steps(a: int, b: int) -> list[str]:
    """Column by column from the right; a column that needs ten more gives one less to the next."""
    if a < b:
        return [*_difference_steps(b, a), f"{a}-{b}=-{b - a}"]
    steps, borrowed = [], 0
    columns = len(str(a))
    for p, q in zip(*(reversed(str(n).zfill(columns)) for n in (a, b)), strict=True):
        ten = 10 if int(p) - borrowed < int(q) else 0
        terms = f"{'10+' if ten else ''}{p}{'-1' if borrowed else ''}-{q}"
        steps.append(f"{terms}={ten + int(p) - borrowed - int(q)}")
        borrowed = ten // 10
    return steps


def _product_steps(a: int, b: int) -> list[str]:
    """One product for each digit of b, then their sum."""
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b)))]
    steps = [f"{a}*{part}={a * part}" for part in parts]
    if len(parts) > 1:
        steps.append(f"{'+'.join(str(a * part) for part in parts)}={a * b}")
    return steps


_STEPS = {"+": _sum_steps, "-": _difference_steps, "*": _product_steps}


@dataclass(frozen=True)
class Countdown:
    """Numbers to be joined by + - * / into an expression of a given value."""

    numbers: int = 3
    max: int = 10
    max_target: int = 100
    use_all: bool = True

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("numbers", self.numbers, 2, 6)
        require_range("max", self.max, 2, 10**4)
        require_range("max_target", self.max_target, 2, 10**6)

    def draw(self, below: Below) -> Problem | None:
        """A problem that has a solution, or None where the draw led to no fitting target."""
        numbers = tuple(1 + below(self.max) for _ in range(self.numbers))
        parts = [(Fraction(n), f"{n}", True) for n in numbers]
        while len(parts) > 1:
            left = parts.pop(below(len(parts)))
            right = parts.pop(below(len(parts)))
            joined = _join(left, right, "+-*/"[below(4)])
            if joined is None:
                return None
            parts.append(joined)
        target, expression, _ = parts[0]
        if target.denominator != 1 or not 1 <= target <= self.max_target:
            return None
        listed = ", ".join(map(str, numbers))
        use = f"Use each of {listed} once" if self.use_all else f"Use some of {listed} once each"
        key = f"{sorted(numbers)} {target}"
        return Problem(f"{use} to make {target}.", f"{target}", expression, key, numbers)


_Part = tuple[Fraction, str, bool]


def _join(left: _Part, right: _Part, operation: str) -> _Part | None:
    """Two parts of an expression as one, with brackets around what is no number."""
    if operation == "/" and (right[0] == 0 or (left[0] / right[0]).denominator != 1):
        return None
    value = {
        "+": lambda: left[0] + right[0],
        "-": lambda: left[0] - right[0],
        "*": lambda: left[0] * right[0],
        "/": lambda: left[0] / right[0],
    }[operation]()
    first, second = (text if is_number else f"({text})" for _, text, is_number in (left, right))
    return value, f"{first}{operation}{second}", False


@dataclass(frozen=True)
class Reverse:
    """Letters to be written backwards."""

    letters: int = 5

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("letters", self.letters, 2, 60)

    def draw(self, below: Below) -> Problem:
        """A problem as `Reverse abcde`."""
        word = _word(self.letters, below)
        return Problem(f"Reverse {word}", word[::-1], word[::-1], min(word, word[::-1]))


@dataclass(frozen=True)
class Sort:
    """Whole numbers of 0 to `max` to be put in order."""

    items: int = 5
    max: int = 99

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("items", self.items, 2, 30)
        require_range("max", self.max, 1, 10**6)

    def draw(self, below: Below) -> Problem:
        """A problem as `Sort 31 4 15`; the same numbers in another order are the same problem."""
        items = [below(self.max + 1) for _ in range(self.items)]
        ordered = " ".join(map(str, sorted(items)))
        return Problem(f"Sort {' '.join(map(str, items))}", ordered, ordered, ordered)


@dataclass(frozen=True)
class CountLetters:
    """How often a letter stands in a word."""

    letters: int = 8
    alphabet: int = 4

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("letters", self.letters, 1, 60)
        require_range("alphabet", self.alphabet, 2, 26)

    def draw(self, below: Below) -> Problem:
        """A problem as `Count a in abcaab`."""
        word = _word(self.letters, below, self.alphabet)
        letter = string.ascii_lowercase[below(self.alphabet)]
        count = f"{word.count(letter)}"
        return Problem(f"Count {letter} in {word}", count, count, f"{letter} {word}")


_UNITS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("t", "kg", 1000),
    ("l", "ml", 1000),
    ("h", "min", 60),
    ("min", "s", 60),
    ("days", "h", 24),
    ("weeks", "days", 7),
)


@dataclass(frozen=True)
class Units:
    """A length, weight, volume or time in another unit; the answer is a whole number."""

    max: int = 99

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("max", self.max, 1, 10**6)

    def draw(self, below: Below) -> Problem:
        """A problem as `3 km in m =` or `3000 m in km =`, which are one."""
        large, small, factor = _UNITS[below(len(_UNITS))]
        n = 1 + below(self.max)
        key = f"{n} {large} {small}"
        if below(2):
            return Problem(f"{n * factor} {small} in {large} =", f"{n}", f"{n}", key)
        return Problem(f"{n} {large} in {small} =", f"{n * factor}", f"{n * factor}", key)


@dataclass(frozen=True)
class Dates:
    """The date some days after another, between 1900 and 2099."""

    max: int = 60

    def __post_init__(self) -> None:
        """Checks the options."""
        require_range("max", self.max, 1, 10**4)

    def draw(self, below: Below) -> Problem:
        """A problem as `17 days after 2024-02-20 =`."""
        first, n_days = date(1900, 1, 1), 1 + below(self.max)
        begin = first + timedelta(below((date(2100, 1, 1) - first).days - self.max))
        end = (begin + timedelta(n_days)).isoformat()
        return Problem(f"{n_days} days after {begin} =", end, end, f"{begin} {n_days}")


def _word(n: int, below: Below, alphabet: int = 26) -> str:
    return "".join(string.ascii_lowercase[below(alphabet)] for _ in range(n))


def require_range(name: str, value: int, low: int, high: int) -> None:
    """Refuses an option that is out of range.

    Raises:
        ValueError: it is.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
