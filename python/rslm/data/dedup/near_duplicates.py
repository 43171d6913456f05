"""Near-duplicates: documents that share most of their shingles, found without comparing all pairs.

Two steps, so that the first can run anywhere: `sign_document` knows one document only, and
`join_signed` the signatures of all, in any order.

    text -> normalised -> shingles -> signature -> bands       (each document by itself)
    bands -> buckets -> pairs -> true similarity -> clusters   (all of them)

`find_near_duplicates` does the same in Rust, where the first step's results lie in a file.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rslm import _rslm
from rslm.data.dedup import lsh
from rslm.data.dedup.clusters import (
    Duplicates,
    Implementation,
    Keep,
    check_implementation,
    check_keep,
    keep_one_each,
    require_unique,
)
from rslm.data.dedup.lsh import cut_bands, find_buckets, is_capped, pairs_to_compare
from rslm.data.dedup.minhash import HashFunctions, draw_hash_functions, sign
from rslm.data.dedup.normalize import Normalization, normalize
from rslm.data.dedup.shards import MEMORY_LIMIT_BYTES, fill
from rslm.data.dedup.shingles import ShortDocuments, hash_shingles, jaccard, make_shingles
from rslm.data.dedup.union_find import UnionFind

# Far beyond any use: signatures of so many hashes take 80 kB a document.
_MAX_NUMBER = 10_000


@dataclass(frozen=True, kw_only=True)
class MinHashOptions:
    """How near-duplicates are found, and which of a cluster is kept.

    Attributes:
        n_hashes: length of a signature.
        n_bands: what it is cut into; must divide it.
        ngram_words: words of a shingle.
        jaccard_threshold: candidates of at least this similarity are duplicates; None takes
            every candidate for one, unseen.
        normalization: the rule by which texts are made alike.
        short_documents: what has fewer words than a shingle is one shingle ("whole"), or is
            never a duplicate, not of an equal text either ("none").
        keep: which of a cluster is kept: see `clusters.choose_kept`.
        seed: of the hash functions, and of keeping one at random.

    Raises:
        ValueError: a number is out of its range, or `n_bands` does not divide `n_hashes`.
    """

    n_hashes: int = 100
    n_bands: int = 10
    ngram_words: int = 5
    jaccard_threshold: float | None = 0.8
    normalization: Normalization = "course"
    short_documents: ShortDocuments = "whole"
    keep: Keep = "first"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_hashes", "n_bands", "ngram_words"):
            if not 1 <= getattr(self, name) <= _MAX_NUMBER:
                raise ValueError(
                    f"{name} must be from 1 to {_MAX_NUMBER}, got {getattr(self, name)}"
                )
        if self.n_hashes % self.n_bands:
            raise ValueError(
                f"n_bands must divide n_hashes, got {self.n_bands} bands of {self.n_hashes} hashes"
            )
        threshold = self.jaccard_threshold
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(
                f"jaccard_threshold must be above 0 and at most 1, or None, got {threshold}"
            )
        if self.normalization not in ("course", "fineweb"):
            raise ValueError(
                f'normalization must be "course" or "fineweb", got {self.normalization!r}'
            )
        if self.short_documents not in ("whole", "none"):
            raise ValueError(
                f'short_documents must be "whole" or "none", got {self.short_documents!r}'
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2^32 - 1, got {self.seed}")
        check_keep(self.keep)

    @property
    def n_rows(self) -> int:
        """Hashes of a band."""
        return self.n_hashes // self.n_bands


PRESETS = {
    # CS336, assignment 4. It leaves the hash functions and the number of them open: of two
    # documents of similarity 0.8, 10 bands of 10 find two in three and 50 of 10 nearly all.
    "course": MinHashOptions(),
    # Penedo et al. 2024, FineWeb, section 3.4 and the parameters of datatrove's FineWeb script.
    "fineweb": MinHashOptions(
        n_hashes=112,
        n_bands=14,
        jaccard_threshold=None,
        normalization="fineweb",
        short_documents="none",
        seed=1,
    ),
}


@dataclass(frozen=True, kw_only=True)
class SignedDocument:
    """What of a document is compared: its id, its words, and its bands (none: compared to none)."""

    id: str
    words: tuple[str, ...]
    bands: tuple[bytes, ...]


def find_near_duplicates(
    documents: Iterable[tuple[str, str]],
    options: MinHashOptions,
    *,
    implementation: Implementation = "rust",
) -> Duplicates:
    """Finds clusters of near-duplicates and keeps one of each.

    Duplicates of a duplicate are in the same cluster, though they may have less in common. The
    result is a function of the set of documents. What shares no band is never found: see
    `lsh.candidate_probability`.

    Memory: the ids, some 120 bytes a document, 16 more for each band and 8 bytes a candidate
    pair; shingles, 8 bytes each, lie in a temporary file. "reference" holds all words.

    Args:
        documents: ids, which must differ, and texts, in any order.
        options: one of `PRESETS`, or your own.
        implementation: "rust", or "reference": the functions of this folder. They differ in
            code points that the Unicode versions of this Python and of the Rust tables (16)
            class differently, and where two of 2^64 hashes are equal.

    Raises:
        ValueError: an id comes twice.

    Source: Broder 1997; Lee et al. 2022, section 4.2 (arXiv:2107.06499), for clusters.
    """
    check_implementation(implementation)
    functions = draw_hash_functions(options.n_hashes, options.seed)
    if implementation == "reference":
        signed = (sign_document(*each, options, functions) for each in documents)
        return join_signed(signed, options)
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "signatures")
        arguments = minhash_arguments(options, functions)
        writer = _rslm.ShardWriter.of_minhash(arguments, 0, file, 1, MEMORY_LIMIT_BYTES)
        fill(writer, _texts_of(documents, names))
        return _join_file(file, names, options)


def minhash_arguments(
    options: MinHashOptions, functions: HashFunctions
) -> tuple[str, int, bool, int, float | None, NDArray[np.uint64], NDArray[np.uint64]]:
    """What of the options decides how a document is signed, as Rust takes it."""
    return (
        options.normalization,
        options.ngram_words,
        options.short_documents == "whole",
        options.n_bands,
        options.jaccard_threshold,
        functions.factors,
        functions.summands,
    )


def _texts_of(documents: Iterable[tuple[str, str]], names: list[str]) -> Iterator[str]:
    """The texts; their ids go to `names`."""
    for name, text in documents:
        names.append(name)
        yield text


def _join_file(file: Path, names: list[str], options: MinHashOptions) -> Duplicates:
    """As `join_signed`, of signatures in a file whose rows have these ids."""
    require_unique(names)
    order = sorted(range(len(names)), key=names.__getitem__)
    ranks = np.empty(len(names), np.uint32)
    ranks[order] = np.arange(len(names), dtype=np.uint32)
    cap = (lsh.MAX_BUCKET, lsh.N_REPRESENTATIVES)
    roots, n_candidates, n_duplicates, n_capped = _rslm.find_among(
        file, ranks, cap, MEMORY_LIMIT_BYTES
    )
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for row, root in zip(order, roots.tolist(), strict=True):
        groups[root].append(names[row])
    return replace(
        keep_one_each(groups.values(), options.keep, options.seed),
        n_candidate_pairs=n_candidates,
        n_duplicate_pairs=n_duplicates,
        n_capped_buckets=n_capped,
    )


def sign_document(
    name: str, text: str, options: MinHashOptions, functions: HashFunctions
) -> SignedDocument:
    """The bands of one document: the step that needs no other document."""
    words = tuple(normalize(text, options.normalization).split())
    shingles = make_shingles(words, options.ngram_words, options.short_documents)
    if not shingles:
        return SignedDocument(id=name, words=words, bands=())
    bands = cut_bands(sign(hash_shingles(shingles), functions), options.n_bands)
    return SignedDocument(id=name, words=words, bands=bands)


def join_signed(signed: Iterable[SignedDocument], options: MinHashOptions) -> Duplicates:
    """The clusters of documents signed with the same options, from any number of places.

    Raises:
        ValueError: an id comes twice.
    """
    # In the order of the ids, whatever came first: from here on a number stands for an id.
    documents = sorted(signed, key=lambda document: document.id)
    require_unique(document.id for document in documents)
    copies, distinct = _part_equal_texts(documents)
    buckets = find_buckets([documents[number].bands for number in distinct])
    candidates = {
        (distinct[first], distinct[second])
        for bucket in buckets
        for first, second in (
            pairwise(bucket) if options.jaccard_threshold is None else pairs_to_compare(bucket)
        )
    }
    duplicates = _compare(documents, sorted(candidates), options)
    linked = UnionFind(len(documents))
    for first, second in chain(copies, duplicates):
        linked.union(first, second)
    groups = ([documents[number].id for number in group] for group in linked.sets())
    return replace(
        keep_one_each(groups, options.keep, options.seed),
        n_candidate_pairs=len(candidates),
        n_duplicate_pairs=len(duplicates),
        n_capped_buckets=_n_capped(buckets, options),
    )


def _part_equal_texts(
    documents: list[SignedDocument],
) -> tuple[list[tuple[int, int]], list[int]]:
    """Links from each further copy of a normalised text to its first, and the firsts.

    Copies agree in everything, so comparing them tells nothing, and a page that a site serves a
    million times would make a bucket of a million.
    """
    first_of: dict[tuple[str, ...], int] = {}
    copies, distinct = [], []
    for number, document in enumerate(documents):
        if not document.bands:
            continue
        first = first_of.setdefault(document.words, number)
        if first == number:
            distinct.append(number)
        else:
            copies.append((first, number))
    return copies, distinct


def _compare(
    documents: list[SignedDocument], candidates: list[tuple[int, int]], options: MinHashOptions
) -> list[tuple[int, int]]:
    """The candidates whose shingles, not only their hashes, are similar enough."""
    threshold = options.jaccard_threshold
    if threshold is None:
        return candidates
    shingles = {
        number: make_shingles(documents[number].words, options.ngram_words, options.short_documents)
        for number in set(chain.from_iterable(candidates))
    }
    return [
        (first, second)
        for first, second in candidates
        if jaccard(shingles[first], shingles[second]) >= threshold
    ]


def _n_capped(buckets: list[tuple[int, ...]], options: MinHashOptions) -> int:
    """Buckets that were not compared in full; where nothing is compared, none is."""
    return 0 if options.jaccard_threshold is None else sum(map(is_capped, buckets))
