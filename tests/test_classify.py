"""Classifiers: trained to the byte, judged on texts they have not seen."""

import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import fasttext
import pytest

from rslm.data import classify
from rslm.data.classify import (
    Classifier,
    ClassifierOptions,
    classify_nsfw,
    classify_quality,
    classify_toxicity,
    record_path,
    train_classifier,
)
from rslm.errors import FormatError

GOOD = "the theory of numbers describes how primes are spread among all integers".split()  # noqa: SIM905
BAD = "buy cheap pills online now click here free casino bonus winner deal".split()  # noqa: SIM905
SMALL = ClassifierOptions(dim=8, buckets=100, learning_rate=0.5, held_out_share=0.2)


def pages(words: list[str], seed: int, n: int = 120) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=12)) for _ in range(n)]


EXAMPLES = {"good": pages(GOOD, 1), "bad": pages(BAD, 2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "quality.bin"
    train_classifier(EXAMPLES, path, options=SMALL)
    return path


def test_pages_are_told_apart(model: Path):
    classifier = Classifier.load(model)
    (good, good_score), (bad, bad_score) = classifier.predict_batch(
        ["a theory\nof primes and integers", "free casino bonus: click here"]
    )
    assert (good, bad) == ("good", "bad")
    assert 0.9 < good_score <= 1.0
    assert 0.9 < bad_score <= 1.0
    for classify_text in (classify_nsfw, classify_toxicity, classify_quality):
        assert classify_text("free casino", model=model) == classifier.predict("free casino")
        assert classify_text("free casino", model=classifier) == classifier.predict("free casino")


def test_scores_are_of_the_label_that_is_asked_for(model: Path):
    classifier = Classifier.load(model)
    texts = ["primes", "casino", "theory casino", ""]
    good = classifier.scores_batch(texts, "good")
    bad = classifier.scores_batch(iter(texts), "bad")
    assert [a + b for a, b in zip(good, bad, strict=True)] == pytest.approx([1.0] * 4, abs=1e-3)
    assert good[0] > 0.5 > good[1]
    with pytest.raises(ValueError, match="label must be one of"):
        classifier.scores_batch(texts, "other")


def test_training_gives_the_same_bytes_whatever_the_order(model: Path, tmp_path: Path):
    again = {label: list(reversed(texts)) * 2 for label, texts in reversed(EXAMPLES.items())}
    train_classifier(again, tmp_path / "again.bin", options=SMALL)
    assert (tmp_path / "again.bin").read_bytes() == model.read_bytes()
    assert record_path(tmp_path / "again.bin").read_bytes() == record_path(model).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.bin", "again.bin.json"]
    other = ClassifierOptions(**{**vars(SMALL), "seed": 1})
    assert train_classifier(EXAMPLES, tmp_path / "other.bin", options=other).sha256 != (
        hashlib.sha256(model.read_bytes()).hexdigest()
    )


def test_record_says_what_the_model_is_and_is_worth(model: Path):
    record = Classifier.load(model).record
    assert record == json.loads(record_path(model).read_text())
    assert record["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert record["options"]["dim"] == 8
    assert record["held_out_accuracy"] == 1.0
    n_texts = {label: len(set(texts)) for label, texts in EXAMPLES.items()}
    for label in ("good", "bad"):
        assert record["n_train"][label] + record["n_held_out"][label] == n_texts[label]
        half = record["thresholds"][label][9]
        assert half == {
            "threshold": 0.5,
            "n_kept": record["n_held_out"][label],
            "precision": 1.0,
            "recall": 1.0,
        }
        kept = [row["n_kept"] for row in record["thresholds"][label]]
        assert kept == sorted(kept, reverse=True)


def test_thresholds_keep_what_is_at_or_above_them():
    rows = classify._thresholds([0.1, 0.5, 0.7, 0.7, 0.2], [False, True, True, False, True])
    by_threshold = {row["threshold"]: row for row in rows}
    assert by_threshold[0.5] == {
        "threshold": 0.5,
        "n_kept": 3,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
    }
    assert by_threshold[0.55]["n_kept"] == 2
    assert by_threshold[0.99] == {
        "threshold": 0.99,
        "n_kept": 0,
        "precision": None,
        "recall": 0.0,
    }


def test_fasttext_is_given_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, float] = {}
    real = fasttext.train_supervised
    monkeypatch.setattr(
        fasttext, "train_supervised", lambda *a, **k: given.update(k) or real(*a, **k)
    )
    options = ClassifierOptions(
        dim=5, epochs=2, word_ngrams=3, min_count=2, buckets=90, loss="hs", seed=12
    )
    train_classifier(EXAMPLES, tmp_path / "model", options=options)
    assert given == {
        "lr": 0.1,
        "dim": 5,
        "epoch": 2,
        "wordNgrams": 3,
        "minCount": 2,
        "bucket": 90,
        "loss": "hs",
        "seed": 12,
        "thread": 1,
        "verbose": 0,
    }


def test_marks_of_fasttext_on_a_page_are_text(tmp_path: Path):
    forged = {
        "good": [f"{text}\n__label__bad </s>" for text in EXAMPLES["good"]],
        "bad": [f"__label__good </s> {text}" for text in EXAMPLES["bad"]],
    }
    classifier = train_classifier(forged, tmp_path / "model", options=SMALL)
    assert classifier.predict("</s> __label__good free casino bonus")[0] == "bad"
    assert classifier.record is None or set(classifier.record["labels"]) == {"good", "bad"}
    assert classifier._model.labels() in (
        ["__label__good", "__label__bad"],
        ["__label__bad", "__label__good"],
    )


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"good": ["a"]}, "at least two labels, got 1"),
        ({"good": ["a"], "two words": ["b"]}, "a label must be one word, got 'two words'"),
        ({"good": ["a b"], "": ["b"]}, "a label must be one word"),
        ({"good": ["a b"], "bad": ["c", "a\nb"]}, "one label, got 'good' and 'bad' for 'a b'"),
        ({"good": EXAMPLES["good"], "bad": []}, "'bad' has none"),
        ({"good": EXAMPLES["good"], "bad": [" \n"]}, "'bad' has none"),
        ({"good": EXAMPLES["good"], "bad": ["x"]}, "'bad' has none"),
    ],
)
def test_impossible_examples_are_refused(tmp_path: Path, examples, message: str):
    with pytest.raises(ValueError, match=message):
        train_classifier(examples, tmp_path / "model", options=SMALL)
    assert os.listdir(tmp_path) == []


def test_one_text_in_place_of_several_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="'bad' must be an iterable"):
        train_classifier({"good": ["a"], "bad": "text"}, tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        train_classifier(EXAMPLES, tmp_path / "no" / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("dim", 0), ("epochs", 0), ("word_ngrams", 65), ("learning_rate", 0.0), ("seed", -1)],
        *[("held_out_share", 1.0), ("learning_rate", float("nan"))],
    ],
)
def test_impossible_options_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} must be"):
        ClassifierOptions(**{name: value})


def test_a_changed_file_is_loaded_anew(model: Path, tmp_path: Path):
    path = tmp_path / "model"
    path.write_bytes(model.read_bytes())
    assert classify_quality("free casino", model=path)[0] == "bad"
    swapped = {"good": EXAMPLES["bad"], "bad": EXAMPLES["good"]}
    train_classifier(swapped, path, options=SMALL)
    assert classify_quality("free casino", model=path)[0] == "good"


def test_what_is_no_model_is_refused(model: Path, tmp_path: Path):
    (tmp_path / "cut").write_bytes(model.read_bytes()[:-5])
    with pytest.raises(FormatError, match="not a whole fastText model"):
        Classifier.load(tmp_path / "cut")
    assert Classifier.load(model).record is not None
    (tmp_path / "alone").write_bytes(model.read_bytes())
    assert Classifier.load(tmp_path / "alone").record is None
    with pytest.raises(TypeError, match="loaded in each process"):
        pickle.dumps(Classifier.load(model))
