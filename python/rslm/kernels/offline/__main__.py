"""`python -m rslm.kernels.offline`: the offline gate of the attention kernels.

Prints what each kernel of the launch table takes on an architecture, on stdout; exit code 1
where one fails the gate, 2 for a user's mistake.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from rslm import process
from rslm.kernels.offline.targets import KERNELS, TARGETS, find_target

if TYPE_CHECKING:
    from rslm.kernels.offline.gate import Subject

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
WIDTH = 240
N_HEADS = 8
"""Query heads of the problem that kernels are compiled for, which a group must divide."""


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the gate; its exit code."""
    try:
        options = _parser().parse_args(arguments)
        _check(options)
        return _run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m rslm.kernels.offline",
        description="Compiles the attention kernels of the launch table without a GPU and says "
        "what they take; exit code 1 where one spills, or multiplies or copies the slow way.",
    )
    add = parser.add_argument
    add("--arch", nargs="+", required=True, metavar="ARCH", help=f"some of {', '.join(TARGETS)}")
    add("--d-head", nargs="+", type=int, default=[64, 128], metavar="N", help="default: 64 128")
    add(
        "--kernel",
        nargs="+",
        choices=KERNELS,
        metavar="NAME",
        help=f"some only of {', '.join(KERNELS)}",
    )
    add("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    add("--full", action="store_true", help="every query sees every key; causal by default")
    add("--start", action="store_true", help="with first keys: windows and packed documents")
    add("--softcap", type=float, metavar="X", help="with capped scores")
    add("--group", type=int, default=1, metavar="N", help="query heads per key-value head")
    add("--candidates", action="store_true", help="what a sweep would time, not the launch table")
    add("--jobs", type=int, metavar="N", help="processes that compile; default: one per core")
    add("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _check(options: argparse.Namespace) -> None:
    for arch in options.arch:
        find_target(arch)
    for name, values, least, most in (
        ("--d-head", options.d_head, 1, 256),
        ("--jobs", [options.jobs or 1], 1, 1024),
        ("--group", [options.group], 1, N_HEADS),
    ):
        for value in values:
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, got {value}")
    if N_HEADS % options.group:
        raise ValueError(f"--group must divide {N_HEADS}, got {options.group}")
    if options.start and options.full:
        raise ValueError("--start needs causal attention, got --full")
    if "paged" in (options.kernel or ()) and (options.full or options.softcap is not None):
        raise ValueError("--kernel paged must go without --full and --softcap, which it lacks")
    if options.softcap is not None and not options.softcap > 0:
        raise ValueError(f"--softcap must be positive, got {options.softcap}")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("this needs the package triton, which is not installed")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise ValueError("TRITON_INTERPRET must not be 1: interpreted kernels are not compiled")


def _run(options: argparse.Namespace) -> int:
    # These load torch and triton.
    import triton
    from rich.console import Console

    from rslm.kernels.offline.gate import examine_all
    from rslm.kernels.offline.report import print_verdicts

    with _bar() as progress:
        verdicts = examine_all(_subjects(options), options.jobs, progress)
    has_failed = any(verdict.failures for verdict in verdicts)
    if options.json:
        records = [verdict.record() for verdict in verdicts]
        document = {"triton": triton.__version__, "ok": not has_failed, "verdicts": records}
        print(json.dumps(document, indent=2))
    else:
        # A pipe has no width; rich would take 80 columns and break the rows.
        print_verdicts(verdicts, Console(width=None if sys.stdout.isatty() else WIDTH))
    return EXIT_FAILED if has_failed else 0


def _subjects(options: argparse.Namespace) -> "list[Subject]":
    from rslm.kernels.offline.gate import Subject
    from rslm.kernels.offline.sweep import candidates

    is_causal_only = options.full or options.softcap is not None
    kernels = options.kernel or [k for k in KERNELS if not (is_causal_only and k == "paged")]
    return [
        Subject(
            arch=arch,
            d_head=d_head,
            kernel=kernel,
            dtype=options.dtype,
            causal=not options.full,
            has_start=options.start,
            softcap=options.softcap,
            group=options.group,
            config=config,
        )
        for arch in dict.fromkeys(options.arch)
        for d_head in dict.fromkeys(options.d_head)
        for kernel, configs in (
            candidates(arch, d_head) if options.candidates else {name: [None] for name in KERNELS}
        ).items()
        if kernel in kernels
        for config in configs
    ]


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compile", total=None)
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, description=name
        )


if __name__ == "__main__":
    process.begin()
    code = main()
    process.leave_at_interrupt()
    raise SystemExit(code)
