"""Small pipelines for the tests: made-up documents, configs of them, and what they leave."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from rslm.config import from_record, merge_records, to_toml
from rslm.data.pipeline import PipelineConfig, make_plan, run_pipeline
from rslm.data.pipeline.report import PipelineReport

# Steps that end the worker at certain words, put in the place of a real one before a worker loads
# it. `sitecustomize` is imported by every interpreter that finds it on its path.
HOSTILE = """
import importlib.abc, importlib.util, os, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name, patch):
        self.name, self.patch = name, patch
    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader, load = spec.loader, spec.loader.exec_module
        def exec_module(module):
            load(module)
            self.patch(module)
        loader.exec_module = exec_module
        return spec

def patch_reading(module):
    read = module.read_documents
    def read_documents(path, **options):
        for document in read(path, **options):
            if "STALL" in document.text:
                time.sleep(1000)
            if "BREAK" in document.text:
                os.abort()
            yield document
    module.read_documents = read_documents

def patch_steps(module):
    def extract_step(config):
        def extract(documents):
            for document in documents:
                text = document.text
                while "HANG" in text:
                    pass
                if "SLEEP" in text:
                    time.sleep(1000)
                if "CRASH" in text:
                    os.abort()
                if "EAT" in text:
                    kept = [bytearray(1 << 28) for _ in range(8)]
                    time.sleep(1000)
                if "KILL" in text:
                    os.kill(os.getpid(), 9)
                if "RAISE" in text:
                    raise ValueError("of a page")
            return [module.Decision(document=document) for document in documents]
        return extract
    module.extract_step = extract_step

sys.meta_path.insert(0, Finder("rslm.data.pipeline.steps", patch_steps))
sys.meta_path.insert(0, Finder("rslm.data.pipeline.places", patch_reading))
"""

ALL_STEPS = {
    "n_ranges": 2,
    "quality": {"presets": ["course"]},
    "exact": {"keep": "first"},
    "lines": {"keep": "first", "min_words": 5},
    "minhash": {"preset": "course"},
    "pii": {"preset": "course"},
}


def made_up_documents(n: int, seed: int = 0) -> list[str]:
    """Texts that some rules drop, with copies, near-copies, repeated lines and addresses."""
    draw = random.Random(seed)
    common = ["the", "of", "and", "to", "be", "that", "have", "with"]
    words = [*common * 20, *(f"word{i}" for i in range(400))]
    sentences = [" ".join(draw.choices(words, k=12)) + "." for _ in range(40 * n)]
    texts: list[str] = []
    for number in range(n):
        kind = draw.random()
        text = "\n".join(draw.sample(sentences, 8))
        if kind < 0.1:
            text = "too short to be kept"
        elif kind < 0.2 and texts:
            text = draw.choice(texts)
        elif kind < 0.35 and texts:
            text = draw.choice(texts) + " in addition"
        elif kind < 0.5:
            text += f"\nA line that many pages have.\nWrite to user{number}@example.org."
        texts.append(text)
    return texts


def texts_with_copies(n: int, seed: int) -> list[str]:
    """Texts of which every third has a copy but for a letter."""
    draw = random.Random(seed)
    texts = []
    for number in range(n):
        words = [draw.choice("abcdefghijklmnopqrst") + str(draw.randint(0, 99)) for _ in range(40)]
        texts.append(" ".join(words) + f"\nline {number % 5}\n")
        if number % 3 == 0:
            texts.append(texts[-1].replace("a", "b", 1))
    return texts


def write_inputs(folder: Path, n_files: int = 3, n_documents: int = 40) -> Path:
    """Files of JSON lines."""
    folder.mkdir(exist_ok=True)
    texts = made_up_documents(n_files * n_documents)
    for file in range(n_files):
        lines = [
            json.dumps({"id": f"{file}-{number}", "text": text})
            for number, text in enumerate(texts[file * n_documents : (file + 1) * n_documents])
        ]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config_of(inputs: Path, out: Path, **changes: object) -> PipelineConfig:
    """A config of all files in a folder; by default only what is read is written."""
    record = {"out": str(out), "inputs": [{"paths": [str(inputs)]}]}
    return from_record(PipelineConfig, merge_records(record, changes))


def run(config: PipelineConfig, n_workers: int = 1, **options: object) -> None:
    """Plans and runs a pipeline."""
    run_pipeline(make_plan(config), n_workers=n_workers, **options)


def tree(out: Path) -> dict[str, bytes]:
    """The files that must be the same whoever made them: all but reports and logs."""
    own = ("report.json", ".log", "plan.json", "config.toml")
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.endswith(own))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def start(config: PipelineConfig, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """`rslm data run` as a process."""
    toml = config.out.with_suffix(".toml")
    toml.write_text(to_toml(config))
    return subprocess.Popen(
        [sys.executable, "-m", "rslm", "data", "run", str(toml), *flags],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def write_lines(path: Path, texts: list[str]) -> None:
    """A file of JSON lines."""
    rows = [json.dumps({"id": f"{path.stem}-{i}", "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n")


def drops(out: Path) -> dict[str, dict[str, int]]:
    """Documents dropped by stage/step and reason; steps that dropped none are left out."""
    steps = PipelineReport.read(out).steps
    found = {
        name: {reason: amount.documents for reason, amount in tally.drops.items()}
        for name, tally in steps.items()
    }
    return {name: reasons for name, reasons in found.items() if reasons}


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in children for child in path.read_text().split()]
