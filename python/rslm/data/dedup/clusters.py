"""Clusters of duplicates, and which member of one is kept."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Keep = Literal["first", "random"]
Implementation = Literal["rust", "reference"]
"""Which form of a function runs: the fast one, or the plain one that it is held to."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Duplicates of each other: the id of the one that is kept, and the others', ascending."""

    kept: str
    dropped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What deduplication found: which documents are kept, and the clusters of two and more.

    Attributes:
        kept: ids, ascending: one of each cluster, and whatever is in none.
        clusters: ascending by their least ids.
        n_candidate_pairs: pairs that share a band and were compared (or, where no comparison
            is asked for, were linked).
        n_duplicate_pairs: those of them that were found to be duplicates.
        n_capped_buckets: buckets so large that not every pair of them was compared.
    """

    kept: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    n_candidate_pairs: int = 0
    n_duplicate_pairs: int = 0
    n_capped_buckets: int = 0


def choose_kept(ids: Iterable[str], keep: Keep, seed: int) -> str:
    """The member of a cluster that is kept, whatever their order.

    "first" is the least id by code points (the order of UTF-8's bytes too). "random" is the
    least SHA-256 of `<seed>:<id>`, as random as a draw and the same on every machine.
    """
    if keep == "first":
        return min(ids)
    return min(ids, key=lambda name: hashlib.sha256(_seeded(name, seed)).digest())


def _seeded(name: str, seed: int) -> bytes:
    # The names of files may hold bytes that are no UTF-8, which Python shows as lone surrogates.
    return f"{seed}:{name}".encode("utf-8", "surrogatepass")


def check_keep(keep: str) -> None:
    """Raises a `ValueError` if a member cannot be chosen so."""
    if keep not in ("first", "random"):
        raise ValueError(f'keep must be "first" or "random", got {keep!r}')


def check_implementation(implementation: str) -> None:
    """Raises a `ValueError` if there is no such form."""
    if implementation not in ("rust", "reference"):
        raise ValueError(f'implementation must be "rust" or "reference", got {implementation!r}')


def keep_one_each(groups: Iterable[Iterable[str]], keep: Keep, seed: int) -> Duplicates:
    """Keeps one id of each group; the groups have no id in common, and none is empty."""
    ascending = sorted(sorted(group) for group in groups)
    chosen = [choose_kept(group, keep, seed) for group in ascending]
    return Duplicates(
        kept=tuple(sorted(chosen)),
        clusters=tuple(
            Cluster(kept=kept, dropped=tuple(name for name in group if name != kept))
            for kept, group in zip(chosen, ascending, strict=True)
            if len(group) > 1
        ),
    )


def require_unique(ids: Iterable[str]) -> None:
    """Raises a `ValueError` if an id comes twice.

    Of two documents of one id none could be chosen without looking at their order.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"ids must differ, got {name!r} twice")
        seen.add(name)
