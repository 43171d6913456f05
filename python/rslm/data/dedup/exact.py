"""Documents of the same text, to the byte."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from rslm.data.dedup.clusters import Duplicates, Keep, check_keep, keep_one_each, require_unique


def find_exact_duplicates(
    documents: Iterable[tuple[str, str]], *, keep: Keep = "first", seed: int = 0
) -> Duplicates:
    """Finds documents of one text and keeps one of each.

    Nothing is normalised: a blank more, or another form of an accent, makes another text. Empty
    texts are equal. Memory: the ids and 32 bytes a document, since texts are compared by SHA-256.

    Args:
        documents: ids, which must differ, and texts, in any order.
        keep: which copy: see `clusters.choose_kept`.
        seed: of "random".

    Raises:
        ValueError: an id comes twice, or `keep` is no such choice.

    >>> find_exact_duplicates([("b", "x"), ("a", "x"), ("c", "y")]).kept
    ('a', 'c')
    """
    check_keep(keep)
    copies: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, text in documents:
        copies[hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()].append(name)
    require_unique(name for group in copies.values() for name in group)
    return keep_one_each(copies.values(), keep, seed)
