"""Personal data masked in text: e-mail addresses, phone numbers and IPv4 addresses.

Three published ways, always in the order e-mails, IP addresses, phone numbers:

| | course | dolma | fineweb |
|---|---|---|---|
| e-mails | the address only | blanks and marks around go too; a blank must follow | RFC-like |
| phones | US, ten digits, maybe `+1`; no word character beside | a blank before | no |
| IPv4 | no digit beside | no borders | no borders, only globally routable |
| mask | `|||EMAIL_ADDRESS|||` and so on | the same between blanks | examples, in turn |
| page | kept | dropped at more than 5 masks | kept |

What all of them get wrong: timestamps and part numbers of ten digits are taken for phone numbers,
numbers of other countries and spelled-out addresses are missed. Digits, and the letters of
addresses, are ASCII. Every mask is found in time linear in the text: candidates start at an `@`
or a digit, and no search goes back over what another one covered.

Sources: the CS336 assignment on data (course); Soldaini et al. 2024, section 3.1.3
(arXiv:2402.00159), tagger pii_regex_with_counts_fast_v2; Penedo et al. 2024, section 3.7
(arXiv:2406.17557), datatrove's PIIFormatter, whose turn of examples here begins anew on each page.
"""

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from rslm import _rslm
from rslm.data.quality.characters import WORD, is_word_character

EMAIL_MASK = "|||EMAIL_ADDRESS|||"
PHONE_MASK = "|||PHONE_NUMBER|||"
IP_MASK = "|||IP_ADDRESS|||"
MAX_MASKS_DOLMA = 5
EXAMPLE_EMAILS = ("email@example.com", "firstname.lastname@example.org")
EXAMPLE_IPS = (
    *("22.214.171.124", "126.96.36.199", "188.8.131.52"),
    *("184.108.40.206", "220.127.116.11", "18.104.22.168"),
)

# Not globally routable, as the special-purpose registry of IANA had it in 2024; two addresses of
# the first block of the fourth line are. Written out, since Python's own table changed in 3.13.
_LOCAL_NETWORKS = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8"),
            *("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
            *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("240.0.0.0/4",),
        ),
    )
)
_GLOBAL_EXCEPTIONS = frozenset(map(ipaddress.IPv4Address, ("192.0.0.9", "192.0.0.10")))

_BYTE = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_IP = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_IP_COURSE = re.compile(rf"(?<![0-9]){_IP.pattern}(?![0-9])")
_PHONE_COURSE = re.compile(
    rf"(?<!{WORD})"
    r"(?:\+1[ .-]?)?(?:\([0-9]{3}\)|[0-9]{3})[ .-]?[0-9]{3}[ .-]?[0-9]{4}"
    rf"(?!{WORD})"
)
_PHONE_DOLMA = re.compile(r"(?<=[^\S\n])\(?[0-9]{3}\)?[-. ]*+[0-9]{3}[-. ]?[0-9]{4}")

_DOMAIN_COURSE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}")
_DOMAIN_FINEWEB = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
    rf"|\[(?:{_BYTE}\.){{3}}(?:{_BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)\]"
)
_ALPHANUMERIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_LOCAL_COURSE = frozenset(_ALPHANUMERIC + "._%+-")
_LOCAL_FINEWEB = frozenset(_ALPHANUMERIC + "!#$%&'*+/=?^_`{|}~-" + ".")
_MARKS_DOLMA = frozenset(".@,?!;:)(")
_MARKS_AFTER_DOLMA = _MARKS_DOLMA - {"."}
_LINE = re.compile(r"[^\n]*+\n|[^\n]++")

Preset = Literal["course", "dolma", "fineweb"]
Implementation = Literal["rust", "reference"]
Span = tuple[int, int]


class Masked(NamedTuple):
    """A text without personal data, and how much there was.

    Args:
        counts: how many "emails", "ips" and "phones" were masked; masks that stood in the text
            before count nothing.
        drop_reason: why the preset drops the page ("" if it does not).
    """

    text: str
    counts: dict[str, int]
    drop_reason: str


def mask_emails(text: str) -> tuple[str, int]:
    """The text with its e-mail addresses masked as the course does it, and their number."""
    return _mask_kind(text, "emails")


def mask_phone_numbers(text: str) -> tuple[str, int]:
    """The text with its US phone numbers masked as the course does it, and their number."""
    return _mask_kind(text, "phones")


def mask_ips(text: str) -> tuple[str, int]:
    """The text with its IPv4 addresses masked as the course does it, and their number."""
    return _mask_kind(text, "ips")


def _mask_kind(text: str, kind: str) -> tuple[str, int]:
    row = _rslm.mask_pii_kind(text, "course", kind)
    if row is None:  # Lone surrogates.
        return _MASKERS["course"][kind](text)
    masked, n_masks = row
    return text if masked is None else masked, n_masks


def mask_pii(text: str, preset: Preset, *, implementation: Implementation = "rust") -> Masked:
    """The text masked by a published recipe, with counts.

    Args:
        implementation: "rust", or "reference", the searches of this module that specify it. Both
            give the same on any text; the reference masks texts with lone surrogates.

    Raises:
        ValueError: `preset` or `implementation` is not one of the names.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be rust or reference, got {implementation!r}")
    if implementation == "reference":
        return mask_pii_reference(text, preset)
    return mask_pii_batch([text], preset)[0]


def mask_pii_batch(texts: Sequence[str], preset: Preset, *, n_threads: int = 1) -> list[Masked]:
    """Each text masked as by `mask_pii`; without the interpreter's lock.

    Raises:
        ValueError: `preset` is not one of the names, or `n_threads` is below 1.
    """
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    rows = _rslm.mask_pii(list(texts), preset, n_threads)
    # As `Masked._make`, without a call of Python's for each: this part no second thread shares.
    make: Callable[[type[Masked], tuple[str, dict[str, int], str]], Masked] = tuple.__new__
    return [
        mask_pii_reference(text, preset) if row is None else make(Masked, row)
        for text, row in zip(texts, rows, strict=True)
    ]


def mask_pii_reference(text: str, preset: Preset) -> Masked:
    """What `mask_pii` gives, by the searches of this module.

    Raises:
        ValueError: `preset` is not one of the names.
    """
    if preset not in _MASKERS:
        raise ValueError(f"preset must be one of {', '.join(get_args(Preset))}, got {preset!r}")
    counts = {}
    for kind, mask in _MASKERS[preset].items():
        text, counts[kind] = mask(text)
    too_many = preset == "dolma" and sum(counts.values()) > MAX_MASKS_DOLMA
    return Masked(text=text, counts=counts, drop_reason="pii_too_many" if too_many else "")


def find_emails_course(text: str) -> Iterator[Span]:
    """Addresses with a domain that ends in letters: `j.doe+x@mail.example.com`.

    Dots before the address and the full stop after it are not part of it.
    """
    end = 0
    for at in _positions(text, "@"):
        start = _run_before(text, at, end, _LOCAL_COURSE.__contains__)
        while start < at and text[start] == ".":
            start += 1
        domain = _DOMAIN_COURSE.match(text, at + 1)
        if domain and start < at:
            end = domain.end()
            yield start, end


def find_emails_fineweb(text: str) -> Iterator[Span]:
    """Addresses of RFC 5322's dot-atoms, or with an address in brackets for a domain.

    They begin where a word begins or ends, no dot is doubled, and what follows is not looked at.
    """
    end = 0
    for at in _positions(text, "@"):
        run = _run_before(text, at, end, _LOCAL_FINEWEB.__contains__)
        begin = max(run, text.rfind("..", run, at) + 2) if ".." in text[run:at] else run
        if at == begin or text[at - 1] == ".":
            continue
        starts = (i for i in range(begin, at) if text[i] != "." and _is_word_border(text, i))
        start = next(starts, None)
        domain = _DOMAIN_FINEWEB.match(text, at + 1)
        if domain and start is not None:
            end = domain.end()
            yield start, end


def _is_word_border(text: str, place: int) -> bool:
    r"""Where `\b` matches."""
    before = text[place - 1 : place] if place else ""
    return is_word_character(before) != is_word_character(text[place])


def find_emails_dolma(text: str) -> Iterator[Span]:
    """Addresses before a blank of the same line, with the blanks and marks on both sides.

    Each `@` is tried in turn: before it something without blanks, after it anything up to a mark,
    then one mark at most and a blank. A domain without a dot, or `(` alone before the `@`, is no
    address, yet what it spans is not looked at again. Dolma's own pattern, which takes quadratic
    time on a long word, finds the same but where a full stop alone is the domain.
    """
    for line in _LINE.finditer(text):
        end = line.start()
        for at in _positions(text, "@", *line.span()):
            local = _run_before(text, at, end, lambda c: c != "@" and not c.isspace())
            bounds = _domain_dolma(text, at + 1, line.end())
            if local == at or bounds is None:
                continue
            start = _run_before(text, local, end, lambda c: c in _MARKS_DOLMA or c.isspace())
            domain_end, end = bounds
            if "." in text[at + 1 : domain_end] and not _is_bracket(text[local:at]):
                yield start, end


def _domain_dolma(text: str, start: int, line_end: int) -> tuple[int, int] | None:
    """Where the domain ends and where the blank after it does; None if there is either not."""
    end = start
    while end < line_end and not (text[end].isspace() or text[end] in _MARKS_AFTER_DOLMA):
        end += 1
    after = text[end : min(end + 2, line_end)]
    if end - start > 1 and text[end - 1] == "." and after[:1].isspace():
        return end - 1, end + 1  # The full stop is the mark.
    if end == start or not after:
        return None
    if after[1:].isspace():
        return end, end + 2
    return (end, end + 1) if after[0].isspace() else None


def _is_bracket(local: str) -> bool:
    """Marks and at last an opening bracket: what remains before the `@` is the bracket."""
    return local.endswith("(") and _MARKS_DOLMA.issuperset(local)


def find_phones_dolma(text: str) -> Iterator[Span]:
    """Ten digits after a blank of the same line, with all the blanks before them."""
    end = 0
    for match in _PHONE_DOLMA.finditer(text):
        start = _run_before(text, match.start(), end, lambda c: c != "\n" and c.isspace())
        end = match.end()
        yield start, end


def is_global_ip(address: str) -> bool:
    """Routable on the public internet; addresses with leading zeros are none."""
    try:
        ip = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return ip in _GLOBAL_EXCEPTIONS or not any(ip in network for network in _LOCAL_NETWORKS)


def _mask_all(
    find: Callable[[str], Iterable[Span]], *masks: str
) -> Callable[[str], tuple[str, int]]:
    """A masker that puts the masks in turn in the place of what `find` finds."""
    return lambda text: _replace(text, find(text), itertools.cycle(masks))


def _replace(text: str, spans: Iterable[Span], masks: Iterator[str]) -> tuple[str, int]:
    pieces: list[str] = []
    end = n_masks = 0
    for start, stop in spans:
        pieces += (text[end:start], next(masks))
        end = stop
        n_masks += 1
    return "".join((*pieces, text[end:])), n_masks


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[Span]:
    return (match.span() for match in pattern.finditer(text))


def _find_global_ips(text: str) -> Iterator[Span]:
    return (match.span() for match in _IP.finditer(text) if is_global_ip(match.group()))


def _positions(text: str, mark: str, start: int = 0, end: int | None = None) -> Iterator[int]:
    position = text.find(mark, start, end)
    while position >= 0:
        yield position
        position = text.find(mark, position + 1, end)


def _run_before(text: str, position: int, lowest: int, belongs: Callable[[str], bool]) -> int:
    """Where the run of characters that belong, which ends before `position`, begins."""
    while position > lowest and belongs(text[position - 1]):
        position -= 1
    return position


_MASKERS: dict[Preset, dict[str, Callable[[str], tuple[str, int]]]] = {
    "course": {
        "emails": _mask_all(find_emails_course, EMAIL_MASK),
        "ips": _mask_all(lambda text: _matches(_IP_COURSE, text), IP_MASK),
        "phones": _mask_all(lambda text: _matches(_PHONE_COURSE, text), PHONE_MASK),
    },
    "dolma": {
        "emails": _mask_all(find_emails_dolma, f" {EMAIL_MASK} "),
        "ips": _mask_all(lambda text: _matches(_IP, text), f" {IP_MASK} "),
        "phones": _mask_all(find_phones_dolma, f" {PHONE_MASK} "),
    },
    "fineweb": {
        "emails": _mask_all(find_emails_fineweb, *EXAMPLE_EMAILS),
        "ips": _mask_all(_find_global_ips, *EXAMPLE_IPS),
    },
}
