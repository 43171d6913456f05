"""One bit a token beside a token file: written, read, damaged."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.errors import FormatError
from rslm.post import mask_plane
from rslm.post.mask_plane import NAME, MaskPlane, MaskWriter
from rslm.token_file import TokenFile
from rslm.token_file_writer import TokenizerRecord, write_token_file

RECORD = TokenizerRecord(
    name="count",
    vocab_size=300,
    canonical_json=b"{}",
    special_tokens={},
    end_of_text=None,
    token_byte_lengths=np.ones(300, np.uint32),
)


def write(folder: Path, masks: list[list[bool]], first_id: int = 0) -> TokenFile:
    ids = [np.full(len(mask), first_id) for mask in masks]
    write_token_file(folder, ids, tokenizer=RECORD, shard_tokens=16, rslm_version="0")
    token_file = TokenFile.open(folder)
    with MaskWriter(folder) as writer:
        for mask in masks:
            writer.add(np.array(mask))
        writer.finish(token_file.fingerprint)
    return token_file


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=8),
    block=st.sampled_from([1, 2, 1 << 20]),
)
def test_any_stretch_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, masks: list[list[bool]], block: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_plane, "_BLOCK_BYTES", block)
        plane = MaskPlane(write(tmp_path_factory.mktemp("m"), masks))
    whole = [bit for mask in masks for bit in mask]
    for start in range(len(whole)):
        for count in {0, 1, 7, 9, len(whole) - start}:
            stop = min(start + count, len(whole))
            read = plane.read(start, stop - start)
            assert read.dtype == bool
            assert read.tolist() == whole[start:stop]


def test_every_damaged_byte_is_found(tmp_path: Path):
    token_file = write(tmp_path / "m", [[True, False, True] * 9])
    path = tmp_path / "m" / NAME
    good = path.read_bytes()
    assert len(good) == 64 + 4
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(FormatError, match=r"train_mask\.bits"):
            MaskPlane(token_file)
    for cut in (0, 10, 63, 64, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(FormatError):
            MaskPlane(token_file)
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="must have 68 bytes"):
        MaskPlane(token_file)


def test_mask_of_other_tokens_is_refused(tmp_path: Path):
    write(tmp_path / "one", [[True] * 5])
    other = write(tmp_path / "two", [[True] * 5], first_id=1)
    (tmp_path / "two" / NAME).write_bytes((tmp_path / "one" / NAME).read_bytes())
    with pytest.raises(FormatError, match="fingerprint"):
        MaskPlane(other)
