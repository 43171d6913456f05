"""Pages whose address is on a list, or says what they are.

The lists are files in a folder of the user's, by datatrove's names; one that is missing is empty.
Lines that begin with `#` and blank ones are none.

    domains                  hosts and registered domains
    urls                     whole addresses
    banned_words.txt         words of which one drops a page
    soft_banned_words.txt    words of which two drop it
    banned_subwords.txt      strings that drop it inside of words, too
    public_suffix_list.dat   that of https://publicsuffix.org/list/, needed with `domains`; the
                             Debian package publicsuffix brings it as /usr/share/publicsuffix/

Toulouse's UT1 lists fit (`adult/domains`, `adult/urls`).
Source: datatrove 0.10.1, `url_filter.py`, as in FineWeb (arXiv:2406.17557, section 3.2) after
RefinedWeb (arXiv:2306.01116, appendix G.1). Differs: hosts are lower-cased, and a host without a
public suffix, as an IP address, is sought as it stands.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from rslm import _rslm
from rslm.files import sha256_of

Implementation = Literal["rust", "reference"]

SOFT_WORDS = 2
"""So many of the soft words drop a page."""

_WORD_LISTS = ("banned_words.txt", "soft_banned_words.txt", "banned_subwords.txt")
_FILES = ("domains", "urls", *_WORD_LISTS)
_SUFFIXES = "public_suffix_list.dat"
_NOT_WORD = re.compile("[^a-zA-Z0-9]+")
_SCHEME = re.compile(r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?//")
# Other full stops that browsers take for the one between labels.
_DOTS = str.maketrans(dict.fromkeys("\u3002\uff0e\uff61", "."))
_PRIVATE = "// ===BEGIN PRIVATE DOMAINS==="


class UrlFilter:
    """Lists of addresses and words, and what they say of a page's address. Immutable."""

    def __init__(
        self,
        *,
        domains: Iterable[str] = (),
        urls: Iterable[str] = (),
        banned_words: Iterable[str] = (),
        soft_banned_words: Iterable[str] = (),
        banned_subwords: Iterable[str] = (),
        suffixes: Iterable[str] = (),
        implementation: Implementation = "rust",
    ) -> None:
        """Takes the lists' lines; `suffixes` are those of the public suffix list.

        Raises:
            ValueError: there are domains, and no public suffixes.
        """
        rules = _read_suffixes(suffixes)
        known = (line.strip() for line in _entries(domains))
        if not rules and (first := next(known, None)) is not None:
            raise ValueError(
                f"domains need the public suffix list beside them, as {_SUFFIXES} of "
                f"https://publicsuffix.org/list/, got {first!r} first"
            )
        make = _ReferenceLists if implementation == "reference" else _rust_lists
        self._lists: Any = make(
            known,
            (line.strip() for line in _entries(urls)),
            list(map(list, map(_words, (banned_words, soft_banned_words, banned_subwords)))),
            rules,
        )
        self.sha256 = ""
        """SHA-256 over the lists' files, where they were read from a folder."""

    @classmethod
    def read(
        cls, folder: str | os.PathLike[str], *, implementation: Implementation = "rust"
    ) -> UrlFilter:
        """The filter of the lists in a folder.

        Memory: 8 bytes for each domain and address, which are kept as hashes of 64 bits.

        Raises:
            ValueError: there is none of the lists, or `domains` without the suffix list.
            OSError: the folder cannot be read.
        """
        names = sorted(os.listdir(folder))
        found = {name: Path(folder, name) for name in (*_FILES, _SUFFIXES) if name in names}
        if not found.keys() & set(_FILES):
            raise ValueError(f"{folder} must hold one of {', '.join(_FILES)}, and holds none")
        lists = {
            name.removesuffix(".txt").replace(_SUFFIXES, "suffixes"): _lines(path)
            for name, path in found.items()
        }
        url_filter = cls(**lists, implementation=implementation)
        digest = hashlib.sha256()
        for name, path in sorted(found.items()):
            digest.update(f"{name} {sha256_of(path)}\n".encode())
        url_filter.sha256 = digest.hexdigest()
        return url_filter

    def reason(self, url: str) -> str:
        """Why the page of this address is dropped; "" keeps it, and one without address.

        The first of: "domain" (its registered domain is listed), "host", "url", "banned_word"
        (one is a whole piece of the address between others than letters and digits),
        "soft_words" (two are), "banned_subword" (one is in the address without all others than
        letters and digits). Pieces keep their case and the words have none, as in datatrove.
        """
        return self.reason_batch([url])[0]

    def reason_batch(self, urls: Sequence[str]) -> list[str]:
        """What `reason` says of each address."""
        return [
            self._lists.reason_with_host(_bytes(url), _bytes(host_of(url)))
            if reason is None
            else reason
            for url, reason in zip(urls, self._lists.reasons(urls), strict=True)
        ]

    def registered_domain(self, host: str) -> str:
        """The public suffix of a host and the label before it; "" where there is none.

        Source: https://github.com/publicsuffix/list/wiki/Format, ICANN's part of the list.
        """
        found: bytes = self._lists.registered_domain(_bytes(host))
        return found.decode(errors="surrogatepass")


class _ReferenceLists:
    """What `UrlLists` of the extension does, to be read."""

    def __init__(
        self,
        domains: Iterable[str],
        urls: Iterable[str],
        words: Sequence[Iterable[str]],
        suffixes: frozenset[str],
    ) -> None:
        self._domains, self._urls = frozenset(domains), frozenset(urls)
        self._banned, self._soft, self._subwords = map(frozenset, words)
        self._suffixes = suffixes
        self._max_labels = max((rule.count(".") + 1 for rule in suffixes), default=1)

    def reasons(self, urls: Sequence[str]) -> list[str]:
        return [self._reason(url, host_of(url)) for url in urls]

    def _reason(self, url: str, host: str) -> str:
        if (domain := self._registered_domain(host)) and domain in self._domains:
            return "domain"
        if host and host in self._domains:
            return "host"
        if url in self._urls:
            return "url"
        pieces = set(_NOT_WORD.split(url))
        if not self._banned.isdisjoint(pieces):
            return "banned_word"
        if len(self._soft & pieces) >= SOFT_WORDS:
            return "soft_words"
        joined = _NOT_WORD.sub("", url).lower()
        return "banned_subword" if any(word in joined for word in self._subwords) else ""

    def registered_domain(self, host: bytes) -> bytes:
        return _bytes(self._registered_domain(host.decode(errors="surrogatepass")))

    def _registered_domain(self, host: str) -> str:
        # No rule has more labels, whatever a host is made of.
        labels = host.rsplit(".", self._max_labels + 1)[-self._max_labels - 1 :]
        for start in range(len(labels)):
            rest = ".".join(labels[start:])
            above = ".".join(labels[start + 1 :])
            if f"!{rest}" in self._suffixes:
                return rest
            if rest in self._suffixes or (above and f"*.{above}" in self._suffixes):
                return ".".join(labels[start - 1 :]) if start else ""
        return ""


def _rust_lists(
    domains: Iterable[str],
    urls: Iterable[str],
    words: Sequence[Iterable[str]],
    suffixes: frozenset[str],
) -> _rslm.UrlLists:
    lists = [[_bytes(word) for word in each] for each in (*words, suffixes)]
    return _rslm.UrlLists(domains, urls, lists, SOFT_WORDS)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def host_of(url: str) -> str:
    """The host in an address, in lower case, without user, port and final dots.

    >>> host_of("https://me:secret@www.Example.co.uk.:8080/path?query")
    'www.example.co.uk'
    """
    rest = _SCHEME.sub("", url.strip())
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    host = unquote(authority).rpartition("@")[2].translate(_DOTS)
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].strip(".").lower()


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        yield from file


def _entries(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip() and not line.startswith("#"))


def _words(lines: Iterable[str]) -> Iterator[str]:
    words = (_NOT_WORD.sub("", line).lower() for line in _entries(lines))
    return (word for word in words if word)


def _read_suffixes(lines: Iterable[str]) -> frozenset[str]:
    """The rules, each as it is written and as names of hosts spell it in ASCII."""
    rules = set()
    for line in lines:
        if line.startswith(_PRIVATE):
            break
        rule = line.split(maxsplit=1)[0] if line.strip() else "//"
        if rule.startswith("//"):
            continue
        rules.add(rule)
        if not rule.isascii():
            prefix = "!" if rule.startswith("!") else "*." if rule.startswith("*.") else ""
            rules.add(prefix + rule.removeprefix(prefix).encode("idna").decode())
    return frozenset(rules)
