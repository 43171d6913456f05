"""The numbers behind a verdict: the first outside its limit is the recipe's own reason."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.quality import PRESETS, Preset, check_quality
from rslm.data_report.measures import MEASURES, Measure, quality_steps

GOOD = """The boat came back to the harbour in the last light of a cold day.
Nobody was there to meet it, and the men tied it up without a word.
Anna saw them from the window of her shop and put on her coat.
She had been waiting since the morning for news of her brother.
One of them, an old man with a grey beard, stopped and shook his head.
They would try again tomorrow if the wind turned, he told her.
In the evening she sat by the fire and wrote a long letter home.
"""
WORDS = [
    "the",
    "of",
    "and",
    "#",
    "...",
    "…",
    "12",
    "a",
    "lorem ipsum",
    "{",
    "javascript",
    "privacy",
]
LINES = st.lists(st.lists(st.sampled_from([*WORDS, "- x", "horse.", "HORSE"])), max_size=9)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=200),
    LINES.map(lambda lines: "\n".join(map(" ".join, lines))),
    st.tuples(LINES, st.integers(0, 3)).map(
        lambda drawn: "\n\n".join([GOOD] * drawn[1] + [" ".join(line) for line in drawn[0]])
    ),
)


def test_every_family_of_rules_is_measured() -> None:
    assert MEASURES.keys() == PRESETS.keys() == set(get_args(Preset))
    assert all(len(MEASURES[name]) == len(PRESETS[name]) for name in PRESETS)


@pytest.mark.parametrize("preset", get_args(Preset))
@given(text=TEXTS)
def test_first_measure_out_of_its_limit_is_the_reason(preset: Preset, text: str) -> None:
    steps = quality_steps(text, preset)
    verdict = check_quality(text, preset)
    for step in steps:
        broken = [measure.reason for measure in step.measures if not measure.holds]
        if step.verdict.decision == "drop":
            if step.verdict.reason == "dclm_removed_words":
                continue
            assert step.verdict.reason in broken
            # C4's lines are judged one after the other: which comes first decides.
            if not step.verdict.reason.startswith("c4_"):
                assert broken[0] == step.verdict.reason
        elif step.measures:
            assert broken == []
    assert (steps[-1].verdict.decision == "drop") == (verdict.decision == "drop")
    assert steps[-1].verdict.reason == verdict.reason
    if verdict.decision != "drop":
        assert steps[-1].verdict.text == verdict.text


@pytest.mark.parametrize("preset", get_args(Preset))
def test_page_that_is_kept_is_measured_to_the_end(preset: Preset) -> None:
    steps = quality_steps(GOOD, preset)
    assert len(steps) == len(PRESETS[preset])
    assert steps[-1].verdict.decision != "drop"
    assert all(measure.holds for step in steps for measure in step.measures)


@pytest.mark.parametrize(
    ("relation", "value", "holds"),
    [
        ("at least", 3, True), ("at least", 2.9, False), ("at most", 3, True),
        ("at most", 3.1, False), ("above", 3, False), ("above", 3.1, True),
        ("below", 3, False), ("below", 2.9, True),
    ],
)  # fmt: skip
def test_limits_are_in_or_out(relation: str, value: float, holds: bool) -> None:
    measure = Measure(reason="", name="", value=value, relation=relation, limit=3)  # type: ignore[arg-type]
    assert measure.holds == holds


def test_numbers_are_those_of_the_rules() -> None:
    (step,) = quality_steps("a horse ...\nNo 12 34", "course")
    values = {measure.reason: measure.value for measure in step.measures}
    assert values == {
        "gopher_too_few_words": 6,
        "gopher_too_many_words": 6,
        "gopher_short_words": 15 / 6,
        "gopher_long_words": 15 / 6,
        "gopher_ellipsis_lines": 0.5,
        "gopher_few_alphabetic_words": 0.5,
    }
    assert step.verdict.reason == "gopher_too_few_words"
