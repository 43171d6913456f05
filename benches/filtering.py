"""Is filtered text worth more? Small models trained on one crawl, as it is and as it was filtered.

    python benches/filtering.py --work runs/filtering
    python benches/filtering.py --work runs/toy --pages 600 --steps 20 --seeds 2

The crawl is that of `dirty_crawl.py`. It goes through three pipelines: all text of every page, the
main text of every page, and the main text of the pages that pass all filters. A model is trained
on as many tokens of each, none twice, by `rslm ablate` over several seeds, and judged by bits per
byte of books that no pipeline saw. Everything lies in --work; the same command goes on there.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from dirty_crawl import DIRT
from peer_inputs import read_xz, write_beside

from rslm.data.pipeline.report import PipelineReport

BENCHES = Path(__file__).parent
END_OF_TEXT = "<|endoftext|>"
ALL_TEXT = '[extract]\nextractor = "resiliparse"\n'
MAIN_TEXT = '[extract]\nextractor = "readability"\n'
FILTERS = """[language]
languages = ["en"]
[quality]
presets = ["fineweb"]
[exact]
keep = "first"
[minhash]
preset = "course"
[pii]
preset = "course"
"""
ARMS = {"all-text": ALL_TEXT, "main-text": MAIN_TEXT, "filtered": MAIN_TEXT + FILTERS}
BASE = """n_steps = {steps}
batch_size = 16
device = "cpu"
n_threads = 1
n_validation_tokens = 65536
validate_every = {validate_every}
checkpoint_every = 1000000
log_every = 64
n_sample_tokens = 1
keep_checkpoints = 1
keep_best = false
[data]
train = "{train}"
valid = "{valid}"
[model]
vocab_size = 2048
context_length = 256
d_model = 96
n_layers = 3
n_heads = 6
[optimizer]
learning_rate = 0.008
warmup_steps = {warmup}
"""


def main() -> None:
    options = read_options()
    options.work.mkdir(parents=True, exist_ok=True)
    crawl, valid = make_crawl(options), make_valid(options)
    tokenizer = options.work / "tokenizer.json"
    if not tokenizer.exists():
        # Learned from the text that is not filtered: a handicap for the one that is.
        run_pipeline("all-text", crawl, None, options)
        shards = sorted((options.work / "text" / "all-text" / "finalize").glob("*.jsonl.zst"))
        texts = [path for path in shards if path.name.count(".") == 2]
        train = ["tokenizer", "train", *texts, "--vocab-size", 2048]
        rslm(*train, "--special-tokens", END_OF_TEXT, "--out", tokenizer)
    for arm in ARMS:
        run_pipeline(arm, crawl, tokenizer, options)
    if not (options.work / "valid").exists():
        rslm("tokenizer", "encode", tokenizer, valid, "--out", options.work / "valid")
    study = train_models(options)
    text = report(options, study)
    print(text)
    if options.write:
        write_beside(BENCHES / "results" / "filtering.md", [text.encode()])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of everything made")
    parser.add_argument("--pages", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=256, help="of 4,096 tokens")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="models trained at a time")
    parser.add_argument("--write", action="store_true", help="write results/filtering.md")
    options = parser.parse_args()
    data = os.environ.get("RSLM_TEST_DATA")
    if not data:
        parser.error("RSLM_TEST_DATA must name the folder of the books")
    options.data = Path(data)
    return options


def rslm(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "rslm", *map(str, arguments)], check=True)


def make_crawl(options: argparse.Namespace) -> Path:
    crawl: Path = options.work / "crawl"
    if not (crawl / "truth.jsonl").exists():
        command = [sys.executable, BENCHES / "dirty_crawl.py", "--out", crawl]
        subprocess.run([*command, "--pages", str(options.pages)], check=True)
    return crawl


def make_valid(options: argparse.Namespace) -> Path:
    """Books that the crawl has no page of."""
    path: Path = options.work / "valid.txt"
    if not path.exists():
        write_beside(path, read_xz(options.data / "text" / "books-valid.txt.xz"))
    return path


def run_pipeline(
    arm: str, crawl: Path, tokenizer: Path | None, options: argparse.Namespace
) -> None:
    config = options.work / f"{arm}.toml"
    lines = [f'out = "{options.work / "text" / arm}"', "[[inputs]]", f'paths = ["{crawl}/*.gz"]']
    lines.append(ARMS[arm])
    if tokenizer:
        lines += ["[tokenize]", f'tokenizer = "{tokenizer}"', "shuffle_seed = 0"]
    write_beside(config, ["\n".join(lines).encode()])
    rslm("data", "run", config)


def train_models(options: argparse.Namespace) -> Path:
    folders = [str(tokens_of(options, arm)) for arm in ARMS]
    base = options.work / "base.toml"
    settings = {
        "steps": options.steps,
        "validate_every": max(1, options.steps // 2),
        "warmup": options.steps // 10,
        "train": folders[0],
        "valid": options.work / "valid",
    }
    write_beside(base, [BASE.format(**settings).encode()])
    study: Path = options.work / "study"
    axis = f"data.train={','.join(folders)}"
    seeds = ["--seeds", options.seeds, "--processes", options.processes]
    rslm("ablate", base, "--axis", axis, *seeds, "--out", study)
    return study


def tokens_of(options: argparse.Namespace, arm: str) -> Path:
    path: Path = options.work / "text" / arm / "tokenize" / "tokens" / "train"
    return path


def report(options: argparse.Namespace, study: Path) -> str:
    """What became of the pages by what they are, then what the models learned."""
    with (options.work / "crawl" / "truth.jsonl").open() as file:
        truth = {record["id"]: record for record in map(json.loads, file)}
    kinds = Counter(record["kind"] for record in truth.values())
    filtered = PipelineReport.read(options.work / "text" / "filtered")
    kept = Counter(truth[document.id]["kind"] for document in filtered.documents())
    dropped: dict[str, Counter[str]] = {}
    for way in filtered.ways():
        if way.reason:
            step = way.step.partition(".")[0]
            dropped.setdefault(step, Counter())[truth[way.id]["kind"]] += 1
    steps = list(dropped)
    lines = [f"| page is | pages | kept | {' | '.join(steps)} |"]
    lines.append(f"|---|{'--:|' * (2 + len(steps))}")
    for kind in ("book", *DIRT):
        row = [kind, kinds[kind], kept[kind], *(dropped[step][kind] for step in steps)]
        lines.append(f"| {' | '.join(map(str, row))} |")
    shown = Counter(truth[document.id]["page"] for document in filtered.documents())
    del shown[None]
    lines.append(
        f"\nOf {kinds['book']:,} different pages of books {len(shown):,} are kept, "
        f"{sum(n > 1 for n in shown.values()):,} of them more than once."
    )
    lines.append("")
    lines.append("| text | documents | tokens | bytes |\n|---|--:|--:|--:|")
    for arm in ARMS:
        tokenized = PipelineReport.read(options.work / "text" / arm).stages["tokenize"]
        counts = next(iter(tokenized.steps.values())).counts
        numbers = (counts[f"train_{name}"] for name in ("documents", "tokens", "utf8_bytes"))
        lines.append(f"| {arm} | {' | '.join(f'{n:,}' for n in numbers)} |")
    return "\n".join(lines) + "\n\n" + (study / "ablation.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
