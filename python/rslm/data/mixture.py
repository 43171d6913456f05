"""How often each document of a corpus is trained on: by its source and by its score."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rslm.data.document import Document

MAX_COPIES = 1000


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Copies of each document; without any of these, one of each.

    What a document gets by source and by score is multiplied. Of 2.5 copies every document has
    two and a half of the documents, chosen by a hash of source, id and seed, a third.
    """

    repeats: Mapping[str, float] = field(default_factory=dict)
    """Copies by source, whose name may be a pattern ("CC-MAIN-*"): the first that matches;
    sources that none matches have one copy, and 0 leaves a source out."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Instead of `repeats`: the share of the bytes that sources are to have. The source that is
    shortest of its share is taken once and whole, of the others as much as fits to it. Each
    source must match a pattern; the inputs are read twice."""
    score: str = ""
    """Name of a score among a document's `metadata["scores"]`."""
    score_repeats: tuple[tuple[float, float], ...] = ()
    """(score, copies) descending: the copies of documents above that score; those above none
    are left out. As ((0.84, 4), (0.72, 3), (0.58, 2), (0.36, 1))."""

    def __post_init__(self) -> None:
        if self.repeats and self.weights:
            raise ValueError("repeats and weights must not be given both")
        if bool(self.score) != bool(self.score_repeats):
            raise ValueError("score and score_repeats must be given together")
        for name, values in (("repeats", self.repeats), ("weights", self.weights)):
            for source, value in values.items():
                if not 0 <= value <= MAX_COPIES:
                    raise ValueError(
                        f"{name} must be from 0 to {MAX_COPIES}, got {value} for {source!r}"
                    )
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights must not all be 0")
        scores = [score for score, _ in self.score_repeats]
        if any(math.isnan(s) for s in scores) or scores != sorted(set(scores), reverse=True):
            raise ValueError(f"score_repeats must be by descending scores, got {scores}")
        for _, copies in self.score_repeats:
            if not 0 <= copies <= MAX_COPIES:
                raise ValueError(f"score_repeats must be from 0 to {MAX_COPIES}, got {copies}")

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON holds it; patterns as pairs, for their order counts."""
        return {
            "repeats": list(map(list, self.repeats.items())),
            "weights": list(map(list, self.weights.items())),
            "score": self.score,
            "score_repeats": list(map(list, self.score_repeats)),
        }


def n_copies(document: Document, repeats: Mapping[str, float], mixture: Mixture, seed: int) -> int:
    """The copies of a document, where `repeats` is what sources have.

    Raises:
        ValueError: the score that the mixture goes by is missing, or is no number.
    """
    wanted = repeats_of(document.source, tuple(repeats.items()))
    if mixture.score:
        score = score_of(document, mixture.score)
        wanted *= next((copies for above, copies in mixture.score_repeats if score > above), 0)
    whole = int(wanted)
    return whole if wanted == whole else whole + (fraction_of(document, seed) < wanted - whole)


@functools.lru_cache(maxsize=1 << 16)
def repeats_of(source: str, repeats: tuple[tuple[str, float], ...]) -> float:
    """The value of the first pattern that matches a source; 1 where none does."""
    return next((value for name, value in repeats if fnmatch.fnmatchcase(source, name)), 1)


def score_of(document: Document, name: str) -> float:
    """A score of a document.

    Raises:
        ValueError: it has none of this name, or no number.
    """
    scores = document.metadata.get("scores")
    score = scores.get(name) if isinstance(scores, dict) else None
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise ValueError(
            f"each document must have a score {name!r} in its metadata, but {document.id!r} of "
            f"{document.source!r} has {score!r}"
        )
    return score


def fraction_of(document: Document, seed: int) -> float:
    """A number from 0 to 1, 1 excluded, that source, id and seed decide."""
    name = f"{document.source}\0{document.id}".encode()
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(name, digest_size=6, key=key, person=b"copies").digest()
    return int.from_bytes(digest, "little") / 2**48


def repeats_for_weights(
    weights: Mapping[str, float], n_bytes: Mapping[str, int]
) -> dict[str, float]:
    """The copies of each pattern's sources that give these shares, where sources have bytes.

    Raises:
        ValueError: a source matches no pattern, or a pattern no source.
    """
    totals = dict.fromkeys(weights, 0)
    for source, size in n_bytes.items():
        matching = (name for name in weights if fnmatch.fnmatchcase(source, name))
        if (name := next(matching, None)) is None:
            raise ValueError(f"weights must have one for each source, but none for {source!r}")
        totals[name] += size
    if missing := [name for name, total in totals.items() if not total and weights[name]]:
        raise ValueError(f"weights must be of sources that there are, got {missing[0]!r}")
    needed = {name: weights[name] / totals[name] for name in weights if weights[name]}
    most = max(needed.values())
    return {name: needed.get(name, 0.0) / most for name in weights}
