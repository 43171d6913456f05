"""The convergence study: tuned AdamW, Muon beside it, and muP, on real text, on a CPU.

    python benches/convergence.py
    python benches/convergence.py --toy --out /tmp/convergence.md

Runs are processes of one thread, two at a time; each leaves a line in convergence.jsonl and is
not made again. The report and its picture are written from those lines, as far as they go.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from convergence_plan import (
    MAX_RUNS,
    TOY,
    Outcome,
    Run,
    Study,
    from_record,
    make_plan,
    to_record,
)
from convergence_report import write_report
from convergence_run import command
from peer_inputs import head, read_blocks, read_xz, write_beside
from peer_table import commit

from rslm import Tokenizer, _rslm
from rslm.files import END_OF_TEXT

BENCHES = Path(__file__).parent
N_WORKERS = 2


def main() -> None:
    options = read_options()
    if _rslm.BUILD_PROFILE == "debug":
        sys.exit("error: only a release build is timed, this one is debug; run `make setup`")
    study = TOY if options.toy else Study()
    results = options.out.with_suffix(".jsonl")
    if not options.report:
        tokens = make_tokens(study, options)
        make_runs(study, tokens, results, options)
    write_report(study, read_results(results, study), options.out)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="text to train on; books of RSLM_TEST_DATA")
    parser.add_argument("--valid", type=Path, help="text to validate on; likewise")
    parser.add_argument("--toy", action="store_true", help="a minute: tiny models, to see it work")
    parser.add_argument("--report", action="store_true", help="write the report, make no runs")
    parser.add_argument("--workers", type=int, default=N_WORKERS, help="runs at a time")
    parser.add_argument("--out", type=Path, default=BENCHES / "results" / "convergence.md")
    parser.add_argument("--cache", type=Path, default=BENCHES.parent / ".benchmarks")
    options = parser.parse_args()
    if options.report:
        return options
    test_data = os.environ.get("RSLM_TEST_DATA")
    for name in ("train", "valid"):
        if getattr(options, name) is None and test_data:
            setattr(options, name, Path(test_data) / "text" / f"books-{name}.txt.xz")
        path = getattr(options, name)
        if path is None or not path.is_file():
            parser.error(f"--{name} must be a text file, or RSLM_TEST_DATA be set, got {path}")
    return options


def make_tokens(study: Study, options: argparse.Namespace) -> Path:
    """The folder with the token files of both texts, made once."""
    name = f"convergence-v{study.vocab_size}-{study.text_bytes}-{options.train.name}"
    folder: Path = options.cache / name
    if (folder / "valid" / "manifest.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for part in ("train", "valid"):
        source: Path = getattr(options, part)
        blocks = read_xz(source) if source.suffix == ".xz" else read_blocks(source)
        texts[part] = folder / f"{part}.txt"
        write_beside(texts[part], head(blocks, study.text_bytes))
    tokenizer = Tokenizer.train([texts["train"]], study.vocab_size, [END_OF_TEXT])
    for part, text in texts.items():
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            tokenizer.encode_files([text], Path(beside) / part)
            (Path(beside) / part).rename(folder / part)
        text.unlink()
    return folder


def read_results(path: Path, study: Study) -> dict[Run, Outcome]:
    """The outcomes of this study's runs in a file of results."""
    if not path.exists():
        return {}
    records = map(json.loads, path.read_text().splitlines())
    same = json.loads(json.dumps(asdict(study)))
    return dict(from_record(record) for record in records if record["study"] == same)


def make_runs(study: Study, tokens: Path, results: Path, options: argparse.Namespace) -> None:
    """Makes what the plan wants, as far as it is known, until nothing is missing."""
    outcomes = read_results(results, study)
    results.parent.mkdir(parents=True, exist_ok=True)
    running: dict[Run, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        try:
            while True:
                wanted = make_plan(study, outcomes).runs()
                missing = [run for run in wanted if run not in outcomes and run not in running]
                allowed = MAX_RUNS - len(outcomes) - len(running)
                for run in missing[: min(options.workers - len(running), allowed)]:
                    running[run] = start(study, run, tokens, Path(folder))
                if not running:
                    return
                while not (ended := [r for r, process in running.items() if ended_(process)]):
                    time.sleep(0.2)
                for run in ended:
                    outcomes[run] = outcome_of(run, running.pop(run))
                    line = json.dumps(to_record(study, run, outcomes[run]))
                    with results.open("a") as file:
                        file.write(line + "\n")
                    tell(run, outcomes[run], len(outcomes))
        finally:
            for process in running.values():
                process.kill()
                process.wait()


def start(study: Study, run: Run, tokens: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(study, run, tokens, folder / run.label),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def ended_(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None


def outcome_of(run: Run, process: subprocess.Popen[str]) -> Outcome:
    """What a process that ended wrote; a run that failed ends the study."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"error: {run.label} failed with exit status {process.returncode}")
    _, outcome = from_record({"run": asdict(run), "outcome": json.loads(output.splitlines()[-1])})
    return replace(outcome, commit=commit())


def tell(run: Run, outcome: Outcome, n_runs: int) -> None:
    print(
        f"{n_runs:>2}  {run.label:<70} val_loss {outcome.val_loss:.4f}  "
        f"{outcome.cpu_seconds:.0f} CPU s, {outcome.wall_seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
