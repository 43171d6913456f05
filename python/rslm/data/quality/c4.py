"""C4's rules, which remove lines from a page, and Dolma's one rule out of them.

Sources: Raffel et al. 2020, section 2.2 (arXiv:1910.10683); datatrove's C4QualityFilter for the
order and for what the paper leaves to its code; Soldaini et al. 2024, section 3.1.2, "C4 NoPunc"
(arXiv:2402.00159). The list of bad words and the rule on the source's language are left out.
"""

import re
from collections import Counter

from rslm.data.quality.characters import DECIMAL
from rslm.data.quality.page import Page, Verdict, dropped, edited
from rslm.data.quality.segment import unicode_sentences

MAX_WORD_LENGTH = 1000
MIN_WORDS_PER_LINE = 3
MIN_SENTENCES = 5
TERMINAL_PUNCTUATION = (".", "?", "!", '"', "'")
ELLIPSIS = "..."
LOREM_IPSUM = "lorem ipsum"
JAVASCRIPT = "javascript"
CURLY_BRACKET = "{"
POLICIES = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)
# Dolma's tagger takes no apostrophe and lets an ellipsis pass.
TERMINAL_PUNCTUATION_DOLMA = (".", "?", "!", '"')

# These send the whole page away, unless an earlier rule has removed their line.
PAGE_REASONS = frozenset({"c4_lorem_ipsum", "c4_curly_bracket"})

_CITATION = re.compile(rf"\[{DECIMAL}*+\]|\[edit\]|\[citation needed\]")


def check_c4(page: Page, *, terminal_punctuation: bool = True) -> Verdict:
    """Removes lines, or drops the page, line by line in the order of datatrove.

    Lines are those of `str.splitlines`, stripped; what is kept is joined by newlines. A second
    pass may remove more where citations went: `[1] so be.` has three words once, then two.
    Sentences are UAX #29, where C4 used a trained splitter: near its verdicts, not equal.

    Args:
        terminal_punctuation: off in FineWeb, whose first trials lost 30 % of the tokens to it.
    """
    kept: list[str] = []
    removed: Counter[str] = Counter()
    for raw in page.lines:
        line, reason = judge_line(raw.strip(), terminal_punctuation=terminal_punctuation)
        if reason in PAGE_REASONS:
            return dropped(reason, removed)
        if reason:
            removed[reason] += 1
        else:
            kept.append(line)
    if sum(len(unicode_sentences(line)) for line in kept) < MIN_SENTENCES:
        return dropped("c4_too_few_sentences", removed)
    return edited(page.text, "\n".join(kept).strip(), removed)


def judge_line(line: str, *, terminal_punctuation: bool = True) -> tuple[str, str]:
    """The line without citations, and why it goes ("" if it stays), by the first rule that hits.

    Words are blank-separated and counted before the citations go; the end of the line is looked
    at afterwards, and a blank that a citation leaves there is no punctuation.
    """
    words = line.split()
    if any(len(word) > MAX_WORD_LENGTH for word in words):
        return line, "c4_long_word"
    line = _CITATION.sub("", line)
    lower = line.lower()
    if terminal_punctuation and not ends_in_punctuation(line):
        reason = "c4_no_terminal_punctuation"
    elif len(words) < MIN_WORDS_PER_LINE:
        reason = "c4_few_words"
    elif LOREM_IPSUM in lower:
        reason = "c4_lorem_ipsum"
    elif JAVASCRIPT in lower:
        reason = "c4_javascript"
    elif CURLY_BRACKET in line:
        reason = "c4_curly_bracket"
    elif any(policy in lower for policy in POLICIES):
        reason = "c4_policy"
    else:
        reason = ""
    return line, reason


def ends_in_punctuation(line: str) -> bool:
    """A full stop, question or exclamation mark or straight quote at the end, no ellipsis."""
    return line.endswith(TERMINAL_PUNCTUATION) and not line.endswith(ELLIPSIS)


def remove_unpunctuated_lines(page: Page) -> Verdict:
    r"""Dolma's C4 NoPunc: lines that do not end in `. ? ! "` go, with their newline.

    Lines are what stands between newlines; blanks at their ends are looked through but stay.
    """
    lines = re.findall(r"[^\n]*+\n|[^\n]++", page.text)
    kept = [line for line in lines if line.strip().endswith(TERMINAL_PUNCTUATION_DOLMA)]
    removed = Counter(c4_no_terminal_punctuation=len(lines) - len(kept))
    return edited(page.text, "".join(kept), removed)
