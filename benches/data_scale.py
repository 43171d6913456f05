"""`rslm data run` by one worker and two, on Ray beside local, and in how much memory.

    python benches/data_scale.py cores|ray|memory --pages FILE.warc.gz [...] [--turns 3]

Runs take turns. Memory is the highest of each process, looked at ten times a second.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
[language]
languages = ["any"]
[quality]
presets = ["course"]
[exact]
keep = "first"
[lines]
keep = "first"
[minhash]
preset = "course"
[pii]
preset = "course"
"""
WAYS = {
    "cores": {"1 worker": ["--workers", "1"], "2 workers": ["--workers", "2"]},
    "ray": {"ray": ["--workers", "2", "--backend", "ray"], "local": ["--workers", "2"]},
    "memory": {"2 workers": ["--workers", "2"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", choices=WAYS)
    parser.add_argument("--pages", type=Path, nargs="+", required=True, help="WARC files")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS[options.study]}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pipeline.toml"
        paths = json.dumps([str(path.resolve()) for path in options.pages])
        out = json.dumps(str(Path(folder) / "out"))
        config.write_text(f"out = {out}\n[[inputs]]\npaths = {paths}\n{CONFIG}")
        for _ in range(1 if options.study == "memory" else options.turns):
            for way, arguments in WAYS[options.study].items():
                wall, cpu, peaks = run(config, arguments)
                seconds[way].append(wall)
                highest = ", ".join(f"{peak >> 20}" for peak in peaks[:4])
                print(f"{way}: {wall:.1f} s, CPU {cpu:.1f} s, highest MB {highest}", flush=True)
    if len(seconds) == 2:
        (first, ones), (second, others) = seconds.items()
        shares = [one / other for one, other in zip(ones, others, strict=True)]
        best = min(ones) / min(others)
        print(f"{first} / {second}: {best:.2f}x of the fastest, {statistics.median(shares):.2f}x")
        print(f"load average {os.getloadavg()[0]:.1f}")


def run(config: Path, arguments: list[str]) -> tuple[float, float, list[int]]:
    """Seconds by the clock and of CPU, and the highest memory of each process, in bytes."""
    shutil.rmtree(config.parent / "out", ignore_errors=True)
    command = [sys.executable, "-m", "rslm", "data", "run", str(config), *arguments]
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in family_of(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), highest_memory(pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} failed")
    wall, after = time.perf_counter() - started, os.times()
    children = after.children_user + after.children_system
    cpu = children - before.children_user - before.children_system
    return wall, cpu, sorted(peaks.values(), reverse=True)


def family_of(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = path.read_text().split()
        except OSError:
            continue
        for child in below:
            found += family_of(int(child))
    return found


def highest_memory(pid: int) -> int:
    """The most that was resident, as the system kept it; 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return 1024 * sum(sizes)


if __name__ == "__main__":
    main()
