"""Public corpora as plain text files, documents parted by lines of `<|endoftext|>`.

The records stream through `datasets`, so memory stays small and nothing but the text
file is kept. A file grows as `NAME.txt.part` beside a note of how far it is whole
(`NAME.txt.part.json`); the same call after an interruption goes on from there, and the
file gets its name when it is complete.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rslm.files import END_OF_TEXT, sync_folder, write_atomically

# Bytes between two notes of how far a file is whole: what an interruption can cost.
SAVE_EVERY_BYTES = 64 << 20
REPORT_EVERY_BYTES = 1 << 20
NETWORK_PACKAGES = {"aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A data set as `datasets.load_dataset` finds it.

    Attributes:
        builder: the loader: "text" (records are lines), "json" or "parquet" (documents).
        data_files: split -> address.
        n_bytes: split -> size of the text, known beforehand; only the bar's end depends on it.
    """

    builder: str
    data_files: dict[str, str]
    n_bytes: dict[str, int]


# The files that the course CS336 uses: GPT-4's half of TinyStories (Eldan and Li 2023,
# arXiv:2305.07759), and a sample of OpenWebText (Gokaslan and Cohen 2019). They are text with
# `<|endoftext|>` in it already.
CORPORA = {
    "tinystories": Corpus(
        builder="text",
        data_files={
            "train": "hf://datasets/roneneldan/TinyStories/TinyStoriesV2-GPT4-train.txt",
            "valid": "hf://datasets/roneneldan/TinyStories/TinyStoriesV2-GPT4-valid.txt",
        },
        n_bytes={"train": 2_227_753_162, "valid": 22_502_601},
    ),
    "openwebtext": Corpus(
        builder="text",
        data_files={
            "train": "hf://datasets/stanford-cs336/owt-sample/owt_train.txt.gz",
            "valid": "hf://datasets/stanford-cs336/owt-sample/owt_valid.txt.gz",
        },
        n_bytes={"train": 11_920_511_059, "valid": 289_998_753},
    ),
}

Progress = Callable[[int, int, str], None]


def download(
    name: str, out: str | os.PathLike[str], progress: Progress | None = None
) -> list[Path]:
    """Writes `out/NAME-train.txt` and `out/NAME-valid.txt`; returns their paths.

    A file that is there already is kept as it is, a partial one is continued.

    Args:
        progress: called with (bytes done, bytes in all, file name).

    Raises:
        ValueError: no corpus has this name.
        ConnectionError: the network or the data set cannot be reached.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus must be one of {', '.join(CORPORA)}, got {name!r}")
    return download_corpus(CORPORA[name], name, out, progress)


def download_corpus(
    corpus: Corpus, name: str, out: str | os.PathLike[str], progress: Progress | None = None
) -> list[Path]:
    """Writes a text file for each split of a corpus; see `download`."""
    folder = Path(out)
    paths = []
    for split in sorted(corpus.data_files, key=lambda split: corpus.n_bytes.get(split, 0)):
        path = folder / f"{name}-{split}.txt"
        paths.append(path)
        if path.exists():
            continue
        try:
            write_split(corpus, split, path, progress)
        except Exception as error:
            if not is_network_error(error):
                raise
            raise ConnectionError(
                f"{name} could not be fetched from {corpus.data_files[split]}: is there a network? "
                "The same command goes on where it stopped."
            ) from error
    return paths


def write_split(corpus: Corpus, split: str, path: Path, progress: Progress | None) -> None:
    """Streams one split into a file, from the last note of an earlier attempt if any."""
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    records = stream(corpus, split)
    n_done, state = read_note(part, note)
    if state is not None:
        records.load_state_dict(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("r+b" if n_done else "wb") as file:
        file.truncate(n_done)
        file.seek(n_done)
        n_noted = n_reported = n_done
        for text in texts(corpus, records):
            n_done += file.write(text)
            if n_done - n_noted >= SAVE_EVERY_BYTES:
                save_note(file, note, n_done, records.state_dict())
                n_noted = n_done
            if progress is not None and n_done - n_reported >= REPORT_EVERY_BYTES:
                progress(n_done, max(n_done, corpus.n_bytes.get(split, 0)), path.name)
                n_reported = n_done
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    note.unlink(missing_ok=True)
    sync_folder(path.parent)


def stream(corpus: Corpus, split: str) -> Any:
    """The records of a split, fetched as they are read."""
    from datasets import load_dataset

    options = {"keep_linebreaks": True} if corpus.builder == "text" else {}
    return load_dataset(
        corpus.builder,
        data_files={split: corpus.data_files[split]},
        split=split,
        streaming=True,
        **options,
    )


def texts(corpus: Corpus, records: Any) -> Iterator[bytes]:
    """The bytes to write for each record: a line as it is, or a document with its end."""
    end = "" if corpus.builder == "text" else f"\n{END_OF_TEXT}\n"
    for record in records:
        yield f"{record['text']}{end}".encode()


def read_note(part: Path, note: Path) -> tuple[int, dict[str, Any] | None]:
    """How many bytes of a partial file count, and where the stream stood then."""
    if not (part.exists() and note.exists()):
        return 0, None
    record = json.loads(note.read_text())
    if part.stat().st_size < record["n_bytes"]:
        return 0, None
    return record["n_bytes"], record["state"]


def save_note(file: BinaryIO, note: Path, n_bytes: int, state: dict[str, Any]) -> None:
    """Syncs the text first, then notes how far it goes: the note never promises too much."""
    file.flush()
    os.fsync(file.fileno())
    write_atomically(note, json.dumps({"n_bytes": n_bytes, "state": state}).encode())


def is_network_error(error: BaseException) -> bool:
    """Whether an error of `datasets` or what lies below it comes from the network.

    They have no common base class, and some wrap others: the chain of causes is searched
    for the networking packages' own errors.
    """
    link: BaseException | None = error
    while link is not None:
        package = type(link).__module__.split(".")[0].rstrip("0123456789")
        if isinstance(link, ConnectionError | TimeoutError) or package in NETWORK_PACKAGES:
            return True
        link = link.__cause__ or link.__context__
    return False
