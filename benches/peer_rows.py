"""The rows of the comparison, as data: who does what on which text, and what is to be met."""

from dataclasses import dataclass, field, replace

from peer_inputs import SHAPES

FAST = ("gigatoken", "snaptokens", "fastokens")
KILOBYTE, MEGABYTE = 1_000, 1_000_000


@dataclass(frozen=True)
class Entry:
    """One peer in a row. Those of one `group` must give the same answer as rslm's entry.

    `once`: too slow to be run more than once, and not with --quick. `note` tells two entries
    of one peer apart.
    """

    peer: str
    group: str = ""
    options: dict[str, str] = field(default_factory=dict)
    once: bool = False
    note: str = ""
    peer_file: str | None = None

    @property
    def label(self) -> str:
        remark = self.note or self.group
        return f"{self.peer} ({remark})" if remark else self.peer


@dataclass(frozen=True)
class Target:
    """At least `ratio` times the fastest peer; at most so many seconds, so much memory."""

    ratio: float | None = None
    seconds: float | None = None
    peak: float | None = None
    peak_of: tuple[float, str] | None = None


@dataclass(frozen=True)
class Row:
    """One operation on one text. `n_bytes` is how much of it, None all; `passes` the first,
    cold one included; `repeats` calls make one pass behind the first."""

    name: str
    title: str
    operation: str
    text: str
    entries: tuple[Entry, ...]
    target: Target = Target()
    n_threads: int = 1
    vocabulary: str | None = "gpt2"
    vocab_size: int = 0
    n_bytes: int | None = None
    piece_bytes: int | None = None
    separator: str | None = None
    passes: int = 4
    repeats: int = 1
    max_samples: int = 99


def entries(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name) for name in ("rslm", *names))


HF_LINES, HF_DOCUMENTS, FIRST_ID = "hf ties, lines", "hf ties, documents", "first-id ties, lines"
TRAINERS = (
    Entry("rslm", HF_LINES, {"tie_break": "hf", "unit": "line"}),
    Entry("gigabpe", HF_LINES),
    Entry("rslm", HF_DOCUMENTS, {"tie_break": "hf", "cut_at": "<|endoftext|>"}),
    Entry("gigatoken", HF_DOCUMENTS),
    Entry("rslm", "bytes ties, documents", {"tie_break": "bytes", "cut_at": "<|endoftext|>"}),
    Entry("rslm", FIRST_ID, {"tie_break": "first_id", "unit": "line"}),
    Entry("rustbpe", FIRST_ID, {"tie_break": "first_id"}, once=True),
)
TRAIN_TARGET = Target(ratio=3, peak_of=(1.5, "gigabpe"))


def train_rows() -> list[Row]:
    row = Row(
        "train",
        "train on books",
        "train",
        "books",
        TRAINERS,
        TRAIN_TARGET,
        n_threads=2,
        vocabulary=None,
        vocab_size=32_000,
        passes=1,
    )
    # rustbpe would take minutes on it.
    large = replace(
        row,
        name="train-large",
        title="train on a large text",
        text="large",
        entries=TRAINERS[:5],
        max_samples=3,
    )
    return [row, large]


def encode_rows() -> list[Row]:
    rows = []
    for n_threads in (1, 2):
        for unit, separator in (("text", None), ("documents", "<|endoftext|>\n")):
            title = "books as one text" if separator is None else "books as a list of documents"
            rows.append(
                Row(
                    f"encode-{unit}-{n_threads}",
                    f"encode {title}, {n_threads} thread{'s' * (n_threads > 1)}",
                    f"encode_{unit}",
                    "books",
                    entries(*FAST),
                    Target(ratio=1.1),
                    n_threads=n_threads,
                    separator=separator,
                )
            )
    everybody = entries(*FAST, "tokenizers", "tiktoken")
    slow = Row("encode-slice", "encode a slice of the books", "encode_text", "books", everybody)
    rows.append(replace(slow, target=Target(ratio=1.1), n_bytes=4 * MEGABYTE, passes=3))
    for text in ("multilingual", "code"):
        title = f"encode {text} text" if text == "multilingual" else "encode Python sources"
        fast = Row(f"encode-{text}", title, "encode_text", text, entries(*FAST))
        rows.append(replace(fast, target=Target(ratio=1.1)))
    for vocabulary in ("cl100k", "o200k"):
        title = f"encode books with {vocabulary}"
        who = entries("gigatoken", "tiktoken")
        row = Row(f"encode-{vocabulary}", title, "encode_text", "books", who)
        rows.append(
            replace(
                row,
                target=Target(ratio=1.1),
                vocabulary=vocabulary,
                n_bytes=20 * MEGABYTE,
                passes=3,
            )
        )
    return rows


def file_rows() -> list[Row]:
    own_reader = Entry("gigatoken", options={"reader": "encode_files"}, note="encode_files")
    whole = (*entries("gigatoken"), own_reader)
    target = Target(ratio=1.8, peak=600)
    return [
        Row(
            f"file-{n_threads}",
            f"text file to u16 token file, whole process, {n_threads} "
            f"thread{'s' * (n_threads > 1)}",
            "encode_to_file",
            "books",
            whole,
            target,
            n_threads=n_threads,
            passes=1,
        )
        for n_threads in (1, 2)
    ]


def string_rows() -> list[Row]:
    arrays = entries(*FAST, "tiktoken")
    lists = entries(*FAST, "splintr", "tokenizers", "tiktoken")
    rows = []
    for kilobytes, n_strings in ((1, 100), (10, 20), (30, 10)):
        for kind, who in (("arrays", arrays), ("lists", lists)):
            rows.append(
                Row(
                    f"string-{kilobytes}k-{kind}",
                    f"one string of {kilobytes} kB to {kind[:-1]}s, per call",
                    f"encode_to_{kind}",
                    "books",
                    who,
                    Target(ratio=1),
                    n_bytes=(n_strings * kilobytes + 1) * KILOBYTE,
                    piece_bytes=kilobytes * KILOBYTE,
                    passes=8,
                    repeats=3,
                )
            )
    return rows


def shape_rows() -> list[Row]:
    titles = {
        "letter": '"a" * 1,000,000',
        "base64": "1 MB of base64",
        "thai": "1 MB of Thai letters without a space",
        "emoji": "1 MB of emoji",
        "spaces": "1 MB of spaces",
        "blanks": "1 MB of blanks, tabs and line ends",
    }
    who = entries("gigatoken", "tokenizers", "tiktoken")
    target = Target(seconds=0.1)
    return [
        Row(f"shape-{shape}", titles[shape], "encode_text", shape, who, target, passes=1)
        for shape in SHAPES
    ]


def decode_rows() -> list[Row]:
    to_bytes = entries("gigatoken", "tiktoken")
    to_text = entries("tokenizers", "tiktoken")
    row = Row("decode-bytes", "decode to bytes", "decode_to_bytes", "books", to_bytes)
    row = replace(row, target=Target(ratio=3), n_bytes=8 * MEGABYTE)
    return [
        row,
        replace(
            row,
            name="decode-text",
            title="decode to str",
            operation="decode_to_text",
            entries=to_text,
        ),
    ]


def reference_rows() -> list[Row]:
    who = (Entry("rslm"), Entry("reference"))
    train = Row("reference-train", "train, beside the reference", "train", "excerpt", who)
    encode = Row("reference-encode", "encode, beside the reference", "encode_text", "excerpt", who)
    return [
        replace(train, vocabulary=None, vocab_size=1_000, passes=1, max_samples=3),
        replace(encode, passes=2, max_samples=3),
    ]


ROWS: dict[str, Row] = {
    row.name: row
    for rows in (
        train_rows(),
        encode_rows(),
        file_rows(),
        string_rows(),
        shape_rows(),
        decode_rows(),
        reference_rows(),
    )
    for row in rows
}
