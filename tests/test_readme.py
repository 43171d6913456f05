"""The README's commands and code run, in order, in one folder; its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCK = re.compile(
    r"(?:^<!-- not run:(?P<reason>[^\n]*)-->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# A reader's minutes are a test's seconds. Each left side stands in the README.
SMALLER = {
    "--n-steps 200": "--n-steps 3",
    "--n-steps 100": "--n-steps 2 --prompts-per-step 4 --n-evaluation-prompts 4 --max-new-tokens 8",
    "--max-examples 100": "--max-examples 4 --max-new-tokens 8",
    "--n-steps 120": "--n-steps 3 --optimizer.warmup-steps 1 --model.context-length 32",
    "--n-steps 500": "--n-steps 3 --optimizer.warmup-steps 1 --model.context-length 32",
}


class Block(NamedTuple):
    language: str
    code: str
    reason: str | None


BLOCKS = [Block(m["language"], m["code"], m["reason"]) for m in BLOCK.finditer(README)]


def run_block(block: Block, folder: Path) -> None:
    code = block.code
    for written, smaller in SMALLER.items():
        code = code.replace(written, smaller)
    command = (
        [sys.executable, "-W", "error", "-c", code]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c", code]
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, f"{block.code}\n{ended.stdout}\n{ended.stderr}"


def test_readme_blocks_run_in_order(tmp_path: Path):
    for block in BLOCKS:
        if block.language in ("python", "sh") and block.reason is None:
            run_block(block, tmp_path)


def test_readme_has_blocks_of_both_languages_and_reasons_for_those_not_run():
    assert {block.language for block in BLOCKS if block.reason is None} == {"python", "sh"}
    assert README.count("<!-- not run:") == sum(block.reason is not None for block in BLOCKS)
    assert all(block.reason.strip() for block in BLOCKS if block.reason is not None)


@pytest.mark.parametrize("written", SMALLER)
def test_readme_still_says_what_the_test_makes_smaller(written: str):
    assert written in README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_of_the_repository(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert "://" in target or (ROOT / target).exists(), f"{name} links to {target}"


def test_readme_is_short():
    assert len(README.splitlines()) <= 200
