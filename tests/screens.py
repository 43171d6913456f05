"""A terminal as a list of lines, and programs that run on one."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Mapping, Sequence

TOKEN = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])")


class Screen:
    """What a terminal of some width shows, with all that scrolled away.

    Knows what a panel is drawn with: the cursor up, to the line's start or a line down, a line
    erased, colours. Anything else is an error.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        end = 0
        for match in TOKEN.finditer(text):
            assert match.start() == end, f"not understood: {text[end : match.start()]!r}"
            end = match.end()
            count, code, control, character = match.groups()
            if code is not None:
                self.obey(code, count)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self.go_down()
            else:
                self.put(character)
        assert end == len(text), f"not understood: {text[end:]!r}"

    def obey(self, code: str, count: str) -> None:
        if code == "A":
            self.row = max(0, self.row - int(count or 1))
        elif code == "K":
            assert count == "2"
            self.lines[self.row] = ""
        else:
            assert code in "mhl", f"not understood: {code}"

    def go_down(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def put(self, character: str) -> None:
        if self.column == self.columns:
            self.column = 0
            self.go_down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


def run_on_terminal(
    command: Sequence[str], *, columns: int, lines: int, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Exit code of a program on a terminal of its own, and all that it wrote there."""
    child, descriptor = pty.fork()
    if child == 0:
        # The size must stand before the program asks for it.
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        # Which these would overrule, where pytest runs in several processes.
        told = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
        os.execvpe(command[0], list(command), told)
    written = b""
    # Linux says so by an error when the last process on the terminal has ended.
    with contextlib.suppress(OSError):
        while part := os.read(descriptor, 1 << 16):
            written += part
    os.close(descriptor)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), written.decode()
