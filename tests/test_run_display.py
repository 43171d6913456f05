"""The display of a run: lines in a pipe, a panel on a terminal, no message lost on either."""

import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from screens import Screen, run_on_terminal

from rslm.config import to_toml
from rslm.run_display import RunDisplay, next_due, open_console
from rslm.train_config import TrainConfig

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[1]
SPARKS = set("▁▂▃▄▅▆▇█")


def show_some(console: Console) -> RunDisplay:
    display = RunDisplay(console, title="tiny", n_steps=40, first_step=0, log_every=20)
    with display:
        for step in range(1, 41):
            shared = {"elapsed_seconds": float(step), "learning_rate": 1e-3, "grad_norm": 2.0}
            display.show({"step": step, "loss": 5 - step / 10, "tokens_per_second": None} | shared)
        display.note("a [sentence]")
        display.show(
            {"step": 40, "val_loss": 1.0, "val_bits_per_byte": 2.5, "elapsed_seconds": 40.0}
        )
    return display


def test_display_in_a_pipe_is_one_parseable_line_a_logged_step() -> None:
    file = io.StringIO()
    show_some(Console(file=file, width=20))
    lines = file.getvalue().splitlines()
    assert lines == [
        "step=1/40 loss=4.9000 learning_rate=0.001 grad_norm=2",
        "step=20/40 loss=3.0000 learning_rate=0.001 grad_norm=2 seconds_left=20",
        "step=40/40 loss=1.0000 learning_rate=0.001 grad_norm=2 seconds_left=0",
        "a [sentence]",
        "step=40/40 val_loss=1.0000 val_bits_per_byte=2.5000 seconds_left=0",
    ]


def test_panel_draws_the_metric_that_is_asked_for_and_no_bytes_that_nobody_counts() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    display = RunDisplay(
        console, title="tiny", n_steps=8, first_step=0, log_every=1, drawn="reward"
    )
    with display:
        for step in range(1, 9):
            row = {"step": step, "loss": 0.0, "reward": step / 8, "elapsed_seconds": 1.0}
            display.show(row | {"learning_rate": 1e-3, "grad_norm": 2.0})
        display.show({"step": 8, "val_loss": 0.25, "elapsed_seconds": 2.0})
    shown = file.getvalue()
    last = shown[shown.rindex("tiny") :]
    assert "▁▂▃▄▅▆▇█" in last
    assert "0.2500" in last
    assert "bits/byte" not in last


def test_display_on_a_terminal_is_one_panel() -> None:
    file = io.StringIO()
    show_some(Console(file=file, force_terminal=True, width=100, color_system=None))
    shown = file.getvalue()
    for text in ("tiny", "40/40", "1.0000", "2.5000", "time left", "a [sentence]", "█"):
        assert text in shown
    assert "step=" not in shown


class Terminal:
    """A console that believes to be a terminal, and the screen that shows what it got."""

    def __init__(
        self, width: int = 80, height: int = 30, *, encoding: str = "utf-8", no_color: bool = True
    ) -> None:
        self.file = io.TextIOWrapper(
            io.BytesIO(), encoding, errors="backslashreplace", newline="", write_through=True
        )
        self.width = width
        self.console = Console(
            file=self.file, force_terminal=True, width=width, height=height, no_color=no_color
        )

    @property
    def raw(self) -> str:
        # As a terminal's driver makes it.
        return self.file.buffer.getvalue().decode().replace("\n", "\r\n")

    @property
    def screen(self) -> Screen:
        screen = Screen(self.width)
        screen.feed(self.raw)
        return screen

    def wait_for(self, text: str) -> None:
        """Waits for a picture, of which there are two a second, with this in it."""
        end = time.monotonic() + 60
        while text not in self.screen.text:
            assert time.monotonic() < end, f"{text!r} is not shown"
            time.sleep(0.05)


def full_row(step: int) -> dict[str, float]:
    return {
        "step": step,
        "elapsed_seconds": float(step),
        "loss": 9.0 - step / 100,
        "learning_rate": 3e-4,
        "grad_norm": 0.123456,
        "tokens_per_second": 123_456.7,
        "mfu": 0.4321,
        "memory_bytes": 3_210_000_000,
    }


def start_display(terminal: Terminal, **options: object) -> RunDisplay:
    due = {"checkpoint": 50, "validation": 20, "sample": None}
    sizes = {"n_steps": 400, "first_step": 0, "log_every": 10, "due": due}
    return RunDisplay(terminal.console, title="a model", **{**sizes, **options})


def show_run(terminal: Terminal, **options: object) -> str:
    with start_display(terminal, **options) as display:
        for step in range(1, 121):
            display.show(full_row(step))
        display.show({"step": 120, "val_loss": 2.5, "val_bits_per_byte": 1.25})
    return terminal.screen.text


def test_panel_shows_all_numbers_and_what_is_next() -> None:
    shown = show_run(Terminal(96))
    for text in (
        *["a model", "120/400", "7.8000", "2.5000", "1.2500", "0.0003", "0.123", "123,457"],
        *["43.2%", "3.21 GB", "time left", "4m 40s", "2m 00s"],
        "next: validation at 140 in 20s; checkpoint at 150 in 30s; sample at 400 in 4m 40s",
    ):
        assert text in shown, text
    assert "compiled" not in shown
    assert "█" in shown
    (line,) = [line for line in shown.splitlines() if SPARKS & set(line)]
    bars = "".join(c for c in line if c in SPARKS)
    assert bars == "".join(sorted(bars, reverse=True)), "the loss falls"


def test_a_loop_shows_metrics_of_its_own() -> None:
    row = full_row(20) | {"reward_mean": 0.25}
    file, shown = io.StringIO(), {"reward_mean": ".3f", "entropy": ".2f"}
    lines = RunDisplay(
        Console(file=file), title="", n_steps=40, first_step=0, log_every=20, shown=shown
    )
    lines.show(row)
    assert "reward_mean=0.250" in file.getvalue()
    terminal = Terminal(96)
    with start_display(terminal, shown=shown) as display:
        display.show(row)
        display.show({"step": 20, "val_loss": 2.5, "entropy": 1.5})
    for text in ("reward mean", "0.250", "entropy", "1.50"):
        assert text in terminal.screen.text


def test_time_of_compiling_stands_apart() -> None:
    terminal = Terminal()
    with start_display(terminal, compiles=True) as display:
        assert "compiling, for 0s" in terminal.screen.text
        for step in (1, 2, 3):
            display.show(full_row(step) | {"elapsed_seconds": 1000.0 + step})
        assert display.seconds_left == 397.0
    assert "compiled in" in terminal.screen.text


def test_activity_is_named_while_no_step_is_made() -> None:
    terminal = Terminal()
    with start_display(terminal) as display:
        display.show(full_row(20))
        with display.doing("validating"):
            terminal.wait_for("validating, for")
        terminal.wait_for("next: validation at 40")
        assert "validating" not in terminal.screen.text


@pytest.mark.parametrize("width", [200, 100, 72, 50, 34, 33, 20, 12])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_panel_fits_every_width(width: int, encoding: str) -> None:
    terminal = Terminal(width, 40, encoding=encoding)
    with start_display(terminal) as display:
        for step in range(1, 40):
            display.show(full_row(step))
            display.note(f"message {step}")
            if step % 13 == 0:
                display.warn(f"a warning of many words about step {step}, and what to do about it")
    lines = terminal.screen.lines
    assert "\\u" not in terminal.raw
    # What does not fit is drawn more than once, or leaves a part behind.
    assert [line for line in lines if re.fullmatch(r"message \d+", line.rstrip())] == [
        f"message {step}" for step in range(1, 40)
    ]
    assert sum("39/400" in line for line in lines) == 1
    titles = sum("a model" in line for line in lines)
    assert titles == (1 if width >= 34 else 0)
    assert len(lines) < 39 + 30 + 3 * 80 / width


@pytest.mark.parametrize("height", [4, 9, 12, 20])
def test_panel_fits_every_height(height: int) -> None:
    terminal = Terminal(80, height)
    shown = show_run(terminal)
    assert shown.count("120/400") == 1
    panel = [line for line in shown.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert len(panel) < height


def test_no_color_draws_no_colors() -> None:
    colors = re.compile(r"\x1b\[[\d;]*3[0-7]")
    plain, colored = Terminal(), Terminal(no_color=False)
    colored.console = Console(
        file=colored.file, force_terminal=True, width=80, height=30, color_system="standard"
    )
    for terminal in (plain, colored):
        show_run(terminal)
    assert not colors.search(plain.raw)
    assert colors.search(colored.raw)


def test_no_color_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert open_console().no_color


def test_forced_color_does_not_make_a_terminal_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not open_console().is_terminal


def test_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    show_some(Console(file=file, force_terminal=True, width=100))
    assert "\x1b" not in file.getvalue()
    assert file.getvalue().startswith("step=1/40 loss=4.9000 ")


def test_nothing_written_meanwhile_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(60, 24)
    monkeypatch.setattr(sys, "stderr", terminal.file)
    logger = logging.getLogger("test_nothing_written_meanwhile_is_lost")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with start_display(terminal) as display:
            for step in range(1, 31):
                display.show(full_row(step))
                if step % 3 == 0:
                    display.note(f"note {step} [not markup] " + "long " * 20)
                elif step % 3 == 1:
                    logger.warning("log %d", step)
                else:
                    print(f"print {step}", file=sys.stderr)
            sys.stderr.write("a line without its end")
        logger.warning("log after")
    finally:
        logger.removeHandler(handler)
    text = re.sub(r"\s+", " ", terminal.screen.text)
    for step in range(1, 31):
        kind = {0: f"note {step} [not markup] long", 1: f"log {step} ", 2: f"print {step} "}
        assert text.count(kind[step % 3]) == 1, (step, text)
    assert text.count("long") == 200
    assert text.count("a line without its end") == 1
    assert text.endswith("log after ")
    assert handler.stream is terminal.file


def test_warnings_stay_in_the_panel() -> None:
    terminal = Terminal()
    with start_display(terminal) as display:
        for number in (1, 2, 3):
            display.warn(f"fault {number}")
    shown = terminal.screen.text
    assert shown.count("fault 1") == 1, "above the panel"
    assert shown.count("fault 3") == 2, "above it, and in it"
    assert "warning 3: fault 3" in shown


def test_panel_is_drawn_while_rows_arrive() -> None:
    # Drawing looks through the losses to which the loop adds.
    terminal, faults = Terminal(), []
    previous, threading.excepthook = threading.excepthook, faults.append
    try:
        with start_display(terminal) as display:
            thread = threading.Thread(target=lambda: [display._picture() for _ in range(300)])
            thread.start()
            while thread.is_alive():
                display.show(full_row(7))
    finally:
        threading.excepthook = previous
    assert faults == []


@pytest.mark.parametrize(
    ("step", "every", "due"), [(0, 40, 40), (39, 40, 40), (40, 40, 80), (0, None, 95), (81, 40, 95)]
)
def test_next_due(step: int, every: int | None, due: int) -> None:
    assert next_due(step, every, 95) == due


PROGRAM = """
import sys, warnings
from rslm import train as loop
from rslm.config import read_config
loop.peak_flops = lambda *_: 1e12
loop.write_loss_curve = lambda *_: None
draw = loop.sample_text
def sample_text(model, tokenizer, config, step):
    warnings.warn(f"said at {step}")
    return draw(model, tokenizer, config, step)
loop.sample_text = sample_text
loop.train(read_config(loop.TrainConfig, sys.argv[1]))
print("after")
"""


@pytest.mark.parametrize("columns", [80, 30])
def test_training_on_a_real_terminal(tiny_config: MakeConfig, tmp_path: Path, columns: int) -> None:
    (tmp_path / "config.toml").write_text(to_toml(tiny_config(n_steps=60)))
    code, written = run_on_terminal(
        [sys.executable, "-W", "always", "-c", PROGRAM, str(tmp_path / "config.toml")],
        columns=columns,
        lines=30,
        environment=os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
    )
    screen = Screen(columns)
    screen.feed(written)
    assert code == 0, screen.text
    assert screen.text.count("60/60") == 1
    said = re.findall(r"UserWarning:\s+said\s+at\s+(\d+)", screen.text)
    assert said == ["10", "20", "30", "40", "50", "60"]
    assert screen.text.splitlines()[-1] == "after"
    assert written.endswith("\x1b[?25hafter\r\n"), "the cursor is shown again"
    assert ("\x1b[3" in written) == (columns == 80), "a panel has colours, a line has none"


def test_training_in_a_pipe_prints_lines(
    tiny_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rslm import train as loop

    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(loop, "write_loss_curve", lambda *_: None)
    config = tiny_config()
    loop.train(config)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"training 10,832 parameters, 1 layers of 16 in {config.out}"
    line = (
        r"step=\d+/20 (loss=\S+ learning_rate=\S+ grad_norm=\S+( tokens_per_second=\d+)?"
        r"|val_loss=\S+ val_bits_per_byte=\S+)( seconds_left=\d+)?"
    )
    assert [int(line.split("/")[0][5:]) for line in lines[1:]] == [1, 5, 10, 10, 15, 20, 20]
    for text in lines[1:]:
        assert re.fullmatch(line, text), text
