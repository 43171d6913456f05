"""Byte-level BPE: training, encoding and decoding, by the Rust core.

`rslm.reference` holds the same in plain Python: the specification of what is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from rslm import _rslm, corpus
from rslm.corpus import Counts, Errors, InputOptions, StrPath, Unit, count_pretokens, read_counts
from rslm.files import END_OF_TEXT, write_atomically
from rslm.progress import ProgressCallback, progress_callback

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rslm.token_file import TokenFile

__all__ = [
    "InputOptions",
    "StreamDecoder",
    "Tokenizer",
    "count_pretokens",
    "read_counts",
    "train_bpe",
]

StreamDecoder = _rslm.StreamDecoder

TieBreak = Literal["bytes", "hf", "first_id"]


class Tokenizer:
    """Text to token ids and back, by byte-pair encoding of bytes.

    Immutable, and usable from many threads at once; it pickles, and survives a fork.

    >>> tokenizer = Tokenizer({i: bytes([i]) for i in range(256)}, [])
    >>> tokenizer.decode(tokenizer.encode("héllo"))
    'héllo'
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | Mapping[str, int] | None = None,
        *,
        pattern: str = "gpt2",
    ) -> None:
        """Builds a tokenizer from its parts.

        Args:
            vocab: Ids and bytes; all 256 single bytes must be there.
            merges: Pairs of token bytes, most important first.
            special_tokens: Reserved strings; those not in `vocab` get the next ids, unless
                a mapping says which. One of a single byte needs the mapping: each byte is a
                token, whose id it may share, as in tiktoken and Hugging Face tokenizers.
            pattern: As in `train_bpe`.

        Raises:
            ValueError: a merge names an unknown token, a byte is missing, an id is out of
                range, or a special token is empty or repeated.
        """
        corpus.warn_if_slow(pattern)
        self._core = _rslm.Tokenizer(
            dict(vocab), list(merges), corpus.specials_of(special_tokens), pattern
        )

    @classmethod
    def _of(cls, core: _rslm.Tokenizer) -> Tokenizer:
        tokenizer = cls.__new__(cls)
        tokenizer._core = core
        corpus.warn_if_slow(core.pattern)
        return tokenizer

    @classmethod
    def train(
        cls,
        input_path: StrPath | Sequence[StrPath] | None,
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        *,
        texts: Iterable[str] | None = None,
        counts: Counts | None = None,
        pattern: str | None = None,
        tie_break: TieBreak = "bytes",
        unit: Unit = "document",
        errors: Errors = "strict",
        min_frequency: int = 0,
        max_token_length: int | None = None,
        extend: Tokenizer | None = None,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        spill_dir: StrPath | None = None,
        progress: bool | ProgressCallback | None = None,
        **inputs: Unpack[InputOptions],
    ) -> Tokenizer:
        """A tokenizer trained as `train_bpe` does; same arguments, same errors."""
        corpus.one_source(input_path=input_path, texts=texts, counts=counts)
        counts_paths, pairs = corpus.counts_of(counts)
        n_specials = len(special_tokens)
        corpus.check_vocabulary(vocab_size, n_specials, min_frequency, max_token_length)
        if pattern is None:
            pattern = "gpt2" if extend is None else extend.pattern
        corpus.warn_if_slow(pattern)
        job = corpus.counting(
            input_path,
            texts,
            special_tokens,
            pattern=pattern,
            unit=unit,
            errors=errors,
            n_threads=n_threads,
            memory_limit=memory_limit,
            spill_dir=spill_dir,
            inputs=inputs,
        )
        with progress_callback(progress) as callback:
            core = _rslm.train_bpe(
                job,
                counts_paths,
                pairs,
                vocab_size,
                tie_break,
                min_frequency,
                max_token_length,
                None if extend is None else extend._core,
                callback,
            )
        return cls._of(core)

    @classmethod
    def from_files(
        cls,
        vocab_path: StrPath,
        merges_path: StrPath,
        special_tokens: Sequence[str] | Mapping[str, int] | None = None,
        *,
        pattern: str = "gpt2",
    ) -> Tokenizer:
        """The tokenizer of GPT-2's two files, `vocab.json` and `merges.txt`.

        Raises:
            FormatError: a file does not hold what it must.
            OSError: a file cannot be read.
        """
        specials = corpus.specials_of(special_tokens)
        return cls._of(_rslm.Tokenizer.load_gpt2(vocab_path, merges_path, specials, pattern))

    @classmethod
    def load(
        cls,
        path: StrPath,
        format: Literal["rslm", "hf", "gpt2", "tiktoken", "gguf"] | None = None,
        *,
        pattern: str | None = None,
        special_tokens: Sequence[str] | Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a file, or of a folder that holds one.

        Args:
            path: Our own JSON, HF `tokenizer.json`, GPT-2's `vocab.json` with `merges.txt`
                beside it, a `.tiktoken` file, or a `.gguf` model, of which the metadata
                alone is read. What HF adds around a text (`post_processor`, truncation,
                padding) is ignored: `encode` gives the tokens of the text and no others.
            format: None to recognise it from the content.
            pattern: Overrides the file's; required for `.tiktoken`, which carries none,
                and for a `.gguf` whose pre-tokenizer has a name that we do not know.
            special_tokens: Added to those of the file, with the next ids or those given.

        Raises:
            FormatError: the file is corrupt, or not byte-level BPE.
            ValueError: `pattern` is missing or invalid.
            OSError: the file cannot be read.
        """
        specials = corpus.specials_of(special_tokens)
        return cls._of(_rslm.Tokenizer.load(path, format, pattern, specials))

    @classmethod
    def from_json(cls, data: bytes) -> Tokenizer:
        """The tokenizer of the canonical JSON that `to_json` gives and token files embed.

        Raises:
            FormatError: the bytes are not such JSON.
        """
        return cls._of(_rslm.Tokenizer.from_json(data))

    def to_json(self) -> bytes:
        """Canonical JSON with everything: ASCII, sorted keys, no blanks."""
        return self._core.to_json()

    def save(
        self, path: StrPath, format: Literal["rslm", "hf", "gpt2", "tiktoken"] = "rslm"
    ) -> None:
        """Writes the tokenizer, each file beside and renamed.

        Args:
            path: A file; for "gpt2" a folder, made if it is missing, for `vocab.json` and
                `merges.txt`.
            format: "rslm" is one JSON file with everything. "hf" is a `tokenizer.json`.
                "gpt2" and "tiktoken" leave out what special tokens are, "tiktoken" the
                pattern too: `load` must be told them again.

        Raises:
            ValueError: the format cannot say what the tokenizer does: "tiktoken" needs ids
                that are the ranks of the merges, "gpt2" that pattern.
            OSError: the file cannot be written.
        """
        files = self._core.to_files(format)
        if format == "gpt2":
            Path(path).mkdir(parents=True, exist_ok=True)
        for name, data in files:
            write_atomically(Path(path, name), data)

    def gguf_metadata(self, *, pre: str | None = None) -> dict[str, Any]:
        """What a GGUF file says of this tokenizer: its `tokenizer.ggml.*` keys.

        Holes in the ids become unused tokens; `<|endoftext|>` both begins and ends texts,
        and none is added by itself.

        Args:
            pre: llama.cpp's name for the pattern; None where it follows from `pattern`.

        Raises:
            ValueError: llama.cpp has no name for the pattern, or would not merge alike.
        """
        pre, tokens, token_types, merges = self._core.gguf_vocabulary(pre)
        metadata: dict[str, Any] = {
            "model": "gpt2",
            "pre": pre,
            "tokens": tokens,
            "token_type": token_types,
            "merges": merges,
            "add_bos_token": False,
            "add_eos_token": False,
        }
        if self.end_of_text is not None:
            metadata |= {"bos_token_id": self.end_of_text, "eos_token_id": self.end_of_text}
        return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Collection[str] = "all",
        disallowed_special: Literal["all"] | Collection[str] = (),
        dropout: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Token ids of a text; special tokens in it become their ids.

        A lone surrogate counts as U+FFFD. The two options mean what they mean in tiktoken:
        strings outside `allowed_special` are ordinary text, and one of
        `disallowed_special` in the text is refused ("all": every one not allowed).

        With `dropout`, each merge is left out with that probability each time it could be
        made: other token ids of the same text, decided by `seed`. Slow: nothing is remembered.

        Raises:
            ValueError: the text holds a disallowed special token, `dropout` is not from 0
                to 1, or comes together with other options.

        Source: dropout: Provilkov et al. 2020, Algorithm 1 (arXiv:1910.13267).
        """
        if dropout:
            if allowed_special != "all" or disallowed_special:
                raise ValueError("dropout and rules for special tokens must not be combined")
            if not 0 <= seed < 1 << 64:
                raise ValueError(f"seed must be from 0 to 2^64 - 1, got {seed}")
            return self._core.encode_with_dropout(text, dropout, seed)
        if allowed_special == "all" and not disallowed_special:
            return self._core.encode(text)
        specials = self._core.special_tokens
        allowed = set(specials) if allowed_special == "all" else set(allowed_special)
        refused = specials.keys() - allowed if disallowed_special == "all" else disallowed_special
        for special in refused:
            if special in text:
                raise ValueError(f"text must not hold the special token {special!r}")
        return self._core.encode_allowing(text, [s for s in specials if s in allowed])

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are ordinary text."""
        return self._core.encode_ordinary(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(token_ids, offsets): token i stands for, or in, `text[start:end]` of offset i.

        Where several tokens share a character, each of them covers it whole, as in Hugging
        Face tokenizers. Surrogates that pair up count as the one character they are.
        """
        token_ids = self._core.encode(text)
        return token_ids, list(map(tuple, self._core.offsets(token_ids).tolist()))

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """Lazily, the token ids of the joined texts.

        Equal to `encode("".join(texts))` however the text is cut. Only the undecided
        tail is held (a word that may go on, whitespace, half a special token), so a file
        of any size is encoded line by line in constant memory. Of a regular expression
        nothing is known: under such a pattern a text is held from one special token to the
        next.
        """
        return self._core.encode_iterable(texts)

    def encode_to_numpy(self, text: str | bytes) -> npt.NDArray[np.uint16] | npt.NDArray[np.uint32]:
        """`encode(text)` as an array: uint16 up to a vocabulary of 65,536, else uint32.

        Bytes need not be UTF-8 unless the pattern is a regular expression; a byte that is
        none counts as a character of no class.
        """
        return self._core.encode_to_numpy(text)

    def encode_batch(
        self, texts: Iterable[str] | Iterable[bytes], *, n_threads: int | None = None
    ) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """(token_ids, offsets): text i is `token_ids[offsets[i]:offsets[i + 1]]`.

        Types and bytes are as in `encode_to_numpy`. In parallel, inside long texts too.
        """
        if isinstance(texts, (str, bytes)):
            kind = type(texts).__name__
            raise TypeError(f"texts must be an iterable of texts, got one {kind}")
        return self._core.encode_batch(texts, corpus.thread_count(n_threads))

    def encode_files(
        self,
        paths: StrPath | Sequence[StrPath],
        out: StrPath,
        *,
        shard_tokens: int = 1 << 27,
        dataset: str = "",
        end_of_text: str | None = END_OF_TEXT,
        errors: Errors = "strict",
        n_threads: int | None = None,
        progress: bool | ProgressCallback | None = None,
        resume: bool = False,
        **inputs: Unpack[InputOptions],
    ) -> TokenFile:
        """Encodes text files into the token-file folder `out`, and opens it.

        In parallel, in order, in bounded memory. A document ends after each
        `end_of_text` and with each file or row, where the token is added unless it stands
        there. What an interrupt leaves behind is recognised as incomplete, may be gone on
        with under `resume`, and may be overwritten otherwise. A shard has its name once it
        is on the disk, and the folder is complete once it has its manifest.

        Args:
            paths: One file or several, in the order of the tokens.
            out: A folder that does not exist yet, or is empty.
            shard_tokens: A shard ends with the document that reaches this many tokens.
            dataset: A name that the files remember.
            end_of_text: A special token of this tokenizer; None to add none.
            errors: As in `train_bpe`.
            n_threads: As in `train_bpe`.
            progress: As in `train_bpe`; counts bytes of the files, compressed ones as they
                are.
            resume: Keeps the shards that a stopped run finished in `out`, and gives the
                files that it would have given; where it had finished all, nothing is
                done. Inputs (by name, size and time of change), tokenizer and options must
                be the same. What this run finishes before an error is kept, too.
            inputs: What the files are; see `InputOptions`.

        Raises:
            ValueError: an argument is invalid, `out` holds something else or what was begun
                there was begun otherwise, or a file is not UTF-8 under "strict".
            FormatError: a compressed file, a JSON line or a table is not what it must be.
            OSError: reading or writing failed.
        """
        with progress_callback(progress) as callback:
            written = _rslm.encode_files(
                self._core,
                corpus.paths_of(paths),
                out,
                f"rslm-{self.vocab_size}",
                dataset,
                corpus.whole_number("shard_tokens", shard_tokens),
                end_of_text,
                errors,
                "Tokenizer.encode_files",
                corpus.thread_count(n_threads),
                callback,
                corpus.all_inputs(inputs),
                resume,
            )
        # Loaded here: whoever only tokenizes should not pay for it.
        from rslm.token_file import TokenFile

        return TokenFile.of_written(
            out,
            written["shards"],
            vocab_size=self.vocab_size,
            end_of_text=None if end_of_text is None else self.special_tokens[end_of_text],
            tokenizer_sha256=self.sha256,
            tokenizer_json=written["tokenizer_json"],
        )

    def count(self, text: str | bytes) -> int:
        """The number of token ids of a text, without keeping them."""
        return self._core.count(text)

    def decode(self, token_ids: Sequence[int] | npt.NDArray[Any], errors: str = "replace") -> str:
        """The text of token ids; bytes that are not UTF-8 as `bytes.decode` treats them.

        Raises:
            ValueError: an id is not in the vocabulary.
            UnicodeDecodeError: the bytes are not UTF-8 under `errors="strict"`.
        """
        return self._core.decode_bytes(token_ids).decode("utf-8", errors)

    def decode_batch(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]] | npt.NDArray[Any],
        offsets: npt.NDArray[np.int64] | None = None,
        errors: str = "replace",
    ) -> list[str]:
        """The text of each sequence of token ids.

        With `offsets`, the batch is one array as `encode_batch` gives it.
        """
        if offsets is not None:
            import numpy as np

            ids = np.asarray(batch)
            batch = [ids[start:end] for start, end in pairwise(offsets.tolist())]
        return [self.decode(token_ids, errors) for token_ids in batch]

    def decode_with_offsets(
        self, token_ids: Sequence[int] | npt.NDArray[Any]
    ) -> tuple[str, list[int]]:
        """(text, offsets): token i begins in or at the character `text[offsets[i]]`.

        Raises:
            ValueError: an id is not in the vocabulary.
            UnicodeDecodeError: the bytes are not UTF-8.
        """
        text = self.decode(token_ids, errors="strict")
        return text, self._core.offsets(list(token_ids))[:, 0].tolist()

    def decode_bytes(self, token_ids: Sequence[int] | npt.NDArray[Any]) -> bytes:
        """The exact bytes of token ids.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        return self._core.decode_bytes(token_ids)

    def stream_decoder(self) -> _rslm.StreamDecoder:
        """A decoder that takes one id at a time and never shows half a character."""
        return StreamDecoder(self)

    def token_to_id(self, token: bytes | str) -> int | None:
        """The id of a token's bytes, None where there is none; a str means its UTF-8."""
        return self._core.token_to_id(token.encode() if isinstance(token, str) else token)

    def id_to_token(self, token_id: int) -> bytes:
        """The bytes of one id.

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        return self._core.decode_bytes([token_id])

    @property
    def vocab(self) -> dict[int, bytes]:
        """Ids and bytes, special tokens included. A new dict each time."""
        return self._core.vocab

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """Pairs of token bytes in order of rank. A new list each time."""
        return self._core.merges

    @property
    def special_tokens(self) -> dict[str, int]:
        """Reserved strings and their ids."""
        return self._core.special_tokens

    @property
    def vocab_size(self) -> int:
        """One above the largest id: the rows that a model's embedding needs."""
        return self._core.vocab_size

    @property
    def pattern(self) -> str:
        """The name of the pattern, or the regular expression."""
        return self._core.pattern

    @property
    def unicode_version(self) -> str:
        """Version of the Unicode data that says what a letter is."""
        return _rslm.UNICODE_VERSION

    @property
    def end_of_text(self) -> int | None:
        """The id of `<|endoftext|>`, None where it is no special token."""
        return self._core.special_tokens.get(END_OF_TEXT)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON in hexadecimal: the identity in token files."""
        return self._core.sha256().hex()

    @property
    def token_byte_lengths(self) -> npt.NDArray[np.uint32]:
        """Bytes of text that each id stands for; special tokens count 0."""
        return self._core.token_byte_lengths()

    def __repr__(self) -> str:
        """Sizes and pattern."""
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r}, "
            f"special_tokens={list(self.special_tokens)})"
        )

    def __eq__(self, other: object) -> bool:
        """Equal where the canonical JSON is."""
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        """The hash of the identity."""
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Callable[[bytes], Tokenizer], tuple[bytes]]:
        """Pickles as canonical JSON."""
        return type(self).from_json, (self.to_json(),)


def train_bpe(
    input_path: StrPath | Sequence[StrPath] | None,
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    *,
    texts: Iterable[str] | None = None,
    counts: Counts | None = None,
    pattern: str | None = None,
    tie_break: TieBreak = "bytes",
    unit: Unit = "document",
    errors: Errors = "strict",
    min_frequency: int = 0,
    max_token_length: int | None = None,
    extend: Tokenizer | None = None,
    n_threads: int | None = None,
    memory_limit: int | None = None,
    spill_dir: StrPath | None = None,
    progress: bool | ProgressCallback | None = None,
    **inputs: Unpack[InputOptions],
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """(vocab, merges) of byte-pair encoding trained on files or on `texts`.

    Special tokens are cut out first and nothing is counted across them. Files stream:
    memory grows with the number of distinct pretokens, not with the corpus (a pattern
    that is a regular expression needs the longest text between special tokens as well).
    The result depends on the multiset of pretokens alone, never on threads or chunks.
    Ctrl-C is obeyed within a fraction of a second.

    Args:
        input_path: One file or several; None where `texts` or `counts` is given.
        vocab_size: Number of ids, the 256 bytes and the special tokens included.
        special_tokens: Reserved strings, the longest wins where several begin.
        texts: Instead of files: each item is a document.
        counts: Instead of text: files that `count_pretokens` wrote, which are summed and
            must have been made with these special tokens, pattern and unit; or pretokens
            with their counts, a mapping or pairs.
        pattern: "gpt2", "cl100k", "cl100k_2023", "o200k", "qwen2", "llama3" or a regular
            expression; None means that of `extend`, else "gpt2".
        tie_break: Among equally frequent pairs, "bytes" takes the greatest (left, right)
            as byte strings, "hf" and "first_id" the smallest ids in the id layouts of
            Hugging Face tokenizers and rustbpe.
        unit: "line" splits at line ends first, as Hugging Face does with files.
        errors: For bytes that are not UTF-8: refuse, replace by U+FFFD, or keep.
        min_frequency: Training ends where the best pair is rarer than this, however small
            the vocabulary still is.
        max_token_length: No token of more bytes than this is made.
        extend: A tokenizer to go on from: its ids and merges stay, text is first encoded by
            them, and new ids and merges follow.
        n_threads: Workers; None means one per processor.
        memory_limit: Bytes that counting, and then merging, may take on top of the
            program itself. Tables that outgrow their share go to disk as sorted runs; the
            result is the same. Merging cannot go to disk: a limit too small for it is
            refused with the limit it needs.
        spill_dir: Folder for the runs, which never outlive the call; None means the
            system's folder for temporary files.
        progress: True for a bar on a terminal, or a function of (done, total, phase).
        inputs: What the files are; see `InputOptions`.

    Raises:
        ValueError: an argument is invalid, a file is not UTF-8 under "strict", `counts`
            disagree, or `memory_limit` is too small.
        FormatError: a file of counts, a compressed file, a JSON line or a table is not what
            it must be.
        OSError: a file cannot be read, or a run not be written.

    Source: Sennrich et al. 2016, Algorithm 1 (arXiv:1508.07909); on bytes as Radford et
    al. 2019.
    """
    tokenizer = Tokenizer.train(
        input_path,
        vocab_size,
        special_tokens,
        texts=texts,
        counts=counts,
        pattern=pattern,
        tie_break=tie_break,
        unit=unit,
        errors=errors,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        extend=extend,
        n_threads=n_threads,
        memory_limit=memory_limit,
        spill_dir=spill_dir,
        progress=progress,
        **inputs,
    )
    return tokenizer.vocab, tokenizer.merges
