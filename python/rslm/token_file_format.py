"""Header, index header and manifest of a token file as bytes; it opens no files.

`token_file` specifies the format and reads and writes the files. What is wrong with bytes is
a ValueError here, which the reader turns into a FormatError with the path.
"""

import functools
import itertools
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeVar

MAX_PAYLOAD_BYTES = 2**30
MAX_MANIFEST_BYTES = 2**27
HEADER_BYTES = 1024
NPY_HEADER_BYTES = 128
CRC_BLOCK_LOG2 = 22
CRC_BLOCK_BYTES = 1 << CRC_BLOCK_LOG2
NAME_BYTES = 64
MANIFEST_NAME = "manifest.json"

_FORMAT, _VERSION = "rslm token file", 1
_MAGICS = {2: (20240520, 1), 4: (20240801, 7)}
_TAG = b"RSLMTOK\x01"
_FLAG_ENDS_WITH_END_OF_TEXT, _FLAG_INDEX, _FLAG_SOURCE_ORDER = 2, 4, 32
_NO_HASH = "0" * 64
_T = TypeVar("_T")

# Offset, name, and type in the letters of `struct`.
_HEADER_FIELDS = [
    (0, "magic", "i"),
    (4, "version", "i"),
    (8, "n_tokens_i32", "i"),
    (12, "zero", "I"),
    (16, "tag", "8s"),
    (24, "extension_version", "H"),
    (26, "flags", "H"),
    (28, "itemsize", "B"),
    (29, "zero_29", "B"),
    (30, "header_bytes", "H"),
    (32, "n_tokens", "Q"),
    (40, "n_documents", "Q"),
    (48, "n_utf8_bytes", "Q"),
    (56, "vocab_size", "I"),
    (60, "beginning_of_text", "i"),
    (64, "end_of_text", "i"),
    (68, "padding", "i"),
    (72, "shard_index", "I"),
    (76, "shard_count", "I"),
    (80, "first_token", "Q"),
    (88, "first_document", "Q"),
    (96, "tokenizer_sha256", "32s"),
    (128, "payload_sha256", "32s"),
    (160, "index_sha256", "32s"),
    (192, "crc_block_log2", "I"),
    (196, "n_crc_blocks", "I"),
    (200, "tokenizer_name", "64s"),
    (264, "dataset", "64s"),
    (328, "zero_328", "692s"),
    (1020, "header_crc32", "I"),
]
_OFFSETS = {name: at for at, name, _ in _HEADER_FIELDS}
_HEADER = struct.Struct("<" + "".join(code for _, _, code in _HEADER_FIELDS))


def itemsize_for(vocab_size: int) -> int:
    """Bytes per token: 2 as long as every id fits, else 4."""
    return 2 if vocab_size <= 2**16 else 4


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard_{index:05}.bin"


def index_name(shard: str) -> str:
    """File name of the index of a shard's documents."""
    return f"{shard.removesuffix('.bin')}.idx.npy"


def index_bytes(n_documents: int) -> int:
    """Size of an index file."""
    return NPY_HEADER_BYTES + 4 * (n_documents + 1)


def npy_header(length: int) -> bytes:
    """The header `numpy.save` writes for a vector of u32, 128 bytes for every length."""
    text = f"{{'descr': '<u4', 'fortran_order': False, 'shape': ({length},), }}"
    n_text = NPY_HEADER_BYTES - 10
    # Padded, for NumPy leaves room for a length that grows.
    return b"\x93NUMPY\x01\0" + struct.pack("<H", n_text) + f"{text:<{n_text - 1}}\n".encode()


def first_difference(expected: bytes, found: bytes) -> tuple[int, str] | None:
    """Offset and name of the first header field in which two headers differ."""
    for (at, name, _), (end, _, _) in itertools.pairwise([*_HEADER_FIELDS, (1024, "", "")]):
        if expected[at:end] != found[at:end]:
            return at, name
    return None


def fingerprint(payloads: list[str], end_of_text: int | None, tokenizer: str | None) -> str:
    """Identity of the content, from the SHA-256 of payloads and tokenizer."""
    content = {
        "payload_sha256": payloads,
        "policy": _policy(end_of_text),
        "tokenizer_sha256": tokenizer,
    }
    import json

    return _sha256(json.dumps(content, separators=(",", ":")))


@functools.lru_cache(maxsize=1)
def _sha256_of_tokenizer(canonical_json: str) -> str:
    # Kept, for the header of every shard has it.
    return _sha256(canonical_json)


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def _policy(end_of_text: int | None) -> dict[str, str]:
    return {"documents": "none" if end_of_text is None else "end_of_text", "order": "source"}


class Header(NamedTuple):
    """What the header of a shard says that is opened without its manifest.

    A plain llm.c file says no more than its width and its number of tokens.
    """

    itemsize: int
    n_tokens: int
    n_documents: int = 0
    has_index: bool = False
    n_utf8_bytes: int | None = None
    vocab_size: int | None = None
    end_of_text: int | None = None
    tokenizer_sha256: str | None = None
    payload_sha256: str | None = None
    index_sha256: str | None = None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads the first 1024 bytes of a file.

        Raises:
            ValueError: they are no header, with the offset.
        """
        if len(data) < HEADER_BYTES:
            raise ValueError(
                f"at byte {len(data)}: a token file must have {HEADER_BYTES} bytes of header"
            )
        header = dict(zip(_OFFSETS, _HEADER.unpack(data), strict=True))
        itemsizes = {magic: itemsize for itemsize, magic in _MAGICS.items()}
        magic = (header["magic"], header["version"])
        if magic not in itemsizes:
            allowed = " or ".join(f"{magic} version {version}" for magic, version in itemsizes)
            found = f"{magic[0]} version {magic[1]}"
            raise ValueError(f"at byte 0: magic must be {allowed}, got {found}")
        if not any(data[12:]):
            return cls(itemsize=itemsizes[magic], n_tokens=header["n_tokens_i32"])
        return cls._decode_extension(data, header, itemsizes[magic])

    @classmethod
    def _decode_extension(cls, data: bytes, header: dict[str, Any], itemsize: int) -> Self:
        crc32 = zlib.crc32(data[:1020])
        if header["tag"] != _TAG:
            raise ValueError("at byte 16: neither the tag RSLMTOK nor llm.c's zeros")
        if header["header_crc32"] != crc32:
            raise ValueError(
                f"at byte 1020: header_crc32 must be {crc32}, got {header['header_crc32']}"
            )
        for name, expected in (
            ("extension_version", 1),
            ("itemsize", itemsize),
            ("header_bytes", HEADER_BYTES),
            ("n_tokens", header["n_tokens_i32"]),
        ):
            if header[name] != expected:
                at = _OFFSETS[name]
                raise ValueError(f"at byte {at}: {name} must be {expected}, got {header[name]}")
        vocab_size, end_of_text = header["vocab_size"], header["end_of_text"]
        if itemsize_for(vocab_size) != itemsize:
            raise ValueError(
                f"at byte 56: vocab_size {vocab_size} does not go with {itemsize} bytes a token"
            )
        if end_of_text >= vocab_size:
            raise ValueError(
                f"at byte 64: end_of_text must be below {vocab_size}, got {end_of_text}"
            )
        return cls(
            itemsize=itemsize,
            n_tokens=header["n_tokens"],
            n_documents=header["n_documents"],
            has_index=bool(header["flags"] & _FLAG_INDEX),
            n_utf8_bytes=header["n_utf8_bytes"],
            vocab_size=vocab_size,
            end_of_text=None if end_of_text < 0 else end_of_text,
            tokenizer_sha256=header["tokenizer_sha256"].hex(),
            payload_sha256=header["payload_sha256"].hex(),
            index_sha256=header["index_sha256"].hex(),
        )


class ShardRecord(NamedTuple):
    """One shard in the manifest; names and sizes follow from its place and counts."""

    n_tokens: int
    n_documents: int
    n_utf8_bytes: int
    sha256: str
    index_sha256: str
    crc32: tuple[int, ...]

    def file_bytes(self, itemsize: int) -> int:
        """Size of the shard's file."""
        return HEADER_BYTES + self.n_tokens * itemsize


class Manifest(NamedTuple):
    """Everything the manifest says; the rest of its text follows from this."""

    command: str
    dataset: str
    n_split_documents: int
    rslm_version: str
    shards: tuple[ShardRecord, ...]
    sources: tuple[tuple[str, int], ...]
    end_of_text: int | None
    tokenizer_json: str
    tokenizer_name: str
    special_tokens: Mapping[str, int]
    vocab_size: int

    @property
    def itemsize(self) -> int:
        """Bytes per token."""
        return itemsize_for(self.vocab_size)

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer's canonical JSON."""
        return _sha256_of_tokenizer(self.tokenizer_json)

    def shard_header(self, index: int) -> bytes:
        """The header that a shard must have."""
        shard, before = self.shards[index], self.shards[:index]
        magic, version = _MAGICS[self.itemsize]
        ends = 0 if self.end_of_text is None else _FLAG_ENDS_WITH_END_OF_TEXT
        header = {
            "magic": magic,
            "version": version,
            "n_tokens_i32": shard.n_tokens,
            "tag": _TAG,
            "extension_version": 1,
            "flags": _FLAG_INDEX | _FLAG_SOURCE_ORDER | ends,
            "itemsize": self.itemsize,
            "header_bytes": HEADER_BYTES,
            "n_tokens": shard.n_tokens,
            "n_documents": shard.n_documents,
            "n_utf8_bytes": shard.n_utf8_bytes,
            "vocab_size": self.vocab_size,
            "beginning_of_text": -1,
            "end_of_text": -1 if self.end_of_text is None else self.end_of_text,
            "padding": -1,
            "shard_index": index,
            "first_token": sum(shard.n_tokens for shard in before),
            "first_document": sum(shard.n_documents for shard in before),
            "tokenizer_sha256": bytes.fromhex(self.tokenizer_sha256),
            "payload_sha256": bytes.fromhex(shard.sha256),
            "index_sha256": bytes.fromhex(shard.index_sha256),
            "crc_block_log2": CRC_BLOCK_LOG2,
            "n_crc_blocks": len(shard.crc32),
            "tokenizer_name": self.tokenizer_name.encode(),
            "dataset": self.dataset.encode(),
        }
        values = [
            header.get(name, b"" if code.endswith("s") else 0) for _, name, code in _HEADER_FIELDS
        ]
        data = _HEADER.pack(*values)
        return data[:1020] + struct.pack("<I", zlib.crc32(data[:1020]))

    def encode(self) -> bytes:
        """The text of `manifest.json`."""
        text = self._to_text()
        # No string holds the end of a line, so this is the key of the outermost object.
        before, key, after = text.partition('\n  "manifest_sha256": "')
        return f"{before}{key}{_sha256(text)}{after[len(_NO_HASH) :]}".encode()

    def _to_text(self) -> str:
        import json

        payloads = [shard.sha256 for shard in self.shards]
        value = {
            "command": self.command,
            "dataset": self.dataset,
            "dtype": f"uint{8 * self.itemsize}",
            "fingerprint": fingerprint(payloads, self.end_of_text, self.tokenizer_sha256),
            "format": _FORMAT,
            "manifest_sha256": _NO_HASH,
            "n_documents": sum(shard.n_documents for shard in self.shards),
            "n_shards": len(self.shards),
            "n_split_documents": self.n_split_documents,
            "n_tokens": sum(shard.n_tokens for shard in self.shards),
            "n_utf8_bytes": sum(shard.n_utf8_bytes for shard in self.shards),
            "policy": _policy(self.end_of_text),
            "rslm_version": self.rslm_version,
            "shards": [self._shard_value(i, shard) for i, shard in enumerate(self.shards)],
            "sources": [{"bytes": n_bytes, "file": file} for file, n_bytes in self.sources],
            "tokenizer": {
                "end_of_text": self.end_of_text,
                "json": self.tokenizer_json,
                "name": self.tokenizer_name,
                "sha256": self.tokenizer_sha256,
                "special_tokens": dict(self.special_tokens),
                "vocab_size": self.vocab_size,
            },
            "version": _VERSION,
        }
        return f"{json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True)}\n"

    def _shard_value(self, index: int, shard: ShardRecord) -> dict[str, Any]:
        name = shard_name(index)
        return {
            "bytes": shard.file_bytes(self.itemsize),
            "crc32": shard.crc32,
            "file": name,
            "index": {
                "bytes": index_bytes(shard.n_documents),
                "file": index_name(name),
                "sha256": shard.index_sha256,
            },
            "n_documents": shard.n_documents,
            "n_tokens": shard.n_tokens,
            "n_utf8_bytes": shard.n_utf8_bytes,
            "sha256": shard.sha256,
        }

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads the text of `manifest.json` and checks it against itself.

        Raises:
            ValueError: it is no manifest, or not one that a writer would have written.
        """
        import json

        try:
            value = json.loads(data)
        except RecursionError:
            raise ValueError("not valid JSON: nested too deep") from None
        except ValueError as error:
            raise ValueError(f"not valid JSON: {error}") from None
        top = _Fields(value, "the manifest")
        found = (top.value.get("format"), top.value.get("version"))
        if found != (_FORMAT, _VERSION):
            raise ValueError(f"format and version must be {(_FORMAT, _VERSION)}, got {found}")
        manifest = cls._from_fields(top, top.child("tokenizer"))
        manifest._check_against(data)
        return manifest

    @classmethod
    def _from_fields(cls, top: "_Fields", tokenizer: "_Fields") -> Self:
        vocab_size = tokenizer.count("vocab_size", 2**31)
        no_end = tokenizer.value.get("end_of_text") is None
        special = tokenizer.get("special_tokens", dict)
        return cls(
            command=top.text("command"),
            dataset=top.text("dataset", NAME_BYTES),
            n_split_documents=top.count("n_split_documents"),
            rslm_version=top.text("rslm_version"),
            shards=tuple(_read_shard(shard) for shard in top.children("shards")),
            sources=tuple((s.text("file"), s.count("bytes")) for s in top.children("sources")),
            end_of_text=None if no_end else tokenizer.count("end_of_text", vocab_size),
            tokenizer_json=tokenizer.text("json"),
            tokenizer_name=tokenizer.text("name", NAME_BYTES),
            special_tokens={t: _count(special[t], 2**32, "special_tokens") for t in special},
            vocab_size=vocab_size,
        )

    def _check_against(self, data: bytes) -> None:
        """Totals, names, sizes, fingerprint and own hash follow from what was read.

        So one comparison with the text they must give covers them, and every stray byte.
        """
        max_tokens = MAX_PAYLOAD_BYTES // self.itemsize
        for index, shard in enumerate(self.shards):
            n_blocks = -(-shard.n_tokens * self.itemsize // CRC_BLOCK_BYTES)
            if not 1 <= shard.n_tokens <= max_tokens or len(shard.crc32) != n_blocks:
                raise ValueError(f"shards[{index}] must hold 1 to {max_tokens} tokens and CRC-32s")
        expected = self.encode()
        if expected != data:
            pairs = enumerate(zip(expected, data, strict=False))
            shorter = min(len(expected), len(data))
            at = next((i for i, (a, b) in pairs if a != b), shorter)
            raise ValueError(f"at byte {at}: the manifest contradicts its own hash or totals")


def _read_shard(shard: "_Fields") -> ShardRecord:
    n_tokens = shard.count("n_tokens")
    return ShardRecord(
        n_tokens=n_tokens,
        n_documents=shard.count("n_documents", n_tokens + 1),
        n_utf8_bytes=shard.count("n_utf8_bytes"),
        sha256=shard.digest("sha256"),
        index_sha256=shard.child("index").digest("sha256"),
        crc32=tuple(_count(crc, 2**32, "crc32") for crc in shard.get("crc32", list)),
    )


class _Fields:
    """An object of the manifest whose fields must have the type that is asked for."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{place} must be an object")
        self.value = value

    def get(self, name: str, kind: type[_T]) -> _T:
        found = self.value.get(name)
        if not isinstance(found, kind):
            raise ValueError(f"{name} must be {kind.__name__}, got {type(found).__name__}")
        return found

    def child(self, name: str) -> "_Fields":
        return _Fields(self.value.get(name), name)

    def children(self, name: str) -> list["_Fields"]:
        return [_Fields(value, name) for value in self.get(name, list)]

    def text(self, name: str, max_bytes: int = MAX_MANIFEST_BYTES) -> str:
        found = self.get(name, str)
        try:
            n_bytes = len(found.encode())
        except UnicodeEncodeError:
            raise ValueError(f"{name} must have no lone surrogates") from None
        if n_bytes > max_bytes or (max_bytes == NAME_BYTES and "\0" in found):
            raise ValueError(f"{name} must have at most {max_bytes} bytes and no NUL")
        return found

    def count(self, name: str, limit: int = 2**63) -> int:
        return _count(self.value.get(name), limit, name)

    def digest(self, name: str) -> str:
        found = self.get(name, str)
        if not re.fullmatch("[0-9a-f]{64}", found):
            raise ValueError(f"{name} must be 64 hexadecimal digits")
        return found


def _count(value: Any, limit: int, name: str) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{name} must be an integer from 0 to {limit - 1}, got {value!r:.40}")
    return value
