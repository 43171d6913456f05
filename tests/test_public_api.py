"""What the package promises: its names, its signatures, a docstring for each, types."""

import ast
import inspect
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import rslm

PACKAGE = Path(__file__).parents[1] / "python" / "rslm"
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

EXPORTED = {"FormatError", "StreamDecoder", "TokenFile", "Tokenizer", "__version__", "train_bpe"}

SIGNATURES = {
    "train_bpe": "(input_path, vocab_size, special_tokens=(), *, texts=None, counts=None, "
    "pattern=None, tie_break='bytes', unit='document', errors='strict', min_frequency=0, "
    "max_token_length=None, extend=None, n_threads=None, "
    "memory_limit=None, spill_dir=None, progress=None, **inputs)",
    "tokenizer.count_pretokens": "(input_path, out, special_tokens=(), *, texts=None, "
    "pattern='gpt2', unit='document', errors='strict', n_threads=None, memory_limit=None, "
    "spill_dir=None, progress=None, **inputs)",
    "tokenizer.read_counts": "(path)",
    "Tokenizer": "(vocab, merges, special_tokens=None, *, pattern='gpt2')",
    "Tokenizer.from_files": "(vocab_path, merges_path, special_tokens=None, *, pattern='gpt2')",
    "Tokenizer.save": "(self, path, format='rslm')",
    "Tokenizer.load": "(path, format=None, *, pattern=None, special_tokens=None)",
    "TokenFile.open": "(path, *, tokenizer=None, verify=False)",
}


def public_definitions(path: Path) -> list[ast.AST]:
    """The module, its public classes and functions, and the public methods of those classes."""
    found: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    for node in found:
        if isinstance(node, ast.Module | ast.ClassDef):
            found += [
                child
                for child in node.body
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and not child.name.startswith("_")
                and not any("overload" in ast.unparse(mark) for mark in child.decorator_list)
            ]
    return found


def test_exported_names_are_exactly_these():
    assert set(rslm.__all__) == EXPORTED
    assert all(hasattr(rslm, name) for name in EXPORTED)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_as_promised(name: str):
    member = rslm
    for part in name.split("."):
        member = getattr(member, part)
    signature = inspect.signature(member)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


def test_the_function_and_the_method_that_train_take_the_same():
    function, method = inspect.signature(rslm.train_bpe), inspect.signature(rslm.Tokenizer.train)
    assert list(function.parameters.values()) == list(method.parameters.values())


def test_version_is_the_installed_package_s():
    assert rslm.__version__ == version("rslm")


@pytest.mark.parametrize("source", SOURCES)
def test_every_public_definition_has_a_docstring(source: str):
    missing = [
        getattr(node, "name", source)
        for node in public_definitions(PACKAGE / source)
        if not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize("source", SOURCES)
def test_docstring_states_a_fact(source: str):
    for node in public_definitions(PACKAGE / source):
        first_line = (ast.get_docstring(node) or "").partition("\n")[0]
        assert not first_line.startswith(("This ", "A function", "A class", "A method")), first_line


@pytest.mark.parametrize(
    "name", ["py.typed", "_rslm.pyi", "presets/demo.toml", "html_report/page.js"]
)
def test_package_data_is_installed(name: str):
    assert files("rslm").joinpath(name).is_file()
