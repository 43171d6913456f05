"""Text that is on this machine already, split into training and validation text.

Default: the source code of the running interpreter's standard library, real text that
every machine with Python has.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rslm.files import END_OF_TEXT

# One document in twenty is held out.
VALIDATION_ONE_IN = 20
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Documents to train on, documents held out, and how many files were no UTF-8 text."""

    train: list[str]
    valid: list[str]
    n_skipped: int


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_split(source: str | os.PathLike[str] | None, max_bytes: int) -> Split:
    """Reads a text file or the text files of a folder; None is the standard library.

    A folder is split file by file, by a hash of the relative path: one file in twenty is
    held out, the same ones on every machine and in any order. A single file is split by its
    `<|endoftext|>` documents if it has at least twenty, otherwise its last twentieth,
    from a line's beginning on, is held out.

    Args:
        source: a file, a folder, or None.
        max_bytes: text beyond this is left out (of a folder whole files, chosen by the
            hash of their path; of a file the end).

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: a part of the split would be empty, or a single file is not UTF-8.
    """
    if source is None:
        split = split_folder(standard_library(), max_bytes, suffix=".py")
    elif Path(source).is_dir():
        split = split_folder(Path(source), max_bytes, suffix="")
    else:
        split = split_file(Path(source), max_bytes)
    if not split.train or not split.valid:
        raise ValueError(
            f"corpus must hold enough UTF-8 text to train on and to hold out, but {source} does not"
        )
    return split


def split_folder(folder: Path, max_bytes: int, *, suffix: str) -> Split:
    """Splits a folder's files by the hash of their relative paths."""
    chosen, n_skipped, n_bytes = {}, 0, 0
    for path in sorted(files_below(folder, suffix), key=lambda path: path_hash(path, folder)):
        text = read_utf8(path)
        if text is None:
            n_skipped += 1
        elif text.strip() and n_bytes + len(text) <= max_bytes:
            chosen[path] = text
            n_bytes += len(text)
    ordered = sorted(chosen, key=lambda path: path.relative_to(folder).as_posix())
    held_out = {path for path in ordered if path_hash(path, folder) % VALIDATION_ONE_IN == 0}
    return Split(
        train=[chosen[path] for path in ordered if path not in held_out],
        valid=[chosen[path] for path in ordered if path in held_out],
        n_skipped=n_skipped,
    )


def files_below(folder: Path, suffix: str) -> Iterator[Path]:
    """The files below a folder, without hidden ones and installed packages."""
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in EXCLUDED_FOLDERS and not f.startswith(".")]
        for name in files:
            if name.endswith(suffix) and not name.startswith("."):
                yield Path(where, name)


def path_hash(path: Path, folder: Path) -> int:
    """A number from the relative path alone: the same on every machine."""
    relative = path.relative_to(folder).as_posix().encode()
    return int.from_bytes(hashlib.sha256(relative).digest()[:8], "little")


def read_utf8(path: Path) -> str | None:
    """A file's text, or None where it is not UTF-8 or holds zero bytes, as binary files do."""
    if not path.is_file():  # A pipe would keep us waiting, a dangling link has no text.
        return None
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def split_file(path: Path, max_bytes: int) -> Split:
    """Splits a single file by documents, or holds out its end."""
    with path.open("rb") as file:
        content = file.read(max_bytes)
    try:
        # The cut at max_bytes may lie inside a character: at most three bytes of it are dropped.
        text = content.decode()
    except UnicodeDecodeError as error:
        if len(content) < max_bytes or error.start < len(content) - 3:
            raise ValueError(
                f"{path} must be UTF-8: invalid byte at offset {error.start}"
            ) from error
        text = content[: error.start].decode()
    documents = [document for document in text.split(END_OF_TEXT) if document.strip()]
    if len(documents) >= VALIDATION_ONE_IN:
        return Split(
            train=[d for i, d in enumerate(documents) if (i + 1) % VALIDATION_ONE_IN],
            valid=documents[VALIDATION_ONE_IN - 1 :: VALIDATION_ONE_IN],
            n_skipped=0,
        )
    whole = "".join(documents)
    cut = whole.find("\n", len(whole) - len(whole) // VALIDATION_ONE_IN) + 1
    return Split(
        train=[whole[:cut]] if cut else [], valid=[whole[cut:]] if whole[cut:] else [], n_skipped=0
    )
