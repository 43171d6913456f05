"""Problems drawn by key, and on which side of a split each of them is.

A draw is a function of the seed, the side and a count; a hash of the problem decides whether it
may be trained on, so that no seed ever trains on what another one tests.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import overload

from rslm.evaluate.example import Example
from rslm.evaluate.procedural import Below, Kind, Problem

# One problem in five is for the test.
_TEST_SHARE = 5
# A task whose draws give nothing new so often has no more problems.
_MAX_DRAWS = 5_000


class DrawnExamples(Sequence[Example]):
    """Training examples of a task, each made when it is asked for; the same may come again."""

    def __init__(self, kind: Kind, seed: int, n: int) -> None:
        self._kind, self._seed, self._n = kind, seed, n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._n)))
        if not -self._n <= index < self._n:
            raise IndexError(f"index must be below {self._n}, got {index}")
        index %= self._n
        # Where the first index found one at once, so many draws miss only by a broken generator.
        problem = self.problem(index, max_draws=200 * _MAX_DRAWS)
        assert problem is not None, "the options leave training problems, as was checked"
        return _example(index, problem)

    def problem(self, index: int, *, max_draws: int = _MAX_DRAWS) -> Problem | None:
        """The first problem of the training side among the draws for this index."""
        for attempt in range(max_draws):
            problem = _draw(self._kind, f"{self._seed} train {index} {attempt}")
            if problem is not None and not is_for_test(problem.key):
                return problem
        return None


def draw_test_examples(kind: Kind, seed: int, n: int) -> Iterator[Example]:
    """Different problems of the test's side, until there are n or nothing new comes."""
    seen: set[str] = set()
    attempt = n_misses = 0
    while len(seen) < n and n_misses < _MAX_DRAWS:
        problem = _draw(kind, f"{seed} test {attempt}")
        attempt += 1
        if problem is None or not is_for_test(problem.key) or problem.prompt in seen:
            n_misses += 1
            continue
        n_misses = 0
        yield _example(len(seen), problem)
        seen.add(problem.prompt)


def _example(index: int, problem: Problem) -> Example:
    return Example(index, problem.prompt, problem.gold, problem.answer, problem.numbers)


def _draw(kind: Kind, key: str) -> Problem | None:
    return kind.draw(keyed_numbers(key))


def is_for_test(key: str) -> bool:
    """Whether a problem belongs to the test: one in five, the same ones for every seed."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "big") % _TEST_SHARE == 0


def keyed_numbers(key: str) -> Below:
    """A stream of numbers that only the key decides, the same in every version of Python.

    `random` promises that only of its floats.

    >>> below = keyed_numbers("a key")
    >>> [below(10) for _ in range(5)]
    [4, 9, 0, 4, 0]
    """
    state, n_hashes = 0, 0

    def below(n: int) -> int:
        nonlocal state, n_hashes
        # The digits of one number in a mixed base; what is left must be large beside n.
        if state < n << 64:
            digest = hashlib.blake2b(f"{key} {n_hashes}".encode()).digest()
            state, n_hashes = int.from_bytes(digest, "big"), n_hashes + 1
        state, number = divmod(state, n)
        return number

    return below
