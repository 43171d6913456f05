"""Commands whose standard streams are closed or full, and Ctrl-C from the first moment on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rslm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a shell")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "text.txt").write_text("low lower lowest <|endoftext|>" * 9)
    special_tokens = ["<|endoftext|>"]
    tokenizer = rslm.Tokenizer.train(folder / "text.txt", 300, special_tokens)
    tokenizer.save(folder / "tok.json")
    tokenizer.encode_files(folder / "text.txt", folder / "tokens")
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = command.replace("rslm ", f"{sys.executable} -m rslm ", 1)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


PRINTING = [
    "--help",
    "--version",
    "tokenizer info --help",
    "tokenizer info tok.json",
    "tokenizer encode tok.json < text.txt",
    "tokenizer decode tok.json <<< '104 105'",
    "tokens show tokens",
]


@pytest.mark.parametrize("command", PRINTING)
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "it is closed")],
)
def test_output_that_is_lost_is_an_error_in_one_line(
    command: str, redirection: str, reason: str, folder: Path
) -> None:
    done = shell(f"rslm {command} {redirection}", folder)
    expected = f"error: stdout must take the whole output, and does not: {reason}\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_output_larger_than_a_buffer_is_the_same_error(folder: Path) -> None:
    text = folder / "long.txt"
    text.write_text("low lower " * 20_000)
    for redirection in (">/dev/full", ">&-"):
        done = shell(f"rslm tokenizer encode tok.json < long.txt {redirection}", folder)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: stdout must take the whole output")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_messages_that_are_lost_change_nothing(redirection: str, folder: Path) -> None:
    plain = shell("rslm tokenizer info tok.json", folder)
    done = shell(f"rslm tokenizer info tok.json {redirection}", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")
    out = f"out{len(redirection)}.json"
    done = shell(
        f"rslm tokenizer train text.txt --vocab-size 260 --out {out} {redirection}", folder
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert rslm.Tokenizer.load(folder / out).vocab_size == 260
    done = shell(f"rslm tokenizer info missing.json {redirection}", folder)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("command", ["train text.txt --vocab-size 260 --out {}", "info tok.json"])
def test_all_streams_closed_is_no_traceback(command: str, folder: Path) -> None:
    made = command.format("closed.json")
    done = shell(
        f"rslm tokenizer {made} <&- >&- 2>&-; code=$?; exec 2>/dev/null; exit $code", folder
    )
    assert (done.returncode, done.stderr) == (2 if "info" in command else 0, "")
    if "train" in command:
        assert rslm.Tokenizer.load(folder / "closed.json").vocab_size == 260


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_closed_stdin_is_an_error_in_one_line(command: str, folder: Path) -> None:
    done = shell(f"rslm tokenizer {command} tok.json <&-", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: stdin must be open, and is closed\n"


@pytest.mark.parametrize("command", ["tokenizer info tok.json", "train --help"])
def test_interrupt_while_modules_load_is_quiet(command: str, folder: Path) -> None:
    interrupted = 0
    for milliseconds in range(0, 400, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", PREPARED, *command.split()],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        # The interpreter's own start is not ours.
        assert process.stdout.readline() == b"ready\n"
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        # The interpreter takes the handler away before it ends.
        assert process.returncode in (0, 130, -signal.SIGINT), errors
        assert errors in (b"", b"interrupted\n")
        interrupted += process.returncode == 130
    assert interrupted > 3


PREPARED = """
import sys
from rslm.__main__ import main
from rslm import process
assert not {"rslm._rslm", "numpy", "tyro", "rslm.cli"} & sys.modules.keys()
begin = process.begin
def told():
    begin()
    print("ready", flush=True)
process.begin = told
sys.exit(main())
"""


def test_a_background_job_goes_on_ignoring_interrupts(folder: Path) -> None:
    program = (
        "from rslm import process; process.begin(); import os, signal; os.kill(os.getpid(), 2)"
    )
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {program}"
    for code, expected in ((program, 130), (ignoring, 0)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == expected
