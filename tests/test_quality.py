"""The recipes as wholes: their order, real pages, any text at all, and time."""

import gzip
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import seconds

from rslm.data.quality import PRESETS, Preset, check_quality

NAMES: tuple[Preset, ...] = get_args(Preset)
PROSE = """The miller had three sons and left them what he owned, which was not much to share.
To his eldest went the mill, while Peter got a donkey that could carry flour to town.
Only a cat remained for young Thomas, who sat down by the river with his head in both hands.
What use have I of fur, he asked, when winter comes and nobody will feed us any longer?
Give me a pair of boots, said his companion, then you shall see how well we can live.
Nobody knows where such words came from, yet a cobbler next door made them that evening.
Off went the animal across wet fields, carrying an old sack full of fresh clover leaves.
Rabbits are curious, so before noon one of these fools had crept inside and was caught."""


def test_every_preset_is_there():
    assert tuple(PRESETS) == NAMES
    assert set(NAMES) == {"course", "gopher", "c4", "fineweb", "fineweb_2024", "dolma", "dclm"}


@pytest.mark.parametrize("preset", NAMES)
def test_prose_stays_as_it_is(preset: Preset):
    verdict = check_quality(PROSE, preset)
    assert (verdict.decision, verdict.reason, verdict.lines_removed) == ("keep", "", {})
    assert verdict.text == PROSE


@pytest.mark.parametrize(
    ("preset", "reason"),
    [
        ("course", ""),
        ("gopher", "repetition_top_2_gram"),
        ("c4", ""),
        ("fineweb", "repetition_top_2_gram"),
        ("fineweb_2024", "repetition_top_2_gram"),
        ("dolma", "repetition_top_2_gram"),
        ("dclm", "repetition_top_2_gram"),
    ],
)
def test_repetition_is_no_rule_of_the_course_and_of_c4(preset: Preset, reason: str):
    text = "The dog and cat have met. " * 20
    assert check_quality(text, preset).reason == reason


def test_fineweb_alone_looks_for_repetition_first():
    reasons = {preset: check_quality("The cat sat down. " * 5, preset).reason for preset in NAMES}
    assert reasons.pop("c4") == ""
    assert reasons.pop("fineweb") == reasons.pop("fineweb_2024") == "repetition_top_2_gram"
    assert set(reasons.values()) == {"gopher_too_few_words"}


@pytest.mark.parametrize("preset", NAMES)
def test_empty_and_blank_pages_go(preset: Preset):
    reasons = {
        "c4": "c4_too_few_sentences",
        "course": "gopher_too_few_words",
        "gopher": "gopher_too_few_words",
        "dolma": "gopher_too_few_words",
        "dclm": "gopher_too_few_words",
        "fineweb": "gopher_too_few_words",
        "fineweb_2024": "gopher_too_few_words",
    }
    for text in ("", " ", "\u3000"):
        verdict = check_quality(text, preset)
        assert (verdict.decision, verdict.text, verdict.reason) == ("drop", "", reasons[preset])


def test_c4_rules_of_fineweb_see_the_page_before_its_own():
    menu = "\n".join(f"Menu {i}" for i in range(2))  # two words a line go
    verdict = check_quality(f"{PROSE}\n{menu}", "fineweb")
    assert (verdict.decision, verdict.text) == ("edit", PROSE)
    assert verdict.lines_removed == {"c4_few_words": 2}
    # Ten lines of three words stay, and only then are too many lines short.
    menu = "\n".join(f"Menu of {w}" for w in "abcdefghijklmnopqr")
    verdict = check_quality(f"{PROSE}\n{menu}", "fineweb")
    assert verdict.reason == "fineweb_short_lines"


def test_the_two_finewebs_part_at_a_limit():
    lines = PROSE.splitlines()
    text = "\n".join([*(f"{line} So" for line in lines[:7]), f'"{lines[7]}"'])  # one of eight
    assert check_quality(text, "fineweb").reason == "fineweb_line_punctuation"
    assert check_quality(text, "fineweb_2024").reason == ""


def test_dolma_counts_words_after_its_lines_went():
    text = "\n".join(line.rstrip(".?") for line in PROSE.splitlines())
    verdict = check_quality(text, "dolma")
    assert verdict.reason == "gopher_too_few_words"
    assert verdict.lines_removed == {"c4_no_terminal_punctuation": 8}


def test_dclm_limits_newlines_before_all():
    verdict = check_quality(PROSE.replace("\n", "\n\n\n\n"), "dclm")
    assert (verdict.decision, verdict.text) == ("edit", PROSE.replace("\n", "\n\n"))


def test_a_tokenizer_of_the_callers_cuts_the_words():
    text = PROSE.replace(",", " ... ")  # three marks of UAX #29 in a word of blanks
    assert check_quality(text, "fineweb").reason == "gopher_few_alphabetic_words"
    assert check_quality(text, "fineweb", tokenize=str.split).reason == ""


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be one of course, gopher, .*, got 'best'"):
        check_quality("", "best")  # type: ignore[arg-type]


CRAWL = {
    "course": {"keep": 10},
    "gopher": {"keep": 9, "repetition_duplicate_5_grams": 1},
    "c4": {"edit": 5, "keep": 3, "c4_too_few_sentences": 2},
    "fineweb": {"edit": 4, "gopher_few_alphabetic_words": 3, "c4_too_few_sentences": 2, "keep": 1},
    "dolma": {"keep": 8, "edit": 2},
    "dclm": {"keep": 5, "edit": 4, "repetition_duplicate_5_grams": 1},
}
CRAWL["fineweb_2024"] = CRAWL["fineweb"]
# The first sixty of the articles, which are of several languages.
ARTICLES = {
    "course": {"keep": 59, "drop": 1},
    "gopher": {"keep": 53, "drop": 7},
    "c4": {"edit": 55, "drop": 5},
    "fineweb": {"edit": 44, "drop": 16},
    "fineweb_2024": {"edit": 44, "drop": 16},
    "dolma": {"edit": 52, "drop": 8},
    "dclm": {"keep": 39, "edit": 11, "drop": 10},
}


@pytest.mark.parametrize("preset", NAMES)
def test_verdicts_on_crawl_documents(test_data: Path, preset: Preset):
    packed = (test_data / "web" / "cc_en_head-0091.jsonl.gz").read_bytes()
    texts = [json.loads(line)["text"] for line in gzip.decompress(packed).splitlines()]
    verdicts = [check_quality(text, preset) for text in texts]
    assert Counter(verdict.reason or verdict.decision for verdict in verdicts) == CRAWL[preset]


@pytest.mark.parametrize("preset", NAMES)
def test_verdicts_on_articles(test_data: Path, preset: Preset):
    with tarfile.open(test_data / "web" / "articles.tar") as archive:
        file = archive.extractfile("articles/ground-truth.json")
        assert file is not None
        texts = [article["articleBody"] for article in json.load(file).values()][:60]
    verdicts = [check_quality(text, preset) for text in texts]
    assert Counter(verdict.decision for verdict in verdicts) == ARTICLES[preset]


PIECES = [
    "the ",
    "and ",
    "of ",
    "word ",
    "Über ",
    "漢字。",
    "\n",
    "\n\n",
    "\x0b",
    "\u2028",
    "...",
    "…",
]
PIECES += [
    "# ",
    "• ",
    "- ",
    "3 likes",
    "{",
    "javascript ",
    "lorem ipsum. ",
    "[1]",
    "A B C. ",
    "\x00",
]
PIECES += ["\ud800", "\u0301", "🇦🇧", "\u200d", "Read more...", "1 ", PROSE, f"{PROSE}\n"]
page = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


@pytest.mark.parametrize("preset", NAMES)
@given(text=page)
def test_a_verdict_holds_together(preset: Preset, text: str):
    verdict = check_quality(text, preset)
    assert (verdict.decision == "drop") == bool(verdict.reason)
    assert (verdict.decision == "keep") == (verdict.text == text and not verdict.reason)
    assert verdict.text or verdict.decision == "drop"
    assert all(n > 0 for n in verdict.lines_removed.values())
    assert verdict == check_quality(text, preset)


@pytest.mark.parametrize("preset", ["course", "gopher"])
@given(text=page)
def test_presets_without_edits_edit_nothing(preset: Preset, text: str):
    assert check_quality(text, preset).decision != "edit"


# Not those where a citation goes, which can leave a line with too few words.
@given(text=page.filter(lambda text: "[" not in text))
def test_edits_of_c4_are_final(text: str):
    verdict = check_quality(text, "c4")
    if verdict.decision != "drop":
        again = check_quality(verdict.text, "c4")
        assert (again.decision, again.text) == ("keep", verdict.text)


@given(text=page)
def test_edits_of_dolma_are_final(text: str):
    verdict = check_quality(text, "dolma")
    if verdict.decision != "drop":
        assert check_quality(verdict.text, "dolma").decision == "keep"


HOSTILE = {
    "one word": "a",
    "short words": "a ",
    "prose": "the man and his dog. ",
    "newlines": "\n",
    "blank lines": " \n",
    "lines of one word": "a\n",
    "marks": "\u0301",
    "joiners": "\u200d",
    "flags": "🇦",
    "full stops": ".",
    "brackets": "[",
    "citations": "[1",
    "numbers": "1,",
    "counters": "1 k ",
    "controls": "\x1f",
    "quotes": "\"'",
    "lines of prose": "Then the man and his dog came to it.\n",
}


@pytest.mark.parametrize("preset", ["c4", "fineweb", "dolma", "dclm"])
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_time_grows_as_the_text(preset: Preset, unit: str):
    small, large = ((unit * n)[:n] for n in (3_000, 24_000))
    grown = seconds(lambda: check_quality(large, preset))
    # Eight times the text: linear takes 8 times as long, quadratic 64 times.
    assert grown < max(24 * seconds(lambda: check_quality(small, preset)), 0.2)


@pytest.mark.parametrize("preset", NAMES)
def test_a_megabyte_on_one_line(preset: Preset):
    check_quality("a" * 1_000_000, preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", NAMES)
def test_a_megabyte_of_prose(preset: Preset):
    text = "".join(f"Then the {i} and man {i * i} came. \n" for i in range(40_000))
    assert len(text) > 1_000_000
    assert seconds(lambda: check_quality(text, preset)) < 60
