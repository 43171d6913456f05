"""Words and sentences of UAX #29: its own examples, an independent engine, linear time."""

import time

import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st

from rslm.data.quality.segment import _cut, _word_starts, unicode_sentences, unicode_words


def word_segments(text: str) -> list[str]:
    """All segments between word borders, blanks too."""
    return [*_cut(text, _word_starts(text))]


@pytest.mark.parametrize(
    "segments",
    [
        [
            "The",
            " ",
            "quick",
            " ",
            "(",
            "“",
            "brown",
            "”",
            ")",
            " ",
            "fox",
            " ",
            "can’t",
            " ",
            "32.3",
        ],
        ["can't", "!"],
        ["a.b", ".", " ", "a", ":", ":", "b"],
        ["3,141.59", ",", " ", "A1", " ", "1A"],
        ["a_b_", " ", "_", " ", "__1", "ア_"],
        ["カタカナ", "ひ", "ら", "漢", "字"],
        ["א'", " ", 'א"א', " ", "a", '"', "a"],
        ["e\u0301a", " ", "a\u200db"],
        ["\r\n", "\n", "\u0085", "\u2028", "  ", "\t"],
        ["👩\u200d🚀", "👩", "a\u200d🚀"],
        ["🇦🇧", "🇨", "a", "🇦🇧", "🇨🇩"],
        ["a\u00ad.b", "\n", "\u0301", "a"],
        ["1\u0301,\u03012", ",", "a"],
    ],
)
def test_word_segments_by_the_rules(segments: list[str]):
    assert word_segments("".join(segments)) == segments


# The engine of `regex` splits after an apostrophe before a vowel, as French wants it, and joins
# what follows a leading mark or a flag to it; nor does it look past marks on either side of
# punctuation between letters or digits, as WB4 has it. On other text it is an oracle.
@given(st.text('aBé .,"1_:\u0301\r\nאבアイ漢;-\u3000\u2028', max_size=12).map("x".__add__))
def test_word_segments_are_those_of_another_engine(text: str):
    assume(not regex.search('[.,:;"]\u0301|\u0301[.,:;"]', text))
    expected = [piece for piece in regex.split(r"(?wV1)\b", text) if piece]
    assert word_segments(text) == expected


@given(st.text(max_size=40))
def test_segments_lose_nothing_but_blanks(text: str):
    assert "".join(word_segments(text)) == text
    without_blanks = "".join(text.split())
    assert "".join("".join(unicode_words(text)).split()) == without_blanks
    assert "".join("".join(unicode_sentences(text)).split()) == without_blanks


@pytest.mark.parametrize(
    "sentences",
    [
        ["One. ", "Two! ", "Three? ", "Four"],
        ["He said “are you going?” ", "John shook his head."],
        ["“Is it?” ", "John asked."],
        ["Pi is 3.14 or so. ", "And e.g. this goes on. ", "End"],
        ["U.S.A. is one word. ", "So."],
        ["etc.)’ ‘(the rest"],
        ["etc.)’  ", "‘(The rest"],
        ["Wait... ", "What?! ", "Yes."],
        ["wait... and go on"],
        ["A line\n", "Another\r\n", "End"],
        ["這是。", "那是！", "是"],
        ["No.\u0301 ", "Yes."],
        ["5. apples. ", "6. ", "Pears"],
        ["So it is,. and, then"],
    ],
)
def test_sentences_by_the_rules(sentences: list[str]):
    assert unicode_sentences("".join(sentences)) == sentences


def test_blank_segments_are_no_sentences_and_no_words():
    for text in ("", " ", "\n \n", "\u2028"):
        assert unicode_sentences(text) == []
        assert unicode_words(text) == []


@pytest.mark.parametrize(
    "unit", ["a", ".", "\u0301", "\u200d", "🇦", ". ", ".)", "'", "a'", "\n", "“", "1,", "a. ", "。"]
)
@pytest.mark.parametrize("segment", [unicode_words, unicode_sentences])
def test_time_grows_as_the_text(segment, unit: str):
    def seconds(n: int) -> float:
        start = time.process_time()
        segment((unit * n)[:n])
        return time.process_time() - start

    small = min(seconds(4_000) for _ in range(2))
    # Eight times the text: linear takes 8 times as long, quadratic 64 times.
    assert min(seconds(32_000) for _ in range(2)) < max(24 * small, 0.2)
