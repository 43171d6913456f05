"""The rows of `data_peers.py`: what is asked of whom, and how answers are compared.

How much of a text is used is so chosen that the slowest takes a few seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_agreement import alike, equal, rules_alike, same_number, words_alike

ALL = 1e9


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    megabytes: float
    job: str
    peers: tuple[str, ...]
    compare: Callable[[Any, Any], str] = equal
    note: str = ""
    together: bool = False
    """On the documents of all texts at once."""


def rule(name: str, title: str) -> Row:
    return Row(name, title, 0.4, name, (f"datatrove {name}",), rules_alike(name))


ROWS = (
    Row("read", "WARC.gz, payloads", ALL, "read", ("warcio", "fastwarc")),
    Row("decode", "WARC.gz, decoded", ALL, "read and decode", ("datatrove read",), alike(0.98)),
    Row(
        "extract",
        "HTML to text",
        4,
        "readability",
        ("datatrove extract", "trafilatura", "trafilatura fast"),
        words_alike,
        "rslm by its Readability; datatrove as FineWeb told it, by its older trafilatura. Which "
        "finds the better text is in [extraction.md](extraction.md).",
    ),
    Row(
        "resiliparse", "HTML to text, resiliparse", 4, "resiliparse", ("resiliparse",), words_alike
    ),
    Row(
        "language",
        "language id",
        2,
        "language",
        ("datatrove language", "fasttext"),
        alike(0.99),
        "one model, lid.176.ftz, in all; datatrove asks it for all 176 scores of a text.",
    ),
    Row("url", "addresses", ALL, "url", ("datatrove url",), alike(0.98)),
    rule("repetition", "Gopher repetition"),
    rule("quality", "Gopher quality"),
    rule("c4", "C4"),
    rule("fineweb", "FineWeb's own rules"),
    # Words of spaCy and of UAX #29 differ, and so do verdicts at the edge.
    Row("rules", "all four, as FineWeb", 0.4, "rules", ("datatrove rules",), alike(0.9)),
    Row("pii", "personal data, FineWeb", 4, "pii", ("datatrove pii",), alike(0.99)),
    Row(
        "decontaminate",
        "decontamination, 13 words",
        0.5,
        "decontaminate",
        ("datatrove decontaminate",),
        alike(0.9),
    ),
    Row("exact", "exact documents", 12, "exact", ("datatrove exact",), together=True),
    Row(
        "lines",
        "exact lines, first kept",
        12,
        "lines",
        ("datatrove lines",),
        alike(0.9),
        "count, merge and rewrite; datatrove's sentence deduplication with lines as sentences, "
        "which it strips of blanks.",
        together=True,
    ),
    Row(
        "sign",
        "MinHash, signing",
        0.6,
        "sign",
        ("datatrove sign", "datatrove sign, words given", "datasketch sign", "rensa sign"),
        note="112 hashes of FineWeb; words given: cut at blanks as rslm does; datasketch and "
        "rensa get shingles made beforehand, and hash otherwise.",
    ),
    Row(
        "buckets",
        "MinHash, buckets",
        12,
        "buckets",
        ("datatrove buckets", "datasketch join", "rensa join"),
        note="14 bands of 8.",
        together=True,
    ),
    Row(
        "clusters",
        "MinHash, clusters",
        12,
        "clusters",
        ("datatrove clusters",),
        same_number,
        "which of a cluster is kept is another choice.",
        together=True,
    ),
    Row("tokenize", "tokenizing to files", 3, "tokenize", ("datatrove tokenize",)),
    Row(
        "whole",
        "WARC.gz to filtered text",
        2,
        "whole",
        ("datatrove whole",),
        alike(0.3),
        "read, addresses, extraction, English, the four rules, written; MB of HTML.",
    ),
    Row("whole-all", "the same, all pages", ALL, "whole", ()),
)
