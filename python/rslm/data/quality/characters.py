"""Classes of characters that the rules are written in, of Unicode 16.0.0.

They come from a table that the crate has too, so that neither the running Python's version nor
that of a package decides what a letter is. What Unicode 16 has not assigned is in no class, and
stays so when a later version assigns it. What `str.split`, `strip` and `splitlines` break at has
not changed since Python 3.11, and `str.lower` is only asked for ASCII.
"""

import bisect
import functools

from rslm.data.quality.unicode_table import CLASS_CHANGES, PROPERTIES

WORD_CLASSES = (
    *("Other", "ALetter", "Hebrew_Letter", "Numeric", "Katakana", "ExtendNumLet", "MidLetter"),
    *("MidNum", "MidNumLet", "Single_Quote", "Double_Quote", "Extend", "Format", "ZWJ"),
    *("Regional_Indicator", "CR", "LF", "Newline", "WSegSpace"),
)
SENTENCE_CLASSES = (
    *("Other", "Sep", "CR", "LF", "Sp", "Lower", "Upper", "OLetter", "Numeric", "ATerm"),
    *("STerm", "Close", "SContinue", "Extend", "Format"),
)
_LETTER, _NUMBER, _DECIMAL, _DIGIT = 1 << 9, 1 << 10, 1 << 11, 1 << 12
_UPPER, _TERMINAL, _PICTOGRAPH = 1 << 13, 1 << 14, 1 << 15

# What datatrove counts as symbols: the marks of CCNet's normalisation, the controls but for tab
# and newline, and every sentence terminal.
_MARKS = frozenset(
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
)
_CONTROLS = frozenset(map(chr, (*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0))))


@functools.cache
def _properties(character: str) -> int:
    place = bisect.bisect_right(CLASS_CHANGES, ord(character) << 8 | 255) - 1
    return PROPERTIES[CLASS_CHANGES[place] & 255]


def _pattern(mask: int, others: str = "") -> str:
    """The inside of a character class of `re`: what has a property of the mask, and others."""
    ends = (*(change >> 8 for change in CLASS_CHANGES[1:]), 0x110000)
    ranges = (
        rf"\U{change >> 8:08x}-\U{end - 1:08x}"
        for change, end in zip(CLASS_CHANGES, ends, strict=True)
        if PROPERTIES[change & 255] & mask
    )
    return "".join(ranges) + others


# Classes for patterns, in place of `\d`, `\w` and `\W`.
DECIMAL = f"[{_pattern(_DECIMAL)}]"
WORD = f"[{_pattern(_LETTER | _NUMBER, '_')}]"
NOT_WORD = f"[^{WORD[1:]}"


def word_class(character: str) -> str:
    """The class of UAX #29, table 3."""
    return WORD_CLASSES[_properties(character) & 31]


def sentence_class(character: str) -> str:
    """The class of UAX #29, table 4."""
    return SENTENCE_CLASSES[_properties(character) >> 5 & 15]


def is_letter(character: str) -> bool:
    """Category L, as `str.isalpha` of a Python with Unicode 16."""
    return bool(_properties(character) & _LETTER)


def is_alphanumeric(character: str) -> bool:
    """Category L or N, as `str.isalnum`."""
    return bool(_properties(character) & (_LETTER | _NUMBER))


def is_word_character(character: str) -> bool:
    r"""A letter, a number or the underscore, as `\w`; "" is none."""
    return character == "_" or (character != "" and is_alphanumeric(character))


def is_decimal(character: str) -> bool:
    r"""Category Nd, as `\d`."""
    return bool(_properties(character) & _DECIMAL)


def is_digit(character: str) -> bool:
    """A decimal, a superscript or a digit in a circle, as `str.isdigit`."""
    return bool(_properties(character) & _DIGIT)


def is_uppercase(character: str) -> bool:
    """The property Uppercase, as `str.isupper`."""
    return bool(_properties(character) & _UPPER)


def is_pictograph(character: str) -> bool:
    """The property Extended_Pictographic."""
    return bool(_properties(character) & _PICTOGRAPH)


def is_sentence_terminal(character: str) -> bool:
    """One character that ends sentences in some script; quotes and ellipses are none."""
    return bool(_properties(character) & _TERMINAL)


def is_symbols_only(word: str) -> bool:
    """No character of the word is outside datatrove's set of symbols."""
    return all(
        character in _MARKS or character in _CONTROLS or is_sentence_terminal(character)
        for character in word
    )
