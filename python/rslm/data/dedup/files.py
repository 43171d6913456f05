"""Deduplication of files in a folder of their own: the same names, less of what repeats.

A file's id is its name without the folder, so files of two folders must differ in it. An output
of that name from before is replaced, or taken away where the file is left out; other files of
the output folder stay.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rslm import _rslm
from rslm.data.dedup.clusters import Duplicates, Implementation, Keep, check_implementation
from rslm.data.dedup.lines import (
    KeepLines,
    LineCount,
    check_keep_lines,
    count_lines,
    drop_repeated,
    merge_line_counts,
    repeated_lines,
)
from rslm.data.dedup.near_duplicates import MinHashOptions, find_near_duplicates
from rslm.data.dedup.shards import MEMORY_LIMIT_BYTES
from rslm.data.dedup.stages import RepeatedLines, merge_lines
from rslm.files import write_atomically

Paths = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class LineReport:
    """Lines read and lines written, and how many different ones come more than once."""

    n_lines: int
    n_kept: int
    n_repeated: int


def deduplicate_lines(
    files: Paths,
    output_directory: str | os.PathLike[str],
    *,
    keep: KeepLines = "none",
    implementation: Implementation = "rust",
) -> LineReport:
    """Writes each file without the lines that come more than once in all of them together.

    With "none" every copy of such a line goes, the first too; with "first" the one stays that
    is in the file of the least name, there the first. A line is what `lines` says.

    Memory: 256 MB and the longest line; what counting needs beyond that, 32 bytes a different
    line, lies in temporary files. "reference" holds every different line instead of 128 bits
    of it, and what is left of a file.

    Raises:
        ValueError: two files have one name, an output would replace its input, or `keep` is no
            such choice; nothing is written.
        OSError: reading or writing failed. Each output is the old one or the new one.

    Source: CS336, assignment 4, section on exact line deduplication.
    """
    check_keep_lines(keep)
    check_implementation(implementation)
    targets = _targets(files, output_directory)
    if implementation == "rust":
        return _deduplicate_lines(targets, output_directory, keep)
    counts = merge_line_counts(_count_file(path) for path in targets)
    repeated = repeated_lines(counts)
    n_kept = 0
    _make_folder(output_directory)
    for path, target in targets.items():
        with path.open("rb") as file:
            kept = list(drop_repeated(path.name, file, repeated, keep=keep))
        write_atomically(target, *kept)
        n_kept += len(kept)
    return LineReport(
        n_lines=sum(count.n for count in counts.values()), n_kept=n_kept, n_repeated=len(repeated)
    )


def _deduplicate_lines(
    targets: dict[Path, Path], output_directory: str | os.PathLike[str], keep: KeepLines
) -> LineReport:
    # Rows in the order of the names, so that the first place is in the least of them.
    ordered = sorted(targets.items(), key=lambda item: item[0].name)
    with tempfile.TemporaryDirectory() as folder:
        counts, merged = Path(folder, "counts"), Path(folder, "repeated")
        paths = [path for path, _ in ordered]
        n_lines = _rslm.count_line_files(paths, counts, MEMORY_LIMIT_BYTES)
        n_repeated = merge_lines([counts], 0, merged, n_ranges=1).n_repeated
        _make_folder(output_directory)
        n_kept = RepeatedLines([merged]).rewrite_files(ordered, keep)
    return LineReport(n_lines=n_lines, n_kept=n_kept, n_repeated=n_repeated)


def deduplicate_minhash(
    files: Paths,
    output_directory: str | os.PathLike[str],
    *,
    n_hashes: int,
    n_bands: int,
    ngram_words: int,
    jaccard_threshold: float = 0.8,
    keep: Keep = "first",
    seed: int = 0,
    implementation: Implementation = "rust",
) -> Duplicates:
    """Writes one file of each cluster of near-duplicates, and what is in none, unchanged.

    A document is a whole file; where it is not UTF-8, what is not is compared as U+FFFD and
    written as it was. `near_duplicates.MinHashOptions` says what the options are, and
    `find_near_duplicates` what the implementations and their memory are.

    Raises:
        ValueError: two files have one name, an output would replace its input, or an option is
            out of its range; nothing is written.
        OSError: reading or writing failed. Each output is the old one or the new one.

    Source: CS336, assignment 4, section on MinHash deduplication.
    """
    options = MinHashOptions(
        n_hashes=n_hashes,
        n_bands=n_bands,
        ngram_words=ngram_words,
        jaccard_threshold=jaccard_threshold,
        keep=keep,
        seed=seed,
    )
    check_implementation(implementation)
    targets = _targets(files, output_directory)
    found = find_near_duplicates(_read_texts(targets), options, implementation=implementation)
    kept = set(found.kept)
    _make_folder(output_directory)
    for path, target in targets.items():
        if path.name in kept:
            write_atomically(target, path.read_bytes())
        else:
            target.unlink(missing_ok=True)
    return found


def _targets(files: Paths, output_directory: str | os.PathLike[str]) -> dict[Path, Path]:
    """The inputs, and where the output of each belongs."""
    inputs: dict[str, Path] = {}
    for path in map(Path, files):
        if path.name in inputs:
            raise ValueError(
                "files must differ in their names, which the outputs take, "
                f"got {inputs[path.name]} and {path}"
            )
        inputs[path.name] = path
    targets = {path: Path(output_directory, name) for name, path in inputs.items()}
    sources = {path.resolve(): path for path in targets}
    for target in targets.values():
        if (source := sources.get(target.resolve())) is not None:
            raise ValueError(
                f"output_directory must not be where the files are, got {output_directory}, "
                f"and {target} would replace {source}"
            )
    return targets


def _make_folder(folder: str | os.PathLike[str]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)


def _count_file(path: Path) -> dict[bytes, LineCount]:
    with path.open("rb") as file:
        return count_lines(path.name, file)


def _read_texts(paths: dict[Path, Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        yield path.name, path.read_bytes().decode("utf-8", errors="replace")
