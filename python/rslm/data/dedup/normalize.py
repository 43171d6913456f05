"""Texts made alike where a reader would not tell them apart: what near-duplicates compare.

Two rules of the same purpose and different results. Both give words with one blank between.
A blank is what `str.isspace` says: the property White_Space, and U+001C to U+001F.
Lower case and categories are those of the Unicode version of `unicodedata`.
"""

import re
import unicodedata
from typing import Literal

Normalization = Literal["course", "fineweb"]

# Decimal digits of any script, and one fraction after the separators that scripts use.
_NUMBER = re.compile(r"\d+(?:[.,\u060c\u066b\u2396\u2397\u2398]\d+)?")

# What FineWeb's rule takes for punctuation: ASCII, that of some scripts (not all, and no Arabic
# or Devanagari), and the control characters but tab and newline, which are blanks anyway.
_FINEWEB_PUNCTUATION = (
    r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"""
    "«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
    + "".join(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
)
_PUNCTUATION_TO_BLANK = str.maketrans(dict.fromkeys(_FINEWEB_PUNCTUATION, " "))


def normalize(text: str, normalization: Normalization) -> str:
    """The text by the rule of that name."""
    return normalize_course(text) if normalization == "course" else normalize_fineweb(text)


def normalize_course(text: str) -> str:
    r"""Lower case, NFD without marks (Mn), punctuation and symbols (P*, S*) as blanks.

    Punctuation leaves a blank, since words that it parts would be glued otherwise: the course
    leaves that open. Symbols are taken with it, because half of ASCII's punctuation is in S*.

    >>> normalize_course("  Café-au-lait,\nSVP!  $5 ")
    'cafe au lait svp 5'

    Source: CS336, assignment 4, section on MinHash deduplication.
    """
    decomposed = unicodedata.normalize("NFD", text.lower())
    categories = ((character, unicodedata.category(character)) for character in decomposed)
    spaced = (
        " " if kind[0] in "PS" else character for character, kind in categories if kind != "Mn"
    )
    return " ".join("".join(spaced).split())


def normalize_fineweb(text: str) -> str:
    """Lower case, numbers as 0, some punctuation as blanks, then NFD without marks (Mn).

    Punctuation that only decomposition brings forth (U+037E is a semicolon) stays, as does what
    the rule does not list.

    >>> normalize_fineweb("Café: 3.14 or 1,000,000?")
    'cafe 0 or 0 0'

    Source: Penedo et al. 2024, FineWeb (arXiv:2406.17557), by the rule of datatrove 0.10. It cuts
    words by spaCy there and by blanks here, so that contractions differ.
    """
    spaced = _NUMBER.sub("0", text.lower()).translate(_PUNCTUATION_TO_BLANK)
    decomposed = unicodedata.normalize("NFD", " ".join(spaced.split()))
    marked = (c for c in decomposed if unicodedata.category(c) != "Mn")
    return "".join(marked).strip()
