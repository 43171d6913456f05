"""The documents of `data_peers.py`: pages of crawl files, and their text, in one folder a text.

pages.warc.gz    the pages as a crawler packs them, in an order drawn by a seed
pages.jsonl      the same, decoded: id, url and HTML
texts.jsonl      what rslm extracts of them: id, url and text, without pages that have none
"""

import gzip
import json
import random
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

SEED = 1
# Copies among the articles and samples, for deduplication to find.
COPIED_SHARE = 0.1


@dataclass(frozen=True)
class Text:
    """A folder of documents and what is in it."""

    name: str
    folder: Path
    page_bytes: tuple[int, ...]
    text_bytes: tuple[int, ...]

    def describe(self) -> str:
        pages, texts = ((sum(n) / 1e6, statistics.median(n) / 1e3) for n in self.sizes())
        return (
            f"{self.name}: {len(self.page_bytes):,} pages, {pages[0]:.1f} MB of HTML (median "
            f"{pages[1]:.1f} kB), {len(self.text_bytes):,} texts, {texts[0]:.1f} MB (median "
            f"{texts[1]:.1f} kB)"
        )

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.page_bytes, self.text_bytes


def make_texts(
    folders: Sequence[Path], data: Path | None, megabytes: float, cache: Path
) -> Iterator[Text]:
    """A text of each folder of WARC files; of the shared data, where there are no folders."""
    if data is not None:
        yield write_text("articles", read_articles(data), cache)
    if data is not None and not folders:
        yield write_text("samples", read_crawl(data / "web" / "warc", megabytes), cache)
        made = cache / "made"
        program = Path(__file__).with_name("dirty_crawl.py")
        command = [sys.executable, program, "--out", made, "--pages", "1500", "--shards", "1"]
        subprocess.run(command, check=True)
        yield write_text("dirty", read_crawl(made, megabytes), cache)
    for folder in folders:
        yield write_text(folder.name, read_crawl(folder, megabytes), cache)


def all_of(texts: Sequence[Text], cache: Path) -> Text:
    """The texts of all, without pages: deduplication is for many documents."""
    folder = cache / "all"
    folder.mkdir()
    lines = [line for text in texts for line in (text.folder / "texts.jsonl").open("rb")]
    random.Random(SEED).shuffle(lines)
    (folder / "texts.jsonl").write_bytes(b"".join(lines))
    return Text("all", folder, (), tuple(size for text in texts for size in text.text_bytes))


def read_articles(data: Path) -> list[dict[str, str]]:
    """The 181 articles whose text is known."""
    from rslm.data.decoding import decode_page

    with tarfile.open(data / "web" / "articles.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".html.gz"))
        pages = []
        for name in names:
            file = tar.extractfile(name)
            assert file is not None
            id = Path(name).name.partition(".")[0]
            html = decode_page(gzip.decompress(file.read()))[0]
            pages.append({"id": id, "url": f"http://articles.example/{id}", "html": html})
    return pages


def read_crawl(folder: Path, megabytes: float) -> list[dict[str, str]]:
    """Pages of all files of the folder, every one in so many, up to about so much HTML."""
    from rslm.data.documents import read_documents
    from rslm.data.warc import read_warc

    files = sorted(path for path in folder.iterdir() if ".warc" in path.name)
    total = sum(len(record.payload) for path in files for record in read_warc(path))
    step = max(1, round(total / 1e6 / megabytes))
    pages = []
    for path in files:
        for number, page in enumerate(read_documents(path)):
            if number % step == 0:
                pages.append({"id": page.id, "url": page.url, "html": page.text})
    return pages


def write_text(name: str, pages: list[dict[str, str]], cache: Path) -> Text:
    from rslm.data.extract import extract_batch

    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    draw.shuffle(pages)
    extracted = extract_batch([page["html"] for page in pages])
    texts = [
        {"id": page["id"], "url": page["url"], "text": found.text}
        for page, found in zip(pages, extracted, strict=True)
        if found.text.strip()
    ]
    copies = [
        text | {"id": f"{text['id']}-copy", "text": edited(text["text"], draw, copy % 2 == 0)}
        for copy, text in enumerate(draw.sample(texts, round(COPIED_SHARE * len(texts))))
    ]
    texts += copies
    draw.shuffle(texts)
    for file, rows in (("pages", pages), ("texts", texts)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{file}.jsonl").write_text("".join(lines), encoding="utf-8")
    page_bytes = tuple(len(page["html"].encode()) for page in pages)
    text_bytes = tuple(len(text["text"].encode()) for text in texts)
    return Text(name, folder, page_bytes, text_bytes)


def edited(text: str, draw: random.Random, whole: bool) -> str:
    """The text itself, or one word in two hundred changed."""
    words = text.split(" ")
    for _ in range(0 if whole else max(1, len(words) // 200)):
        words[draw.randrange(len(words))] = "edited"
    return " ".join(words)


def write_warc(path: Path, pages: Sequence[dict[str, str]]) -> None:
    """The pages as responses with the fields that Common Crawl's have."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for page in pages:
            fields = [("Content-Type", "text/html; charset=utf-8")]
            http: Any = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
            record = writer.create_warc_record(
                page["url"],
                "response",
                payload=BytesIO(page["html"].encode()),
                http_headers=http,
                warc_headers_dict={
                    "WARC-Record-ID": f"<{page['id']}>",
                    "WARC-Identified-Payload-Type": "text/html",
                },
            )
            writer.write_record(record)
