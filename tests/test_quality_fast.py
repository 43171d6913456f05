"""The rules in Rust: the reference's verdicts on any text, in any batch, in linear time."""

import itertools
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_quality import NAMES, PIECES, PROSE

from rslm import _rslm
from rslm.data.quality import Page, Preset, check_quality, check_quality_batch
from rslm.data.quality.presets import PRESETS, check_quality_reference
from rslm.data.quality.segment import unicode_sentences, unicode_words

MORE_PIECES = [
    *("b'c", 'א"א', "'", ",", ";", ":", "\r", "\x85", "\xa0", "\u3000", "\u212a", "İ", "ſ", "_"),
    *("٣", "½", "Ⅷ", "[edit]", "[citation needed]", "use cookies", "uſe coo\u212aies", "\x1c"),
    *(
        "\ufeff",
        "カ",
        "タ",
        "👩\u200d🚀",
        "!",
        "?",
        '"',
        "Sign-in ",
        "İtems in cart",
        "terms of use",
    ),
    *("privacy policy.\n", "x" * 1001, "ab c d e f g ", "abc d e f g ", "12 Views", "SHOUT\n"),
    *(f"{line}\n" for line in PROSE.splitlines()),
]
ANY = st.lists(st.sampled_from(PIECES + MORE_PIECES), max_size=40).map("".join)
WORDS = ("the", "and", "of", "to", "word", "house", "12", "x.", "be", "that", "über", "Paris,", "#")


@st.composite
def prose(draw: st.DrawFn) -> str:
    """Some hundred words, so that length alone does not decide, with lines that repeat."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    lines = PROSE.splitlines() + [
        " ".join(rng.choices(WORDS, k=rng.randint(1, 20))) + rng.choice(["", ".", "…", "...", "!"])
        for _ in range(rng.randint(0, 12))
    ]
    lines += draw(st.lists(st.sampled_from(PIECES + MORE_PIECES), max_size=6))
    n = rng.randint(4, 40)
    return rng.choice(["\n", "\n\n", "\n\n\n", " "]).join(rng.choices(lines, k=n))


TEXTS = st.one_of(ANY, prose(), st.text(max_size=80))


@pytest.mark.parametrize("preset", NAMES)
@given(text=TEXTS)
def test_verdicts_are_the_references(preset: Preset, text: str):
    assert check_quality(text, preset) == check_quality_reference(text, preset)


@given(
    text=st.one_of(ANY, st.text(max_size=60), st.text("a1._:,;'\" \n\r\t\x1cé\u0301א", max_size=12))
)
def test_segments_are_the_references(text: str):
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        assert _rslm.unicode_words(text) == unicode_words(text)
        assert _rslm.count_sentences(text) == len(unicode_sentences(text))


def test_short_segments_are_the_references():
    for letters in itertools.product("aA1.,'\" \n_é", repeat=4):
        text = "".join(letters)
        assert _rslm.unicode_words(text) == unicode_words(text), repr(text)
        assert _rslm.count_sentences(text) == len(unicode_sentences(text)), repr(text)


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("name", ["books-valid", "multilingual"])
def test_verdicts_on_real_text_are_the_references(read_test_text, name: str, preset: Preset):
    text = read_test_text(name, 400_000)
    pages = [text[i : i + 5_000] for i in range(0, len(text), 40_000)]
    pages += [page.replace("\n\n", ". ").replace("\n", " ") for page in pages]
    verdicts = check_quality_batch(pages, preset, n_threads=2)
    assert verdicts == [check_quality_reference(page, preset) for page in pages]


@pytest.mark.parametrize("letter", "k\u212aK")
def test_phrases_are_found_in_any_case(letter: str):
    text = f"{PROSE}\nWe use coo{letter}ies here, all of us."
    verdict = check_quality(text, "c4")
    assert verdict.lines_removed == {"c4_policy": 1}
    assert verdict == check_quality_reference(text, "c4")


@pytest.mark.parametrize("preset", NAMES)
def test_lone_surrogates_are_judged(preset: Preset):
    text = f"{PROSE}\n\ud800 and then it was over for all of them."
    verdicts = check_quality_batch([PROSE, text, ""], preset)
    assert verdicts[1] == check_quality_reference(text, preset)
    assert verdicts[0] == check_quality(PROSE, preset)


@pytest.mark.parametrize("preset", NAMES)
@given(text=TEXTS.map(lambda text: text.encode(errors="replace").decode()))
def test_a_step_alone_is_the_references(preset: Preset, text: str):
    for number, step in enumerate(PRESETS[preset]):
        expected = step(Page(text, unicode_words))
        ((reason, edited, lines_removed),) = _rslm.check_quality([text], preset, 1, number)
        assert reason == expected.reason
        assert dict(lines_removed) == dict(expected.lines_removed)
        if not reason:
            assert (text if edited is None else edited) == expected.text
    with pytest.raises(ValueError, match="step must be below"):
        _rslm.check_quality([text], preset, 1, len(PRESETS[preset]))


def test_batches_are_maps_whatever_the_threads():
    pages = [f"{PROSE}\n{word * (i % 7)}" for i in range(50) for word in ("Menu\n", "{", "x ")]
    expected = [check_quality(page, "fineweb") for page in pages]
    for n_threads in (1, 2, 5, 500):
        assert check_quality_batch(pages, "fineweb", n_threads=n_threads) == expected
    assert check_quality_batch([], "fineweb") == []


def test_other_threads_run_meanwhile():
    ticks = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    def ticks_within_a_call(n_words: int) -> int:
        text = " ".join(f"word{i} and the." for i in range(n_words))
        start = time.monotonic()
        check_quality_batch([text], "fineweb")
        end = time.monotonic()
        return sum(start < t < end for t in ticks)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        # Longer and longer, as the other thread may get no core; with the lock held none would do.
        assert any(ticks_within_a_call(n) > 3 for n in (200_000, 500_000, 1_000_000))
    finally:
        done.set()
        thread.join()


def test_arguments_are_named():
    with pytest.raises(ValueError, match=r"preset must be one of course, gopher, .*, got 'best'"):
        check_quality("", "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        check_quality_batch([""], "c4", n_threads=0)
    with pytest.raises(ValueError, match="implementation must be rust or reference, got 'c'"):
        check_quality("", "c4", implementation="c")  # type: ignore[arg-type]


HOSTILE = [
    *("a", "@", "1.1.1.1.", "\u0301", ".", "\u200d", "🇦", "[", "[1", "a ", "\n", " \n", "a\n", "'"),
    *("1,", "\x1f", "the of to and\n", "a.", "é", "a'\u0301", ". ", "\u3000", "read more", "1 k "),
]


@pytest.mark.slow
@pytest.mark.parametrize("unit", HOSTILE)
def test_ten_megabytes_of_one_thing_take_seconds(unit: str):
    text = unit * (10_000_000 // len(unit.encode()))
    for preset in NAMES:
        start = time.process_time()
        check_quality(text, preset)
        assert time.process_time() - start < 10


@pytest.mark.parametrize("preset", NAMES)
def test_a_long_line_takes_as_long_as_many_short_ones(preset: Preset):
    for unit in ("word and ", "a.b", "é"):
        text = unit * (1_000_000 // len(unit.encode()))
        start = time.process_time()
        check_quality(text, preset)
        assert time.process_time() - start < 1
