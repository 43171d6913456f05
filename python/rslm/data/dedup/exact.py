"""Documents of the same text, to the byte."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from rslm import _rslm
from rslm.data.dedup.clusters import (
    Duplicates,
    Implementation,
    Keep,
    check_implementation,
    check_keep,
    keep_one_each,
    require_unique,
)
from rslm.data.dedup.shards import batches


def find_exact_duplicates(
    documents: Iterable[tuple[str, str]],
    *,
    keep: Keep = "first",
    seed: int = 0,
    implementation: Implementation = "rust",
) -> Duplicates:
    """Finds documents of one text and keeps one of each.

    Nothing is normalised: a blank more, or another form of an accent, makes another text. Empty
    texts are equal. Memory: the ids and 16 bytes a document, since texts are compared by half of
    their SHA-256 ("reference": by all of it).

    Args:
        documents: ids, which must differ, and texts, in any order.
        keep: which copy: see `clusters.choose_kept`.
        seed: of "random".
        implementation: "rust" or "reference".

    Raises:
        ValueError: an id comes twice, or `keep` is no such choice.

    >>> find_exact_duplicates([("b", "x"), ("a", "x"), ("c", "y")]).kept
    ('a', 'c')
    """
    check_keep(keep)
    check_implementation(implementation)
    keyed = _keyed_by_rust if implementation == "rust" else _keyed
    copies: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, key in keyed(documents):
        copies[key].append(name)
    require_unique(name for group in copies.values() for name in group)
    return keep_one_each(copies.values(), keep, seed)


def _keyed(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    for name, text in documents:
        yield name, hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _keyed_by_rust(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    names: list[str] = []

    def texts() -> Iterator[str]:
        for name, text in documents:
            names.append(name)
            yield text

    for batch in batches(texts()):
        yield from zip(names, _rslm.exact_keys(batch), strict=True)
        names.clear()
