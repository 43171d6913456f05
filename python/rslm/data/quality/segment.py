"""Words and sentences as Unicode borders them (UAX #29), in linear time.

Both walks read the classes of the characters once, attach what the rules ignore (marks,
joiners, format characters) to the character before, and decide each border from a few
neighbours: a megabyte of combining marks or of full stops costs what a megabyte of prose does.
Character classes are those of Unicode 16.0.0, from `characters`.
"""

from collections.abc import Callable, Iterator

from rslm.data.quality.characters import is_pictograph, sentence_class, word_class

_LETTERS = {"ALetter", "Hebrew_Letter"}
_WORD_LINES = {"CR", "LF", "Newline"}
_WORD_IGNORED = {"Extend", "Format", "ZWJ"}
_MID_LETTERS = {"MidLetter", "MidNumLet", "Single_Quote"}
_MID_NUMBERS = {"MidNum", "MidNumLet", "Single_Quote"}
_JOINED_BY_UNDERSCORE = _LETTERS | {"Numeric", "Katakana", "ExtendNumLet"}

_PARAGRAPH_ENDS = {"Sep", "CR", "LF"}
_SENTENCE_IGNORED = {"Extend", "Format"}
_TERMS = {"ATerm", "STerm"}
# What ends the look for a lower-case letter after an abbreviation's full stop (SB8).
_DECIDES_ABBREVIATION = {"OLetter", "Upper", "Lower", *_PARAGRAPH_ENDS, *_TERMS}


def unicode_words(text: str) -> list[str]:
    """The segments between word borders that hold more than white space, in order.

    A punctuation mark is a segment of its own; `don't`, `3.14` and `a_b` are one each; ideographs
    and kana of Hiragana are one each.

    Source: Unicode Standard Annex #29, section 4.1, rules WB1 to WB999.
    """
    return [word for word in _cut(text, _word_starts(text)) if not word.isspace()]


def unicode_sentences(text: str) -> list[str]:
    """The segments between sentence borders that hold more than white space, in order.

    A full stop ends a sentence unless a digit or a lower-case word follows. No list of
    abbreviations: `Dr. Who` is two sentences, where a trained splitter may see one.

    Source: Unicode Standard Annex #29, section 5.1, rules SB1 to SB998.
    """
    return [part for part in _cut(text, _sentence_starts(text)) if not part.isspace()]


def _cut(text: str, starts: Iterator[int]) -> Iterator[str]:
    begin = 0
    for start in starts:
        yield text[begin:start]
        begin = start
    if begin < len(text):
        yield text[begin:]


def _units(
    text: str, class_of: Callable[[str], str], ignored: set[str], breakers: set[str]
) -> tuple[list[int], list[str]]:
    """Where each unit begins and its class; ignored characters belong to the unit before."""
    starts: list[int] = []
    classes: list[str] = []
    for position, character in enumerate(text):
        name = class_of(character)
        if name in ignored and classes and classes[-1] not in breakers:
            continue
        starts.append(position)
        classes.append(name)
    return starts, classes


def _word_starts(text: str) -> Iterator[int]:
    """Every word border but the first and the last."""
    starts, classes = _units(text, word_class, _WORD_IGNORED, _WORD_LINES)
    around = ["", *classes, "", ""]
    n_flags = 0
    for i in range(1, len(classes)):
        before, left, right, after = around[i - 1 : i + 3]
        n_flags = n_flags + 1 if left == "Regional_Indicator" else 0
        if right == "Regional_Indicator" and n_flags % 2:  # WB15, WB16
            continue
        if _joins_by_character(text, starts[i], left, right):
            continue
        if not _joins_words(before, left, right, after):
            yield starts[i]


def _joins_by_character(text: str, position: int, left: str, right: str) -> bool:
    """WB3c and WB3d, which look at the character before and not at the unit before."""
    previous = word_class(text[position - 1])
    if previous == "ZWJ":
        return left not in _WORD_LINES and is_pictograph(text[position])
    return previous == right == "WSegSpace"


def _joins_words(before: str, left: str, right: str, after: str) -> bool:
    """No border between two units, by the units beyond them (WB3, WB5 to WB13b)."""
    if left in _LETTERS:
        if right in _LETTERS or right == "Numeric":
            return True
        if right in _MID_LETTERS and after in _LETTERS:
            return True
        if left == "Hebrew_Letter" and right == "Single_Quote":
            return True
        if left == "Hebrew_Letter" == after and right == "Double_Quote":
            return True
    if left == "Numeric":
        if right in _LETTERS or right == "Numeric":
            return True
        if right in _MID_NUMBERS and after == "Numeric":
            return True
    if right in _LETTERS and before in _LETTERS and left in _MID_LETTERS:
        return True
    if right == "Hebrew_Letter" == before and left == "Double_Quote":
        return True
    if right == "Numeric" == before and left in _MID_NUMBERS:
        return True
    if left == "Katakana" == right or (left, right) == ("CR", "LF"):
        return True
    if right == "ExtendNumLet":
        return left in _JOINED_BY_UNDERSCORE
    return left == "ExtendNumLet" and right in _JOINED_BY_UNDERSCORE


def _sentence_starts(text: str) -> Iterator[int]:
    """Every sentence border but the first and the last."""
    starts, classes = _units(text, sentence_class, _SENTENCE_IGNORED, _PARAGRAPH_ENDS)
    decisive = _next_decisive(classes)
    term = ""  # the terminal that closing marks and blanks now follow
    stage = ""  # what came last after it: "term", "close", "space" or "paragraph"
    before_term = ""
    for i, right in enumerate(classes):
        left = classes[i - 1] if i else ""
        if i and _ends_sentence(left, right, term, stage, before_term, decisive[i]):
            yield starts[i]
        if right in _TERMS:
            term, stage, before_term = right, "term", left
        elif term:
            stage = _stage_after(stage, right)
            term = term if stage else ""


def _next_decisive(classes: list[str]) -> list[str]:
    """For each unit the class of the first unit from there on that settles SB8."""
    found = [""] * len(classes)
    last = ""
    for i in reversed(range(len(classes))):
        if classes[i] in _DECIDES_ABBREVIATION:
            last = classes[i]
        found[i] = last
    return found


def _stage_after(stage: str, name: str) -> str:
    if name == "Close" and stage in {"term", "close"}:
        return "close"
    if name == "Sp" and stage in {"term", "close", "space"}:
        return "space"
    return "paragraph" if name in _PARAGRAPH_ENDS and stage != "paragraph" else ""


def _ends_sentence(
    left: str, right: str, term: str, stage: str, before_term: str, decisive: str
) -> bool:
    """A border between two units (SB3 to SB11); `term` and `stage` say what stands before."""
    if left in _PARAGRAPH_ENDS:
        return (left, right) != ("CR", "LF")
    if not term:
        return False
    if term == "ATerm":
        if stage == "term" and right == "Numeric":
            return False
        if stage == "term" and right == "Upper" and before_term in {"Upper", "Lower"}:
            return False
        if decisive == "Lower":
            return False
    if right == "SContinue" or right in _TERMS:
        return False
    if stage in {"term", "close"} and right == "Close":
        return False
    return right != "Sp" and right not in _PARAGRAPH_ENDS
