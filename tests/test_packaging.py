"""The source distribution holds what a build needs; a wheel built from it runs without Rust."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Runs in an environment that has rslm's base dependencies and nothing else.
PROGRAM = """
import sys
import rslm
assert rslm.__file__.startswith(sys.prefix), rslm.__file__
tokenizer = rslm.Tokenizer.train(__file__, 300, special_tokens=["<|endoftext|>"])
assert tokenizer.decode(tokenizer.encode("a b<|endoftext|>")) == "a b<|endoftext|>"
token_file = tokenizer.encode_files([__file__], "tokens")
assert rslm.TokenFile.open("tokens", tokenizer=tokenizer, verify=True)[0] == token_file[0]
assert "torch" not in sys.modules
"""


def maturin(*arguments: str | Path, folder: Path = ROOT) -> None:
    # The target folder is the repository's, so that the dependencies are compiled once.
    environment = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target")}
    subprocess.run(
        [sys.executable, "-m", "maturin", *arguments], cwd=folder, env=environment, check=True
    )


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    out = tmp_path_factory.mktemp("sdist")
    maturin("sdist", "--out", out)
    (archive,) = out.glob("rslm-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(out, filter="data")
    return out / archive.name.removesuffix(".tar.gz")


def base_distributions() -> Iterator[metadata.Distribution]:
    """The distributions that rslm needs without extras, and those they need in turn."""
    waiting, seen = ["rslm"], {"rslm"}
    while waiting:
        for requirement in metadata.requires(waiting.pop()) or []:
            name = re.split(r"[^\w.-]", requirement)[0]
            if ";" not in requirement and name not in seen:
                seen.add(name)
                waiting.append(name)
                yield metadata.distribution(name)


def copy_distribution(distribution: metadata.Distribution, folder: Path) -> None:
    """Copies an installed distribution's importable files: an installation without an index."""
    for file in distribution.files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)


def test_source_distribution_holds_the_sources_and_nothing_else(source_folder: Path):
    files = {p.relative_to(source_folder).as_posix() for p in source_folder.rglob("*")}
    top = {name for name in files if "/" not in name}
    assert top == {
        *["Cargo.lock", "Cargo.toml", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"],
        *["python", "rust"],
    }
    for folder, pattern in {"rust": "*.rs", "python": "*.py"}.items():
        sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob(pattern)}
        assert sources <= files
    assert {"python/rslm/py.typed", "python/rslm/_rslm.pyi"} <= files
    assets = {
        p.relative_to(ROOT).as_posix()
        for folder in ("html_report", "infer")
        for kind in ("html", "css", "js")
        for p in (ROOT / "python/rslm" / folder).rglob(f"*.{kind}")
    }
    assert "python/rslm/infer/ui.html" in assets
    assert assets <= files
    suffixes = {Path(name).suffix for name in files - assets if (source_folder / name).is_file()}
    assert suffixes <= {".rs", ".py", ".pyi", ".typed", ".toml", ".lock", ".md", ""}


@pytest.mark.slow
def test_wheel_runs_in_a_clean_environment_without_rust(source_folder: Path, tmp_path: Path):
    maturin("build", "--profile", "dist", "--out", tmp_path / "dist", folder=source_folder)
    (wheel,) = (tmp_path / "dist").glob("rslm-*-cp311-abi3-*.whl")

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    for distribution in base_distributions():
        copy_distribution(distribution, packages)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)

    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([python, program], cwd=tmp_path, env=bare, check=True)
    for command in ([environment / "bin" / "rslm"], [python, "-m", "rslm"]):
        printed = subprocess.run(
            [*command, "--version"], cwd=tmp_path, env=bare, check=True, capture_output=True
        )
        assert printed.stdout.decode() == f"rslm {metadata.version('rslm')}\n"
