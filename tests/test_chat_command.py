import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import PATIENCE
from tiny_models import tiny_model, tiny_tokenizer, write_tiny_model

from rslm.chat import ChatFormat
from rslm.cli import main
from rslm.commands.chat import Conversation, obey
from rslm.commands.sample import Speed, in_order, make_engine
from rslm.infer.engine import Engine
from rslm.infer.parameters import Chunk, Completion, SamplingParameters
from rslm.process import harmless

Say = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", has_chat=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "base", has_chat=False)


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = tiny_tokenizer(has_chat=True)
    return make_engine(tiny_model(tokenizer), tokenizer, exact=False, int8=False)


@pytest.fixture
def talk(engine: Engine) -> Conversation:
    return Conversation(
        engine,
        ChatFormat.of(engine.tokenizer),
        SamplingParameters(temperature=0),
        max_new_tokens=6,
        context_length=64,
        seed=1,
    )


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """`chat(folder, lines, *flags)`: what is printed when these lines are piped in."""

    def run(folder: Path, lines: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", str(folder), "--device", "cpu", "--seed", "3", *flags]) == 0
        captured = capsys.readouterr()
        assert "error" not in captured.err
        return captured.out

    return run


def test_each_line_is_answered_on_stdout(folder: Path, chat: Say):
    flags = ["--max-new-tokens", "5", "--temperature", "0"]
    out = chat(folder, "hello\n\nyou\n", *flags)
    assert out.count("\n") >= 2
    assert out == chat(folder, "hello\nyou\n/quit\nnot read\n", *flags)
    assert chat(folder, "hello\n/reset\nhello\n", *flags) == 2 * chat(folder, "hello\n", *flags)
    assert chat(folder, "") == ""


def test_a_base_model_is_talked_to_in_a_transcript(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main(["chat", str(base), "--device", "cpu", "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert "plain transcript" in captured.err
    assert captured.out.endswith("\n")


def test_options_out_of_range_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    for flags in (["--max-new-tokens", "0"], ["--temperature", "-1"], ["--top-p", "2"]):
        assert main(["chat", str(folder), *flags]) == 2
        assert "must be" in capsys.readouterr().err
    assert main(["chat", "no-such-folder"]) == 2
    assert main(["chat", "no-such-folder", "--seed", str(2**64)]) == 2
    assert "seed must lie in" in capsys.readouterr().err


def test_the_seed_after_the_last_is_the_first(folder: Path, chat: Say):
    assert chat(folder, "a\nb\nc\n", "--seed", str(2**64 - 2), "--max-new-tokens", "2")


def roles(talk: Conversation) -> list[str]:
    return [message["role"] for message in talk.messages]


def test_what_was_said_is_remembered_and_answered_anew(talk: Conversation):
    assert obey(talk, "hello")
    assert roles(talk) == ["user", "assistant"]
    first = talk.messages[1]
    assert obey(talk, "/regenerate")
    assert talk.messages[1] == first, "temperature 0"
    talk.parameters = replace(talk.parameters, temperature=2.0)
    obey(talk, "/regenerate")
    assert talk.messages[1] != first
    assert roles(talk) == ["user", "assistant"]
    obey(talk, "/system Be kind.")
    assert (talk.messages, talk.system) == ([], "Be kind.")
    obey(talk, "/system")
    assert talk.system is None
    obey(talk, "//quit")
    assert talk.messages[0]["content"] == "/quit"
    assert not obey(talk, "/quit")


def test_commands_that_are_none_and_nothing_to_answer_are_said_so(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
):
    for line in ("/nix", "/regenerate", "/help"):
        assert obey(talk, line)
    err = capsys.readouterr().err
    assert "unknown command /nix" in err
    assert "no answer yet" in err
    assert "/system" in err
    assert talk.messages == []


def test_the_begin_of_a_long_conversation_is_forgotten(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
):
    for i in range(8):
        obey(talk, f"message {i}")
        assert roles(talk) == ["user", "assistant"] * (len(talk.messages) // 2)
    assert talk.messages[-2]["content"] == "message 7"
    assert len(talk.messages) < 16
    assert "messages are forgotten" in capsys.readouterr().err
    obey(talk, "x" * 100)
    assert "too long for the model's context" in capsys.readouterr().err
    assert talk.messages[-2]["content"] == "message 7", "it is as if it had not been said"


def test_an_interrupt_stops_an_answer_and_keeps_what_was_said(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = talk.engine.stream
    seen: list[Chunk] = []

    def interrupted(*args: Any) -> Iterator[Chunk]:
        def chunks() -> Iterator[Chunk]:
            for i, chunk in enumerate(inner):
                seen.append(chunk)
                if i == 2:
                    signal.raise_signal(signal.SIGINT)
                yield chunk

        inner = whole(*args)
        return chunks()

    monkeypatch.setattr(talk.engine, "stream", interrupted)
    before = signal.getsignal(signal.SIGINT)
    obey(talk, "hello")
    assert len(seen) == 3, "of six"
    assert roles(talk) == ["user", "assistant"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert talk.engine.statistics().n_running <= 1
    obey(talk, "and?")
    assert len(talk.messages) == 4


def test_what_a_model_writes_steers_no_terminal():
    assert harmless("a\x1b]0;title\x07\tb\nc\r\u202e") == ("a\\x1b]0;title\\x07\tb\nc\\r\\u202e")


@pytest.mark.slow
def test_a_terminal_is_asked_and_left_by_ctrl_c(folder: Path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rslm", "chat", str(folder), "--device", "cpu"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    screen = Screen(master)
    try:
        screen.wait_for(r"> $")
        os.write(master, b"hello\r")
        screen.wait_for(r"(tokens/s\)|no tokens\))\r\n> $")
        # Python's readline does not notice a signal of the moment before it begins to wait.
        # A second press must not meet a process that is ending: hence half of the patience.
        for _ in range(2):
            os.write(master, b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert process.wait(PATIENCE / 2) == 130
                break
        assert process.poll() == 130
    finally:
        process.kill()
        process.wait()
        screen.close()


def take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """What a terminal shows, read as it comes."""

    def __init__(self, master: int) -> None:
        self.master, self.text = master, ""
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 1 << 12)
            except OSError:
                return
            if not data:
                return
            with self.changed:
                self.text += data.decode(errors="replace")
                self.changed.notify()

    def wait_for(self, pattern: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: re.search(pattern, self.text), timeout=PATIENCE), (
                self.text
            )
            self.text = ""

    def close(self) -> None:
        self.thread.join(PATIENCE)
        os.close(self.master)


def chunk(index: int, text: str, *, is_last: bool = False) -> Chunk:
    completion = object.__new__(Completion) if is_last else None
    return Chunk(index, text, (1,), None, completion)


def test_texts_drawn_together_are_printed_in_order():
    chunks = [
        *[chunk(1, "x"), chunk(0, "a"), chunk(1, "y", is_last=True), chunk(0, "b")],
        *[chunk(2, "m"), chunk(0, "", is_last=True), chunk(2, "n", is_last=True)],
    ]
    assert ["".join(pieces) for pieces in in_order(chunks, 3)] == ["ab", "xy", "mn"]


def test_speed_is_told_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    speed = Speed()
    assert len(list(speed.watch([chunk(0, "a"), chunk(0, "b")]))) == 2
    speed.tell("seed 1")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    speed.tell("seed 1")
    err = capsys.readouterr().err
    assert re.fullmatch(r"\(seed 1: 2 tokens, the first after [\d.]+ s, [\d.,]+ tokens/s\)\n", err)
    Speed().tell("seed 2")
    assert capsys.readouterr().err == "(seed 2: no tokens)\n"


def sampled(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str, code: int = 0) -> str:
    assert main(["sample", str(folder), "--device", "cpu", "--prompt", "Hi", *flags]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_sample_draws_several_of_one_seed_together(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--max-new-tokens", "6", "--seed", "5", "--exact"]
    both = sampled(capsys, folder, *flags, "--n", "2")
    one = sampled(capsys, folder, *flags)
    assert both.startswith(one)
    assert both[len(one) :].startswith("Hi")
    assert both != 2 * one


def test_sample_goes_beyond_the_context_as_before(folder: Path, capsys: pytest.CaptureFixture[str]):
    from rslm.infer.load import end_ids, load_run
    from rslm.infer.sampler import generate

    flags = ["--max-new-tokens", "100", "--seed", "5"]
    long = sampled(capsys, folder, *flags)
    model, tokenizer = load_run(folder, device="cpu")
    ends = end_ids(model, tokenizer)
    ids = generate(
        model, [*b"Hi"], max_new_tokens=100, temperature=0.8, seed=5, stop_token_ids=ends
    )
    assert long == f"Hi{tokenizer.decode(list(ids))}\n"
    err = sampled(capsys, folder, *flags, "--exact", code=2)
    assert "within the model's context of 64 tokens" in err
    # What is not said is what there is room for.
    short = sampled(capsys, folder, "--seed", "5")
    assert len(short.encode()) < 64 * 4


def test_sample_refuses_to_draw_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    for flag in ("--n", "--n-samples"):
        assert "must be at least 1" in sampled(capsys, folder, flag, "0", code=2)


@pytest.mark.parametrize("n_new", ["3", "100"])
def test_sample_refuses_seeds_that_leave_64_bits_before_it_draws(
    folder: Path, capsys: pytest.CaptureFixture[str], n_new: str
):
    flags = ["--max-new-tokens", n_new, "--temperature", "0", "--seed"]
    assert sampled(capsys, folder, *flags, str(2**64 - 1))
    for seed, n in ((2**64, 1), (2**64 - 1, 2), (-(2**63) - 1, 1)):
        err = sampled(capsys, folder, *flags, str(seed), "--n-samples", str(n), code=2)
        assert f"must lie in [-2^63, 2^64), got {seed} for {n} samples" in err
