"""`rslm demo`: from raw text to a language model, on this machine, in minutes.

One text is split into a part to learn from and a part held out; a tokenizer is trained,
token files are written, a small Transformer is trained, and what it learned is measured
in bits per byte of the held-out text beside two compressors.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rslm.config import from_record, merge_records, read_config, read_preset, to_record
from rslm.data.local import Split, read_split
from rslm.files import END_OF_TEXT, removed_if_refused, write_atomically
from rslm.process import EXIT_TERMINATED
from rslm.terminal import Switch, download_bar, note, progress_bar
from rslm.train_config import Precision, TrainConfig

if TYPE_CHECKING:
    from rslm.tokenizer import Tokenizer
    from rslm.train import TrainResult

# Beyond this a corpus is cut: minutes of training see a few million tokens only, and the
# compressors, too, take their time.
MAX_CORPUS_BYTES = 64 << 20
DOWNLOADED = ("tinystories", "openwebtext")
MEMORY = "demo.json"
BASE = "base"
"""Below the folder of a full demo: the run that its model comes from."""
EXIT_CODES = {"finished": 0, "interrupted": 130, "terminated": EXIT_TERMINATED}


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Train a tokenizer and a language model on this machine's own text, and look at them.

    Without --corpus the text is the source code of the running Python's standard library.
    """

    corpus: Path | None = None
    """Text file, or folder of text files, to learn from instead."""
    preset: str = "demo"
    """demo; tinystories and openwebtext first download their data, and want a GPU."""
    out: Path | None = None
    """Run folder; runs/demo (or runs/demo-2, ...) unless given."""
    resume: Switch = False
    """Go on with the demo in --out, or with the newest one."""
    n_steps: int | None = None
    """Optimizer updates instead of the preset's: fewer for a glance, more for a better model."""
    vocab_size: int | None = None
    """Size of the tokenizer instead of the preset's."""
    full: Switch = False
    """Go on to chats, preferences and rewards, and compare the models: less than 20 minutes."""
    seed: int = 0
    """Seed of weights, data order and samples."""
    n_threads: int | None = None
    """CPU threads; torch's own choice unless given."""


def demo(options: DemoOptions) -> int:
    """Runs the whole chain; every finished part of a demo that was stopped is kept."""
    options = recall(options)
    if options.full:
        from rslm.demo.full import demo_full

        return demo_full(options)
    from rslm.demo.summary import beginnings, print_sample, print_scores, summarise
    from rslm.infer.load import load_run

    out = run_folder(options)
    config, result = pretrain(options, run_config(options, out), out)
    if result.reason != "finished":
        return stopped(result.reason, out)
    valid_file = find_text(options, out)[1]
    note("4  the held-out text, in bits per byte (lower is better)")
    model, tokenizer = load_run(config.out)
    summary = summarise(config, model, tokenizer, valid_file, result.elapsed_seconds)
    print_scores(summary)
    note("5  samples")
    for number, prompt in enumerate(["", *beginnings(valid_file, 2)]):
        print_sample(model, tokenizer, prompt, config.n_sample_tokens, config.seed + number)
    print_next_steps(config, options)
    return 0


def pretrain(
    options: DemoOptions,
    config: TrainConfig,
    out: Path,
    *,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    mixed_in: Callable[[], Sequence[str]] | None = None,
) -> "tuple[TrainConfig, TrainResult]":
    """Text, tokenizer, token files and training: the first three parts of either demo.

    Args:
        options: of the demo; they are kept in `out`.
        config: of the run, whose folder is `out` or below it.
        out: the demo's folder.
        special_tokens: of the tokenizer.
        pattern: of the tokenizer.
        mixed_in: makes the documents of the token file that `config.data.mixed_in` names.
    """
    from rslm.text_run import begin, make_token_files, require_free
    from rslm.train import train

    require_free(out, resume=options.resume)
    train_file, valid_file = find_text(options, config.out)
    mixed_files = [config.out / "text" / "mixed_in.txt"] if mixed_in is not None else []
    split = None if valid_file.exists() else read_split(options.corpus, MAX_CORPUS_BYTES)
    metrics = (config.out / "metrics.jsonl").relative_to(out)
    with removed_if_refused(out, unless=str(metrics)):
        config = begin(config, validates=True, resume=options.resume)
        remember(options, out)
        note(f"1  text: {describe_corpus(options)}")
        for file in mixed_files:
            if not file.exists() and mixed_in is not None:
                write_documents(mixed_in(), file)
        if split is not None:
            write_split(split, train_file, valid_file)
        sizes = [file.stat().st_size / 1e6 for file in (train_file, valid_file)]
        note(f"   {sizes[0]:,.2f} MB to learn from, {sizes[1]:,.2f} MB held out")
        note(f"2  tokenizer and token files, in {config.out}")
        tokenizer = make_token_files(
            config,
            [train_file],
            [valid_file],
            mixed_files=mixed_files,
            special_tokens=special_tokens,
            pattern=pattern,
            progress=progress_bar(),
        )
        note(f"   {compare_lengths(tokenizer, valid_file)}")
        note(f"3  training, {config.n_steps:,} steps in {config.precision}")
        return config, train(config, resume=True)


def stopped(reason: str, out: Path) -> int:
    """Says how to go on, and returns the exit code."""
    note(f"{reason}; to go on: rslm demo --resume --out {out}")
    return EXIT_CODES[reason]


def recall(options: DemoOptions) -> DemoOptions:
    """The options of the demo to go on with, which need not be repeated.

    Raises:
        ValueError: one is given that is another than the demo began with, or the folder is of a
            run that is no demo.
    """
    folder = run_folder(options)
    file = folder / MEMORY
    if not options.resume or not folder.exists():
        return options
    if not file.exists():
        # A demo that was stopped at its first file has this one and nothing else.
        if any(path.name not in ("config.toml", BASE) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} must be the folder of a demo, and has no {MEMORY}\n"
                f"to go on with a run: rslm train --resume --out {folder}"
            )
        return replace(options, full=options.full or (folder / BASE).exists())
    record = json.loads(file.read_text())
    kept = from_record(DemoOptions, record, str(file))
    for name in record:
        given, default = getattr(options, name), getattr(DemoOptions(), name)
        if given not in (default, getattr(kept, name)):
            raise ValueError(
                f"{name} must stay {getattr(kept, name)} when a demo is resumed, got {given}"
            )
    return replace(kept, out=options.out, resume=True, n_threads=options.n_threads)


def remember(options: DemoOptions, out: Path) -> None:
    """Keeps the options that decide what a demo is."""
    passing = ("out", "resume", "n_threads")
    record = {name: value for name, value in to_record(options).items() if name not in passing}
    write_atomically(out / MEMORY, json.dumps(record).encode())


def run_config(options: DemoOptions, out: Path, preset: str | None = None) -> TrainConfig:
    """The preset with the options in it, or the config of the run in `out` to go on with."""
    if options.resume and (out / "config.toml").exists():
        config = read_config(TrainConfig, out / "config.toml")
        return replace(config, out=out, n_threads=options.n_threads)
    record = {"out": str(out), "data": {"train": str(out)}, "seed": options.seed}
    config = from_record(TrainConfig, merge_records(read_preset(preset or options.preset), record))
    given = options.vocab_size
    size = config.model.vocab_size if given is None else given
    n_steps = config.n_steps if options.n_steps is None else options.n_steps
    warmup_steps = min(config.optimizer.warmup_steps, max(n_steps, 0) // 2)
    return replace(
        config,
        n_steps=n_steps,
        n_threads=options.n_threads,
        precision=fastest_precision(config.precision),
        model=replace(config.model, vocab_size=size),
        optimizer=replace(config.optimizer, warmup_steps=warmup_steps),
    )


def run_folder(options: DemoOptions) -> Path:
    """The folder asked for; else the first free runs/demo-N, or the last used one to resume.

    Full demos have the name demo-full there.
    """
    if options.out is not None:
        return options.out
    name, n = Path("runs/demo-full" if options.full else "runs/demo"), 1
    numbered = [name]
    while numbered[-1].exists():
        n += 1
        numbered.append(name.with_name(f"{name.name}-{n}"))
    return numbered[-2] if options.resume and len(numbered) > 1 else numbered[-1]


def fastest_precision(preferred: Precision) -> Precision:
    """float32, or bfloat16 where the processor has instructions for it.

    Without them bfloat16 products are emulated, several times slower than float32. What the
    processor says about itself differs by maker and system, so a product is timed.
    """
    import torch

    if preferred == "float32" or torch.cuda.is_available():
        return preferred
    seconds = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    return "bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"


def describe_corpus(options: DemoOptions) -> str:
    """Where the text comes from, in words."""
    if options.corpus is not None:
        return str(options.corpus)
    if is_downloaded(options):
        return f"{options.preset}, downloaded"
    return "the source code of this Python's standard library"


def is_downloaded(options: DemoOptions) -> bool:
    """Whether the text comes over the network."""
    return options.corpus is None and options.preset in DOWNLOADED


def find_text(options: DemoOptions, out: Path) -> tuple[Path, Path]:
    """The files of training and held-out text, downloaded if the preset says so.

    Downloads lie beside the run folder, so that the next demo finds them.
    """
    if not is_downloaded(options):
        return out / "text" / "train.txt", out / "text" / "valid.txt"
    from rslm.data.download import download

    with download_bar() as progress:
        valid_file, train_file = download(options.preset, out.parent / "data", progress)
    return train_file, valid_file


def write_split(split: Split, train_file: Path, valid_file: Path) -> None:
    """Writes both texts; the held-out one last, so where that exists both are complete."""
    write_documents(split.train, train_file)
    write_documents(split.valid, valid_file)
    if split.n_skipped:
        note(f"   {split.n_skipped:,} files left out: no UTF-8 text")


def write_documents(documents: Sequence[str], file: Path) -> None:
    """Writes documents with an end of text between them."""
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, END_OF_TEXT.join(documents).encode())


def compare_lengths(tokenizer: "Tokenizer", valid_file: Path) -> str:
    """How much shorter the tokenizer makes a text than its bytes."""
    text = valid_file.read_bytes()[: 1 << 20].decode(errors="ignore")
    n_bytes, n_tokens = len(text.encode()), tokenizer.count(text)
    return f"{tokenizer.vocab_size:,} tokens, each {n_bytes / n_tokens:.2f} bytes of held-out text"


def print_next_steps(config: TrainConfig, options: DemoOptions) -> None:
    """Says where everything is and what to try next."""
    out = config.out
    longer = f"rslm demo --n-steps {4 * config.n_steps}"
    if options.corpus is not None:
        longer += f" --corpus {options.corpus}"
    note(
        f"\nThe curve is in {out / 'loss_curve.png'}, everything else in {out}. What to try next:\n"
        f"  rslm sample {out} --prompt 'def ' --temperature 0.5\n"
        f"  rslm tokenizer info {out / 'tokenizer.json'}\n"
        f"  rslm tokens show {out / 'tokens' / 'valid'} --document 1\n"
        f"  {longer}    four times as long\n"
        "  rslm demo --full    on to chats, preferences and rewards\n"
        "  rslm demo --corpus FILE_OR_FOLDER    your own text\n"
        "  rslm demo --preset tinystories       children's stories; best with a GPU"
    )
