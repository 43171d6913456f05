"""Classes of characters that the rules are written in, by the tables of the `regex` package."""

import regex

# What datatrove counts as symbols: the marks of CCNet's normalisation, the controls but for tab
# and newline, and every sentence terminal.
_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_SENTENCE_TERMINAL = regex.compile(r"\p{Sentence_Terminal}")
_SYMBOLS = regex.compile(rf"[{regex.escape(_MARKS)}{_CONTROLS}\p{{Sentence_Terminal}}]*+")


def is_sentence_terminal(character: str) -> bool:
    """One character that ends sentences in some script; quotes and ellipses are none."""
    return _SENTENCE_TERMINAL.fullmatch(character) is not None


def is_symbols_only(word: str) -> bool:
    """No character of the word is outside datatrove's set of symbols."""
    return _SYMBOLS.fullmatch(word) is not None
