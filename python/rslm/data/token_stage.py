"""Documents to token files: mixed, shuffled, split, and encoded by the Rust job.

The parts that `rslm.data.shuffle` makes are encoded as `rslm tokenizer encode` would, special
tokens in them as ordinary text: what somebody wrote on a page must not end a document.

Everything is written beside and renamed, under names that follow from the plan, so a run that was
killed goes on where it was and gives the same bytes. `report.json`, written last, says that the
folder is complete.

This calls the Rust job itself, not `rslm.tokenizer`, which stands above.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rslm import _rslm
from rslm.data.mixture import Mixture, repeats_for_weights
from rslm.data.shuffle import (
    SIDES,
    SortOptions,
    bytes_of_sources,
    n_parts,
    read_marker,
    remove_runs,
    write_part,
    write_runs,
)
from rslm.files import END_OF_TEXT, write_atomically
from rslm.progress import ProgressCallback, progress_callback

REPORT_NAME = "report.json"

_WORK, _PLAN, _PARTS = "work", "plan.json", "parts.json"
# A line of the longest text that is read, each of its characters escaped.
_MAX_LINE_BYTES = 1 << 27


class _Lines(NamedTuple):
    """What the Rust job is told of its inputs."""

    format: str
    text_field: str
    rows_hold_special_tokens: bool
    max_document_bytes: int
    open_table: Callable[..., Any]


def write_token_file(
    shards: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shuffle_seed: int | None = 0,
    validation_share: float = 0.0,
    mixture: Mixture | None = None,
    text_field: str = "text",
    dataset: str = "",
    shard_tokens: int = 1 << 27,
    run_bytes: int = 1 << 26,
    n_workers: int = 1,
    n_threads: int | None = None,
    plan_hash: str = "",
    progress: bool | ProgressCallback | None = None,
) -> dict[str, Any]:
    """Encodes documents into the token files `out/train` and `out/valid`; returns the report.

    The same documents and options give the same tokens, however documents lie in files and
    whatever the workers and threads; a killed call, made again, goes on. Needs room on the disk
    for the text twice, beside the tokens.

    Args:
        shards: Files or folders that `read_documents` knows, JSON lines above all.
        tokenizer: A saved tokenizer with the special token `<|endoftext|>`, which is put behind
            each document.
        out: A new folder, or one in which the same call was begun.
        shuffle_seed: Decides the order of the documents; None keeps that of `shards`.
        validation_share: The share of documents, by a hash of their ids, that `out/valid` gets,
            each once. So a document is on the same side in every mixture and under every seed.
        mixture: Copies of documents in `out/train`.
        text_field: The field or column with the text.
        dataset: A name that the files remember, at most 64 bytes.
        shard_tokens: A file of tokens ends with the document that reaches these.
        run_bytes: Text that is held in memory at a time, by each worker.
        n_workers: Processes that read and sort.
        n_threads: Threads that encode; None means one per processor.
        plan_hash: Hash of the plan that this is a stage of; it becomes part of this one's.
        progress: True for a bar on a terminal, or a function of (done, total, phase).

    Raises:
        ValueError: an argument is out of range, `out` holds something else, a side has no
            document, or a score or a weight is missing.
        FormatError: the tokenizer's file is none.
        OSError: reading or writing failed.
    """
    paths = _inputs_of(shards, in_order=shuffle_seed is None)
    _check(validation_share, shuffle_seed, run_bytes, n_workers)
    core = _rslm.Tokenizer.load(tokenizer, None, None, [])
    if END_OF_TEXT not in core.special_tokens:
        raise ValueError(f"tokenizer must have the special token {END_OF_TEXT}")
    options = SortOptions(
        shuffle_seed=shuffle_seed,
        validation_share=validation_share,
        mixture=mixture or Mixture(),
        repeats=(mixture or Mixture()).repeats,
        text_field=text_field,
        run_bytes=run_bytes,
    )
    plan = _plan(paths, core, options, dataset, shard_tokens, plan_hash)
    folder = Path(out)
    if (report := _begin(folder, plan)) is not None:
        return report
    work = folder / _WORK
    with _workers(n_workers) as each:
        options = _with_weights(paths, options, work, each)
        each(write_runs, [(path, i, work, options) for i, path in enumerate(paths)])
        parts = _write_parts(work, len(paths), options, each)
    tokens = {}
    with progress_callback(progress) as callback:
        for side, side_parts in parts.items():
            command = f"rslm.data.token_stage plan {plan['sha256']}"
            tokens[side] = _encode(
                core, side_parts, folder / side, dataset, shard_tokens, command, n_threads, callback
            )
    report = _report(plan, work, len(paths), tokens)
    write_atomically(folder / REPORT_NAME, _as_json(report))
    shutil.rmtree(work)
    return report


def export_raw(token_file: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Writes the token ids alone, as little-endian uint16 end to end; returns their number.

    The course's form of a corpus: `numpy.fromfile(out, "<u2")`, each document followed by the
    id of `<|endoftext|>`. Written beside and renamed.

    Raises:
        ValueError: an id may be above 65,535, or documents are not ended by a token.
        FormatError: the token file is damaged.
        OSError: reading or writing failed.
    """
    # NumPy's part of the token file is loaded by those alone who need it.
    from rslm.token_file import TokenFile

    opened = TokenFile.open(token_file)
    if opened.itemsize != 2:
        raise ValueError(
            f"raw files hold ids up to 65535, but those of {os.fspath(token_file)} may go up to "
            f"{(opened.vocab_size or 1 << 32) - 1}"
        )
    if opened.end_of_text is None:
        raise ValueError(f"the documents of {os.fspath(token_file)} must end with a token")
    opened.verify()
    maps = (opened.tokens(shard) for shard in range(len(opened.shards)))
    write_atomically(out, *(tokens.data.cast("B") for tokens in maps if len(tokens)))
    return len(opened)


def _inputs_of(shards: Sequence[str | os.PathLike[str]], *, in_order: bool) -> list[Path]:
    """The inputs, in an order that does not depend on the caller's where that is free."""
    if isinstance(shards, (str, os.PathLike)) or not shards:
        raise ValueError(f"shards must be a sequence of at least one path, got {shards!r}")
    paths = [Path(path) for path in shards]
    if len(set(paths)) != len(paths):
        raise ValueError("shards must be different files, and one is named twice")
    return paths if in_order else sorted(paths, key=lambda path: (path.name, path))


def _check(share: float, seed: int | None, run_bytes: int, n_workers: int) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"validation_share must be from 0 to below 1, got {share}")
    if seed is not None and not 0 <= seed < 1 << 64:
        raise ValueError(f"shuffle_seed must be from 0 to 2^64 - 1, got {seed}")
    if run_bytes < 1:
        raise ValueError(f"run_bytes must be at least 1, got {run_bytes}")
    if not 1 <= n_workers <= 1024:
        raise ValueError(f"n_workers must be from 1 to 1024, got {n_workers}")


def _plan(
    paths: Sequence[Path],
    core: _rslm.Tokenizer,
    options: SortOptions,
    dataset: str,
    shard_tokens: int,
    plan_hash: str,
) -> dict[str, Any]:
    """All that decides the bytes, and its hash."""
    plan = {
        "format": "rslm token stage 1",
        "rslm_version": _rslm.VERSION,
        "inputs": [[path.name, _size_of(path)] for path in paths],
        "tokenizer_sha256": core.sha256().hex(),
        "shuffle_seed": options.shuffle_seed,
        "validation_share": options.validation_share,
        "mixture": options.mixture.as_json(),
        "text_field": options.text_field,
        "run_bytes": options.run_bytes,
        "dataset": dataset,
        "shard_tokens": shard_tokens,
        "plan_hash": plan_hash,
    }
    return plan | {"sha256": hashlib.sha256(_as_json(plan)).hexdigest()}


def _size_of(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _begin(folder: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Prepares the folder; the report, where all was done already.

    Raises:
        ValueError: the folder holds something else, or another plan was begun there.
    """
    work = folder / _WORK
    report_path = folder / REPORT_NAME
    if report_path.exists():
        report: dict[str, Any] = json.loads(report_path.read_bytes())
        _require_same(report.get("plan", {}), plan, folder)
        shutil.rmtree(work, ignore_errors=True)
        return report
    if (work / _PLAN).exists():
        _require_same(json.loads((work / _PLAN).read_bytes()), plan, folder)
        return None
    if folder.exists() and (held := sorted(set(os.listdir(folder)) - {_WORK})):
        raise ValueError(f"out must be a new or empty folder, but {folder} holds {held[0]}")
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(work / _PLAN, _as_json(plan))
    return None


def _require_same(begun: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    for name in plan.keys() - {"sha256"}:
        if begun.get(name) != plan[name]:
            raise ValueError(
                f"{folder} was begun with another {name}: {begun.get(name)}, got {plan[name]}"
            )


class _workers:
    """`each(function, arguments)` calls a function with each of the arguments, in processes."""

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Callable[..., list[Any]]:
        if self._n_workers > 1:
            # Threads of the core may run, over which no process should be forked.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._n_workers, mp_context=context)
        return self._each

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _each(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        if self._pool is None:
            return [function(*each) for each in arguments]
        futures = [self._pool.submit(function, *each) for each in arguments]
        return [future.result() for future in futures]


def _with_weights(
    paths: Sequence[Path], options: SortOptions, work: Path, each: Callable[..., list[Any]]
) -> SortOptions:
    """The options with the repeats that the mixture's weights come to."""
    weights = options.mixture.weights
    if not weights:
        return options
    known = work / "repeats.json"
    if not known.exists():
        totals = each(bytes_of_sources, [(path, options.text_field) for path in paths])
        repeats = repeats_for_weights(weights, sum(totals, Counter()))
        write_atomically(known, json.dumps(list(repeats.items())).encode())
    values = vars(options) | {"repeats": dict(json.loads(known.read_bytes()))}
    return SortOptions(**values)


def _write_parts(
    work: Path, n_inputs: int, options: SortOptions, each: Callable[..., list[Any]]
) -> dict[str, list[Path]]:
    """The parts of each side, in their order; afterwards the runs are gone."""
    all_runs = [run for i in range(n_inputs) for run in read_marker(work, i)["runs"]]
    sides = SIDES if options.validation_share else SIDES[:1]
    parts: dict[str, list[Path]] = {}
    tasks = []
    for side in sides:
        runs = [run for run in all_runs if run["side"] == side]
        if not runs:
            raise ValueError(f"a document must be left for {side}, and none is")
        n = n_parts(runs, n_inputs, options)
        parts[side] = [work / f"{side}-{part:06d}.jsonl" for part in range(n)]
        tasks += [(work, runs, i, n, part, options) for i, part in enumerate(parts[side])]
    if not (work / _PARTS).exists():
        each(write_part, tasks)
        write_atomically(work / _PARTS, b"{}")
    remove_runs(work, all_runs)
    return parts


def _encode(
    core: _rslm.Tokenizer,
    parts: Sequence[Path],
    out: Path,
    dataset: str,
    shard_tokens: int,
    command: str,
    n_threads: int | None,
    callback: Any,
) -> dict[str, Any]:
    """Encodes parts, on from where a killed call left off."""
    lines = _Lines("jsonl", "text", False, _MAX_LINE_BYTES, _no_table)
    written = _rslm.encode_files(
        core,
        parts,
        out,
        f"rslm-{core.vocab_size}",
        dataset,
        shard_tokens,
        END_OF_TEXT,
        "strict",
        command,
        n_threads,
        callback,
        lines,
        True,
    )
    names = ("n_tokens", "n_documents", "n_utf8_bytes", "n_shards", "fingerprint")
    return {name: written[name] for name in names}


def _no_table(*_: object) -> Any:
    raise AssertionError("parts are JSON lines")


def _report(
    plan: dict[str, Any], work: Path, n_inputs: int, tokens: dict[str, Any]
) -> dict[str, Any]:
    skipped: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    for number in range(n_inputs):
        record = read_marker(work, number)
        skipped.update(record["skipped"])
        for source, counts in record["sources"].items():
            sources.setdefault(source, Counter()).update(counts)
    return {"plan": plan, "sources": sources, "skipped": skipped, "tokens": tokens}


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
