"""`rslm demo`: from raw text to a language model, on this machine, in minutes.

One text is split into a part to learn from and a part held out; a tokenizer is trained,
token files are written, a small Transformer is trained, and what it learned is measured
in bits per byte of the held-out text beside two compressors.
"""

import gzip
import json
import lzma
import math
import time
from collections.abc import Sequence
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
    from rslm.model import Transformer
    from rslm.tokenizer import Tokenizer

# Beyond this a corpus is cut: minutes of training see a few million tokens only, and the
# compressors, too, take their time.
MAX_CORPUS_BYTES = 64 << 20
DOWNLOADED = ("tinystories", "openwebtext")
MEMORY = "demo.json"
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
    seed: int = 0
    """Seed of weights, data order and samples."""
    n_threads: int | None = None
    """CPU threads; torch's own choice unless given."""


def demo(options: DemoOptions) -> int:
    """Runs the whole chain; every finished part of a demo that was stopped is kept."""
    from rslm.infer.load import load_run
    from rslm.text_run import begin, make_token_files, require_free
    from rslm.train import train

    options = recall(options)
    config = run_config(options)
    require_free(config.out, resume=options.resume)
    train_file, valid_file = find_text(options, config.out)
    split = None if valid_file.exists() else read_split(options.corpus, MAX_CORPUS_BYTES)
    with removed_if_refused(config.out, unless="metrics.jsonl"):
        config = begin(config, validates=True, resume=options.resume)
        remember(options, config.out)
        note(f"1  text: {describe_corpus(options)}")
        if split is not None:
            write_split(split, train_file, valid_file)
        sizes = [file.stat().st_size / 1e6 for file in (train_file, valid_file)]
        note(f"   {sizes[0]:,.2f} MB to learn from, {sizes[1]:,.2f} MB held out")
        note(f"2  tokenizer and token files, in {config.out}")
        tokenizer = make_token_files(config, [train_file], [valid_file], progress=progress_bar())
        note(f"   {compare_lengths(tokenizer, valid_file)}")
        note(f"3  training, {config.n_steps:,} steps in {config.precision}")
        result = train(config, resume=True)
    if result.reason != "finished":
        note(f"{result.reason}; to go on: rslm demo --resume --out {config.out}")
        return EXIT_CODES[result.reason]
    note("4  the held-out text, in bits per byte (lower is better)")
    model, tokenizer = load_run(config.out)
    summary = summarise(config, model, tokenizer, valid_file, result.elapsed_seconds)
    print_scores(summary)
    note("5  samples")
    for number, prompt in enumerate(["", *beginnings(valid_file, 2)]):
        print_sample(model, tokenizer, prompt, config.n_sample_tokens, config.seed + number)
    print_next_steps(config, options)
    return 0


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
        if any(path.name != "config.toml" for path in folder.iterdir()):
            raise ValueError(
                f"{folder} must be the folder of a demo, and has no {MEMORY}\n"
                f"to go on with a run: rslm train --resume --out {folder}"
            )
        return options
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


def run_config(options: DemoOptions) -> TrainConfig:
    """The preset with the options in it, or the config of the demo to go on with."""
    out = run_folder(options)
    if options.resume and (out / "config.toml").exists():
        config = read_config(TrainConfig, out / "config.toml")
        return replace(config, out=out, n_threads=options.n_threads)
    record = {"out": str(out), "data": {"train": str(out)}, "seed": options.seed}
    config = from_record(TrainConfig, merge_records(read_preset(options.preset), record))
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
    """The folder asked for; else the first free runs/demo-N, or the last used one to resume."""
    if options.out is not None:
        return options.out
    name, n = Path("runs/demo"), 1
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
    train_file.parent.mkdir(exist_ok=True)
    write_atomically(train_file, END_OF_TEXT.join(split.train).encode())
    write_atomically(valid_file, END_OF_TEXT.join(split.valid).encode())
    if split.n_skipped:
        note(f"   {split.n_skipped:,} files left out: no UTF-8 text")


def compare_lengths(tokenizer: "Tokenizer", valid_file: Path) -> str:
    """How much shorter the tokenizer makes a text than its bytes."""
    text = valid_file.read_bytes()[: 1 << 20].decode(errors="ignore")
    n_bytes, n_tokens = len(text.encode()), tokenizer.count(text)
    return f"{tokenizer.vocab_size:,} tokens, each {n_bytes / n_tokens:.2f} bytes of held-out text"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a demo reached; the bits per byte are those of the held-out text."""

    n_parameters: int
    n_tokens: int
    training_seconds: float
    n_valid_bytes: int
    bits_per_byte: dict[str, float]


def summarise(
    config: TrainConfig,
    model: "Transformer",
    tokenizer: "Tokenizer",
    valid_file: Path,
    seconds: float,
) -> Summary:
    """Scores the model and the compressors on the same text, and keeps the result.

    The compressors get all held-out documents as one stream, without anything between them.
    The model is charged for the end-of-text tokens as well, though they stand for no byte: what
    doubt there is about the borders of documents goes against the model.
    """
    from rslm.architecture import n_parameters

    text = valid_file.read_bytes().replace(END_OF_TEXT.encode(), b"")
    summary = Summary(
        n_parameters=n_parameters(model.config),
        n_tokens=config.n_steps * config.batch_size * config.model.context_length,
        training_seconds=seconds,
        n_valid_bytes=len(text),
        bits_per_byte={
            "rslm": model_score(model, tokenizer, config),
            "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
            "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        },
    )
    write_atomically(
        config.out / "summary.json", json.dumps(vars(summary), indent=2).encode() + b"\n"
    )
    return summary


def model_score(model: "Transformer", tokenizer: "Tokenizer", config: TrainConfig) -> float:
    """The model's bits per byte on the whole held-out token file."""
    import torch

    from rslm.evaluate.loss import evaluate_loss
    from rslm.token_file import TokenFile

    assert config.data.valid is not None
    evaluation = evaluate_loss(
        model,
        TokenFile.open(config.data.valid, tokenizer=tokenizer),
        batch_size=16,
        token_byte_lengths=tokenizer.token_byte_lengths,
        autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
    )
    assert evaluation is not None
    return evaluation.bits_per_byte or math.nan


def print_scores(summary: Summary) -> None:
    """Prints a bar for each score."""
    longest = max(summary.bits_per_byte.values())
    for name, score in summary.bits_per_byte.items():
        bar = "█" * round(40 * score / longest)
        print(f"   {name:<8} {score:6.3f}  {bar}")
    change = 1 - summary.bits_per_byte["rslm"] / summary.bits_per_byte["gzip -9"]
    print(f"   {abs(change):.0%} {'fewer' if change > 0 else 'more'} bits than gzip", flush=True)


def print_sample(
    model: "Transformer", tokenizer: "Tokenizer", prompt: str, n_tokens: int, seed: int
) -> None:
    """Prints a new document, or a prompt with its continuation, as it is drawn."""
    from rslm.infer.load import end_ids
    from rslm.infer.sampler import generate_text

    end = tokenizer.end_of_text
    assert end is not None
    print(f"\n--- {f'continuing {prompt!r}' if prompt else 'a new document'}\n{prompt}", end="")
    pieces = generate_text(
        model,
        [end, *tokenizer.encode(prompt)],
        tokenizer.stream_decoder(),
        max_new_tokens=n_tokens,
        temperature=0.7,
        stop_token_ids=end_ids(model, tokenizer),
        seed=seed,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def beginnings(valid_file: Path, n: int) -> Sequence[str]:
    """The first lines of some held-out documents, cut at a word."""
    documents = valid_file.read_bytes()[: 8 << 20].decode(errors="ignore").split(END_OF_TEXT)
    chosen = documents[:: max(1, len(documents) // n)][:n]
    return [
        document.strip()[:60].rpartition(" ")[0] or document.strip()[:60] for document in chosen
    ]


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
        "  rslm demo --corpus FILE_OR_FOLDER    your own text\n"
        "  rslm demo --preset tinystories       children's stories; best with a GPU"
    )
