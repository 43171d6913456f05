"""Deduplication of a corpus of shards, stage by stage, in bounded memory.

A document's place is (shard, row): the number of its shard, which the caller gives, and its own
in it. Each stage reads files and writes one, beside its name, synced and renamed; what a file
holds depends on documents and places alone, not on the order of its inputs, on `n_ranges`, on
memory or on who works at the same time. So a stage may be killed and run again anywhere.

    lines      count_lines (shard) -> merge_lines (range) -> RepeatedLines.rewrite (shard)
    documents  sign_exact, sign_minhash (shard) -> join (part) -> cluster -> dropped_rows (shard)

`n_ranges` cuts the hashes into as many equal ranges, which are merged and joined each by itself.
A file that is cut or damaged is refused with `rslm.FormatError`, which names it and the byte.
The format is described in `rust/web/dedup/container.rs`; the plain functions of this folder say
what must come out.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rslm import _rslm
from rslm.data.dedup import lsh
from rslm.data.dedup.clusters import Keep, check_keep
from rslm.data.dedup.lines import KeepLines, check_keep_lines
from rslm.data.dedup.minhash import draw_hash_functions
from rslm.data.dedup.near_duplicates import MinHashOptions, minhash_arguments
from rslm.data.dedup.shards import MEMORY_LIMIT_BYTES, fill, require_n_ranges

StrPath = str | os.PathLike[str]
Place = tuple[int, int]
"""Shard and row of a document."""


@dataclass(frozen=True, kw_only=True)
class LineMerge:
    """What a range of hashes holds.

    Attributes:
        n_lines: lines of all shards.
        n_distinct: different ones.
        n_repeated: different ones that come more than once.
        n_copies: how often all of these come.
    """

    n_lines: int
    n_distinct: int
    n_repeated: int
    n_copies: int


@dataclass(frozen=True, kw_only=True)
class Join:
    """What one part of the keys links.

    Attributes:
        n_candidate_pairs: pairs of a bucket that were compared (or linked unseen). A pair that
            shares keys of several parts counts in each; pairs that are linked over others of
            their bucket are not compared.
        n_duplicate_pairs: those of them that were linked.
        n_copies: links between documents of one text, which need no comparison.
        n_capped_buckets: buckets so large that not every pair was compared.
        largest_bucket: members of the largest bucket.
    """

    n_candidate_pairs: int
    n_duplicate_pairs: int
    n_copies: int
    n_capped_buckets: int
    largest_bucket: int


@dataclass(frozen=True, kw_only=True)
class ClusterExample:
    """A cluster: the place that is kept, its size, and its first ten members."""

    kept: Place
    size: int
    members: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """What all links come to.

    Attributes:
        n_documents: of all shards.
        n_dropped: of these.
        sizes: how many clusters there are of each size above 1.
        examples: the twenty largest, ascending by their first places where they are as large.
    """

    n_documents: int
    n_dropped: int
    sizes: dict[int, int]
    examples: tuple[ClusterExample, ...]


def count_lines(
    texts: Iterable[str],
    shard: int,
    target: StrPath,
    *,
    n_ranges: int,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> int:
    """Counts the lines of a shard's documents, and gives their number.

    A line is what `lines` says, known by 128 bits of xxh3: of 10^10 different lines the chance
    that any two are taken for one is 1.5e-19, unless somebody made them to that end.

    Memory: `memory_limit_bytes` (32 bytes a different line; the rest is spilled beside the
    target and merged), 5 MB, and some megabytes of texts.

    Raises:
        OSError: writing failed; the target is as before.
        ValueError: `n_ranges` is out of its range.
    """
    require_n_ranges(n_ranges)
    return fill(_rslm.ShardWriter.of_lines(shard, target, n_ranges, memory_limit_bytes), texts)


def merge_lines(
    counts: Sequence[StrPath], range_index: int, target: StrPath, *, n_ranges: int
) -> LineMerge:
    """Writes the lines of a range of hashes that come more than once, and their first places.

    Memory: 5 MB. 64 files are read at a time; of more, what was merged is written beside the
    target and merged again.

    Raises:
        ValueError: a file is not of these ranges, or two are of one shard.
        FormatError: a file is damaged.
    """
    n_lines, n_distinct, n_repeated, n_copies = _rslm.merge_line_files(
        counts, range_index, target, n_ranges
    )
    return LineMerge(
        n_lines=n_lines, n_distinct=n_distinct, n_repeated=n_repeated, n_copies=n_copies
    )


class RepeatedLines:
    """The repeated lines of a corpus: the merged files of all ranges, mapped into memory.

    32 bytes a different line that is repeated, on disk; processes of one machine share what of
    it is in memory.
    """

    def __init__(self, merged: Sequence[StrPath]) -> None:
        """Opens and checks the files, in any order.

        Raises:
            ValueError: they are not one of each range.
            FormatError: one is damaged.
        """
        tables: dict[int, npt.NDArray[np.uint8]] = {}
        for path in merged:
            index, n_ranges, start, n_bytes = _rslm.check_repeated_lines(path)
            if n_ranges != len(merged) or index in tables:
                raise ValueError(
                    f"merged must be one file of each of the {n_ranges} ranges, "
                    f"got {len(merged)}, and range {index} in {path}"
                )
            tables[index] = (
                np.memmap(path, np.uint8, "r", offset=start, shape=(n_bytes,))
                if n_bytes
                else np.empty(0, np.uint8)
            )
        if not tables:
            raise ValueError("merged must be one file of each range, got none")
        self._tables = [tables[index] for index in range(len(tables))]

    def rewrite(
        self, texts: Sequence[str], shard: int, first_row: int, keep: KeepLines
    ) -> list[tuple[str, int]]:
        """What stays of documents in a row, and how many lines of each went.

        Args:
            texts: as they were counted.
            shard: their shard.
            first_row: the row of the first of them.
            keep: "none" drops every copy of a repeated line; "first" keeps the one in the
                least shard and row, there the first.
        """
        check_keep_lines(keep)
        texts = list(texts)
        return _rslm.rewrite_lines(self._tables, texts, shard, first_row, keep == "first")

    def rewrite_files(self, files: Sequence[tuple[StrPath, StrPath]], keep: KeepLines) -> int:
        """Writes what stays of whole files, and gives the number of lines written.

        Args:
            files: those that were counted as one document each of shard 0, in their order, and
                where what stays of each is written.
            keep: as for `rewrite`.

        Raises:
            OSError: reading or writing failed; each target is the old one or the new one.
        """
        check_keep_lines(keep)
        return _rslm.rewrite_line_files(self._tables, list(files), keep == "first")


def sign_exact(
    texts: Iterable[str],
    shard: int,
    target: StrPath,
    *,
    n_ranges: int,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> int:
    """Writes the keys of a shard's documents, and gives their number.

    Texts are compared by half of their SHA-256. Memory: `memory_limit_bytes` (24 bytes a
    document; the rest is spilled), 5 MB, and some megabytes of texts.

    Raises:
        OSError: writing failed; the target is as before.
        ValueError: `n_ranges` is out of its range.
    """
    require_n_ranges(n_ranges)
    return fill(_rslm.ShardWriter.of_exact(shard, target, n_ranges, memory_limit_bytes), texts)


def sign_minhash(
    texts: Iterable[str],
    shard: int,
    target: StrPath,
    *,
    options: MinHashOptions,
    n_ranges: int,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> int:
    """Writes the bands of a shard's documents, and what they are compared by; their number.

    A band is known by 64 bits of xxh3 and a shingle by 64 of SHA-1. Of 10^9 documents the
    chance that two different bands of one number are taken for one is .03; that makes a
    candidate, which is compared unless `jaccard_threshold` is None.

    On disk: 16 bytes a band and document, and 8 bytes a shingle where candidates are compared.
    Memory: `memory_limit_bytes` (16 bytes a band and document; the rest is spilled), some 70
    bytes a document, and 20 times the longest text.

    Raises:
        OSError: writing failed; the target is as before.
        ValueError: `n_ranges` is out of its range.
    """
    require_n_ranges(n_ranges)
    functions = draw_hash_functions(options.n_hashes, options.seed)
    arguments = minhash_arguments(options, functions)
    return fill(
        _rslm.ShardWriter.of_minhash(arguments, shard, target, n_ranges, memory_limit_bytes), texts
    )


def n_parts(options: MinHashOptions | None, n_ranges: int) -> int:
    """Parts of the keys that are joined each by itself; without options, of exact documents."""
    return n_ranges * (options.n_bands if options else 1)


def join(
    signatures: Sequence[StrPath],
    part: int,
    target: StrPath,
    *,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Join:
    """Writes the links between documents that share a key of one part.

    Where the options ask for it, documents of a bucket are compared by the Jaccard similarity
    of their shingles, which are read where they are needed: so the files of signatures must
    stay until all parts are joined.

    Memory: sets of shingles up to `memory_limit_bytes` and the two largest, 100 bytes for each
    member of the largest bucket, and 5 MB.

    Args:
        signatures: of all shards, in any order.
        part: below `n_parts`.
        target: where the links go.
        memory_limit_bytes: of sets that are held.

    Raises:
        ValueError: files are of one shard or of other options, or there is no such part.
        FormatError: a file is damaged.
    """
    cap = (lsh.MAX_BUCKET, lsh.N_REPRESENTATIVES)
    found = _rslm.join_signatures(signatures, part, target, cap, memory_limit_bytes)
    n_candidates, n_duplicates, n_copies, n_capped, largest = found
    return Join(
        n_candidate_pairs=n_candidates,
        n_duplicate_pairs=n_duplicates,
        n_copies=n_copies,
        n_capped_buckets=n_capped,
        largest_bucket=largest,
    )


def cluster(
    edges: Sequence[StrPath], n_rows: Sequence[int], target: StrPath, *, keep: Keep, seed: int
) -> Clusters:
    """Joins the links of all parts, and writes which documents are dropped.

    Memory: 8 bytes a document; if kept at random, 64 bytes a cluster more.

    Args:
        edges: what `join` wrote for all parts, in any order.
        n_rows: the number of documents of each shard.
        target: where the places to drop go.
        keep: "first" keeps the least (shard, row) of a cluster; "random" the least SHA-256 of
            `<seed>:<shard>:<row>`.
        seed: of "random".

    Raises:
        ValueError: `keep` is no such choice.
        FormatError: a file is damaged, or names a document that no shard has.
    """
    check_keep(keep)
    chosen = seed if keep == "random" else None
    n_documents, n_dropped, sizes, examples = _rslm.cluster_edges(
        edges, list(n_rows), target, chosen
    )
    return Clusters(
        n_documents=n_documents,
        n_dropped=n_dropped,
        sizes=dict(sizes),
        examples=tuple(
            ClusterExample(kept=kept, size=size, members=tuple(members))
            for kept, size, members in examples
        ),
    )


def dropped_rows(target: StrPath, shard: int) -> npt.NDArray[np.uint32]:
    """The rows to drop of a shard, ascending, from the file that `cluster` wrote.

    Raises:
        ValueError: there was no such shard.
        FormatError: the file is damaged.
    """
    return _rslm.read_dropped_rows(target, shard)
