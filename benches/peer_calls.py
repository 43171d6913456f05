"""What each peer is asked to do: one class a peer, one method an operation.

A method prepares everything (loads the vocabulary, converts the input to the form that the
peer likes best) and returns the call to be timed. What the call returns is turned into ids,
bytes or merges afterwards, untimed, by the functions at the end. A peer takes part in the
rows whose operation it has a method for. NumPy is imported only where it is used: the time of
a whole process is to hold what the peer imports, and no more.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Call = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """One call: the text, as a whole or in pieces, the vocabulary, threads, and options."""

    path: Path
    n_threads: int
    vocabulary: Path | None = None
    vocab_size: int = 0
    n_bytes: int | None = None
    piece_bytes: int | None = None
    separator: bytes | None = None
    out: Path | None = None
    options: dict[str, str] = field(default_factory=dict)

    def data(self) -> bytes:
        with self.path.open("rb") as file:
            data = file.read(-1 if self.n_bytes is None else self.n_bytes)
        return data if self.n_bytes is None else data.decode(errors="ignore").encode()

    def pieces(self) -> list[bytes]:
        """The text whole, cut behind each separator, or in pieces of about equal size."""
        data = self.data()
        if self.separator is not None:
            documents = data.split(self.separator)
            return [d + self.separator for d in documents[:-1]] + documents[-1:]
        if self.piece_bytes is None:
            return [data]
        starts = range(0, max(1, len(data) - self.piece_bytes), self.piece_bytes)
        whole = [data[start : start + self.piece_bytes] for start in starts]
        return [piece.decode(errors="ignore").encode() for piece in whole]

    def strings(self) -> list[str]:
        return [piece.decode() for piece in self.pieces()]

    def file(self, suffix: str) -> Path:
        assert self.vocabulary is not None
        return self.vocabulary / f"{self.vocabulary.name}{suffix}"


class Rslm:
    package = "rslm"

    def load(self, job: Job) -> Any:
        import rslm

        return rslm.Tokenizer.load(job.file(".json"))

    def train(self, job: Job) -> Call:
        import rslm

        options: Any = {"n_threads": job.n_threads, **job.options}
        special_tokens = [options.pop("cut_at")] if "cut_at" in options else []
        vocab_size = job.vocab_size + len(special_tokens)
        return lambda: rslm.train_bpe(job.path, vocab_size, special_tokens, **options)[1]

    def load_for_arrays(self, job: Job) -> Any:
        """With NumPy, which others' modules have imported by now and ours has not."""
        import numpy  # noqa: F401

        return self.load(job)

    def encode_text(self, job: Job) -> Call:
        tokenizer, (data,) = self.load_for_arrays(job), job.pieces()
        if job.n_threads == 1:
            return lambda: tokenizer.encode_to_numpy(data)
        return lambda: tokenizer.encode_batch([data], n_threads=job.n_threads)[0]

    def encode_documents(self, job: Job) -> Call:
        tokenizer, pieces = self.load_for_arrays(job), job.pieces()
        return lambda: tokenizer.encode_batch(pieces, n_threads=job.n_threads)[0]

    def encode_to_arrays(self, job: Job) -> Call:
        encode, texts = self.load_for_arrays(job).encode_to_numpy, job.strings()
        return lambda: [encode(text) for text in texts]

    def encode_to_lists(self, job: Job) -> Call:
        encode, texts = self.load(job).encode, job.strings()
        return lambda: [encode(text) for text in texts]

    def decode_to_bytes(self, job: Job) -> Call:
        tokenizer = self.load(job)
        token_ids = tokenizer.encode_to_numpy(job.data())
        return lambda: tokenizer.decode_bytes(token_ids)

    def decode_to_text(self, job: Job) -> Call:
        tokenizer = self.load(job)
        token_ids = tokenizer.encode_to_numpy(job.data())
        return lambda: tokenizer.decode(token_ids)

    def encode_to_file(self, job: Job) -> Call:
        out = job.out

        def call() -> Any:
            tokenizer = self.load(job)
            assert out is not None
            tokenizer.encode_files(job.path, out, end_of_text=None, n_threads=job.n_threads)

        return call

    def read_output(self, job: Job) -> Call:
        import rslm

        assert job.out is not None
        token_file = rslm.TokenFile.open(job.out)
        return lambda: token_file[0 : token_file.n_tokens]


class Gigatoken:
    package = "gigatoken"

    def load(self, job: Job) -> Any:
        import gigatoken

        assert job.vocabulary is not None
        if job.vocabulary.name == "gpt2":
            return gigatoken.Tokenizer.from_json(job.file(".hf.json").read_bytes())
        path, name = job.file(".tiktoken"), job.vocabulary.name
        return gigatoken.Tokenizer.from_tiktoken(path, pretokenizer=name, special_tokens={})

    def train(self, job: Job) -> Call:
        """It cuts the text at `<|endoftext|>` unless told another separator."""
        import gigatoken

        return lambda: gigatoken.train_bpe(job.path.read_bytes(), job.vocab_size, [])[1]

    def load_for_arrays(self, job: Job) -> Any:
        """With NumPy, which others' modules have imported by now and ours has not."""
        import numpy  # noqa: F401

        return self.load(job)

    def encode_text(self, job: Job) -> Call:
        tokenizer, (data,) = self.load_for_arrays(job), job.pieces()
        if job.n_threads == 1:
            return lambda: tokenizer.encode(data)
        return lambda: tokenizer.encode_batch([data], parallel=True)

    def encode_documents(self, job: Job) -> Call:
        tokenizer, pieces = self.load(job), job.pieces()
        return lambda: tokenizer.encode_batch(pieces, parallel=job.n_threads > 1)

    def encode_to_arrays(self, job: Job) -> Call:
        encode, texts = self.load(job).encode, job.strings()
        return lambda: [encode(text) for text in texts]

    def encode_to_lists(self, job: Job) -> Call:
        encode, texts = self.load(job).encode, job.strings()
        return lambda: [encode(text).tolist() for text in texts]

    def decode_to_bytes(self, job: Job) -> Call:
        tokenizer = self.load(job)
        token_ids = tokenizer.encode(job.data())
        return lambda: tokenizer.decode(token_ids)

    def encode_to_file(self, job: Job) -> Call:
        """The bytes of the file at once, or its own reader of files; a cast, a write."""
        out, by_path = job.out, job.options.get("reader") == "encode_files"

        def call() -> Any:
            import awkward
            import numpy as np

            tokenizer, parallel = self.load(job), job.n_threads > 1
            if by_path:
                ids = tokenizer.encode_files(str(job.path), parallel=parallel)
            else:
                ids = tokenizer.encode_batch([job.path.read_bytes()], parallel=parallel)
            assert out is not None
            np.asarray(awkward.flatten(ids)).astype("<u2").tofile(out)

        return call

    def read_output(self, job: Job) -> Call:
        import numpy as np

        out = job.out
        assert out is not None
        return lambda: np.fromfile(out, dtype="<u2")


class Gigabpe:
    package = "gigabpe"

    def train(self, job: Job) -> Call:
        """It leaves bytes without occurrence out of the alphabet; room is made for the rest."""
        import gigabpe

        n_missing = 256 - n_distinct_bytes(job.path)
        options: Any = {"pretokenizer": "bytelevel", "threads": job.n_threads}
        size = job.vocab_size - n_missing

        def call() -> Any:
            merges = gigabpe.train_bpe([str(job.path)], size, **options)[1]
            return lambda: from_hf(merges)

        return call


class Rustbpe:
    package = "rustbpe"

    def train(self, job: Job) -> Call:
        """Line by line, as its README shows."""
        import rustbpe

        from rslm import reference

        tokenizer, pattern = rustbpe.Tokenizer(), reference.PATTERNS["gpt2"]

        def call() -> Any:
            with job.path.open(encoding="utf-8", newline="\n") as lines:
                tokenizer.train_from_iterator(lines, job.vocab_size, pattern=pattern)
            return lambda: [(token, b"") for token, _ in tokenizer.get_mergeable_ranks()[256:]]

        return call


class Flat:
    """fastokens and snaptokens, which share an interface: ids of a batch as one buffer."""

    package = ""

    def load(self, job: Job) -> Any:
        module = __import__(self.package)
        return module.Tokenizer.from_json_str(job.file(".hf.json").read_text())

    def encode_text(self, job: Job) -> Call:
        import numpy as np

        tokenizer, texts = self.load(job), job.strings()
        return lambda: np.frombuffer(tokenizer.encode_batch_flat(texts)[0], dtype="<u4")

    encode_documents = encode_text

    def encode_to_arrays(self, job: Job) -> Call:
        import numpy as np

        encode, texts = self.load(job).encode_batch_flat, job.strings()
        return lambda: [np.frombuffer(encode([text])[0], dtype="<u4") for text in texts]

    def encode_to_lists(self, job: Job) -> Call:
        encode, texts = self.load(job).encode, job.strings()
        return lambda: [encode(text).ids for text in texts]


class Fastokens(Flat):
    package = "fastokens"


class Snaptokens(Flat):
    package = "snaptokens"


class Splintr:
    package = "splintr"

    def encode_to_lists(self, job: Job) -> Call:
        import splintr

        encode = splintr.from_json_bytes(job.file(".hf.json").read_bytes()).encode
        texts = job.strings()
        return lambda: [encode(text) for text in texts]


class Tokenizers:
    package = "tokenizers"

    def load(self, job: Job) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_file(str(job.file(".hf.json")))

    def encode_text(self, job: Job) -> Call:
        """Without the offsets of the tokens, which nobody else gives."""
        tokenizer, texts = self.load(job), job.strings()
        return lambda: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    encode_documents = encode_text

    def encode_to_lists(self, job: Job) -> Call:
        encode, texts = self.load(job).encode_batch_fast, job.strings()
        return lambda: [encode([text])[0].ids for text in texts]

    def decode_to_text(self, job: Job) -> Call:
        tokenizer = self.load(job)
        token_ids = tokenizer.encode(job.data().decode()).ids
        return lambda: tokenizer.decode(token_ids, skip_special_tokens=False)


class Tiktoken:
    package = "tiktoken"

    def load(self, job: Job) -> Any:
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        from rslm import reference

        assert job.vocabulary is not None
        name = job.vocabulary.name
        ranks = load_tiktoken_bpe(str(job.file(".tiktoken")))
        pattern = reference.PATTERNS[name]
        return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode_text(self, job: Job) -> Call:
        tokenizer, (text,) = self.load(job), job.strings()
        return lambda: tokenizer.encode_to_numpy(text, disallowed_special=())

    def encode_documents(self, job: Job) -> Call:
        tokenizer, texts = self.load(job), job.strings()
        return lambda: tokenizer.encode_ordinary_batch(texts, num_threads=job.n_threads)

    def encode_to_arrays(self, job: Job) -> Call:
        encode, texts = self.load(job).encode_to_numpy, job.strings()
        return lambda: [encode(text, disallowed_special=()) for text in texts]

    def encode_to_lists(self, job: Job) -> Call:
        encode, texts = self.load(job).encode_ordinary, job.strings()
        return lambda: [encode(text) for text in texts]

    def decode_to_bytes(self, job: Job) -> Call:
        tokenizer = self.load(job)
        token_ids = tokenizer.encode_ordinary(job.data().decode())
        return lambda: tokenizer.decode_bytes(token_ids)

    def decode_to_text(self, job: Job) -> Call:
        tokenizer = self.load(job)
        token_ids = tokenizer.encode_ordinary(job.data().decode())
        return lambda: tokenizer.decode(token_ids)


class Reference:
    """The pure-Python specification in rslm itself."""

    package = "rslm"

    def train(self, job: Job) -> Call:
        from rslm import reference

        text = job.data().decode()
        return lambda: reference.train_bpe(text, job.vocab_size)[1]

    def encode_text(self, job: Job) -> Call:
        from rslm import reference

        tokenizer = Rslm().load(job)
        slow = reference.Tokenizer(tokenizer.vocab, tokenizer.merges)
        text = job.data().decode()
        return lambda: slow.encode(text)


PEERS: dict[str, type[Any]] = {
    "rslm": Rslm,
    "gigatoken": Gigatoken,
    "gigabpe": Gigabpe,
    "rustbpe": Rustbpe,
    "snaptokens": Snaptokens,
    "fastokens": Fastokens,
    "splintr": Splintr,
    "tokenizers": Tokenizers,
    "tiktoken": Tiktoken,
    "reference": Reference,
}


def n_distinct_bytes(path: Path) -> int:
    import numpy as np

    counts = np.zeros(256, dtype=np.int64)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            counts += np.bincount(np.frombuffer(block, dtype=np.uint8), minlength=256)
    return int(np.count_nonzero(counts))


def from_hf(merges: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    from peer_inputs import to_hf

    byte_of = {character: byte for byte, character in enumerate(to_hf())}
    return [
        (bytes(byte_of[c] for c in left), bytes(byte_of[c] for c in right))
        for left, right in merges
    ]


def as_ids(answer: Any) -> "np.ndarray[Any, np.dtype[np.uint32]]":
    """Any peer's ids, of one text or of several, as one flat array."""
    import numpy as np

    if callable(answer):
        answer = answer()
    if type(answer).__module__.startswith("awkward"):
        import awkward

        answer = awkward.to_numpy(awkward.flatten(answer))
    elif isinstance(answer, list) and answer and not isinstance(answer[0], int):
        answer = np.concatenate([np.asarray(ids, dtype="<u4") for ids in answer])
    return np.ascontiguousarray(answer, dtype="<u4")


def as_merges(answer: Any, whole_tokens: bool) -> list[bytes]:
    """One line a merge: both sides, or the token they make (all that rustbpe tells)."""
    separator = b"" if whole_tokens else b" "
    pairs = answer() if callable(answer) else answer
    return [left.hex().encode() + separator + right.hex().encode() for left, right in pairs]


def read_peer_file(path: Path) -> type[Any]:
    """The class `Peer` of a Python file: one more peer, named like the file."""
    scope: dict[str, Any] = {"__name__": path.stem, "__file__": os.fspath(path)}
    exec(compile(path.read_bytes(), path, "exec"), scope)
    peer: type[Any] = scope["Peer"]
    return peer
