"""Data sets of Hugging Face as inputs of a pipeline, without a network."""

import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy
import pyarrow
import pytest
from pipelines import run

from rslm.config import from_record
from rslm.data.documents import read_documents
from rslm.data.hugging_face import dataset_files
from rslm.data.pipeline import PipelineConfig, make_plan
from rslm.data.pipeline.checks import check_config
from rslm.data.pipeline.report import PipelineReport

TEXTS = [f"story {i}" for i in range(10)]


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no way out."""

    def refuse(*arguments: Any) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Else it tries again and again.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def stories() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"story": TEXTS, "grade": list(range(10))})


def config_with(out: Path, **given: object) -> PipelineConfig:
    return from_record(PipelineConfig, {"out": str(out), "inputs": [given]})


def test_saved_data_set_is_read_file_by_file(stories: datasets.Dataset, tmp_path: Path) -> None:
    # What was chosen and turned around is written so.
    stories.select(range(9, 1, -1)).save_to_disk(tmp_path / "stories", num_shards=3)
    config = config_with(
        tmp_path / "out", dataset=str(tmp_path / "stories"), text_field="story", name="stories"
    )
    check_config(config)
    assert len(make_plan(config).shards) == 3
    run(config)
    documents = list(PipelineReport.read(config.out).documents())
    assert [document.text for document in documents] == TEXTS[9:1:-1]
    assert [document.metadata["grade"] for document in documents] == list(range(9, 1, -1))
    assert {document.source for document in documents} == {"stories"}
    assert len({document.id for document in documents}) == 8
    assert documents[0].id.endswith("stories/train/0:0")


def test_splits_of_a_saved_data_set(stories: datasets.Dataset, tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": stories, "test": stories.select([4])})
    both.save_to_disk(tmp_path / "both")
    (file,) = dataset_files(str(tmp_path / "both"), split="test")
    assert [d.text for d in read_documents(file, text_field="story")] == ["story 4"]
    with pytest.raises(ValueError, match="split must be one of train, test, got 'valid'"):
        dataset_files(str(tmp_path / "both"), split="valid")


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_folder_of_files_is_loaded(stories: datasets.Dataset, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write = stories.to_json if kind == "json" else stories.to_parquet
    write(folder / f"train.{kind}")
    (file,) = dataset_files(str(folder))
    assert [d.text for d in read_documents(file, text_field="story")] == TEXTS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "someone/absent"}, "dataset 'someone/absent' cannot be loaded: "),
        ({"dataset": "a", "split": "train[:10%]"}, "split must be the name of a split, got 'tr"),
    ],
)
def test_data_set_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, given: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as caught:
        make_plan(config_with(tmp_path / "out", **given))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_long_errors_are_cut_to_their_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("\nno such configuration:\n- one\n- two")

    monkeypatch.setattr("rslm.data.hugging_face._load", fail)
    with pytest.raises(ValueError, match=r"'a/b' cannot be loaded: no such configuration:$"):
        dataset_files("a/b")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"need datasets, which is not installed: pip install"):
        dataset_files("someone/something")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "inputs must have either paths or a dataset, got neither"),
        ({"paths": ["a"], "dataset": "b"}, "either paths or a dataset, got both"),
        ({"paths": ["a"], "revision": "b"}, "revision is of a data set; add dataset"),
        ({"dataset": "a", "format": "jsonl"}, "format is of files; a dataset has its own"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record(PipelineConfig, {"out": "o", "inputs": [given]})


def test_revision_is_part_of_what_determines_bytes(
    stories: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories.save_to_disk(tmp_path / "stories")
    files = dataset_files(str(tmp_path / "stories"))
    monkeypatch.setattr("rslm.data.pipeline.inputs.dataset_files", lambda dataset, **options: files)
    plans = [
        make_plan(config_with(tmp_path / "out", dataset="a/b", revision=revision))
        for revision in ("v1", "v2", "v1")
    ]
    hashes = [plan.task_hash("filter", 0) for plan in plans]
    assert hashes[0] == hashes[2] != hashes[1]
    assert plans[0].shards[0].source == "a/b"


def test_damaged_arrow_files_are_counted(stories: datasets.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pyarrow.OSFile(str(folder / "a.arrow"), "wb") as file:
        table = stories.data.table.combine_chunks()
        with pyarrow.ipc.new_stream(file, table.schema) as stream:
            for batch in table.to_batches(max_chunksize=4):
                stream.write(batch)
    whole = (folder / "a.arrow").read_bytes()
    (folder / "b.arrow").write_bytes(whole[: len(whole) - 400])
    (folder / "c.arrow").write_bytes(b"no arrows here")
    counted: Counter[str] = Counter()
    documents = list(read_documents(folder, text_field="story", skipped=counted))
    assert len([d for d in documents if d.source == "a.arrow"]) == 10
    assert 0 < len([d for d in documents if d.source == "b.arrow"]) < 10
    assert counted == {"corrupt_rows": 1, "corrupt_file": 1}


def test_rows_that_point_beyond_their_ends_are_counted(tmp_path: Path) -> None:
    offsets = numpy.array([0, 3, 6, 1 << 28, 12], numpy.int32)
    letters = pyarrow.py_buffer(b"onetwothrfou")
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 4, [None, pyarrow.py_buffer(offsets), letters]
    )
    batch = pyarrow.RecordBatch.from_arrays([texts], ["text"])
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), batch.schema) as stream:
        stream.write(batch)
        stream.write(pyarrow.RecordBatch.from_pydict({"text": ["behind it"]}))
    counted: Counter[str] = Counter()
    documents = read_documents(tmp_path / "a.arrow", skipped=counted)
    assert [document.text for document in documents] == ["one", "two", "behind it"]
    assert counted == {"corrupt_rows": 2}
