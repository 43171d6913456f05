"""Downloading corpora: the same code on local files, interruptions, a missing network."""

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="the extra `data` is not installed")

from rslm.data import download
from rslm.data.download import Corpus, download_corpus

STORIES = [f"Story {i}.\n\nOnce upon a time, naïve tale {i}… \N{OWL}" for i in range(300)]
TEXT = "".join(f"{story}\n<|endoftext|>\n" for story in STORIES)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)


@pytest.fixture(params=["text", "json", "parquet"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Corpus:
    """The same documents as each kind of source."""
    source = tmp_path / f"source.{request.param}"
    if request.param == "text":
        source.write_bytes(TEXT.encode())
    elif request.param == "json":
        source.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": STORIES}), source)
    return Corpus(
        builder=request.param, data_files={"train": str(source)}, n_bytes={"train": len(TEXT)}
    )


def test_download_writes_documents_parted_by_end_of_text(corpus: Corpus, tmp_path: Path) -> None:
    (path,) = download_corpus(corpus, "tales", tmp_path / "out")
    assert path.name == "tales-train.txt"
    assert path.read_bytes() == TEXT.encode()
    assert [p.name for p in path.parent.iterdir()] == ["tales-train.txt"]


def test_download_goes_on_after_an_interruption(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SAVE_EVERY_BYTES", 1000)
    monkeypatch.setattr(download, "REPORT_EVERY_BYTES", 1)

    def interrupt(done: int, total: int, name: str) -> None:
        if done > len(TEXT.encode()) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_corpus(corpus, "tales", tmp_path / "out", interrupt)
    assert not (tmp_path / "out" / "tales-train.txt").exists()

    first_reports: list[int] = []
    (path,) = download_corpus(
        corpus, "tales", tmp_path / "out", lambda done, total, name: first_reports.append(done)
    )
    assert path.read_bytes() == TEXT.encode()
    assert first_reports[0] > len(TEXT) // 3, "what was written before must not be written again"
    assert [p.name for p in path.parent.iterdir()] == ["tales-train.txt"]


def test_download_keeps_a_complete_file(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "tales-train.txt").write_text("mine")
    (path,) = download_corpus(corpus, "tales", tmp_path)
    assert path.read_text() == "mine"


def test_download_refuses_an_unknown_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus must be one of tinystories, openwebtext"):
        download.download("pile", tmp_path)


def test_download_without_network_is_one_sentence(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object) -> None:
        raise ConnectionRefusedError("no route")

    monkeypatch.setattr(download, "stream", no_network)
    with pytest.raises(ConnectionError, match=r"could not be fetched .* is there a network"):
        download_corpus(corpus, "tales", tmp_path)


def test_download_shows_other_errors_as_they_are(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "stream", full_disk)
    with pytest.raises(OSError, match="No space left"):
        download_corpus(corpus, "tales", tmp_path)
