"""Classifiers of pages: fastText models trained from examples, or given by path.

A score is the probability that the model gives to the label it is told with, so 0.5 and more
where there are two labels. How sure a model is and how right are two things: the record beside
a trained model says what each threshold keeps of pages it has not seen.
Source: Joulin et al. 2016 (arXiv:1607.01759). As used for Llama's and DCLM's quality filters
(arXiv:2406.11794, section 4.4) and dolma's harmful-content taggers (arXiv:2402.00159).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rslm import _rslm
from rslm.data.fasttext_package import fasttext_module, one_line
from rslm.data.split import is_held_out
from rslm.files import require_place, sha256_of, sync_folder, write_atomically

Model: TypeAlias = "str | os.PathLike[str] | Classifier"

_PREFIX = "__label__"
_THRESHOLDS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99)
# What separates words to fastText; a label must be one word.
_BLANKS = frozenset(" \t\n\r\v\f\0")


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """How a classifier is trained; the defaults are fastText's."""

    learning_rate: float = 0.1
    dim: int = 100
    """Numbers that stand for a word."""
    epochs: int = 5
    word_ngrams: int = 1
    """Words in a row that count as one, up to this: 2 tells "not good" from "good"."""
    min_count: int = 1
    """Rarer words are left out."""
    buckets: int = 2_000_000
    """Places for n-grams of words, whatever their number."""
    loss: Literal["softmax", "hs", "ova"] = "softmax"
    held_out_share: float = 0.1
    """Share of the texts, chosen by a hash, that is kept to judge the model by."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("dim", "epochs", "word_ngrams", "min_count", "buckets")
        for name in counts:
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.word_ngrams > 64:
            raise ValueError(f"word_ngrams must be at most 64, got {self.word_ngrams}")
        if not 0 < self.learning_rate < 100:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share must be between 0 and 1, got {self.held_out_share}")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must be from 0 to 2^31 - 1, got {self.seed}")


class Classifier:
    """A fastText model of labels; an instance belongs to one process.

    Answers are those of fastText 0.9.2 to the bit. Threads may share a model, and batches are
    classified without the interpreter's lock.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.sha256 = sha256_of(self.path)
        """SHA-256 of the model file: what reports call the model by."""
        self._model = _rslm.FastText(self.path)
        self._labels = [label.removeprefix(_PREFIX) for label in self._model.labels()]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """The classifier of a file, of `train_classifier` or of any supervised fastText model.

        Raises:
            FormatError: the file is none, or is damaged.
            OSError: it cannot be read.
        """
        return cls(path)

    @functools.cached_property
    def record(self) -> dict[str, Any] | None:
        """What `train_classifier` wrote beside the model; None for a model without it."""
        path = record_path(self.path)
        return json.loads(path.read_bytes()) if path.exists() else None

    def predict(self, text: str) -> tuple[str, float]:
        """(label, score): the likeliest label and its probability, from 0 to 1."""
        return self.predict_batch([text])[0]

    def predict_batch(self, texts: Iterable[str], *, n_threads: int = 1) -> list[tuple[str, float]]:
        """What `predict` says of each text.

        Raises:
            ValueError: `n_threads` is below 1.
        """
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        # Sums of rounded numbers: scores reach 1.00007.
        return [
            ("", 0.0) if answer is None else (self._labels[answer[0]], min(answer[1], 1.0))
            for answer in self._model.predict(list(texts), n_threads)
        ]

    def scores_batch(self, texts: Iterable[str], label: str, *, n_threads: int = 1) -> list[float]:
        """The probability of one label for each text, whichever is the likeliest.

        Raises:
            ValueError: the model has no such label, or `n_threads` is below 1.
        """
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        if label not in self._labels:
            shown = ", ".join(self._labels[:10])
            raise ValueError(f"label must be one of {shown}, got {label!r}")
        number = self._labels.index(label)
        return [min(score, 1.0) for score in self._model.scores(list(texts), number, n_threads)]

    def __reduce__(self) -> tuple[type[Classifier], tuple[Path]]:
        raise TypeError("a Classifier must be loaded in each process, from its path")


def train_classifier(
    examples: Mapping[str, Iterable[str]],
    target: str | os.PathLike[str],
    *,
    options: ClassifierOptions | None = None,
) -> Classifier:
    """Trains on the texts of each label and writes the model `target` and its record beside it.

    The same texts, in any order, and options give the same bytes: texts are ordered by a hash,
    each counts once, and one thread trains. Held out are texts by a hash of their own, so all
    copies are on one side. Memory: the texts. The record, `target` with `.json` behind it, holds
    SHA-256 of model and texts, options, counts, accuracy on the texts held out and, for each
    label and threshold, precision and recall.

    Negatives should have gone through the same filters as positives, or the model learns what
    the filters remove.

    Args:
        examples: For each label its texts, as {"good": ..., "bad": ...}.
        target: The model's file; both are written beside and renamed.
        options: How to train.

    Raises:
        ValueError: there are fewer than two labels, one is not a single word, a text has two
            labels, or a label has no text to train on or none held out.
        OSError: the target cannot be written.
    """
    options = options or ClassifierOptions()
    fasttext = fasttext_module("train_supervised")
    require_place(target)
    texts = _labelled(examples, options.seed)
    train, held_out = _split(texts, list(examples), options.held_out_share)
    path = Path(target)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.tmp-", dir=path.parent) as folder:
        lines = Path(folder, "lines")
        with lines.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{_PREFIX}{label} {line}\n" for line, label in train)
        model = fasttext.train_supervised(
            str(lines),
            lr=options.learning_rate,
            dim=options.dim,
            epoch=options.epochs,
            wordNgrams=options.word_ngrams,
            minCount=options.min_count,
            bucket=options.buckets,
            loss=options.loss,
            seed=options.seed,
            thread=1,
            verbose=0,
        )
        beside = Path(folder, "model")
        model.save_model(str(beside))
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        classifier = Classifier(beside)
        record = _record(classifier, options, texts, train, held_out)
        # The old record must not stand beside a new model.
        record_path(path).unlink(missing_ok=True)
        beside.replace(path)
    sync_folder(path.parent)
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(record_path(path), f"{text}\n".encode())
    classifier.path = path
    return classifier


def record_path(model: Path) -> Path:
    """Where the record of a trained model is."""
    return model.with_name(f"{model.name}.json")


def classify_nsfw(text: str, *, model: Model) -> tuple[str, float]:
    """(label, score) by a model of obscene text, such as dolma's Jigsaw model "nsfw".

    Those say "nsfw" or "non-nsfw". dolma drops sentences at 0.4, course users pages at 0.8.
    """
    return _classifier(model).predict(text)


def classify_toxicity(text: str, *, model: Model) -> tuple[str, float]:
    """(label, score) by a model of hateful text, such as dolma's Jigsaw model "toxic".

    Those say "toxic" or "non-toxic". dolma drops sentences at 0.4, course users pages at 0.9.
    """
    return _classifier(model).predict(text)


def classify_quality(text: str, *, model: Model) -> tuple[str, float]:
    """(label, score) by a model that `train_classifier` made of good and of random pages."""
    return _classifier(model).predict(text)


def _classifier(model: str | os.PathLike[str] | Classifier) -> Classifier:
    if isinstance(model, Classifier):
        return model
    path = Path(model)
    state = path.stat()
    return _loaded(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, changed: int, size: int) -> Classifier:
    return Classifier(path)


def _labelled(examples: Mapping[str, Iterable[str]], seed: int) -> dict[str, str]:
    """The label of each line, the lines in the order of their hashes."""
    if len(examples) < 2:
        raise ValueError(f"examples must have at least two labels, got {len(examples)}")
    found: dict[str, str] = {}
    for label, texts in examples.items():
        if not label or not _BLANKS.isdisjoint(label):
            raise ValueError(f"a label must be one word, got {label!r}")
        if isinstance(texts, str):
            raise TypeError(f"the texts of {label!r} must be an iterable of str, got one str")
        for text in texts:
            line = one_line(text).replace("\r", " ")
            if line.strip() and found.setdefault(line, label) != label:
                raise ValueError(
                    f"a text must have one label, got {found[line]!r} and {label!r} for "
                    f"{line[:60]!r}"
                )
    key = str(seed).encode() + b"\0"
    order = sorted(found, key=lambda line: hashlib.sha256(key + line.encode()).digest())
    return {line: found[line] for line in order}


Lines = list[tuple[str, str]]


def _split(texts: Mapping[str, str], labels: Sequence[str], share: float) -> tuple[Lines, Lines]:
    train: Lines = []
    held_out: Lines = []
    for line, label in texts.items():
        (held_out if is_held_out(line.encode(), share) else train).append((line, label))
    for part, name in ((train, "train on"), (held_out, "hold out")):
        if missing := sorted(set(labels) - {label for _, label in part}):
            raise ValueError(
                f"each label must have texts to {name}, but {missing[0]!r} has none: give more "
                "texts, or another held_out_share"
            )
    return train, held_out


def _record(
    classifier: Classifier,
    options: ClassifierOptions,
    texts: Mapping[str, str],
    train: Lines,
    held_out: Lines,
) -> dict[str, Any]:
    labels = sorted(set(texts.values()))
    inputs = hashlib.sha256()
    for line, label in sorted(texts.items()):
        inputs.update(f"{label} {line}\n".encode())
    answers = classifier.predict_batch(line for line, _ in held_out)
    right = [answer == label for (answer, _), (_, label) in zip(answers, held_out, strict=True)]
    return {
        "format": "rslm classifier",
        "model_sha256": classifier.sha256,
        "texts_sha256": inputs.hexdigest(),
        "options": asdict(options),
        "labels": labels,
        "n_train": {label: sum(own == label for _, own in train) for label in labels},
        "n_held_out": {label: sum(own == label for _, own in held_out) for label in labels},
        "held_out_accuracy": sum(right) / len(right),
        "thresholds": {
            label: _thresholds(
                classifier.scores_batch((line for line, _ in held_out), label),
                [own == label for _, own in held_out],
            )
            for label in labels
        },
        "rslm_version": importlib.metadata.version("rslm"),
        "fasttext_version": fasttext_version(),
    }


def fasttext_version() -> str | None:
    """None where another package than ours brings the module."""
    try:
        return importlib.metadata.version("fasttext-community")
    except importlib.metadata.PackageNotFoundError:
        return None


def _thresholds(scores: Sequence[float], is_label: Sequence[bool]) -> list[dict[str, Any]]:
    """For each threshold: the texts at or above it, and what of them and of all is the label."""
    rows = []
    for threshold in _THRESHOLDS:
        kept = [own for score, own in zip(scores, is_label, strict=True) if score >= threshold]
        rows.append(
            {
                "threshold": threshold,
                "n_kept": len(kept),
                "precision": sum(kept) / len(kept) if kept else None,
                "recall": sum(kept) / sum(is_label),
            }
        )
    return rows
