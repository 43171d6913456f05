"""Time reading of WARC files beside warcio, fastwarc and datatrove.

A file is packed from folders of HTML by warcio, a gzip member for each record. All readers take
all of it in turns; the measure is CPU seconds of the process, the fastest of the passes. Each
reader must find the same bytes of payload. Peers run in environments of their own.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def pack(folder: Path, target: Path, n_bytes: int, least_bytes: int) -> None:
    """Writes pages of the folder, from every subfolder in turns, as responses."""
    writer_module: Any = importlib.import_module("warcio.warcwriter")
    headers_module: Any = importlib.import_module("warcio.statusandheaders")
    folders = [sorted(one.rglob("*.html")) for one in sorted(folder.iterdir()) if one.is_dir()]
    left = n_bytes
    with target.open("wb") as file:
        writer = writer_module.WARCWriter(file, gzip=True)
        for number in range(max(map(len, folders), default=0)):
            for pages in folders:
                if number >= len(pages) or left <= 0 or not pages[number].is_file():
                    continue
                page = pages[number].read_bytes()
                if len(page) < least_bytes:
                    continue
                left -= len(page)
                fields = [("Content-Type", "text/html; charset=utf-8")]
                headers = headers_module.StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
                url = f"http://example.org/{pages[number].name}"
                record = writer.create_warc_record(
                    url, "response", payload=io.BytesIO(page), http_headers=headers
                )
                writer.write_record(record)


def read_by_rslm(path: str) -> tuple[int, int]:
    from rslm.data.warc import read_warc

    sizes = [len(record.payload) for record in read_warc(path)]
    return len(sizes), sum(sizes)


def decode_by_rslm(path: str) -> tuple[int, int]:
    """With decoding to clean text; the sizes are characters, and not compared."""
    from rslm.data.documents import read_documents

    sizes = [len(document.text) for document in read_documents(path, format="warc")]
    return len(sizes), sum(sizes)


def read_by_warcio(path: str) -> tuple[int, int]:
    module: Any = importlib.import_module("warcio.archiveiterator")
    with Path(path).open("rb") as file:
        sizes = [len(record.content_stream().read()) for record in module.ArchiveIterator(file)]
    return len(sizes), sum(sizes)


def read_by_fastwarc(path: str) -> tuple[int, int]:
    module: Any = importlib.import_module("fastwarc.warc")
    with Path(path).open("rb") as file:
        records = module.ArchiveIterator(file, parse_http=True)
        sizes = [len(record.reader.read()) for record in records]
    return len(sizes), sum(sizes)


def read_by_datatrove(path: str) -> tuple[int, int]:
    """With decoding, which its reader does."""
    module: Any = importlib.import_module("datatrove.pipeline.readers")
    folder, name = os.path.split(path)
    reader = module.WarcReader(folder, glob_pattern=name)
    sizes = [len(document.text) for document in reader.run()]
    return len(sizes), sum(sizes)


READERS: dict[str, Callable[[str], tuple[int, int]]] = {
    "rslm": read_by_rslm,
    "rslm, decoded": decode_by_rslm,
    "warcio": read_by_warcio,
    "fastwarc": read_by_fastwarc,
    "datatrove, decoded": read_by_datatrove,
}


def timed(python: str, name: str, path: Path) -> tuple[list[int], float]:
    """What a reader counted and its CPU seconds, in a process of its own."""
    command = [python, __file__, "--reader", name, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    counted, seconds = json.loads(done.stdout.splitlines()[-1])
    return counted, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--html", type=Path, help="folder with folders of HTML pages")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--least-bytes", type=int, default=1, help="smallest page that is taken")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--peers-python", help="interpreter that has warcio and fastwarc")
    parser.add_argument("--datatrove-python", help="interpreter that has datatrove")
    parser.add_argument("--reader", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        name, path = arguments.reader
        READERS[name](path)
        start = time.process_time()
        counted = READERS[name](path)
        print(json.dumps([counted, time.process_time() - start]))
        return
    if arguments.html is None:
        parser.error("name a folder with HTML by --html")
    pythons = {"rslm": sys.executable, "rslm, decoded": sys.executable}
    if arguments.peers_python:
        pythons |= dict.fromkeys(("warcio", "fastwarc"), arguments.peers_python)
    if arguments.datatrove_python:
        pythons["datatrove, decoded"] = arguments.datatrove_python
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.warc.gz"
        pack(arguments.html, path, arguments.megabytes * 1_000_000, arguments.least_bytes)
        seconds: dict[str, list[float]] = {name: [] for name in pythons}
        counts = {}
        for _ in range(arguments.passes):
            for name, python in pythons.items():
                counts[name], taken = timed(python, name, path)
                seconds[name].append(taken)
        n_pages, n_bytes = counts["rslm"]
        packed = path.stat().st_size
    print(f"{n_pages} pages, {n_bytes / 1e6:.1f} MB, packed {packed / 1e6:.1f} MB\n")
    print("| reader | MB of HTML per CPU s | us per page |\n|---|--:|--:|")
    for name, taken_each in seconds.items():
        found, size = counts[name]
        assert "decoded" in name or [found, size] == [n_pages, n_bytes], name
        best = min(taken_each)
        print(f"| {name} | {n_bytes / 1e6 / best:.0f} | {1e6 * best / n_pages:.0f} |")


if __name__ == "__main__":
    main()
