r"""Gopher's repetition rules, in four readings of Table A1.

The limits are one table (Rae et al. 2021, Table A1, arXiv:2112.11446). What counts against them
is not, and a page near a limit passes one reading and fails the next:

| | paper | fineweb (datatrove) | dolma | dclm |
|---|---|---|---|---|
| duplicates | 2nd and later copies | 2nd and later copies | **all** members | **all** members |
| lines | at `\n`, stripped, no empty | at `\n+`, as is | at `\n`, as is, empty too | as paper |
| paragraphs | at `\n\n`, stripped, no empty | at `\n{2,}` | none | as paper; 1 alone passes |
| characters out of | those of the segments | the text | the words | those of the segments |
| words | blank-separated | UAX #29 | blank-separated | UAX #29, first alphanumeric |
| top n-gram, of equals | longest | first seen | first seen | longest |
| top n-gram, length | words | words and blanks between | words | words |
| it drops a page where nothing repeats | no | **yes** | **yes** | no |
| duplicate n-grams | words under one, once | 2nd copies, jumping n | count-weighted | as paper |
| limit of line characters | .20 | .20 | **.30** | .20 |

Dolma's shipped configurations ask for `most_common_2gram` where its tagger writes
`most_common_2grams`, so there the top rule may never have hit; here it is as its thresholds say.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rslm.data.quality.characters import is_alphanumeric
from rslm.data.quality.page import Page, ratio

MAX_DUPLICATE_LINES = 0.30
MAX_DUPLICATE_PARAGRAPHS = 0.30
MAX_DUPLICATE_LINE_CHARACTERS = 0.20
MAX_DUPLICATE_PARAGRAPH_CHARACTERS = 0.20
MAX_TOP_NGRAM_CHARACTERS = {2: 0.20, 3: 0.18, 4: 0.16}
MAX_DUPLICATE_NGRAM_CHARACTERS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# Dolma's configurations v1 to v1.6 take the limit of the lines for their characters too.
MAX_DUPLICATE_LINE_CHARACTERS_DOLMA = 0.30

Ngram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """How many of some segments are duplicates, and how many code points these hold."""

    n_segments: int
    n_characters: int


def later_copies(segments: Sequence[str]) -> Duplicates:
    """Every segment that stood before already."""
    copies = [(n - 1, len(segment)) for segment, n in Counter(segments).items()]
    return Duplicates(
        n_segments=sum(n for n, _ in copies), n_characters=sum(n * length for n, length in copies)
    )


def repeated_members(segments: Sequence[str]) -> Duplicates:
    """Every segment that stands more than once, the first included."""
    sets = [(n, len(segment)) for segment, n in Counter(segments).items() if n > 1]
    return Duplicates(
        n_segments=sum(n for n, _ in sets), n_characters=sum(n * length for n, length in sets)
    )


def ngrams(words: Sequence[str], n: int) -> Iterator[Ngram]:
    """Every run of n words, overlapping, in order."""
    return zip(*(words[i:] for i in range(n)), strict=False)


def n_characters(words: Sequence[str]) -> int:
    """Code points of the words without what stands between them."""
    return sum(map(len, words))


def top_ngram_characters_fineweb(words: Sequence[str], n: int) -> int:
    """Code points of the first of the commonest n-grams, blanks between included, × its count."""
    counts = Counter(ngrams(words, n))
    top = max(counts.items(), key=lambda item: item[1], default=((), 0))
    return len(" ".join(top[0])) * top[1]


def top_ngram_characters_dolma(words: Sequence[str], n: int) -> int:
    """Code points of the first of the commonest n-grams, × its count."""
    counts = Counter(ngrams(words, n))
    top = max(counts.items(), key=lambda item: item[1], default=((), 0))
    return n_characters(top[0]) * top[1]


def top_ngram_characters_dclm(words: Sequence[str], n: int) -> int:
    """Code points of the longest of the commonest n-grams, × its count; 0 if none repeats."""
    counts = Counter(ngrams(words, n))
    highest = max(counts.values(), default=0)
    if highest < 2:
        return 0
    return highest * max(n_characters(ngram) for ngram, k in counts.items() if k == highest)


def duplicate_ngram_characters_fineweb(words: Sequence[str], n: int) -> int:
    """Code points of n-grams met before, in a walk that jumps over each of them.

    N-grams are compared run together: ("ab", "c") equals ("a", "bc").
    """
    seen: set[str] = set()
    total = i = 0
    while i <= len(words) - n:
        ngram = "".join(words[i : i + n])
        repeats = ngram in seen
        total += len(ngram) if repeats else 0
        i += n if repeats else 1
        seen.add(ngram)
    return total


def duplicate_ngram_share_dolma(words: Sequence[str], n: int) -> float:
    """Code points of the n-grams that repeat, out of those of all n-grams, overlaps counted."""
    counts = Counter(ngrams(words, n)).items()
    repeated = sum(k * n_characters(ngram) for ngram, k in counts if k > 1)
    return ratio(repeated, sum(k * n_characters(ngram) for ngram, k in counts))


def duplicate_ngram_characters_dclm(words: Sequence[str], n: int) -> int:
    """Code points of the words that lie under any n-gram that repeats, each word once."""
    counts = Counter(ngrams(words, n))
    total = reached = 0
    for i, ngram in enumerate(ngrams(words, n)):
        if counts[ngram] > 1:
            total += n_characters(words[max(i, reached) : i + n])
            reached = i + n
    return total


def check_repetition_fineweb(page: Page) -> str | None:
    """The first rule that hits, in datatrove's order.

    A page of n words or little more can lose itself to its first n-gram, seen once.

    Source: Penedo et al. 2024 (arXiv:2406.17557), section 3.3, as its datatrove does it.
    """
    text = page.text
    paragraphs = re.split(r"\n{2,}", text.strip())
    copies = later_copies(paragraphs)
    if ratio(copies.n_segments, len(paragraphs)) > MAX_DUPLICATE_PARAGRAPHS:
        return "repetition_paragraphs"
    if ratio(copies.n_characters, len(text)) > MAX_DUPLICATE_PARAGRAPH_CHARACTERS:
        return "repetition_paragraph_characters"
    lines = re.split(r"\n+", text)
    copies = later_copies(lines)
    if ratio(copies.n_segments, len(lines)) > MAX_DUPLICATE_LINES:
        return "repetition_lines"
    if ratio(copies.n_characters, len(text)) > MAX_DUPLICATE_LINE_CHARACTERS:
        return "repetition_line_characters"
    for n, limit in MAX_TOP_NGRAM_CHARACTERS.items():
        if ratio(top_ngram_characters_fineweb(page.unicode_words, n), len(text)) > limit:
            return f"repetition_top_{n}_gram"
    for n, limit in MAX_DUPLICATE_NGRAM_CHARACTERS.items():
        if ratio(duplicate_ngram_characters_fineweb(page.unicode_words, n), len(text)) > limit:
            return f"repetition_duplicate_{n}_grams"
    return None


def check_repetition_dolma(page: Page) -> str | None:
    """The first rule that hits, in the order of Dolma's configuration.

    Source: Soldaini et al. 2024 (arXiv:2402.00159), section 3.1.2 and tagger gopher_v1.
    """
    words = page.split_words
    lines = page.text.split("\n")
    repeated = repeated_members(lines)
    total = n_characters(words)
    if ratio(repeated.n_segments, len(lines)) > MAX_DUPLICATE_LINES:
        return "repetition_lines"
    if ratio(repeated.n_characters, total) > MAX_DUPLICATE_LINE_CHARACTERS_DOLMA:
        return "repetition_line_characters"
    for n, limit in MAX_TOP_NGRAM_CHARACTERS.items():
        if ratio(top_ngram_characters_dolma(words, n), total) > limit:
            return f"repetition_top_{n}_gram"
    for n, limit in MAX_DUPLICATE_NGRAM_CHARACTERS.items():
        if duplicate_ngram_share_dolma(words, n) > limit:
            return f"repetition_duplicate_{n}_grams"
    return None


def check_repetition_dclm(page: Page) -> str | None:
    """The first rule that hits, in DCLM's order; a page without a line is dropped.

    Source: Li et al. 2024 (arXiv:2406.11794), appendix on RefinedWeb's filters, and its mapper.
    """
    lines = filled_segments(page.text, "\n")
    if not lines:
        return "repetition_empty"
    parts = filled_segments(page.text, "\n\n")
    words = [word for word in page.unicode_words if is_alphanumeric(word[0])]
    return _check_segments(lines, parts, repeated_members) or _check_words(words)


def check_repetition_paper(page: Page) -> str | None:
    """The first rule that hits, in the order of the paper's table.

    Source: Rae et al. 2021, section A.1.1, "Repetition Removal" and Table A1.
    """
    lines = filled_segments(page.text, "\n")
    parts = filled_segments(page.text, "\n\n")
    return _check_segments(lines, parts, later_copies) or _check_words(page.split_words)


def filled_segments(text: str, border: str) -> list[str]:
    """What stands between the borders, stripped, without the empty ones."""
    return [segment for piece in text.split(border) if (segment := piece.strip())]


def _check_segments(
    lines: list[str], paragraphs: list[str], find: Callable[[Sequence[str]], Duplicates]
) -> str | None:
    """Lines, paragraphs, then the characters of either; a single segment repeats nothing."""
    of_lines, of_paragraphs = find(lines), find(paragraphs)
    if ratio(of_lines.n_segments, len(lines)) > MAX_DUPLICATE_LINES:
        return "repetition_lines"
    if ratio(of_paragraphs.n_segments, len(paragraphs)) > MAX_DUPLICATE_PARAGRAPHS:
        return "repetition_paragraphs"
    if ratio(of_lines.n_characters, n_characters(lines)) > MAX_DUPLICATE_LINE_CHARACTERS:
        return "repetition_line_characters"
    total = n_characters(paragraphs)
    if ratio(of_paragraphs.n_characters, total) > MAX_DUPLICATE_PARAGRAPH_CHARACTERS:
        return "repetition_paragraph_characters"
    return None


def _check_words(words: Sequence[str]) -> str | None:
    """Top and duplicate n-grams, out of the characters of the words."""
    total = n_characters(words)
    for n, limit in MAX_TOP_NGRAM_CHARACTERS.items():
        if ratio(top_ngram_characters_dclm(words, n), total) > limit:
            return f"repetition_top_{n}_gram"
    for n, limit in MAX_DUPLICATE_NGRAM_CHARACTERS.items():
        if ratio(duplicate_ngram_characters_dclm(words, n), total) > limit:
            return f"repetition_duplicate_{n}_grams"
    return None
