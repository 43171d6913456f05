"""Packing plans: Rust equals the plain reference, files are checked, rows hold their documents."""

import itertools
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm import _rslm, packing, packing_reference
from rslm.cli import main
from rslm.errors import FormatError
from rslm.packing import (
    IGNORE_INDEX,
    PackingPlan,
    document_bounds,
    open_plan,
    packing_stats,
    plan_packing,
    plan_path,
    positions_in,
    read_packed_rows,
    read_plan,
    window_documents,
    write_plan,
)
from rslm.packing_reference import PackingPolicy, pack
from rslm.token_file import TokenFile
from rslm.token_file_writer import TokenizerRecord, write_token_file

END = 0
PACKS = ["bos-bestfit", "obfd"]
LENGTHS = [6, 25, 4, 7, 3, 2, 1, 40, 10, 9, 1, 20]


def write(folder: Path, lengths: list[int], *, end_of_text: int | None = END) -> TokenFile:
    """Documents of these lengths in shards of 30 tokens: 1, 2, 3, ... in turns, and the end."""
    record = TokenizerRecord(
        name="count",
        vocab_size=1000,
        canonical_json=b"{}",
        special_tokens={"<|endoftext|>": END},
        end_of_text=end_of_text,
        token_byte_lengths=np.ones(1000, np.uint32),
    )
    stream = np.arange(sum(lengths)) % 999 + 1
    documents = np.split(stream, np.cumsum(lengths)[:-1])
    for document in documents:
        document[-1] = END
    write_token_file(folder, documents, tokenizer=record, shard_tokens=30, rslm_version="0")
    return TokenFile.open(folder)


@pytest.fixture
def token_file(tmp_path: Path) -> TokenFile:
    return write(tmp_path / "tokens", LENGTHS)


def rows_of(lengths: list[int], capacity: int, policy: str) -> list[list[tuple[int, int, int]]]:
    """What the Rust planner gives, as the reference does."""
    offsets, *columns = _rslm.plan_packing(np.array(lengths, np.uint32), capacity, policy)
    pieces = list(zip(*(column.tolist() for column in columns), strict=True))
    ends = offsets.astype(np.int64)
    return [pieces[a:b] for a, b in itertools.pairwise(ends)]


def plan_of(lengths: list[int], length: int, policy: PackingPolicy) -> PackingPlan:
    offsets, *columns = _rslm.plan_packing(np.array(lengths, np.uint32), length, policy)
    names = ("documents", "starts", "lengths")
    return PackingPlan(
        fingerprint="ab" * 32,
        context_length=length,
        policy=policy,
        n_documents=len(lengths),
        row_offsets=offsets.view(np.int64),
        **dict(zip(names, columns, strict=True)),
    )


LENGTH_LISTS = st.one_of(
    st.lists(st.integers(1, 12), max_size=60),
    st.lists(st.integers(1, 300), max_size=40),
    st.lists(st.sampled_from([1, 2, 7, 8, 9, 16, 64]), max_size=60),
)


@pytest.mark.parametrize("policy", PACKS)
@given(lengths=LENGTH_LISTS, capacity=st.integers(1, 70))
def test_plan_equals_the_reference(policy: PackingPolicy, lengths: list[int], capacity: int):
    assert rows_of(lengths, capacity, policy) == pack(lengths, capacity, policy)


@pytest.mark.parametrize("policy", PACKS)
@pytest.mark.parametrize("longest", [100, 2000])
def test_plan_equals_the_reference_beyond_the_buffer(policy: PackingPolicy, longest: int):
    draw = np.random.default_rng(longest)
    lengths = draw.integers(1, longest, 2500).tolist()
    assert len(lengths) > 2 * packing_reference.BUFFER_DOCUMENTS
    assert rows_of(lengths, 512, policy) == pack(lengths, 512, policy)


@given(lengths=LENGTH_LISTS, capacity=st.integers(1, 70))
def test_obfd_covers_every_token_once(lengths: list[int], capacity: int):
    rows = rows_of(lengths, capacity, "obfd")
    covered = sorted((d, s + i) for row in rows for d, s, n in row for i in range(n))
    assert covered == [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    assert all(sum(n for _, _, n in row) <= capacity for row in rows)
    # Best fit opens a row only where no open one has room: no two rows would fit into one.
    fullness = sorted(sum(n for _, _, n in row) for row in rows)
    assert len(fullness) < 2 or fullness[0] + fullness[1] > capacity


@given(lengths=LENGTH_LISTS, capacity=st.integers(1, 70))
def test_bos_bestfit_fills_rows_with_documents_from_their_begin(lengths: list[int], capacity: int):
    rows = rows_of(lengths, capacity, "bos-bestfit")
    used = [d for row in rows for d, _, _ in row]
    assert sorted(used) == list(range(len(lengths)))
    assert all(start == 0 for row in rows for _, start, _ in row)
    assert all(sum(n for _, _, n in row) == capacity for row in rows[:-1])
    # Only the last document of a row is cut.
    assert all(n == lengths[d] for row in rows for d, _, n in row[:-1])


def test_planner_refuses_what_is_out_of_range():
    lengths = np.array([3], np.uint32)
    with pytest.raises(ValueError, match='policy must be bos-bestfit or obfd, got "chunk"'):
        _rslm.plan_packing(lengths, 4, "chunk")
    with pytest.raises(ValueError, match="context_length must be between 1 and"):
        _rslm.plan_packing(lengths, 0, "obfd")
    with pytest.raises(ValueError, match="at least one token, got none in document 1"):
        _rslm.plan_packing(np.array([3, 0], np.uint32), 4, "obfd")


@pytest.mark.parametrize("policy", PACKS)
def test_plan_of_a_token_file_is_that_of_its_lengths(token_file: TokenFile, policy: PackingPolicy):
    plan = plan_packing(token_file, 10, policy)
    expected = pack(LENGTHS, 10, policy)
    assert [plan.pieces(row) for row in range(plan.n_rows)] == expected
    every = np.arange(plan.n_rows)
    counts = [sum(n for _, _, n in row) for row in expected]
    assert plan.n_targets(every).tolist() == counts
    with pytest.raises(IndexError, match=f"row must be in 0..{plan.n_rows - 1}, got {plan.n_rows}"):
        plan.pieces(plan.n_rows)


def test_cu_seqlens_bound_pieces_and_padding(token_file: TokenFile):
    plan = plan_packing(token_file, 10, "obfd")
    rows = np.arange(plan.n_rows)
    bounds = plan.cu_seqlens(rows)
    assert bounds.dtype == np.int32
    read = read_packed_rows(token_file, plan, rows)
    begins = np.flatnonzero(read.positions.ravel() == 0)
    assert bounds.tolist() == [*begins, 10 * len(rows)]


@pytest.mark.parametrize("policy", PACKS)
def test_rows_hold_the_documents_after_an_end_of_text(token_file: TokenFile, policy: PackingPolicy):
    plan = plan_packing(token_file, 10, policy)
    rows = read_packed_rows(token_file, plan, np.arange(plan.n_rows)[::-1])
    for number, pieces in enumerate(pack(LENGTHS, 10, policy)[::-1]):
        inputs: list[int] = []
        targets: list[int] = []
        documents: list[int] = []
        for i, (document, start, length) in enumerate(pieces):
            # One sequence for all places: the end of text, then the document.
            tokens = [END, *token_file.document(document).tolist()]
            inputs += tokens[start : start + length]
            targets += tokens[start + 1 : start + 1 + length]
            documents += [i] * length
        padding = 10 - len(targets)
        assert rows.inputs[number].tolist() == inputs + [END] * padding
        assert rows.targets[number].tolist() == targets + [IGNORE_INDEX] * padding
        assert rows.documents[number].tolist() == documents + [len(pieces)] * padding
    assert all(array.dtype == np.int64 for array in rows)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30), length=st.integers(1, 20))
def test_windows_belong_to_the_documents_of_their_targets(lengths: list[int], length: int):
    expected = pack(lengths, length, "chunk")
    starts = np.cumsum([0, *lengths[:-1]])
    first_tokens = np.arange(len(expected)) * length
    documents = window_documents(starts, first_tokens, length)
    assert [np.unique(row, return_counts=True)[1].tolist() for row in documents] == [
        [n for _, _, n in row] for row in expected
    ]
    assert (documents[:, :1] == 0).all()


def test_positions_begin_anew_with_each_document():
    documents = np.array([[0, 0, 1, 1, 1, 2], [5, 6, 6, 7, 8, 8]])
    assert positions_in(documents).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 0, 1]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), length=st.integers(1, 20))
@pytest.mark.parametrize("policy", get_args(PackingPolicy))
def test_stats_are_those_of_the_rows(policy: PackingPolicy, lengths: list[int], length: int):
    rows = pack(lengths, length, policy)
    plan = None if policy == "chunk" else plan_of(lengths, length, policy)
    stats = packing_stats(Lengths(lengths), length, plan)  # type: ignore[arg-type]
    n_targets = sum(n for row in rows for _, _, n in row)
    whole = {d for row in rows for d, _, n in row if n == lengths[d]}
    if policy == "chunk" and lengths[0] > 1 and (0, 1, lengths[0] - 1) in (rows or [[]])[0]:
        whole.add(0)  # Its first token is predicted by nothing, but all of it is in one window.
    assert stats == (
        len(rows),
        n_targets,
        len(rows) * length - n_targets,
        sum(lengths) - n_targets,
        len(lengths),
        len(lengths) - len(whole),
        n_targets / (len(rows) * length) if rows else 0.0,
    )


class Lengths:
    """What `packing_stats` reads of a token file."""

    def __init__(self, lengths: list[int]) -> None:
        self.n_documents = len(lengths)
        self.document_starts = np.cumsum([0, *lengths[:-1]])
        self.n_tokens = sum(lengths)

    def __len__(self) -> int:
        return self.n_tokens


@pytest.mark.parametrize("policy", PACKS)
def test_plan_is_kept_and_read_again(
    token_file: TokenFile, policy: PackingPolicy, monkeypatch: pytest.MonkeyPatch
):
    made = open_plan(token_file, 10, policy)
    path = plan_path(token_file, 10, policy)
    assert path.name == f"packing_{policy}_10_{token_file.fingerprint[:16]}.plan"
    monkeypatch.setattr(_rslm, "plan_packing", None)
    read = open_plan(TokenFile.open(token_file.path), 10, policy)
    assert (read.fingerprint, read.context_length, read.policy, read.n_documents) == (
        *(made.fingerprint, made.context_length, made.policy),
        made.n_documents,
    )
    for name in ("row_offsets", "documents", "starts", "lengths"):
        assert np.array_equal(getattr(read, name), getattr(made, name))
    # The token file is as good as before.
    assert TokenFile.open(token_file.path, verify=True).fingerprint == token_file.fingerprint


def test_plan_of_one_shard_lies_beside_it(token_file: TokenFile):
    shard = TokenFile.open(token_file.shards[1].path)
    plan = open_plan(shard, 10, "obfd")
    assert plan_path(shard, 10, "obfd").parent == token_file.path
    assert plan.lengths.sum() == len(shard)
    # The first document of the shard begins where nothing stands before it.
    rows = read_packed_rows(shard, plan, np.arange(plan.n_rows))
    assert sorted(rows.targets[rows.targets >= 0].tolist()) == sorted(shard[:].tolist())


def test_plan_that_cannot_be_kept_is_told_and_used(
    token_file: TokenFile, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(packing, "write_plan", refuse)
    with pytest.warns(UserWarning, match="the packing plan cannot be kept: Permission denied"):
        plan = open_plan(token_file, 10, "obfd")
    assert plan.n_rows == len(pack(LENGTHS, 10, "obfd"))


def damage(path: Path, at: int, new: bytes, *, mend: bool) -> None:
    """Overwrites bytes, and with `mend` makes the sums fit again."""
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    if mend:
        data[88:92] = struct.pack("<I", zlib.crc32(data[128:]))
        data[124:128] = struct.pack("<I", zlib.crc32(data[:124]))
    path.write_bytes(data)


def test_damaged_plan_is_refused_with_its_offset(token_file: TokenFile):
    plan = open_plan(token_file, 10, "obfd")
    path = plan_path(token_file, 10, "obfd")
    good = path.read_bytes()
    n_rows, n_pieces = plan.n_rows, len(plan.documents)
    documents = 128 + 8 * (n_rows + 1)
    u32, u64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
    for at, new, mend, message in [
        (0, b"X", False, "at byte 0: tag must be"),
        (8, u32(2), True, "at byte 8: version must be 1, got 2"),
        (12, u32(11), False, "at byte 124: header_crc32 must be"),
        (12, u32(11), True, "at byte 12: must be the plan that its name says"),
        (12, u32(9), True, f"at byte {documents + 8 * n_pieces}: rows must have at most"),
        (16, b"none\0", True, "at byte 16: policy must be bos-bestfit or obfd, got b'none"),
        (32, bytes(32), True, "at byte 12: must be the plan that its name says"),
        (64, u64(13), True, "at byte 64: n_documents must be 12, got 13"),
        (72, u64(2**60), True, f"at byte {len(good)}: the file must have"),
        (200, b"\xff", False, "at byte 88: bytes 128 to .* payload_crc32 must be"),
        (128 + 16, u64(0), True, f"at byte {128 + 16}: rows must ascend"),
        (128, u64(1), True, "at byte 128: rows must ascend"),
        (documents - 8, u64(99), True, f"at byte {documents - 8}: rows must ascend"),
        (documents + 4, u32(12), True, f"at byte {documents + 4}: documents must be below"),
        (documents + 4 * n_pieces, u32(90), True, f"at byte {documents + 4 * n_pieces}: pieces"),
        (documents + 8 * n_pieces, u32(0), True, f"at byte {documents + 8 * n_pieces}: pieces"),
        (documents + 8 * n_pieces, u32(99), True, f"at byte {documents + 8 * n_pieces}: pieces"),
    ]:
        path.write_bytes(good)
        damage(path, at, new, mend=mend)
        with pytest.raises(FormatError, match=message) as raised:
            open_plan(token_file, 10, "obfd")
        assert str(path) in str(raised.value)
    for length in (0, 127, 128, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError, match=f"at byte {length}: "):
            open_plan(token_file, 10, "obfd")
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="the file must have"):
        open_plan(token_file, 10, "obfd")


def test_plan_survives_a_round_trip_of_any_size(tmp_path: Path):
    path = tmp_path / "a.plan"
    for lengths in ([1], [5] * 300, [7, 1000]):
        plan = plan_of(lengths, 64, "obfd")
        write_plan(path, plan)
        read = read_plan(path, np.cumsum([0, *lengths]))
        assert [read.pieces(row) for row in range(read.n_rows)] == pack(lengths, 64, "obfd")


@pytest.mark.parametrize("policy", PACKS)
def test_files_that_do_not_tell_documents_apart_are_refused(tmp_path: Path, policy: PackingPolicy):
    ended = write(tmp_path / "a", [3, 4], end_of_text=None)
    with pytest.raises(
        ValueError, match=r"after an end-of-text token, and those of .* end without"
    ):
        open_plan(ended, 4, policy)
    plain = bytearray(1024) + np.arange(50, dtype="<u2").tobytes()
    plain[:12] = struct.pack("<iii", 20240520, 1, 50)
    (tmp_path / "plain.bin").write_bytes(plain)
    with pytest.warns(UserWarning, match=r"a plain llm\.c file"):
        unknown = TokenFile.open(tmp_path / "plain.bin")
    with pytest.raises(ValueError, match="has no index of them"):
        open_plan(unknown, 4, policy)


def test_bounds_end_with_the_file(token_file: TokenFile):
    assert document_bounds(token_file).tolist() == np.cumsum([0, *LENGTHS]).tolist()


def test_command_tells_counts_and_keeps_the_plan(
    token_file: TokenFile, capsys: pytest.CaptureFixture[str]
):
    def told(*arguments: str) -> dict[str, Any]:
        command = ["tokens", "pack", str(token_file.path), *arguments, "--json"]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)

    record = told("--context-length", "10")
    assert record["plan"] == str(plan_path(token_file, 10, "obfd"))
    assert (record["n_documents"], record["n_dropped"]) == (12, 0)
    assert record["n_targets"] + record["n_padding"] == 10 * record["n_rows"]
    record = told("--context-length", "10", "--policy", "chunk")
    assert (record["plan"], record["utilization"]) == (None, 1.0)
    assert record["n_dropped"] == 1 + (sum(LENGTHS) - 1) % 10
    assert main(["tokens", "pack", str(token_file.path), "--context-length", "0"]) == 2
    assert "context_length must be at least 1, got 0" in capsys.readouterr().err


def test_reference_policies_are_all_that_there_are():
    functions: dict[str, Callable[..., Any]] = vars(packing_reference)
    names = [policy.replace("-", "_") for policy in get_args(PackingPolicy)]
    assert all(callable(functions[name]) for name in names)
