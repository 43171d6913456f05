"""What a reason for dropping means, in the words of a reader who has not read the rules."""

from __future__ import annotations

import re

from rslm.data.pii import MAX_MASKS_DOLMA
from rslm.data.quality import c4, dclm, fineweb, gopher
from rslm.data.quality import repetition as rep


def meaning(reason: str) -> str:
    """A sentence on a reason; "" where its name must do."""
    if reason in _MEANINGS:
        return _MEANINGS[reason]
    for pattern, text in _PATTERNS.items():
        if match := re.fullmatch(pattern, reason):
            return text.format(*match.groups(), **_LIMITS.get(reason, {}))
    return ""


def _percent(limit: float) -> str:
    return f"{100 * limit:g} %"


_LIMITS = {
    **{
        f"repetition_top_{n}_gram": {"limit": _percent(limit)}
        for n, limit in rep.MAX_TOP_NGRAM_CHARACTERS.items()
    },
    **{
        f"repetition_duplicate_{n}_grams": {"limit": _percent(limit)}
        for n, limit in rep.MAX_DUPLICATE_NGRAM_CHARACTERS.items()
    },
}

_PATTERNS = {
    r"repetition_top_(\d+)_gram": "the commonest {0} words in a row make more than {limit} of it",
    r"repetition_duplicate_(\d+)_grams": "repeated runs of {0} words make more than {limit} of it",
    r"(.+)_timeout": "{0} took longer than the watchdog allows",
    r"(.+)_crash": "{0} ended the process",
    r"(.+)_memory": "{0} took more memory than a worker may",
    r"(.+)_error": "{0} failed",
}

_MEANINGS = {
    # Records that reading passes over.
    "bad_header": "a record's header cannot be read",
    "bad_http": "the HTTP message cannot be read",
    "bad_coding": "the body cannot be unpacked",
    "cut_by_crawler": "the crawler kept a part of the page only",
    "http_status": "the answer was not 200",
    "media_type": "no HTML and no text",
    "corrupt_member": "a damaged piece of a packed file",
    "corrupt_file": "a table that cannot be read",
    "corrupt_rows": "rows of a table that cannot be read",
    "read_timeout": "the rest of a file at which reading stood still",
    "read_crash": "the rest of a file at which reading ended the process",
    "file_too_large": "the rest of a file beyond the limit",
    "not_json": "a line that is no JSON object",
    "no_text": "a row without the field that holds the text",
    "too_deep": "nested deeper than the limit",
    "too_large": "larger than the limit",
    "zip_bomb": "unpacks to far more than pages do",
    "other_file": "a file of another kind",
    "other_record": "a record of another kind",
    **dict.fromkeys(
        ("request", "revisit", "resource", "metadata", "warcinfo", "continuation"),
        "a record that is no answer with a page",
    ),
    # Steps.
    "empty": "no text",
    "domain": "the domain is on the list",
    "host": "the host is on the list",
    "url": "the address is on the list",
    "banned_word": "a listed word is in the address",
    "soft_words": "two listed words are in the address",
    "banned_subword": "a listed word is part of the address",
    "other_language": "in none of the languages to keep",
    "language_score": "in a language to keep, but not surely enough",
    "score_too_low": "the classifier's score is below the least",
    "score_too_high": "the classifier's score is above the most",
    "overlap": "shares words in a row with an evaluation set",
    "exact_duplicate": "the same text as a document that is kept",
    "near_duplicate": "in a cluster of which another document is kept",
    "no_lines_left": "all of its lines come elsewhere, too",
    "too_few_words_left": "too few words once repeated lines were gone",
    "repeated_line": "comes more than once in the corpus",
    "pii_too_many": f"more than {MAX_MASKS_DOLMA} addresses or numbers to mask",
    # Rules.
    "gopher_too_few_words": f"fewer than {gopher.MIN_WORDS} words",
    "gopher_too_many_words": f"more than {gopher.MAX_WORDS:,} words",
    "gopher_short_words": f"words of fewer than {gopher.MIN_WORD_LENGTH} characters on average",
    "gopher_long_words": f"words of more than {gopher.MAX_WORD_LENGTH} characters on average",
    "gopher_too_many_symbols": (
        f"more than {gopher.MAX_SYMBOLS_PER_WORD:g} hashes or ellipses a word"
    ),
    "gopher_bullet_lines": (
        f"more than {_percent(gopher.MAX_BULLET_LINES)} of the lines begin with a bullet"
    ),
    "gopher_ellipsis_lines": (
        f"more than {_percent(gopher.MAX_ELLIPSIS_LINES)} of the lines end in an ellipsis"
    ),
    "gopher_few_alphabetic_words": (
        f"fewer than {_percent(gopher.MIN_ALPHABETIC_WORDS)} of the words hold a letter"
    ),
    "gopher_few_stop_words": f"fewer than {gopher.MIN_STOP_WORDS} of the, be, to, of, and, ...",
    "repetition_empty": "no line that is not empty",
    "repetition_lines": f"more than {_percent(rep.MAX_DUPLICATE_LINES)} of the lines repeat others",
    "repetition_line_characters": "repeated lines make too much of the text",
    "repetition_paragraphs": (
        f"more than {_percent(rep.MAX_DUPLICATE_PARAGRAPHS)} of the paragraphs repeat others"
    ),
    "repetition_paragraph_characters": (
        "repeated paragraphs make more than "
        f"{_percent(rep.MAX_DUPLICATE_PARAGRAPH_CHARACTERS)} of it"
    ),
    "c4_too_few_sentences": f"fewer than {c4.MIN_SENTENCES} sentences in the lines that stay",
    "c4_lorem_ipsum": f'"{c4.LOREM_IPSUM}" in the text',
    "c4_curly_bracket": "a curly bracket in the text",
    "c4_long_word": f"the line has a word of more than {c4.MAX_WORD_LENGTH:,} characters",
    "c4_no_terminal_punctuation": "the line does not end in punctuation",
    "c4_few_words": f"the line has fewer than {c4.MIN_WORDS_PER_LINE} words",
    "c4_javascript": f'"{c4.JAVASCRIPT}" in the line',
    "c4_policy": "a notice of terms, privacy or cookies in the line",
    "fineweb_empty": "no line that is not empty",
    "fineweb_line_punctuation": (
        f"fewer than {_percent(fineweb.MIN_PUNCTUATED_LINES)} of the lines end in punctuation"
    ),
    "fineweb_short_lines": (
        f"more than {_percent(fineweb.MAX_SHORT_LINES)} of the lines have at most "
        f"{fineweb.SHORT_LINE} characters"
    ),
    "fineweb_duplicate_characters": (
        f"repeated lines make more than {_percent(fineweb.MAX_DUPLICATE_CHARACTERS)} of it"
    ),
    "fineweb_newlines": f"more than {fineweb.MAX_NEWLINES_PER_WORD:g} line ends a word",
    "dclm_removed_words": (
        f"more than {_percent(dclm.MAX_REMOVED_WORDS)} of the words went with their lines"
    ),
    "dclm_uppercase_line": "the line is mostly capitals",
    "dclm_digits_line": "the line is all digits",
    "dclm_counter_line": "the line counts likes, shares, views",
    "dclm_short_line": "the line is one word",
    "dclm_furniture": "the line belongs to the page, not its text",
}
