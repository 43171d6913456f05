"""The parts of a pipeline: its config, its plan, its counts, its files, its commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import config_of, run, write_inputs

from rslm.data.document import Document
from rslm.data.pipeline import make_plan
from rslm.data.pipeline.documents_pass import read_skip
from rslm.data.pipeline.marks import read_mark
from rslm.data.pipeline.pulse import N_BYTES, RESTING, begin_resting, read_beat
from rslm.data.pipeline.shards import (
    LinesWriter,
    document_record,
    hash_file,
    read_lines,
    read_shard,
)
from rslm.data.pipeline.tally import Amount, Samples, StepTally
from rslm.errors import FormatError

names = st.sampled_from(["a", "b", "c"])
counters = st.dictionaries(names, st.integers(1, 9))
amounts = st.builds(
    Amount,
    documents=st.integers(0, 99),
    bytes=st.integers(0, 99),
    characters=st.integers(0, 99),
)
tallies = st.fixed_dictionaries(
    {
        "taken": amounts,
        "given": amounts,
        "drops": st.dictionaries(names, amounts),
        "lines_removed": counters,
        "counts": counters,
        "histogram": counters,
        "largest": counters,
        "languages": counters,
        # Numbers whose sums are exact.
        "cpu_seconds": st.integers(0, 99).map(lambda n: n / 4),
    }
)


def record_of(tally: dict[str, Any]) -> dict[str, Any]:
    plain = {
        name: vars(value) if name in ("taken", "given") else value for name, value in tally.items()
    }
    return plain | {"drops": {reason: vars(amount) for reason, amount in tally["drops"].items()}}


def sum_of(*records: dict[str, Any]) -> dict[str, Any]:
    total = StepTally()
    for record in records:
        total.add(StepTally.from_record(record))
    return total.to_record()


@given(st.lists(tallies.map(record_of), min_size=3, max_size=3))
def test_tallies_add_up_in_any_order(records: list[dict[str, Any]]):
    first, second, third = records
    assert sum_of(first, second, third) == sum_of(third, first, second)
    assert sum_of(sum_of(first, second), third) == sum_of(first, sum_of(second, third))
    assert sum_of(first) == StepTally.from_record(first).to_record()


@given(
    st.lists(st.tuples(names, names, st.integers(0, 30), st.text(max_size=3)), max_size=60),
    st.integers(0, 60),
    st.integers(0, 4),
)
def test_samples_do_not_depend_on_how_documents_are_dealt(
    entries: list[tuple[str, str, int, str]], cut: int, n: int
):
    def shown(entries: list[tuple[str, str, int, str]]) -> Samples:
        samples = Samples(n, 1)
        for step, reason, id, text in entries:
            document = Document(id=str(id), text=text)
            samples.offer(step, reason, samples.rank(document.id), document)
        return samples

    whole = shown(entries).records()
    merged = Samples(n, 1)
    merged.add(shown(entries[cut:]).records())
    merged.add(shown(entries[:cut]).records())
    assert merged.records() == whole
    assert shown(entries[::-1]).records() == whole


def test_sample_is_small_whatever_it_is_called() -> None:
    samples, name = Samples(1, 0), "n" * 1_000_000
    samples.offer("s", "", 0, Document(id=name, text=name, url=name, source=name))
    assert len(json.dumps(samples.records())) < 10_000


def test_shard_survives_writing(tmp_path: Path) -> None:
    documents = [
        Document(
            id="a", text="x\n\ny é \u2028", url="http://a", source="s", metadata={"n": [1, None]}
        ),
        Document(id="b", text="y" * 3_000_000),
        Document(id="c", text="z" * 3_000_000),
        Document(id="d", text="last"),
    ]
    path = tmp_path / "a.jsonl.zst"
    with LinesWriter(path, "1") as writer:
        for document in documents:
            writer.write(document_record(document))
    assert list(read_shard(path)) == documents
    assert hash_file(path) == writer.digest
    assert path.read_bytes().count(b"\x28\xb5\x2f\xfd") == 2
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FormatError, match=r"a\.jsonl\.zst"):
        list(read_shard(path))


def test_empty_shard_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    with LinesWriter(path, "1") as writer:
        pass
    assert list(read_lines(path)) == []
    assert path.read_bytes().startswith(b"\x28\xb5\x2f\xfd")
    assert hash_file(path) == writer.digest


def write_and_fail(path: Path) -> None:
    with LinesWriter(path, "1") as writer:
        writer.write({"a": 1})
        raise KeyError


def test_what_an_error_cuts_short_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_and_fail(tmp_path / "a.jsonl.zst")
    assert list(tmp_path.iterdir()) == []


def test_pulse_begins_at_rest(tmp_path: Path) -> None:
    import mmap

    memory = mmap.mmap(-1, N_BYTES)
    begin_resting(memory)
    assert read_beat(memory).first == RESTING


def test_changed_mark_is_none(tmp_path: Path) -> None:
    config = config_of(write_inputs(tmp_path / "in", 1, 3), tmp_path / "out")
    run(config)
    plan, path = make_plan(config), config.out / "filter" / "00000.report.json"
    assert read_mark(plan, "filter", 0) is not None
    record = json.loads(path.read_text())
    changed = record | {"n_rows": record["n_rows"] + 1}
    for text in ("{}", "[]", "null", "[" * 100_000, json.dumps(changed)):
        path.write_text(text)
        assert read_mark(plan, "filter", 0) is None
    for text in ("[]", "{}", '{"hash": "h", "skip": []}', "[" * 100_000):
        path.write_text(text)
        assert read_skip(path, "h") == {}
