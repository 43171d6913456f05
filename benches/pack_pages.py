"""Folders of HTML as crawl files, for measurements at a size that samples do not have.

    apt-get download rust-doc && dpkg-deb -x rust-doc_*.deb rust-doc
    python benches/pack_pages.py rust-doc --out crawl --shard-megabytes 100

Pages are taken in the order of their paths, dealt out to the shards in turn, and packed as a
crawler packs them, each in a gzip member of its own. The same folders give the same records.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dirty_crawl import write_page
from warcio.warcwriter import WARCWriter

SUFFIXES = (".html", ".htm", ".xhtml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--shard-megabytes", type=int, default=100, help="of HTML, unpacked")
    parser.add_argument("--name", default="pages")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pages = [(folder, path) for folder in options.folders for path in pages_of(folder)]
    n_bytes = sum(path.stat().st_size for _, path in pages)
    n_shards = max(1, round(n_bytes / options.shard_megabytes / 1e6))
    options.out.mkdir(parents=True, exist_ok=True)
    for shard in range(n_shards):
        with (options.out / f"{options.name}-{shard:03}.warc.gz").open("wb") as file:
            writer = WARCWriter(file, gzip=True)
            for folder, path in pages[shard::n_shards]:
                name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                id = f"urn:sha1:{hashlib.sha1(name.encode()).hexdigest()}"
                page = path.read_text(encoding="utf-8", errors="replace")
                write_page(writer, id, f"http://docs.example/{name}", page)
    print(f"{len(pages):,} pages, {n_bytes / 1e6:,.1f} MB, {n_shards} files")


def pages_of(folder: Path) -> Iterator[Path]:
    """Every page of the folder once, in the order of the paths; links are not followed."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if name.lower().endswith(SUFFIXES) and path.is_file() and not path.is_symlink():
                yield path


if __name__ == "__main__":
    main()
