"""Deduplication under the names and with the arguments of Stanford's course CS336, assignment 4."""

import os
from collections.abc import Sequence

from rslm.data.dedup.files import deduplicate_lines, deduplicate_minhash


def exact_line_deduplication(
    input_files: Sequence[str | os.PathLike[str]], output_directory: str | os.PathLike[str]
) -> None:
    """`deduplicate_lines` that keeps no copy of a repeated line."""
    deduplicate_lines(input_files, output_directory)


def minhash_deduplication(
    input_files: Sequence[str | os.PathLike[str]],
    num_hashes: int,
    num_bands: int,
    ngrams: int,
    jaccard_threshold: float,
    output_directory: str | os.PathLike[str],
) -> None:
    """`deduplicate_minhash`; the course keeps one of a cluster at random, we the least name."""
    deduplicate_minhash(
        input_files,
        output_directory,
        n_hashes=num_hashes,
        n_bands=num_bands,
        ngram_words=ngrams,
        jaccard_threshold=jaccard_threshold,
    )
