"""`rslm data download | split`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rslm.commands.inputs import Files
from rslm.terminal import download_bar, note


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Fetch a corpus as text files, documents parted by lines of <|endoftext|>."""

    corpus: Annotated[Literal["tinystories", "openwebtext"], tyro.conf.Positional]
    """tinystories (2.2 GB) or openwebtext (12 GB)."""
    out: Path
    """Folder for CORPUS-train.txt and CORPUS-valid.txt."""


def download(options: DownloadOptions) -> None:
    """Fetches what is missing and prints the files' paths."""
    from rslm.data.download import download as download_corpus

    with download_bar() as progress:
        paths = download_corpus(options.corpus, options.out, progress)
    for path in paths:
        print(path)
    note(f"next: rslm train --preset {options.corpus} --text {paths[-1]} --valid-text {paths[0]}")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Hold out documents of text files, chosen by the SHA-256 of their bytes."""

    files: Files
    """UTF-8 text, documents parted by <|endoftext|>."""
    train: Path
    """File to write what is to be trained on."""
    valid: Path
    """File to write what is held out."""
    share: float = 0.005
    """Share of the documents to hold out."""


def split(options: SplitOptions) -> None:
    """Writes both files and says what they hold."""
    from rslm.commands.tokenizer import require_files
    from rslm.data.split import split_files

    files = require_files(options.files)
    counts = split_files(files, options.train, options.valid, options.share)
    for path, count in zip((options.train, options.valid), counts, strict=True):
        note(f"{path}: {count.n_documents:,} documents, {count.n_bytes:,} bytes")
