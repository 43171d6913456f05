"""Tokenizers in files of others; what the core has no word for is put into its words.

Three things that it refuses: digits that are split off one by one before GPT-2's expression (the
SmolLM models), bytes that no token stands for (theirs, too: such bytes get ids of their own, for
which the model then needs rows), and a normalizer to NFC (Qwen's), which is left out with a note.
All of them are put right in the form of a `tokenizer.json`, which the core then reads.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rslm.errors import FormatError
from rslm.infer.gguf_file import read_gguf
from rslm.tokenizer import Tokenizer

DIGITS_GPT2 = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""GPT-2's expression on what lies between digits, each of which is a pretoken of its own.

Digits that are cut off first end the text for the expression, so blanks before one stay together.
llama.cpp calls it smollm.
"""

_MAX_TOKENIZER_BYTES = 1 << 27
_NORMAL, _UNUSED = 1, 5


class ForeignTokenizer(NamedTuple):
    """A tokenizer and what was done to it.

    Attributes:
        tokenizer: with an id for every byte.
        n_added: ids from the model's vocabulary size on, for bytes that had no token.
        notes: what it does not do of what the file says.
    """

    tokenizer: Tokenizer
    n_added: int
    notes: list[str]


def gguf_tokenizer(path: Path, vocab_size: int) -> ForeignTokenizer:
    """The tokenizer in a GGUF file; `vocab_size` is that of the model.

    Raises:
        FormatError: the file is damaged, or its tokenizer is no byte-level BPE.
        ValueError: its pre-tokenizer is one that is not known here.
    """
    try:
        return ForeignTokenizer(Tokenizer.load(path, "gguf"), 0, [])
    except ValueError as error:
        message = str(error)
        pattern = DIGITS_GPT2 if 'pre-tokenizer "smollm"' in message else None
        if pattern is None and "256 single bytes" not in message:
            raise
    try:
        return ForeignTokenizer(Tokenizer.load(path, "gguf", pattern=pattern), 0, [])
    except FormatError as error:
        if pattern is None or "256 single bytes" not in str(error):
            raise
    return _load_adapted(_record_of_gguf(path, pattern), path, vocab_size)


def _record_of_gguf(path: Path, pattern: str) -> dict[str, Any]:
    """The tokenizer of a GGUF file as a `tokenizer.json` has it."""
    keys = {key: f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges")}
    metadata = read_gguf(path, keep=keys.values()).metadata
    lists = [metadata.get(key) for key in keys.values()]
    tokens, types, merges = (part if isinstance(part, list) else [] for part in lists)
    if len(tokens) != len(types) or {*map(type, tokens)} != {str}:
        raise FormatError(f"{path}: tokens must be strings, each with a type")
    listed = {token: i for i, token in enumerate(tokens) if token and types[i] != _UNUSED}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "added_tokens": [
            {"id": i, "content": token, "special": True, **special}
            for token, i in listed.items()
            if types[i] != _NORMAL
        ],
        "pre_tokenizer": _split(pattern),
        "model": {"type": "BPE", "vocab": listed, "merges": merges},
    }


def hf_tokenizer(path: Path, vocab_size: int) -> ForeignTokenizer:
    """The tokenizer of a `tokenizer.json`; `vocab_size` is that of the model.

    Raises:
        FormatError: the file is damaged, or its tokenizer is no byte-level BPE.
        OSError: it cannot be read.
    """
    data = read_bounded(path, _MAX_TOKENIZER_BYTES)
    try:
        return ForeignTokenizer(Tokenizer.load(path, "hf"), 0, [])
    except FormatError as error:
        refusal = error
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise refusal from None
    notes: list[str] = []
    if not isinstance(record, dict):
        raise refusal
    if _kind(record.get("normalizer")) == "NFC":
        record["normalizer"] = None
        notes.append(
            "the tokenizer brings texts into the normal form NFC first, which is left to you: "
            "ids of texts in another form differ"
        )
    if _splits_digits(record.get("pre_tokenizer")):
        record["pre_tokenizer"] = _split(DIGITS_GPT2)
    loaded = _load_adapted(record, path, vocab_size)
    return loaded._replace(notes=notes + loaded.notes)


def _load_adapted(record: dict[str, Any], path: Path, vocab_size: int) -> ForeignTokenizer:
    """Has the core read a changed `tokenizer.json`, in which every byte has an id."""
    model = record.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    missing = []
    if isinstance(vocab, dict):
        missing = [byte for byte, name in enumerate(byte_names()) if name not in vocab]
        vocab |= {byte_names()[byte]: vocab_size + i for i, byte in enumerate(missing)}
    with tempfile.TemporaryDirectory() as folder:
        adapted = Path(folder, "tokenizer.json")
        adapted.write_text(json.dumps(record))
        try:
            tokenizer = Tokenizer.load(adapted, "hf")
        except FormatError as error:
            raise FormatError(str(error).replace(str(adapted), str(path))) from None
    if len(missing) == 256:
        raise FormatError(f"{path}: the vocabulary must be one of byte-level BPE")
    notes = []
    if missing:
        shown = " ".join(f"{byte:02x}" for byte in missing)
        notes.append(f"no token stands for the bytes {shown}: they got ids of their own")
    return ForeignTokenizer(tokenizer, len(missing), notes)


def byte_names() -> list[str]:
    """The character that stands for each byte in GPT-2's files: itself, where it can be seen.

    Source: Radford et al. 2019; the others follow from U+0100 on, in order.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte if byte in seen else 0x100 + hidden.index(byte)) for byte in range(256)]


def _split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts by an expression alone."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [split | {"invert": False}, bytes_only | {"trim_offsets": True}]
    return {"type": "Sequence", "pretokenizers": steps}


def _kind(step: object) -> object:
    return step.get("type") if isinstance(step, dict) else None


def _splits_digits(pre_tokenizer: object) -> bool:
    """Whether a text is cut at each digit, then by GPT-2's expression."""
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(steps, list) or [_kind(step) for step in steps] != ["Digits", "ByteLevel"]:
        return False
    digits, byte_level = steps
    return (
        digits.get("individual_digits") is True
        and byte_level.get("use_regex", True) is True
        and byte_level.get("add_prefix_space") is False
    )


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a file that has no more than `limit`.

    Raises:
        FormatError: it has more.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{path} must have at most {limit} bytes, and has more")
    return data
