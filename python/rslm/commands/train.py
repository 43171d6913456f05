"""`rslm train`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rslm.commands.resume import below_run, resumed_config, value_of
from rslm.commands.tokenizer import require_files
from rslm.config import Record, check_record, merge_records, read_sources, to_toml
from rslm.process import EXIT_TERMINATED
from rslm.terminal import Switch, note, print_fields, progress_bar
from rslm.train_config import TrainConfig

if TYPE_CHECKING:
    from rslm.post.setup import PostResult
    from rslm.train import TrainResult

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a Transformer on token files (--data.train), or straight from text (--text)."""

    preset: str | None = None
    """Options that ship: demo, tinystories, tinystories-cpu, openwebtext, speedrun-124m."""
    config: Path | None = None
    """TOML file of options; it wins over the preset, flags win over both."""
    text: tuple[Path, ...] = ()
    """Text files to train on; tokenizer and token files are made in the run folder."""
    valid_text: tuple[Path, ...] = ()
    """Text files to validate on."""
    tokenizer: Path | None = None
    """With --text: use this tokenizer instead of training one."""
    vocab_size: int | None = None
    """With --text: size of the tokenizer to train; model.vocab-size unless given."""
    resume: Switch = False
    """Go on with the run in --out; its options need not be repeated."""
    print_config: Switch = False
    """Print the resolved options as TOML and do nothing else."""
    dry_run: Switch = False
    """Check options and data, print sizes, and do nothing else."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = field()


def defaults(arguments: Sequence[str]) -> Record:
    """What preset, file and, at a resumption, the run folder say before the flags do."""
    record = read_sources(TrainConfig, arguments)
    if (source := resumed_config(arguments, record)) is not None:
        record = below_run(TrainConfig, "train", source, record)
    else:
        record = turn_dial(record, arguments)
    if value_of("--text", arguments) is not None:
        for flag in ("--data.train", "--data.valid"):
            if value_of(flag, arguments) is not None:
                raise ValueError(f"give --text or {flag}, not both")
        # Token files that are made by the run have no place that the user could name.
        record = merge_records({"data": {"train": Path("tokens/train")}}, record)
    return {"run": record}


def turn_dial(record: Record, arguments: Sequence[str]) -> Record:
    """The record over what the depth decides, where a depth is given.

    Raises:
        ValueError: a preset is given as well, or the depth is below 1.
    """
    depth = value_of("--depth", arguments) or record.get("depth")
    if depth is None or not str(depth).isdigit():
        return record  # Words that are no number are refused with the other flags.
    if value_of("--preset", arguments) is not None:
        raise ValueError("give --preset or --depth, not both")
    from rslm.depth_dial import CONTEXT_LENGTH, depth_options

    def number(flag: str, stated: object) -> int | None:
        given = str(value_of(flag, arguments) or stated)
        return int(given) if given.isdigit() else None

    vocab_size = vocab_size_of_data(record, arguments)
    length = number("--model.context-length", record.get("model", {}).get("context_length"))
    options = depth_options(
        int(depth),
        vocab_size=vocab_size,
        context_length=length or CONTEXT_LENGTH,
        n_steps=number("--n-steps", record.get("n_steps")),
        batch_size=number("--batch-size", record.get("batch_size")),
    )
    if value_of("--text", arguments) is not None:
        options["model"]["vocab_size"] = vocab_size
    return merge_records(check_record(TrainConfig, options), record)


def vocab_size_of_data(record: Record, arguments: Sequence[str]) -> int:
    """The size that flags, file or data state, before the flags are parsed; else the dial's own."""
    from rslm.depth_dial import VOCAB_SIZE
    from rslm.token_file import TokenFile
    from rslm.tokenizer import Tokenizer

    for flag in ("--model.vocab-size", "--vocab-size"):
        if (given := value_of(flag, arguments) or "").isdigit():
            return int(given)
    if (stated := record.get("model", {}).get("vocab_size")) is not None:
        return int(stated)
    if (tokenizer := value_of("--tokenizer", arguments)) is not None:
        return Tokenizer.load(tokenizer).vocab_size
    data = value_of("--data.train", arguments) or record.get("data", {}).get("train")
    # One that is not there is missed where the data is opened.
    if data is not None and Path(data).exists():
        return TokenFile.open(data).vocab_size or VOCAB_SIZE
    return VOCAB_SIZE


def train(options: TrainOptions) -> int:
    """Prepares the data if asked to, trains, and says how it ended."""
    check(options)
    config = resolved(options)
    is_first = os.environ.get("RANK", "0") == "0"
    if options.print_config or options.dry_run:
        if is_first:
            print(to_toml(config), end="") if options.print_config else describe(config, options)
        return 0
    from rslm.checkpoint import weights_path
    from rslm.train import train as run_training

    if config.init_from is not None:
        require_files([weights_path(config.init_from)])  # Before a folder is made.
    if not options.text:
        return report(run_training(config, resume=options.resume))
    from rslm.files import removed_if_refused
    from rslm.text_run import begin, make_token_files

    with removed_if_refused(config.out, unless="metrics.jsonl"):
        config = begin(config, validates=bool(options.valid_text), resume=options.resume)
        make_token_files(
            config,
            options.text,
            options.valid_text,
            tokenizer_file=options.tokenizer,
            progress=progress_bar(),
        )
        result = run_training(config, resume=True)
    return report(result)


def check(options: TrainOptions) -> None:
    """Refuses options that do not go together, before anything is written.

    Raises:
        ValueError: an option is given that nothing would read.
        OSError: a text file is missing or a folder.
        ModuleNotFoundError: the package of a tracker is not installed.
    """
    from rslm.trackers import require_trackers

    require_trackers(options.run.trackers)
    if options.text and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            "text must be encoded before several processes train on it\n"
            "rslm tokenizer encode makes token files for --data.train"
        )
    if not options.text:
        for name in ("valid_text", "tokenizer", "vocab_size"):
            if getattr(options, name):
                raise ValueError(f"{name} is for a run from text files: name them with --text")
        return
    if options.tokenizer is not None and options.vocab_size is not None:
        raise ValueError("give tokenizer or vocab_size, not both")
    require_files([*options.text, *options.valid_text])
    if options.tokenizer is not None:
        require_files([options.tokenizer])


def resolved(options: TrainOptions) -> TrainConfig:
    """The run's config with what `--text` decides: vocabulary size and paths of token files.

    Raises:
        ValueError: neither options nor preset say how large the vocabulary should be.
    """
    config = options.run
    if not options.text:
        return config
    given = options.vocab_size
    size = config.model.vocab_size if given is None else given
    if options.tokenizer is not None:
        from rslm.tokenizer import Tokenizer

        size = Tokenizer.load(options.tokenizer).vocab_size
    if size is None:
        raise ValueError("vocab_size must be given to train a tokenizer on the text")
    tokens = config.out / "tokens"
    valid = tokens / "valid" if options.valid_text else None
    return replace(
        config,
        model=replace(config.model, vocab_size=size),
        data=replace(config.data, train=tokens / "train", valid=valid),
    )


def describe(config: TrainConfig, options: TrainOptions) -> None:
    """Prints what the run would be; opens the data, so that its mistakes show now.

    Raises:
        FileExistsError: the run folder holds something and `--resume` is not given.
    """
    from rslm.architecture import n_parameters, train_flops_per_token
    from rslm.text_run import require_free

    require_free(config.out, resume=options.resume)
    n_data_tokens = None
    if not options.text:
        from rslm.run_data import open_data, resolve_model

        data = open_data(config)
        config = replace(config, model=resolve_model(config.model, data))
        n_data_tokens = sum(map(len, data.train_files))
    n_tokens = config.n_steps * config.batch_size * config.model.context_length
    fields = {
        "out": config.out,
        "parameters": n_parameters(config.model),
        "steps": config.n_steps,
        "tokens to train on": n_tokens,
        "tokens in the data": n_data_tokens,
        "epochs": None if n_data_tokens is None else n_tokens / n_data_tokens,
        "training FLOPs": f"{n_tokens * train_flops_per_token(config.model):.3g}",
    }
    print_fields(fields)


def report(result: "TrainResult | PostResult", command: str = "train", use: str = "sample") -> int:
    """Says how the run ended, and what can be done with it; the first process speaks for all.

    Args:
        result: the end.
        command: that made the run.
        use: the command to try next.
    """
    if os.environ.get("RANK", "0") == "0":
        say_how_it_ended(result, command, use)
    if result.reason == "finished":
        return 0
    return EXIT_INTERRUPTED if result.reason == "interrupted" else EXIT_TERMINATED


def say_how_it_ended(result: "TrainResult | PostResult", command: str, use: str) -> None:
    """Prints the run's end and the next command."""
    numbers = {name: getattr(result, name, None) for name in ("loss", "val_loss", "val_reward")}
    shown = [f"{name} {value:.4f}" for name, value in numbers.items() if value is not None]
    bits_per_byte = getattr(result, "val_bits_per_byte", None)
    if bits_per_byte is not None:
        shown.append(f"{bits_per_byte:.4f} bits per byte")
    note(", ".join([f"{result.out}: {result.reason} at step {result.step:,}", *shown]))
    if result.reason == "finished":
        note(f"next: rslm {use} {result.out}")
    else:
        note(f"to go on: rslm {command} --resume --out {result.out}")
