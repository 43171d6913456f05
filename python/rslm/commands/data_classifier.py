"""`rslm data classifier train`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rslm.commands.tokenizer import refuse_existing
from rslm.data.classify import ClassifierOptions
from rslm.terminal import note, print_table


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a classifier of pages on examples of two kinds, and judge it by texts held out."""

    positives: tuple[Path, ...]
    """Files or folders of text: .jsonl, .parquet, .wet, .txt, packed or not."""
    negatives: tuple[Path, ...]
    """The same of the other kind, behind the same filters as the positives."""
    out: Path
    """Model file to write; its record is written beside it, with .json behind the name."""
    labels: tuple[str, str] = ("positive", "negative")
    """What the two kinds are called."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text."""
    max_documents: int | None = None
    """Only so many first documents of each kind."""
    training: ClassifierOptions = field(default_factory=ClassifierOptions)
    """How the model is trained."""


def train(options: TrainOptions) -> None:
    """Trains, saves, and prints what thresholds keep of the texts held out."""
    from rslm.data.classify import train_classifier

    refuse_existing(options.out)
    positive, negative = options.labels
    if positive == negative:
        raise ValueError(f"labels must differ, got {positive!r} twice")
    examples = {
        positive: texts_of(options.positives, options),
        negative: texts_of(options.negatives, options),
    }
    record = train_classifier(examples, options.out, options=options.training).record
    assert record is not None
    rows = [
        [
            f"{row['threshold']:.2f}",
            f"{row['n_kept']:,}",
            "-" if row["precision"] is None else f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
        ]
        for row in record["thresholds"][positive]
    ]
    print_table(["score", "kept", "precision", "recall"], rows)
    n_train, n_held_out = (sum(record[name].values()) for name in ("n_train", "n_held_out"))
    note(
        f"{options.out}: trained on {n_train:,} texts, {record['held_out_accuracy']:.1%} right "
        f"of {n_held_out:,} held out, SHA-256 {record['model_sha256']}"
    )


def texts_of(paths: Sequence[Path], options: TrainOptions) -> Iterator[str]:
    """The first texts of the files.

    Raises:
        ValueError: a document is a page of HTML, whose markup would be learnt.
    """
    from itertools import islice

    from rslm.data.documents import read_documents

    documents = (
        document
        for path in paths
        for document in read_documents(path, text_field=options.text_field)
    )
    for document in islice(documents, options.max_documents):
        if document.metadata.get("media_type") == "text/html":
            raise ValueError(f"examples must be text, but {document.source} holds pages of HTML")
        yield document.text
