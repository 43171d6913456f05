"""Files are replaced whole or not at all, and nothing that is no file is replaced."""

import errno
import os
import socket
from pathlib import Path

import pytest

from rslm.cli import error_line
from rslm.files import require_place, write_atomically


def test_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept" / "a.txt", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    write_atomically(link, b"after", memoryview(b"wards"))
    assert not link.is_symlink()
    assert link.read_bytes() == b"afterwards"
    assert target.read_text() == "before"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str, is_linked: bool) -> None:
    path = tmp_path / kind
    server = socket.socket(socket.AF_UNIX)
    os.mkfifo(path) if kind == "pipe" else server.bind(str(path))
    server.close()
    before = path.stat()
    if is_linked:
        path = tmp_path / "link"
        path.symlink_to(kind)
    for refuse in (write_atomically, require_place):
        with pytest.raises(ValueError, match=f"{path.name} must be a regular file .* is a {kind}"):
            refuse(path)
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    assert len(os.listdir(tmp_path)) == 1 + is_linked


def test_errors_name_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "none" / "a.txt", b"after")
    assert error_line(missing.value) == f"{tmp_path}/none/a.txt: No such file or directory"
    with pytest.raises(FileNotFoundError, match="folder to write it into does not exist"):
        require_place(tmp_path / "none" / "a.txt")
    for refuse in (write_atomically, require_place):
        with pytest.raises(IsADirectoryError) as folder:
            refuse(tmp_path)
        assert folder.value.filename == str(tmp_path)
    require_place(path)
    monkeypatch.setattr("rslm.files.os.fsync", fill_up)
    with pytest.raises(OSError, match="No space left") as full:
        write_atomically(path, b"after")
    assert error_line(full.value) == f"{path}: No space left on device"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "before"
