"""`rslm data classifier train` and `rslm data export`."""

import json
from pathlib import Path

import numpy as np
import pytest

from rslm import TokenFile, Tokenizer
from rslm.cli import main

SMALL = ["--training.dim", "8", "--training.buckets", "100", "--training.learning-rate", "0.5"]


def write_pages(path: Path, kind: str) -> Path:
    rows = [{"text": f"{kind} page number{i}", "id": i} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_classifier_is_trained_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = write_pages(tmp_path / "good.jsonl", "good fine")
    bad = write_pages(tmp_path / "bad.jsonl", "bad awful")
    out = tmp_path / "model.bin"
    arguments = ["data", "classifier", "train", "--positives", str(good), "--negatives", str(bad)]
    arguments += ["--out", str(out), "--labels", "good", "bad", "--max-documents", "50", *SMALL]
    assert main(arguments) == 0
    table, notes = capsys.readouterr()
    assert table.splitlines()[0].split() == ["score", "kept", "precision", "recall"]
    assert len(table.splitlines()) == 21
    assert "100.0% right" in notes
    record = json.loads((tmp_path / "model.bin.json").read_text())
    assert sum(record["n_train"].values()) + sum(record["n_held_out"].values()) == 100
    assert main(arguments) == 2
    assert "must not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--labels", "a", "a"], "labels must differ"),
        (["--training.epochs", "0"], "epochs must be at least 1"),
        (["--training.epoch", "0"], "did you mean --training.epochs?"),
        (["--positives", "page.html"], "holds pages of HTML"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    write_pages(tmp_path / "a.jsonl", "a")
    (tmp_path / "page.html").write_text("<p>text")
    arguments = ["--positives", "a.jsonl", "--negatives", "a.jsonl", "--out", "model"]
    assert main(["data", "classifier", "train", *arguments, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "classifier", "trian"], "rslm data classifier trian; did you mean train?"),
        (["data", "clasifier", "train"], "rslm data clasifier; did you mean classifier?"),
    ],
)
def test_commands_of_three_words_are_suggested(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_group_of_commands_is_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "classifier"]) == 0
    assert "data classifier train" in capsys.readouterr().out


def test_token_ids_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    vocab = {i: bytes([i]) for i in range(256)}
    Tokenizer(vocab, [], ["<|endoftext|>"]).encode_files(tmp_path / "a.txt", tmp_path / "tokens")
    out = tmp_path / "raw.bin"
    assert main(["data", "export", str(tmp_path / "tokens"), "--out", str(out)]) == 0
    assert "8 tokens" in capsys.readouterr().err
    np.testing.assert_array_equal(
        np.fromfile(out, "<u2"), TokenFile.open(tmp_path / "tokens")[:].astype("<u2")
    )
    assert main(["data", "export", str(tmp_path / "tokens"), "--out", str(out)]) == 2
