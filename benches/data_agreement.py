"""How answers of `data_peers.py` are compared; each comparison gives a cell or raises."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

# datatrove's reasons that bear another name than rslm's without its family.
NAMES = {
    "dup_para_frac": "paragraphs",
    "dup_para_char_frac": "paragraph_characters",
    "dup_line_frac": "lines",
    "dup_line_char_frac": "line_characters",
    "gopher_short_doc": "too_few_words",
    "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "too_many_symbols",
    "gopher_too_many_ellipsis": "too_many_symbols",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "few_alphabetic_words",
    "gopher_enough_stop_words": "few_stop_words",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_characters",
    "list_ratio": "newlines",
}
# What rests on words or sentences, where the others rest on lines and characters alone.
OF_WORDS = ("top_", "duplicate_", "newlines", "sentences", "word", "symbols")
# C4 also counts sentences, which spaCy ends elsewhere than UAX #29.
LEAST_WITH_ITS_WORDS = {"c4": 0.7}


def equal(ours: Any, theirs: Any) -> str:
    """Nothing may differ."""
    return alike(1)(ours, theirs)


def alike(least: float) -> Callable[[Any, Any], str]:
    """So large a share of the answers must be the same."""

    def compare(ours: Any, theirs: Any) -> str:
        if theirs is None:
            return ""
        share = share_same(ours, theirs)
        assert share >= least, f"only {share:.2%} of the answers are the same"
        return "same" if share == 1 else f"{share:.1%} same"

    return compare


def share_same(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    assert len(ours) == len(theirs), f"{len(ours)} answers, not {len(theirs)}"
    n_same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return n_same / len(ours) if ours else 1


def same_number(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """As many rows must be dropped."""
    assert len(ours) == len(theirs), f"{len(ours)} dropped, not {len(theirs)}"
    return f"{len(ours):,} dropped by both"


def words_alike(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """F1 of the words, all pages together: extractors differ."""
    n_both = n_all = 0
    for one, other in zip(ours, theirs, strict=True):
        a, b = (Counter(re.findall(r"\w+", text)) for text in (one, other))
        n_both += (a & b).total()
        n_all += a.total() + b.total()
    share = 2 * n_both / n_all
    assert share > 0.3, f"words have F1 {share:.2f}"
    return f"words F1 {share:.2f}"


def rules_alike(family: str) -> Callable[[Any, Any], str]:
    """Verdicts of one family: with datatrove's own words given to the reference, and as shipped.

    With its words, rules of lines and characters must agree on every document.
    """

    def compare(ours: list[bool], theirs: list[tuple[str, list[str], str]]) -> str:
        from rslm.data.quality import Page

        n_same = 0
        for text, words, reason in theirs:
            found = reference(family, Page(text, lambda _, words=words: words))
            expected = NAMES.get(reason, renamed(reason))
            n_same += found == expected
            outcome = f"{found or 'keep'}, not {expected or 'keep'}"
            assert found == expected or any(part in outcome for part in OF_WORDS), outcome
        share = n_same / len(theirs)
        assert share >= LEAST_WITH_ITS_WORDS.get(family, 0.98), (
            f"only {share:.2%} of verdicts are the same"
        )
        shipped = share_same(ours, [not reason for _, _, reason in theirs])
        return f"{share:.1%} same given its words, {shipped:.1%} as shipped"

    return compare


def renamed(reason: str) -> str:
    return reason.replace("duplicated_", "duplicate_").replace("_n_grams", "_grams")


def reference(family: str, page: Any) -> str:
    """rslm's reason by its readable rules, without the family's name."""
    from rslm.data.quality.c4 import check_c4
    from rslm.data.quality.fineweb import check_fineweb
    from rslm.data.quality.gopher import FINEWEB, check_gopher
    from rslm.data.quality.repetition import check_repetition_fineweb

    check: Callable[[Any], str | None] = {
        "repetition": check_repetition_fineweb,
        "quality": lambda page: check_gopher(page, FINEWEB),
        "c4": lambda page: check_c4(page, terminal_punctuation=False).reason,
        "fineweb": check_fineweb,
    }[family]
    reason = check(page) or ""
    for prefix in ("repetition_", "gopher_", "fineweb_", "c4_"):
        reason = reason.removeprefix(prefix)
    return reason
