r"""Packing plans: which pieces of documents make up the rows to train on, and the rows read.

A plan depends on the lengths of the documents, the length of a row and the policy alone
(`packing_reference` says what each does); `_rslm.plan_packing` makes it. Training visits the
rows of a plan as it visits the windows of a token file, in an order that is a function of the
seed. A plan is kept beside the token file, as `packing_{policy}_{context_length}_{first 16 digits
of the fingerprint}.plan`, so that it is made once. Everything in that file is little-endian:

    offset type   field
         0 8 B    tag               "RSLMPACK"
         8 u32    version           1
        12 u32    context_length    places of a row
        16 16 B   policy            padded with NUL
        32 32 B   fingerprint       of the token file
        64 u64    n_documents       of the token file
        72 u64    n_rows
        80 u64    n_pieces
        88 u32    payload_crc32     CRC-32 of all from byte 128 on
        92        zero
       124 u32    header_crc32      CRC-32 of bytes 0 to 123
       128 u64[n_rows + 1]          row r has the pieces from its entry to the next one
           u32[n_pieces]            the document of each piece
           u32[n_pieces]            its first token, counted from the document's
           u32[n_pieces]            its tokens
"""

import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import numpy.typing as npt

from rslm import _rslm
from rslm.errors import FormatError
from rslm.files import write_atomically
from rslm.packing_reference import PackingPolicy
from rslm.token_file import TokenFile

IGNORE_INDEX = -100
"""The target of a place that holds padding; PyTorch's convention."""

_TAG, _VERSION = b"RSLMPACK", 1
_HEADER = struct.Struct("<8sII16s32sQQQI32sI")
_HEADER_FIELDS = {
    "tag": 0,
    "version": 8,
    "context_length": 12,
    "policy": 16,
    "fingerprint": 32,
    "n_documents": 64,
    "n_rows": 72,
    "n_pieces": 80,
    "payload_crc32": 88,
    "zero": 92,
    "header_crc32": 124,
}


class PackingStats(NamedTuple):
    """What a policy makes of a token file, in one epoch.

    Attributes:
        n_rows: rows.
        n_targets: tokens that are predicted.
        n_padding: places of the rows without a target.
        n_dropped: tokens of the file that are never predicted.
        n_documents: documents of the file.
        n_cut_documents: those that no single row has from begin to end.
        utilization: share of the places that have a target.
    """

    n_rows: int
    n_targets: int
    n_padding: int
    n_dropped: int
    n_documents: int
    n_cut_documents: int
    utilization: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PackingPlan:
    """Rows of pieces of documents; 12 bytes a piece and 8 bytes a row.

    Attributes:
        fingerprint: of the token file.
        context_length: places of a row.
        policy: how the rows were made.
        n_documents: of the token file.
        row_offsets: row r has the pieces row_offsets[r], ..., row_offsets[r + 1] - 1.
        documents: the document of each piece.
        starts: its first target, counted from the document's first token.
        lengths: its targets.
    """

    fingerprint: str
    context_length: int
    policy: PackingPolicy
    n_documents: int
    row_offsets: npt.NDArray[np.int64] = field(repr=False)
    documents: npt.NDArray[np.uint32] = field(repr=False)
    starts: npt.NDArray[np.uint32] = field(repr=False)
    lengths: npt.NDArray[np.uint32] = field(repr=False)

    @property
    def n_rows(self) -> int:
        """Rows: the samples of an epoch."""
        return len(self.row_offsets) - 1

    @property
    def n_all_targets(self) -> int:
        """Targets of all rows."""
        return int(self.lengths.sum(dtype=np.int64))

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """(document, start, length) of each piece of a row, in order.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row must be in 0..{self.n_rows - 1}, got {row}")
        inside = slice(self.row_offsets[row], self.row_offsets[row + 1])
        columns = (self.documents[inside], self.starts[inside], self.lengths[inside])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def n_targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Targets of each of these rows; the other places are padding."""
        return np.array([self._lengths_of(row).sum(dtype=np.int64) for row in rows.tolist()])

    def cu_seqlens(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Where sequences begin in these rows, laid end to end, and where the last one ends.

        A piece is a sequence, and so is the padding of a row. This is the form that kernels for
        sequences of several lengths take.
        """
        lengths: list[int] = [0]
        for row in rows.tolist():
            own = self._lengths_of(row).tolist()
            padding = self.context_length - sum(own)
            lengths += [*own, padding] if padding else own
        return np.cumsum(lengths, dtype=np.int32)

    def _lengths_of(self, row: int) -> npt.NDArray[np.uint32]:
        return self.lengths[self.row_offsets[row] : self.row_offsets[row + 1]]


def require_documents(token_file: TokenFile, option: str) -> None:
    """Refuses a token file that does not say where documents begin, or not with which token.

    Args:
        token_file: the file.
        option: what asks for documents, for the message.

    Raises:
        ValueError: there is no index of documents, or no end-of-text token between them.
    """
    if token_file.n_documents == 0:
        raise ValueError(
            f"{option} needs to know the documents, and {token_file.path} has no index of them\n"
            "rslm tokenizer encode writes one"
        )
    if token_file.end_of_text is None:
        raise ValueError(
            f"{option} needs documents that begin after an end-of-text token, and those of "
            f"{token_file.path} end without one"
        )


def document_bounds(token_file: TokenFile) -> npt.NDArray[np.int64]:
    """Number of the first token of each document, and the number of all tokens."""
    return np.append(token_file.document_starts, len(token_file))


def plan_packing(token_file: TokenFile, context_length: int, policy: PackingPolicy) -> PackingPlan:
    """The plan of a policy that packs, made anew.

    A second for 8 million documents by obfd, two by bos-bestfit, and 20 to 40 bytes a document;
    `benches/bench_packing.py` measures it. Training takes its plans from `open_plan`.

    Raises:
        ValueError: the policy is chunk, which needs no plan, or unknown; or the file does not
            tell its documents apart.
    """
    require_documents(token_file, f"packing {policy}")
    lengths = np.diff(document_bounds(token_file)).astype(np.uint32)
    row_offsets, documents, starts, lengths = _rslm.plan_packing(lengths, context_length, policy)
    return PackingPlan(
        fingerprint=token_file.fingerprint,
        context_length=context_length,
        policy=policy,
        n_documents=token_file.n_documents,
        row_offsets=row_offsets.view(np.int64),
        documents=documents,
        starts=starts,
        lengths=lengths,
    )


def packing_stats(
    token_file: TokenFile, context_length: int, plan: PackingPlan | None = None
) -> PackingStats:
    """What a plan, or without one the policy chunk, makes of its token file.

    Raises:
        FormatError: the file's index is damaged.
    """
    n_tokens = len(token_file)
    bounds = document_bounds(token_file)
    if plan is None:
        n_rows = max(0, n_tokens - 1) // context_length
        n_targets = n_rows * context_length
        # Row of a target: its inputs lie one token before. The first token of all is no target.
        first_rows = np.maximum(bounds[:-1] - 1, 0) // context_length
        last_rows = (bounds[1:] - 2) // context_length
        is_cut = (first_rows != last_rows) | (bounds[1:] - 1 > n_targets)
    else:
        n_rows, n_targets = plan.n_rows, plan.n_all_targets
        n_whole_tokens = np.diff(bounds)
        is_cut = np.ones(plan.n_documents, np.bool_)
        is_whole = plan.lengths == n_whole_tokens[plan.documents]
        is_cut[plan.documents[is_whole]] = False
    n_places = n_rows * context_length
    return PackingStats(
        n_rows=n_rows,
        n_targets=n_targets,
        n_padding=n_places - n_targets,
        n_dropped=n_tokens - n_targets,
        n_documents=token_file.n_documents,
        n_cut_documents=int(is_cut.sum()),
        utilization=n_targets / n_places if n_places else 0.0,
    )


def plan_path(token_file: TokenFile, context_length: int, policy: PackingPolicy) -> Path:
    """Where the plan of a token file is kept: in its folder."""
    folder = token_file.path if token_file.path.is_dir() else token_file.path.parent
    return folder / f"packing_{policy}_{context_length}_{token_file.fingerprint[:16]}.plan"


def open_plan(token_file: TokenFile, context_length: int, policy: PackingPolicy) -> PackingPlan:
    """The plan that is kept beside the token file, made and kept where there is none yet.

    Where the folder cannot be written to, a warning says so and the plan is made at each start.

    Raises:
        ValueError: as `plan_packing` does.
        FormatError: the plan that is kept is damaged; remove it to have it made anew.
    """
    require_documents(token_file, f"packing {policy}")
    path = plan_path(token_file, context_length, policy)
    if path.exists():
        plan = read_plan(path, document_bounds(token_file))
        key = (plan.fingerprint, plan.context_length, plan.policy)
        if key != (token_file.fingerprint, context_length, policy):
            _refuse(path, "must be the plan that its name says", "context_length")
        return plan
    plan = plan_packing(token_file, context_length, policy)
    try:
        write_plan(path, plan)
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"{path}: the packing plan cannot be kept: {reason}", stacklevel=2)
    return plan


def write_plan(path: Path, plan: PackingPlan) -> None:
    """Writes a plan, so that a crash leaves the whole of it or nothing.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    columns = (plan.row_offsets.astype("<u8"), plan.documents, plan.starts, plan.lengths)
    payload = [np.ascontiguousarray(column).data.cast("B") for column in columns if column.size]
    crc32 = 0
    for part in payload:
        crc32 = zlib.crc32(part, crc32)
    header = _HEADER.pack(
        _TAG,
        _VERSION,
        plan.context_length,
        plan.policy.encode(),
        bytes.fromhex(plan.fingerprint),
        plan.n_documents,
        plan.n_rows,
        len(plan.documents),
        crc32,
        bytes(32),
        0,
    )
    header = header[:124] + struct.pack("<I", zlib.crc32(header[:124]))
    write_atomically(path, header, *payload)


def read_plan(path: Path, bounds: npt.NDArray[np.int64]) -> PackingPlan:
    """The plan in a file, compared with its sums and with the documents that it is of.

    Args:
        path: the file.
        bounds: `document_bounds` of the token file.

    Raises:
        FormatError: it is damaged, with the offset, or of other documents.
        OSError: it is missing or cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_HEADER.size)
        header = _decode_header(path, data)
        n_rows, n_pieces = header["n_rows"], header["n_pieces"]
        expected = _HEADER.size + 8 * (n_rows + 1) + 12 * n_pieces
        # Before reading: a size is not believed before it was compared.
        found = path.stat().st_size
        if found != expected:
            _refuse(path, f"the file must have {expected} bytes, got {found}", at=found)
        payload = file.read()
    if (crc32 := zlib.crc32(payload)) != header["payload_crc32"]:
        reason = f"payload_crc32 must be {crc32}, got {header['payload_crc32']}"
        _refuse(path, f"bytes {_HEADER.size} to {expected} are damaged: {reason}", "payload_crc32")
    row_offsets = np.frombuffer(payload, "<i8", n_rows + 1)
    columns = np.frombuffer(payload, "<u4", 3 * n_pieces, 8 * (n_rows + 1)).reshape(3, n_pieces)
    plan = PackingPlan(
        fingerprint=header["fingerprint"].hex(),
        context_length=header["context_length"],
        policy=cast(PackingPolicy, header["policy"].rstrip(b"\0").decode()),
        n_documents=header["n_documents"],
        row_offsets=row_offsets,
        documents=columns[0],
        starts=columns[1],
        lengths=columns[2],
    )
    _check_pieces(path, plan, bounds)
    return plan


def _decode_header(path: Path, data: bytes) -> dict[str, Any]:
    if len(data) < _HEADER.size:
        _refuse(path, f"a plan must have {_HEADER.size} bytes of header", at=len(data))
    header = dict(zip(_HEADER_FIELDS, _HEADER.unpack(data), strict=True))
    expected = {"tag": _TAG, "version": _VERSION, "header_crc32": zlib.crc32(data[:124])}
    for name, value in expected.items():
        if header[name] != value:
            _refuse(path, f"{name} must be {value!r}, got {header[name]!r}", name)
    policy = header["policy"].rstrip(b"\0")
    if policy not in (b"bos-bestfit", b"obfd"):
        _refuse(path, f"policy must be bos-bestfit or obfd, got {policy!r}", "policy")
    return header


def _check_pieces(path: Path, plan: PackingPlan, bounds: npt.NDArray[np.int64]) -> None:
    """Refuses rows that do not follow each other, overflow, or go beyond their documents."""
    if plan.n_documents != len(bounds) - 1:
        reason = f"n_documents must be {len(bounds) - 1}, got {plan.n_documents}"
        _refuse(path, reason, "n_documents")
    at = _HEADER.size
    n_pieces = np.diff(plan.row_offsets)
    ascends = n_pieces >= 1
    wrong = 0 if plan.row_offsets[0] != 0 else None
    if wrong is None and not ascends.all():
        wrong = int(np.argmin(ascends)) + 1
    if wrong is None and plan.row_offsets[-1] != len(plan.documents):
        wrong = plan.n_rows
    if wrong is not None:
        _refuse(path, "rows must ascend from 0 to n_pieces", at=at + 8 * wrong)
    at += 8 * len(plan.row_offsets)
    _check_column(
        path, at, plan.documents < plan.n_documents, "documents must be below n_documents"
    )
    at += 4 * len(plan.documents)
    # 4 bytes a piece, as there are many; a document has fewer tokens than its shard.
    room = np.diff(bounds).astype(np.uint32)[plan.documents]
    _check_column(path, at, plan.starts < room, "pieces must begin inside their documents")
    at += 4 * len(plan.documents)
    room -= plan.starts
    fits = (plan.lengths >= 1) & (plan.lengths <= room)
    _check_column(path, at, fits, "pieces must end inside their documents")
    if plan.n_rows:
        sums = np.add.reduceat(plan.lengths, plan.row_offsets[:-1], dtype=np.int64)
        overflow = np.repeat(sums > plan.context_length, n_pieces)
        _check_column(path, at, ~overflow, "rows must have at most context_length targets")


def _check_column(path: Path, at: int, holds: npt.NDArray[np.bool_], what: str) -> None:
    if not holds.all():
        _refuse(path, what, at=at + 4 * int(np.argmin(holds)))


def _refuse(path: Path, reason: str, name: str | None = None, *, at: int = 0) -> NoReturn:
    where = at if name is None else _HEADER_FIELDS[name]
    raise FormatError(f"{path}: at byte {where}: {reason}\nremove it to have it made anew")


class Rows(NamedTuple):
    """Rows to train on, each array of shape (rows, places).

    Attributes:
        inputs: token ids.
        targets: the token after each input, `IGNORE_INDEX` in padding.
        documents: the sequence in its row that a place belongs to, counted from 0.
        positions: how many places of that sequence lie before it in the row.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


def read_packed_rows(token_file: TokenFile, plan: PackingPlan, rows: npt.NDArray[np.int64]) -> Rows:
    """The rows of a plan of this file; padding is end of text, and a sequence of its own."""
    end_of_text, starts = token_file.end_of_text, token_file.document_starts
    shape = (len(rows), plan.context_length)
    inputs = np.full(shape, end_of_text, np.int64)
    targets = np.full(shape, IGNORE_INDEX, np.int64)
    documents = np.zeros(shape, np.int64)
    for number, row in enumerate(rows.tolist()):
        done = 0
        pieces = plan.pieces(row)
        for i, (document, start, length) in enumerate(pieces):
            first = int(starts[document]) + start
            # One token more, for the input before the first target; before the file's first
            # document there is none to read, and it is what stands before every other.
            n_before = min(first, 1)
            tokens = token_file.read(first - n_before, length + n_before)
            place = slice(done, done + length)
            inputs[number, done + 1 - n_before : place.stop] = tokens[:-1]
            targets[number, place] = tokens[n_before:]
            documents[number, place] = i
            done += length
        documents[number, done:] = len(pieces)
    return Rows(inputs, targets, documents, positions_in(documents))


def window_documents(
    starts: npt.NDArray[np.int64], first_tokens: npt.NDArray[np.int64], context_length: int
) -> npt.NDArray[np.int64]:
    """The sequence in its window that each input belongs to, counted from 0.

    A document begins with the end-of-text token before its first one, from which that is
    predicted; so an input belongs to the document of its target.

    Args:
        starts: `document_starts` of the token file.
        first_tokens: number of the first token of each window.
        context_length: inputs of a window.
    """
    targets = first_tokens[:, None] + np.arange(1, context_length + 1)
    documents = np.searchsorted(starts, targets, side="right")
    return (documents - documents[:, :1]).astype(np.int64)


def positions_in(documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions that begin anew wherever the number in a row changes.

    >>> positions_in(np.array([[0, 0, 0, 1, 1, 2]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    places = np.arange(documents.shape[1])
    begins = np.diff(documents, axis=1, prepend=-1) != 0
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
