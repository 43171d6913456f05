"""Sets of numbers that are joined pair by pair: what is linked, over however many links.

Source: Tarjan 1975, Efficiency of a good but not linear set union algorithm; path halving as in
Tarjan and van Leeuwen 1984.
"""

from collections import defaultdict


class UnionFind:
    """A partition of 0..n-1, at first into single numbers.

    A set's root is its least number, whatever the order of the unions, so that two machines
    that know the same links name the same root. (Union by rank would be faster in the worst
    case; with path halving the difference is a logarithm.)
    """

    def __init__(self, n: int) -> None:
        self._parents = list(range(n))

    def find(self, number: int) -> int:
        """The least number of the set that `number` is in."""
        parents = self._parents
        while parents[number] != number:
            # Every other step of the way is shortened to the step after the next.
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def union(self, left: int, right: int) -> None:
        """Joins the sets of two numbers."""
        first, second = sorted((self.find(left), self.find(right)))
        self._parents[second] = first

    def sets(self) -> list[list[int]]:
        """All sets, ascending, each by its least number."""
        members: defaultdict[int, list[int]] = defaultdict(list)
        for number in range(len(self._parents)):
            members[self.find(number)].append(number)
        return list(members.values())
