"""Parts of the report on a pipeline: bins, examples and reasons, and what a real run gives."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_folders import run_here
from pipelines import ALL_STEPS, config_of, write_inputs

from rslm.data.pipeline.plan import make_plan
from rslm.data.quality import Preset
from rslm.data.quality.gopher import GOPHER_RULES
from rslm.data_report import words
from rslm.data_report.examples import cut, n_examples, unlike
from rslm.data_report.measures import quality_steps
from rslm.data_report.numbers import MAX_SIZES, binned, report_record, scores
from rslm.data_report.page import make_page
from rslm.data_report.reasons import meaning
from rslm.data_report.view import PipelineView, read_view
from rslm.html_report.blocks import Passages

TEXT = """The boat came back to the harbour in the last light of a cold day.
Nobody was there to meet it, and the men tied it up without a word.
Anna saw them from the window of her shop and put on her coat.
She had been waiting since the morning for news of her brother.
One of them, an old man with a grey beard, stopped and shook his head.
They would try again tomorrow if the wind turned, he told her.
"""


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "-"), (0, "0"), (1, "100.0"), (0.2, "20.0"), (2 / 7, "28.6"), (0.0999, "9.99"),
        (0.09999, "10.0"), (0.0123, "1.23"), (0.00099, "0.099"), (0.000999, "0.10"),
        (0.00001, "0.001"), (0.000009, "< 0.001"),
    ],
)  # fmt: skip
def test_shares_are_written_with_two_digits_or_more(share: float | None, shown: str) -> None:
    assert words.percent(share) == shown


@given(st.dictionaries(st.integers(2, 10**6).map(str), st.integers(1, 1000), max_size=40))
def test_sizes_of_clusters_in_bins_are_all_there(histogram: dict[str, int]) -> None:
    rows = binned(histogram)
    assert sum(n for _, n, _ in rows) == sum(histogram.values())
    assert sum(members for *_, members in rows) == sum(int(k) * n for k, n in histogram.items())
    assert len(rows) <= max(MAX_SIZES, 3 + 20)
    if len(histogram) > MAX_SIZES:
        assert all(
            sum(n for k, n in histogram.items() if _is_in(int(k), name)) == clusters
            for name, clusters, _ in rows
        )


@given(st.dictionaries(st.floats(0, 1).map(lambda score: f"{score:.2f}"), st.integers(1, 99)))
def test_scores_in_bins_are_all_there(histogram: dict[str, int]) -> None:
    rows = scores(histogram)
    assert sum(n for _, n in rows) == sum(histogram.values())
    for name, n in rows:
        low, high = map(float, name.split(" to "))
        inside = (k for k in histogram if low <= float(k) < high or float(k) == high == 1)
        assert n == sum(histogram[k] for k in inside)


def _is_in(size: int, name: str) -> bool:
    ends = [int(end.replace(",", "")) for end in name.split(" to ")]
    return ends[0] <= size <= ends[-1]


TEXTS = st.lists(st.sampled_from(["a", "bb", "c.", "\n", "é"]), max_size=30).map(" ".join)


@given(TEXTS, TEXTS)
def test_marks_stand_on_words_that_the_other_text_has_not(text: str, other: str) -> None:
    marks = unlike(text, other)
    rest, end = "", 0
    for start, stop in marks:
        assert end <= start < stop <= len(text)
        assert text[start:stop] == text[start:stop].strip()
        rest, end = rest + text[end:start], stop
    left = (rest + text[end:]).split()
    words_of_other = iter(other.split())
    # What is left stands in the other text in this order.
    assert all(word in words_of_other for word in left)
    assert unlike(text, text) == []


def test_long_texts_are_cut_and_say_so() -> None:
    assert cut("abc", limit=3) == "abc"
    assert cut("abcde", limit=3) == "abc\n[... 2 more characters]"
    assert cut("abc", 1003, limit=3) == "abc\n[... 1,000 more characters]"


def test_few_examples_are_shown_where_there_are_many_reasons() -> None:
    groups = [[{"text": "x" * 3000}] * 20]
    assert n_examples(groups) == 10
    assert n_examples(groups * 200) == 4
    assert n_examples(groups * 5000) == 1


def test_every_reason_of_the_rules_is_explained() -> None:
    steps = [step for preset in get_args(Preset) for step in quality_steps(TEXT, preset)]
    reasons = {measure.reason for step in steps for measure in step.measures}
    assert len(reasons) > 30
    assert {reason for reason in [*GOPHER_RULES, *reasons] if not meaning(reason)} == set()
    words_in_a_row = meaning("repetition_top_2_gram")
    assert words_in_a_row == "the commonest 2 words in a row make more than 20 % of it"
    assert meaning("extract_timeout") == "extract took longer than the watchdog allows"
    assert meaning("of a later version") == ""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> PipelineView:
    """A run of all steps that need no model."""
    path = tmp_path_factory.mktemp("real")
    inputs = write_inputs(path / "in", n_files=3, n_documents=30)
    plan = make_plan(config_of(inputs, path / "out", **ALL_STEPS))
    run_here(plan)
    return read_view(plan.folder)


def test_page_of_a_real_run_shows_clusters_side_by_side(real: PipelineView) -> None:
    page = make_page(real, None)
    (section,) = [section for section in page.sections if section.title == "Duplicates"]
    shown = [block for block in section.blocks if isinstance(block, Passages)]
    assert len(shown) == 2
    for block, kind in zip(shown, ("exact", "minhash"), strict=True):
        for group in block.groups:
            kept, *others = group.passages
            assert kept.note.startswith("kept; ")
            assert others
            assert all(p.note.startswith("dropped; ") for p in others)
            assert all(bool(p.marks) == (p.text != kept.text) for p in others) or kind == "minhash"


def test_parts_add_up_whatever_way(real: PipelineView) -> None:
    record = report_record(real, None)
    of_steps = sum(step["cpu_seconds"] for step in record["steps"])
    of_work = sum(step["cpu_seconds"] for step in record["work"])
    total = sum(stage["cpu_seconds"] for stage in record["stages"])
    (join,) = [work for work in record["work"] if work["stage"] == "exact.join"]
    parts = real.report.marks("exact.join").values()
    largest = [mark.steps["exact.join"].largest["bucket"] for mark in parts]
    # A sum over the parts would say nothing.
    assert join["largest"] == {"bucket": max(largest)}
    assert sum(largest) > max(largest) > 1
    assert of_steps + of_work + record["read"]["cpu_seconds"] == pytest.approx(total, abs=0.05)
    names = [name for name, _ in real.in_order()]
    assert names == [
        *["read", "extract", "quality.course", "exact.sign", "exact.join", "exact.cluster"],
        *["minhash.sign", "minhash.join", "minhash.cluster", "lines.count", "lines.merge"],
        *["exact", "minhash", "lines", "pii"],
    ]
