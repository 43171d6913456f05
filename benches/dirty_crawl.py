"""A crawl whose every page is known: books as web pages, with the dirt of the web mixed in.

    python benches/dirty_crawl.py --out crawl --pages 6000

Book pages are runs of paragraphs inside one of several sites' furniture: menus, notices of
cookies, lists of other pages, footers. Beside them stand copies, near-copies and pages of no
use, in shares of the table `DIRT`. `truth.jsonl` says of each record what it is and which
book page it shows, so that a pipeline can be judged page by page. The same arguments give the
same bytes.
"""

import argparse
import html
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TextIO

from peer_inputs import DOCUMENT_END, read_xz
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

WORDS_PER_PAGE = (250, 1200)
# Of all pages: what is not a book's own page, and how much of it. The rest is.
DIRT = {
    "copy": 0.08,
    "near_copy": 0.08,
    "foreign": 0.10,
    "spam": 0.08,
    "link_farm": 0.07,
    "product_list": 0.06,
    "log": 0.05,
    "template": 0.06,
    "error": 0.04,
}
MENU = (
    *("Home", "About us", "Contact", "Shop", "News", "Archive", "Log in", "Register", "Help"),
    *("Forum", "Gallery", "Jobs", "Press", "Events", "Newsletter", "Search", "Sitemap"),
)
NOTICES = (
    "We use cookies to give you the best experience on our website. Accept all cookies",
    "By continuing to browse you agree to our use of cookies and to our privacy policy.",
    "Subscribe to our newsletter and never miss an update! Enter your email address below.",
    "You have reached your limit of free pages this month. Sign in to continue.",
)
FOOTERS = (
    "Copyright {year} {site}. All rights reserved. Terms of use | Privacy policy | Cookie policy",
    "{site} is not responsible for the content of external sites. Powered by PageMill {year}",
    "Follow us on our channels. 3.4K followers. 12 comments. Share this page. Print. Back to top",
)
TEMPLATE = (
    "This domain may be for sale. Inquire about this domain by filling in the form on this page.",
    "The page that you were looking for has moved. You will be taken to the new page in a moment.",
    "If nothing happens, follow the link below, or go back to the page that you came from.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt.",
)
SPAM = (
    *("cheap", "best", "buy", "online", "discount", "casino", "loans", "pills", "free", "bonus"),
    *("deal", "price", "review", "2024", "coupon", "hotel", "download", "watch", "crack", "serial"),
)


def main() -> None:
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    pages = list(make_pages(read_books(options.books), options, rng))
    rng.shuffle(pages)
    with (options.out / "truth.jsonl").open("w", encoding="utf-8") as truth:
        for number in range(options.shards):
            path = options.out / f"crawl-{number:02}.warc.gz"
            write_shard(path, pages[number :: options.shards], number, truth, rng)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--books", type=Path, help="text to make pages of; RSLM_TEST_DATA's books")
    parser.add_argument("--foreign", type=Path, help="text of other languages; likewise")
    parser.add_argument("--pages", type=int, default=6000)
    parser.add_argument("--shards", type=int, default=6, help="WARC files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = os.environ.get("RSLM_TEST_DATA")
    for name, file in (("books", "books-train.txt.xz"), ("foreign", "multilingual.txt.xz")):
        if getattr(options, name) is None and data:
            setattr(options, name, Path(data) / "text" / file)
        if getattr(options, name) is None:
            parser.error(f"--{name} must be a text, or RSLM_TEST_DATA be set")
    return options


def read_texts(path: Path) -> Iterator[str]:
    """The documents of a file, packed by xz or not."""
    blocks = read_xz(path) if path.suffix == ".xz" else iter([path.read_bytes()])
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(DOCUMENT_END)
        yield from (text.decode() for text in whole)
    if rest.strip():
        yield rest.decode()


def read_books(path: Path) -> Iterator[list[str]]:
    """Runs of paragraphs of one book, a page's worth each, from the books in turn."""
    rng = random.Random(path.name)
    for text in read_texts(path):
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text)]
        page: list[str] = []
        n_words, goal = 0, rng.randint(*WORDS_PER_PAGE)
        for paragraph in paragraphs:
            page.append(paragraph)
            n_words += len(paragraph.split())
            if n_words >= goal:
                yield page
                page, n_words, goal = [], 0, rng.randint(*WORDS_PER_PAGE)


def make_pages(
    books: Iterator[list[str]], options: argparse.Namespace, rng: random.Random
) -> Iterator[tuple[str, int | None, str]]:
    """Kind, number of the book page and HTML of each page."""
    counts = {kind: round(share * options.pages) for kind, share in DIRT.items()}
    clean = []
    for _ in range(options.pages - sum(counts.values())):
        # Every tenth page of the books is taken, so that many books are seen.
        for page in books:
            if rng.random() < 0.1:
                clean.append(page)
                break
    for number, page in enumerate(clean):
        yield "book", number, dress(with_personal_data(page, rng), rng)
    for _ in range(counts.pop("copy")):
        number = rng.randrange(len(clean))
        yield "copy", number, dress(clean[number], rng)
    for _ in range(counts.pop("near_copy")):
        number = rng.randrange(len(clean))
        yield "near_copy", number, dress(touch(clean[number], rng), rng)
    foreign = (text for text in read_texts(options.foreign) if "</" not in text[:2000])
    for _ in range(counts.pop("foreign")):
        yield "foreign", None, dress(next(foreign).strip().split("\n")[:60], rng)
    for kind, n in counts.items():
        for _ in range(n):
            yield kind, None, dress(JUNK[kind](rng), rng)


def touch(paragraphs: list[str], rng: random.Random) -> list[str]:
    """The paragraphs with one word in two hundred changed, as an edited copy has it."""
    return [
        " ".join(rng.choice(SPAM) if rng.random() < 0.005 else word for word in p.split(" "))
        for p in paragraphs
    ]


def with_personal_data(paragraphs: list[str], rng: random.Random) -> list[str]:
    """One page in ten names somebody who can be reached."""
    if rng.random() >= 0.1:
        return paragraphs
    name = rng.choice(("anna", "ben", "carol", "david"))
    line = (
        f"Questions about this text go to {name}@mail{rng.randint(1, 99)}.example.com, or by "
        f"telephone to ({rng.randint(200, 989)}) 555-{rng.randint(1000, 9999)}."
    )
    return [*paragraphs, line]


def spam(rng: random.Random) -> list[str]:
    return [" ".join(rng.choices(SPAM, k=rng.randint(40, 90))) for _ in range(rng.randint(3, 9))]


def link_farm(rng: random.Random) -> list[str]:
    return [f"{rng.choice(MENU)} {rng.randint(1, 500)}" for _ in range(rng.randint(80, 300))]


def product_list(rng: random.Random) -> list[str]:
    return [
        f"#{rng.randint(1000, 99999)} - {rng.choice(SPAM)} {rng.choice(SPAM)} ... "
        f"${rng.randint(1, 999)}.99 | In stock | Add to cart"
        for _ in range(rng.randint(20, 90))
    ]


def log(rng: random.Random) -> list[str]:
    return [
        f"2024-05-{rng.randint(10, 31)} {rng.randint(10, 23)}:{rng.randint(10, 59)} "
        f"{rng.randint(1, 255)}.{rng.randint(0, 255)}.3.7 GET /{rng.getrandbits(40):x} 200"
        for _ in range(rng.randint(30, 150))
    ]


def template(rng: random.Random) -> list[str]:
    return [rng.choice(TEMPLATE) for _ in range(rng.randint(6, 30))]


def error(rng: random.Random) -> list[str]:
    return [f"Error {rng.choice((403, 404, 500))}", "The requested page could not be shown."]


JUNK: dict[str, Callable[[random.Random], list[str]]] = {
    "spam": spam,
    "link_farm": link_farm,
    "product_list": product_list,
    "log": log,
    "template": template,
    "error": error,
}


def dress(paragraphs: list[str], rng: random.Random) -> str:
    """The paragraphs as a page of one of some fifty sites."""
    site = f"Site{rng.randint(1, 50)}"
    menu = "".join(f'<li><a href="/{m}">{m}</a></li>' for m in rng.sample(MENU, 9))
    more = "".join(
        f'<li><a href="/p{rng.randint(1, 9999)}">Read more: {rng.choice(MENU)} '
        f"{rng.randint(1, 99)}</a></li>"
        for _ in range(rng.randint(4, 15))
    )
    footer = rng.choice(FOOTERS).format(year=rng.randint(2009, 2024), site=site)
    body = "\n".join(f"<p>{html.escape(p)}</p>" for p in paragraphs)
    return (
        f"<!DOCTYPE html><html><head><title>{site}</title><script>var t = {{a: 1}};</script>"
        f'</head><body><nav><ul class="menu">{menu}</ul></nav>'
        f'<div class="cookie-notice"><p>{rng.choice(NOTICES)}</p></div>'
        f'<main><article>{body}</article></main><aside class="sidebar"><ul>{more}</ul></aside>'
        f'<footer class="footer"><p>{footer}</p></footer></body></html>'
    )


def write_shard(
    path: Path,
    pages: list[tuple[str, int | None, str]],
    shard: int,
    truth: TextIO,
    rng: random.Random,
) -> None:
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for row, (kind, number, page) in enumerate(pages):
            id = f"urn:uuid:{rng.getrandbits(128):032x}"
            url = f"http://site{rng.randint(1, 50)}.example/{shard}/{row}"
            write_page(writer, id, url, page)
            print(json.dumps({"id": id, "kind": kind, "page": number}), file=truth)


def write_page(writer: WARCWriter, id: str, url: str, page: str) -> None:
    """One response of a server to the WARC."""
    headers = StatusAndHeaders(
        "200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1"
    )
    record = writer.create_warc_record(
        url,
        "response",
        payload=BytesIO(page.encode()),
        http_headers=headers,
        warc_headers_dict={"WARC-Record-ID": f"<{id}>", "WARC-Date": "2024-05-01T00:00:00Z"},
    )
    writer.write_record(record)


if __name__ == "__main__":
    main()
