"""`rslm doctor`."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rslm.commands.plan import NOT_GIVEN, with_places
from rslm.commands.train import TrainOptions, check, resolved
from rslm.commands.train import defaults as train_defaults
from rslm.config import Record, to_toml
from rslm.process import printable
from rslm.terminal import Switch, print_json
from rslm.train_config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from rslm.doctor import Check

EXIT_FAILED = 1
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(TrainOptions):
    """Try in small what a run would do here, and say what is wrong.

    Takes the options of `rslm train`; none must be given. Without a vocabulary the memory and
    the disk are judged for one of 32,768 ids. Under torchrun all processes are asked.
    """

    quick: Switch = False
    """Do not read token files and checkpoints whole to compare their hashes."""
    json: Switch = False
    """Print JSON."""


def defaults(arguments: Sequence[str]) -> Record:
    """What stands in for flags that are not given; nothing has to be."""
    return with_places(train_defaults(arguments))


def doctor(options: DoctorOptions) -> int:
    """Prints a line for each check as it ends; 1 if one failed."""
    # Beside token files, too, a tokenizer may be named here: to be held against theirs.
    check(options if options.text else replace(options, tokenizer=None))
    config = resolved(options)
    if options.print_config:
        print(to_toml(config), end="")
        return 0
    if config.model.vocab_size is None:
        config = replace(config, model=replace(config.model, vocab_size=stated_vocab_size(config)))
    is_first = os.environ.get("RANK", "0") == "0"
    show = show_nothing if options.json or not is_first else make_show()
    found = []
    for result in examine(options, config):
        show(result)
        found.append(result)
    has_failed = any(result.status == "fail" for result in found)
    if options.json and is_first:
        print_json({"ok": not has_failed, "checks": [asdict(result) for result in found]})
    return EXIT_FAILED if has_failed else 0


def stated_vocab_size(config: TrainConfig) -> int:
    """The vocabulary of the data, or a usual one where no good file says it."""
    from rslm.token_file import TokenFile

    with contextlib.suppress(OSError, ValueError):
        return TokenFile.open(config.data.train).vocab_size or 32_768
    return 32_768


def examine(options: DoctorOptions, config: TrainConfig) -> Iterator["Check"]:
    """All checks in turn; processes but the first do only what concerns their own device."""
    from rslm import doctor
    from rslm.distributed import start_processes
    from rslm.infer.load import choose_device

    with start_processes(choose_device(config.device)) as processes:
        device, n_processes = processes.device, processes.world_size
        own = []
        for result in itertools.chain(
            doctor.check_versions(),
            doctor.check_device(config, device),
            doctor.check_attention(config, device),
            doctor.check_matmul(config, device),
        ):
            own.append(result)
            yield result
        if processes.is_first:
            n_local = int(os.environ.get("LOCAL_WORLD_SIZE", n_processes))
            memory = partial(doctor.check_memory, config, device, n_processes, n_local)
            yield from doctor.guarded("memory", memory, "correct the option that it names")
            disk = partial(doctor.check_disk, config)
            yield from doctor.guarded("disk", disk, "name a folder that takes files with --out")
            saved = partial(doctor.check_checkpoints, config, reads_all=not options.quick)
            yield from doctor.guarded("checkpoint", saved, "remove the checkpoint that it names")
            yield from examine_data(options, config)
        if n_processes > 1:
            yield from doctor.check_agreement(config, processes, own)
        else:
            two = partial(doctor.check_two_processes, device)
            yield from doctor.guarded("processes", two, "allow this machine to start processes")


def examine_data(options: DoctorOptions, config: TrainConfig) -> Iterator["Check"]:
    """The checks of token files, where some are named."""
    from rslm import doctor

    if options.text:
        found = "text files, which the run encodes itself"
        yield doctor.Check(name="data", status="ok", found=found)
        return
    if config.data.train == NOT_GIVEN:
        found, advice = "no token file named, none checked", "name it with --data.train"
        yield doctor.Check(name="data", status="warn", found=found, advice=advice)
        return

    reads_all = not options.quick
    data = partial(doctor.check_token_files, config, options.tokenizer, reads_all=reads_all)
    yield from doctor.guarded("data", data, "make the token files anew")


def make_show(console: "Console | None" = None) -> Callable[["Check"], None]:
    """Prints a check: on a terminal in colour with advice below, in a pipe as one line."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()

    def show(result: "Check") -> None:
        line = Text.assemble(
            (f"{result.status:<5} ", _COLOURS[result.status]),
            (printable(result.name), "bold"),
            (f": {printable(result.found)}", ""),
        )
        if result.advice is not None:
            advice = printable(result.advice)
            line.append(f"\n      {advice}" if console.is_terminal else f"; {advice}")
        console.print(line, soft_wrap=True)

    return show


def show_nothing(result: "Check") -> None:
    """Leaves a check for later."""
