"""`rslm data download`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

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
