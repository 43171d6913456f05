"""Files written so that a crash leaves the old or the new one; folders locked; tables by row."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# NumPy takes longer to load than most programs need to tokenize: what needs it loads it.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"
"""What ends a document in a file of text, by convention of GPT-2, and the token for it."""

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 256


def write_atomically(path: str | os.PathLike[str], *data: bytes | memoryview) -> None:
    """Replaces `path` by `data`, end to end: written beside, synced, renamed, folder synced.

    A link is replaced, too, not what it leads to.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is untouched.
        ValueError: there is something else than a file, as a device.
    """
    target = _target(path)
    beside = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        # A write names no file, and a user knows none of what is beside the one that was asked for.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    # Not at the top: what starts a process reads this module, and most have nothing to hash.
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_place(path: str | os.PathLike[str]) -> None:
    """Refuses before long work where `write_atomically` would after it.

    Raises:
        OSError: the folder is missing, or there is a folder of that name.
        ValueError: there is something else than a file, as a device.
    """
    target = _target(path)
    if not target.parent.is_dir():
        reason = "the folder to write it into does not exist"
        raise FileNotFoundError(errno.ENOENT, reason, os.fspath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))


def _target(path: str | os.PathLike[str]) -> Path:
    """The path, unless a rename would replace what is no file, as a device.

    A link to a file is replaced, not followed: a run folder of somebody else's must not lead
    writes out of it.
    """
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except OSError:  # What is wrong with the place the one who opens it will say.
        return target
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise ValueError(f"{path} must be a regular file or not exist yet, and is a {kind}")
    return target


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flushes a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Locks a folder itself, so that the system drops the lock when the process dies.

    Raises:
        BlockingIOError: another process uses it; `what` says in the message what it is.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, what)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, what: str) -> None:
    # Whoever lists runs looks at the lock by holding it for a moment.
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    raise BlockingIOError(f"another process uses the {what} {folder}")


@contextlib.contextmanager
def removed_if_refused(folder: Path, *, unless: str) -> Iterator[None]:
    """Takes a folder that the block made away again where it ends in a mistake of the user's.

    That is a `ValueError`, or a file that is missing or of another kind. So the command that is
    put right may use the name. What was there before stays, and so does a folder in which
    something was written to the file `unless` by then; an interrupt or a full disk leaves what
    can be gone on with.
    """
    was_there = folder.exists() and any(folder.iterdir())
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        written = folder / unless
        is_begun = written.exists() and written.stat().st_size > 0
        if not was_there and folder.exists() and not is_begun:
            # Imported here: whoever only tokenizes should not pay for it.
            import shutil

            shutil.rmtree(folder)
            if folder not in missing:
                folder.mkdir()
            for path in missing[1:]:
                path.rmdir()
        raise


def read_parquet(
    path: str | os.PathLike[str], column: str, first_row: int, *, corrupt: type[ValueError]
) -> Iterator[tuple[bytes, npt.NDArray[np.int64], int]]:
    """The texts of one column from a row on, a few megabytes at a time.

    Yields the bytes of the texts, where each ends, and how many bytes of the file the rows
    so far stand for. Memory: a batch, and the pages of a row group that it needs.

    Raises:
        ValueError: pyarrow is missing, or there is no such column of strings.
        corrupt: the file is no Parquet file, is corrupt, or a row holds no text.
    """
    with open_parquet(path, corrupt=corrupt) as file:
        for texts, row in _rows(file, path, column, first_row):
            if texts.null_count:
                missing = row + texts.is_null().index(True).as_py()
                raise corrupt(f"{path}: row {missing}: must hold a text, got null")
            done = row + len(texts)
            content, ends = _content(texts)
            yield content, ends, os.path.getsize(path) * done // file.metadata.num_rows


@contextlib.contextmanager
def open_parquet(path: str | os.PathLike[str], *, corrupt: type[ValueError]) -> Iterator[Any]:
    """The file as pyarrow's `ParquetFile`, whose errors within the block are told as ours.

    Raises:
        ValueError: pyarrow is missing.
        corrupt: the file is no Parquet file, or is corrupt.
    """
    try:
        import pyarrow.lib
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError(
            "Parquet files need pyarrow, which is not installed: pip install 'rslm[data]'"
        ) from error
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            yield file
    # A system's error has a number; pyarrow reports corrupt data as OSError without one.
    except (pyarrow.lib.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise corrupt(f"{path}: not a whole Parquet file: {error}") from error


def parquet_batches(file: Any, group: int, columns: list[str] | None = None) -> Iterator[Any]:
    """Record batches of a row group, a few megabytes each."""
    metadata = file.metadata.row_group(group)
    n_bytes = max(metadata.total_byte_size, 1)
    batch_size = min(max(_BATCH_BYTES * metadata.num_rows // n_bytes, 1), 1 << 16)
    yield from file.iter_batches(batch_size, row_groups=[group], columns=columns)


def arrow_batches(path: str | os.PathLike[str], *, corrupt: type[ValueError]) -> Iterator[Any]:
    """Record batches of an Arrow stream, of at most some hundred rows each, not checked.

    Raises:
        ValueError: pyarrow is missing.
        corrupt: the file is no Arrow stream, or is corrupt.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ValueError(
            "Arrow files need pyarrow, which is not installed: pip install 'rslm[data]'"
        ) from error
    try:
        with pyarrow.OSFile(os.fspath(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)
    except (pyarrow.lib.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise corrupt(f"{path}: not a whole Arrow stream: {error}") from error


def _rows(
    file: Any, path: str | os.PathLike[str], column: str, first_row: int
) -> Iterator[tuple[Any, int]]:
    """Arrow arrays of texts, and the number of the first row of each."""
    metadata, names = file.metadata, file.schema_arrow.names
    if names.count(column) != 1:
        shown = ", ".join(names)
        raise ValueError(f"text_field must be a column of {path} ({shown}), got {column!r}")
    row = 0
    for group in range(metadata.num_row_groups):
        n_rows = metadata.row_group(group).num_rows
        if row + n_rows <= first_row:
            row += n_rows
            continue
        for batch in parquet_batches(file, group, [column]):
            texts = batch.column(0)[max(first_row - row, 0) :]
            row += len(batch)
            if len(texts):
                yield texts, row - len(texts)


def _content(texts: Any) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The bytes of an Arrow array of strings, and where each string ends in them."""
    import numpy as np
    import pyarrow

    kind = texts.type.value_type if pyarrow.types.is_dictionary(texts.type) else texts.type
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise ValueError(f"text_field must be a column of strings, got one of {kind}")
    texts = texts.cast(pyarrow.large_string())
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    start, stop = int(ends[0]), int(ends[-1])
    data = content.slice(start, stop - start).to_pybytes() if stop > start else b""
    return data, ends[1:] - start
