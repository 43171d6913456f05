"""The layers of the package as data, and the imports that must respect them.

The same picture stands in CONTRIBUTING.md. An import points to a lower layer; within one
layer only modules of the same folder import each other.
"""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "rslm"
RUST = ROOT / "rust"

# A trailing `.*` names every module of that folder.
LAYERS = [
    ["allocator", "errors", "files", "process", "progress", "token_file_format"],
    [
        *["_rslm", "token_file", "token_file_writer", "permutation"],
        *["architecture", "config", "reference", "group_rules", "schedules", "depth_dial"],
        *["packing_reference", "hardware", "head_chunks", "series"],
    ],
    [
        *["corpus", "optim", "muon", "parametrisation", "data.*", "run_folder"],
        *["train_config", "terminal", "packing", "activation_memory", "matmul_peak"],
        *["html_report.*", "kernels.*", "scaling.*"],
    ],
    [
        *["tokenizer", "attention", "layers", "kv_cache", "losses", "batches"],
        *["checkpoint", "run_log", "optimizer_setup", "distributed.*", "trackers"],
        *["reference_curve", "memory_estimate", "environment", "data_report.*"],
    ],
    [
        "exact",
        "model",
        "chat",
        "text_run",
        "run_data",
        "run_checkpoints",
        "nonfinite",
        "run_display",
        "plan",
    ],
    ["infer.*", "plan_tables"],
    ["evaluate.*", "coord_check", "runs", "step_speed", "doctor.*", "profiling.*"],
    ["train", "gpu_check.*", "experiment.*", "post.*"],
    ["cli", "commands.*", "demo.*"],
]
# The package's face and what `python -m` runs stand outside the layers; nothing imports them.
FACE = {
    "": ["_rslm", "errors", "token_file", "tokenizer"],
    "__main__": ["cli", "process"],
    "gpu_check.__main__": ["cli", "process"],
}
# These load their imports inside the functions that need them, so they may name anything below.
LAZY = ["cli", "commands.*", "demo", "demo.chain", "demo.full", "demo.text"]
# These run where torch is not installed.
TORCH_FREE = [
    *["allocator", "errors", "files", "process", "progress", "token_file_format", "_rslm"],
    *["token_file", "token_file_writer", "permutation", "architecture", "parametrisation"],
    *["config", "reference", "group_rules", "schedules", "corpus", "tokenizer", "data.*"],
    *["evaluate.sandbox", "evaluate.sandbox_child", "evaluate.sandbox_messages"],
    *["run_folder", "runs", "series", "data_report.*", "chat"],
    *["infer.admission", "infer.blocks", "infer.options", "infer.parameters", "infer.stopping"],
    *["post.post_config", "post.dpo_config"],
    *["train_config", "terminal", "text_run", "depth_dial", "packing", "packing_reference"],
    *["post.rl_config", "post.rl_presets"],
    *["hardware", "head_chunks", "activation_memory", "memory_estimate", "plan", "plan_tables"],
    *["post.post_config", "post.sft_config", "post.mask_plane"],
    *["profiling.cases", "profiling.tables", "experiment.*", "html_report.*", "scaling.*"],
    *["evaluate.answers", "evaluate.archive", "evaluate.arithmetic", "evaluate.drawn"],
    *["evaluate.equality", "evaluate.example", "evaluate.grade", "evaluate.procedural"],
    *["evaluate.prompts", "evaluate.symbolic", "evaluate.task_chats", "evaluate.task_files"],
    *["evaluate.tasks", "evaluate.workers"],
    *["evaluate.core", "evaluate.pass_at_k", "evaluate.questions", "evaluate.results"],
]
# Layers 0 and 1 import these and the standard library only; `config` also makes flags,
# `files` reads Parquet and `progress` draws a bar where they are asked to.
LIGHT_MODULES = [*LAYERS[0], *LAYERS[1]]
LIGHT = {"numpy", "regex"}
LIGHT_EXTRA = {"config": {"tyro"}, "files": {"pyarrow"}, "progress": {"rich"}}

# Left never sees right; modules side by side may see each other.
RUST_LAYERS = [
    ["error", "memory", "random", "sandbox", "token_id"],
    ["pretokenize", "bpe::vocab", "infer"],
    ["bpe::count", "bpe::pair_ranks", "bpe::merge", "bpe::cache", "token_file"],
    [
        "bpe::tokenizer",
        "bpe::encode",
        "bpe::decode",
        "bpe::dropout",
        "bpe::formats",
        "bpe::train",
        "files",
        "web",
    ],
]
# These hold declarations and re-exports only.
RUST_FACE = ["lib", "bpe"]


def matches(module: str, patterns: list[str]) -> bool:
    return any(
        module == pattern.removesuffix(".*")
        or (pattern.endswith(".*") and module.startswith(pattern[:-1]))
        for pattern in patterns
    )


def layer_of(module: str) -> int:
    layers = [number for number, patterns in enumerate(LAYERS) if matches(module, patterns)]
    assert len(layers) == 1, f"rslm.{module} must have one place in LAYERS, has {layers}"
    return layers[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = sorted(SOURCES.keys() - FACE.keys())


def imports_of(module: str, *, only_at_load: bool = False) -> Iterator[str]:
    """Absolute names of what the module imports, those inside functions included."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"rslm.{module} imports relatively; write the full name"
            yield from (imported_name(node.module or "", alias.name) for alias in node.names)
        elif not (only_at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            stack.extend(ast.iter_child_nodes(node))


def imported_name(module: str, name: str) -> str:
    """`from rslm.data import download` names a module, `from rslm.model import Linear` does not."""
    full = f"{module}.{name}"
    return full if full.removeprefix("rslm.") in {*SOURCES, "_rslm"} else module


def own_imports_of(module: str) -> set[str]:
    return {
        name.removeprefix("rslm").removeprefix(".")
        for name in imports_of(module)
        if name == "rslm" or name.startswith("rslm.")
    }


def third_party_imports_of(module: str, *, only_at_load: bool = False) -> set[str]:
    roots = {name.partition(".")[0] for name in imports_of(module, only_at_load=only_at_load)}
    return roots - sys.stdlib_module_names - {"rslm"}


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_contributing_shows_the_same_layers(number: int):
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (shown,) = re.findall(rf"^ {number}  (.*(?:\n {{4}}.*)*)", contributing, re.MULTILINE)
    assert {name.replace(".*", "/*") for name in LAYERS[number]} <= set(shown.split())


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_one_layer(module: str):
    layer_of(module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_a_lower_layer(module: str):
    lazy = matches(module, LAZY)
    for imported in sorted(own_imports_of(module)):
        # The command line may ask the package for its version.
        assert lazy or imported not in FACE, f"rslm.{module} imports the package's face"
        assert imported != "cli", f"rslm.{module} imports rslm.cli, which stands above everything"
        # A folder's `__init__` may gather what its modules offer.
        same_folder = module.partition(".")[0] == imported.partition(".")[0]
        assert lazy or same_folder or layer_of(imported) < layer_of(module), (
            f"rslm.{module} (layer {layer_of(module)}) imports "
            f"rslm.{imported} (layer {layer_of(imported)})"
        )


@pytest.mark.parametrize("module", FACE)
def test_face_imports_only_what_it_exports(module: str):
    assert own_imports_of(module) <= set(FACE[module])


def test_reference_imports_nothing_of_ours():
    assert own_imports_of("reference") == set()
    assert third_party_imports_of("reference") <= {"regex"}


@pytest.mark.parametrize("module", [name for name in MODULES if matches(name, LIGHT_MODULES)])
def test_lowest_layers_import_only_light_packages(module: str):
    assert third_party_imports_of(module) <= LIGHT | LIGHT_EXTRA.get(module, set())


@pytest.mark.parametrize("module", [name for name in MODULES if matches(name, TORCH_FREE)])
def test_torch_free_modules_never_import_torch(module: str):
    assert "torch" not in third_party_imports_of(module)


@pytest.mark.parametrize("module", [name for name in MODULES if matches(name, LAZY)])
def test_command_line_imports_torch_only_inside_functions(module: str):
    assert "torch" not in third_party_imports_of(module, only_at_load=True)


def test_import_loads_no_torch():
    modules = [name for name in MODULES if matches(name, [*TORCH_FREE, *LAZY])]
    program = "import sys\n" + "".join(
        f"import {module}\nassert 'torch' not in sys.modules, '{module} loads torch'\n"
        for module in ["rslm", *(f"rslm.{name}" for name in modules)]
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def rust_module(path: Path) -> str:
    parts = path.relative_to(RUST).with_suffix("").parts
    return "::".join(part for part in parts if part != "mod")


RUST_SOURCES = {rust_module(path): path for path in sorted(RUST.rglob("*.rs"))}
# The binding stands on top and may see everything.
RUST_CORE = sorted(
    name
    for name in RUST_SOURCES.keys() - set(RUST_FACE)
    if name != "python" and not name.startswith("python::")
)


def rust_code(module: str) -> str:
    """The module's source without comment lines and without its tests."""
    source = RUST_SOURCES[module].read_text(encoding="utf-8")
    source = re.split(r"^mod tests \{", source, flags=re.MULTILINE)[0]
    return re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)


def split_list(text: str) -> list[str]:
    """`a::{b, c}, d` is `["a::{b, c}", "d"]`."""
    parts, depth = [""], 0
    for character in re.sub(r"\s+", " ", text):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def expand(tree: str) -> list[str]:
    """`a::{b, c::d}` is `["a::b", "a::c::d"]`."""
    head, brace, rest = tree.partition("{")
    if not brace:
        return [tree.partition(" as ")[0]]
    return [head + path for part in split_list(rest.rstrip("}")) for path in expand(part)]


def rust_paths_of(module: str) -> set[str]:
    """Paths from the crate's root of what the module names."""
    paths = set()
    for start, tree in re.findall(
        r"\b((?:crate|super)(?:::super)*)::((?:\w+::)*(?:\w+|\{[^;]*\}(?=;)))", rust_code(module)
    ):
        parents = module.split("::")[: -start.count("super")] if start != "crate" else []
        paths |= {"::".join([*parents, path]) for path in expand(tree)}
    return paths


@functools.cache
def rust_exports() -> dict[str, str]:
    """Short names that the faces re-export, and where each comes from."""
    return {
        "::".join([*prefix, path.rpartition("::")[2]]): "::".join([*prefix, path])
        for face in RUST_FACE
        for prefix in [[] if face == "lib" else [face]]
        for tree in re.findall(r"^pub(?:\(crate\))? use ([^;]+);", rust_code(face), re.MULTILINE)
        for path in expand(tree)
    }


def rust_layer_of(path: str) -> int:
    """The layer of a module, or of an item in one, given by its path from the crate's root."""
    for number, names in enumerate(RUST_LAYERS):
        if any(path == name or path.startswith(f"{name}::") for name in names):
            return number
    if (origin := rust_exports().get(path)) is not None:
        return rust_layer_of(origin)
    # What the crate's root defines itself is for everybody.
    assert path[0].isupper(), f"crate::{path} must have one place in RUST_LAYERS"
    return 0


@pytest.mark.parametrize("module", RUST_CORE)
def test_rust_modules_see_only_lower_ones(module: str):
    for path in sorted(rust_paths_of(module)):
        assert rust_layer_of(path) <= rust_layer_of(module), f"rust {module} uses crate::{path}"


@pytest.mark.parametrize("module", RUST_CORE)
def test_rust_core_does_not_name_python(module: str):
    assert not re.search(r"\b(pyo3|numpy)::", rust_code(module))
