"""Conversations for fine-tuning: read from JSON lines, rendered once, stored as ids and bits.

A folder of them is a token file (`rslm.token_file`) with a document for each conversation,
exactly the ids that `ChatFormat.render` gives, with the mask of what is trained on beside it
(`rslm.post.mask_plane`) and `chats.json`, which counts what was read, cut and left out. It is
made in constant memory, however many conversations there are, and complete or absent.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rslm.chat import ChatFormat, Message
from rslm.errors import FormatError
from rslm.files import write_atomically
from rslm.infer.model_folder import new_path
from rslm.packing import document_bounds
from rslm.post.json_lines import read_json_lines
from rslm.post.mask_plane import MaskPlane, MaskWriter
from rslm.token_file import TokenFile
from rslm.token_file_writer import TokenizerRecord, write_token_file
from rslm.tokenizer import Tokenizer

TooLong = Literal["cut", "leave-out", "refuse"]

_SHARD_TOKENS = 1 << 24
COUNTS = "chats.json"


@dataclass
class ChatCounts:
    """What became of the conversations that were read.

    Attributes:
        n_read: conversations.
        n_stored: those that are trained on.
        n_cut: of these, those that lost their end.
        n_left_out: longer than the context and not wanted, or with nothing trained on left.
        n_tokens: ids stored.
        n_trained_tokens: those trained on.
    """

    n_read: int = 0
    n_stored: int = 0
    n_cut: int = 0
    n_left_out: int = 0
    n_tokens: int = 0
    n_trained_tokens: int = 0

    def sentence(self, name: object, longest: int) -> str:
        """The counts for a reader."""
        return (
            f"{name}: {self.n_stored:,} conversations, {self.n_trained_tokens:,} of "
            f"{self.n_tokens:,} tokens trained on; {self.n_cut:,} cut at {longest:,} tokens, "
            f"{self.n_left_out:,} left out"
        )


class Chat(NamedTuple):
    """A conversation and where it stands."""

    messages: Sequence[Message]
    place: str


def read_chats(paths: Sequence[Path]) -> Iterator[Chat]:
    """The conversations of files of JSON lines; blank lines are none.

    A line is an object with `messages`, as `ChatFormat.render` takes them, or with `prompt` and
    `answer`, two strings; other keys are not looked at.

    Raises:
        ValueError: a line is no such thing; the message says where.
        OSError: a file cannot be read.
    """
    for path in paths:
        with path.open("rb") as file:
            for place, record in read_json_lines(file, path):
                yield Chat(_messages_of(record, place), place)


def _messages_of(record: Any, place: str) -> Sequence[Message]:
    if isinstance(record, Mapping):
        pair = record.get("prompt"), record.get("answer")
        if "messages" in record and pair == (None, None):
            messages: Sequence[Message] = record["messages"]
            return messages
        if "messages" not in record and all(isinstance(text, str) for text in pair):
            said = ({"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]})
            return said  # type: ignore[return-value]
    raise ValueError(
        f"{place} must be an object with messages, or with prompt and answer as strings, "
        f"got {record!r:.80}"
    )


def write_chats(
    out: Path,
    chats: Iterator[Chat],
    chat_format: ChatFormat,
    *,
    max_length: int,
    too_long: TooLong = "cut",
) -> ChatCounts:
    """Renders conversations and stores them in a new folder, complete or not at all.

    One longer than `max_length` ids is cut there, so that the last answers go, and with them
    the end of the turn; one in which nothing trained on is left is left out, and counted.

    Raises:
        ValueError: a conversation is none, has no answer, or is too long where that is refused;
            or none is left.
        FileExistsError: there is something at `out` already.
    """
    counts = ChatCounts()
    with new_path(out) as folder:
        folder.mkdir()
        tokens = folder / "tokens"
        with MaskWriter(folder) as writer:
            documents = _rendered(chats, chat_format, writer, counts, max_length, too_long)
            record = tokenizer_record(chat_format.tokenizer)
            write_token_file(tokens, documents, tokenizer=record, shard_tokens=_SHARD_TOKENS)
            if counts.n_stored == 0:
                raise ValueError(
                    f"there must be a conversation to train on within {max_length} tokens, "
                    f"got {counts.n_read}, of which {counts.n_left_out} were left out"
                )
            for file in tokens.iterdir():
                file.rename(folder / file.name)
            tokens.rmdir()
            writer.finish(TokenFile.open(folder).fingerprint)
        write_atomically(folder / COUNTS, json.dumps(asdict(counts)).encode())
    return counts


def _rendered(
    chats: Iterator[Chat],
    chat_format: ChatFormat,
    writer: MaskWriter,
    counts: ChatCounts,
    max_length: int,
    too_long: TooLong,
) -> Iterator[npt.NDArray[np.uint32]]:
    """The ids of each conversation, whose masks go to the writer."""
    for messages, place in chats:
        counts.n_read += 1
        try:
            token_ids, train_mask = chat_format.render(messages)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}: {error}") from None
        if not any(train_mask):
            raise ValueError(f"{place}: there must be an answer to train on (role assistant)")
        is_long = len(token_ids) > max_length
        if is_long and too_long == "refuse":
            raise ValueError(
                f"{place}: a conversation must have at most {max_length} tokens, "
                f"got {len(token_ids)}"
            )
        mask = np.array(train_mask[:max_length], np.bool_)
        if not mask.any() or (is_long and too_long == "leave-out"):
            counts.n_left_out += 1
            continue
        counts.n_cut += is_long
        counts.n_stored += 1
        counts.n_tokens += len(mask)
        counts.n_trained_tokens += int(mask.sum())
        writer.add(mask)
        yield np.array(token_ids[:max_length], np.uint32)


def tokenizer_record(tokenizer: Tokenizer) -> TokenizerRecord:
    """What a token file of conversations says of its tokenizer; no token ends its documents."""
    return TokenizerRecord(
        name="chat",
        vocab_size=tokenizer.vocab_size,
        canonical_json=tokenizer.to_json(),
        special_tokens=tokenizer.special_tokens,
        end_of_text=None,
        token_byte_lengths=tokenizer.token_byte_lengths,
    )


class ChatFile:
    """Stored conversations, read in place.

    Attributes:
        token_file: their ids.
        counts: what became of those that were read.
        bounds: number of the first token of each, and the number of all tokens.

    Raises:
        FormatError: a file is damaged, or they were rendered by another tokenizer.
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.token_file = TokenFile.open(folder, tokenizer=tokenizer)
        self._mask = MaskPlane(self.token_file)
        self.bounds = document_bounds(self.token_file)
        self.counts = _read_counts(folder / COUNTS)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def fingerprint(self) -> str:
        """What identifies ids and mask together."""
        return f"{self.token_file.fingerprint}-{self._mask.crc32:08x}"

    @property
    def n_targets(self) -> npt.NDArray[np.uint32]:
        """Ids of each conversation that follow another, trained on or not."""
        return (np.diff(self.bounds) - 1).astype(np.uint32)

    def mask(self, number: int) -> npt.NDArray[np.bool_]:
        """Which ids of a conversation are trained on."""
        start, stop = self.bounds[number : number + 2].tolist()
        return self._mask.read(start, stop - start)

    def token_ids(self, number: int) -> npt.NDArray[np.int64]:
        """The ids of a conversation."""
        start, stop = self.bounds[number : number + 2].tolist()
        return self.token_file.read(start, stop - start).astype(np.int64)


def _read_counts(path: Path) -> ChatCounts:
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error!s:.200}") from None
    names = [field.name for field in fields(ChatCounts)]
    if not isinstance(record, dict) or any(type(record.get(name)) is not int for name in names):
        raise FormatError(f"{path} must hold the counts {', '.join(names)}")
    return ChatCounts(**{name: record[name] for name in names})
