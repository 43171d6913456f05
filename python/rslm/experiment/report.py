"""`rslm report`: runs and studies on one page that a person would rather read than logs."""

import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rslm.config import Record
from rslm.errors import FormatError
from rslm.experiment import report_sections
from rslm.experiment.report_runs import RunView, read_view
from rslm.experiment.report_scaling import FIT_FILE, scaling_section
from rslm.experiment.report_study import study_sections
from rslm.experiment.study import STUDY_FILE, read_study
from rslm.files import require_place, write_atomically
from rslm.html_report.blocks import Page, Section
from rslm.html_report.page import render
from rslm.html_report.thinning import points_per_curve

FOUND_BY = (STUDY_FILE, FIT_FILE, "config.toml")
"""Files by which a folder is known as one of a study, of fitted laws, of a run."""
UNDECIDED = ("waiting", "running", "stopped")
"""What a study says of runs that it has no last word on: their folders know more."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run folder that was found, and what a study says of it."""

    path: Path
    name: str
    status: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A folder of a study.

    Attributes:
        path: the folder.
        record: what its `study.json` says.
        sources: its runs that were begun.
    """

    path: Path
    record: Record
    sources: Sequence[Source]


def write_report(paths: Sequence[Path], out: Path, *, title: str | None = None) -> int:
    """Writes a page on run folders, studies and folders of them, and returns how many runs.

    The page is written beside `out` and renamed.

    Raises:
        FileNotFoundError: a path is no folder, or `out` is to be in none.
        FormatError: a run or a study is damaged.
        ValueError: there are no runs, or `out` is no file.
        ModuleNotFoundError: plotly is not installed.
    """
    if out.is_dir():
        raise ValueError(f"out must be a file, and {out} is a folder")
    require_place(out)
    studies, sources = find_sources(paths)
    views = read_views(sources)
    page = make_page(views, studies, title=title or title_of(studies, sources))
    write_atomically(out, render(page))
    return len(views)


def find_sources(paths: Sequence[Path]) -> tuple[list[Study], list[Source]]:
    """The studies at the paths, and all runs, those of studies among them, each once.

    Raises:
        FileNotFoundError: a path is no folder.
        FormatError: a `study.json` is damaged.
        ValueError: there are no runs at a path.
    """
    studies, sources = [], []
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} must be a run folder or a study, and does not exist")
        found = _find(path)
        if not any(found):
            raise ValueError(f"{path} must be or hold run folders or studies, and does not")
        studies += found[0]
        sources += found[1]
    once = {source.path.resolve(): source for source in reversed(sources)}
    return studies, _with_different_names(list(once.values())[::-1])


def _find(path: Path) -> tuple[list[Study], list[Source]]:
    if any((path / name).is_file() for name in (STUDY_FILE, FIT_FILE)):
        study = _read_study(path)
        return [study], list(study.sources)
    if (path / "config.toml").is_file():
        return [], [Source(path=path, name=path.resolve().name)]
    inside = sorted({file.parent for name in FOUND_BY for file in path.glob(f"*/{name}")})
    found = [_find(folder) for folder in inside]
    return [s for studies, _ in found for s in studies], [s for _, runs in found for s in runs]


def _read_study(path: Path) -> Study:
    record = read_study(path)
    sources = []
    for entry in record.get("runs", []):
        folder, name = entry.get("folder"), entry.get("name")
        if not isinstance(folder, str) or not isinstance(name, str) or Path(folder).name != folder:
            raise FormatError(f"{path / STUDY_FILE}: a run must have a name and a folder's name")
        if (path / folder / "config.toml").is_file():
            status = str(entry.get("status", ""))
            sources.append(
                Source(
                    path=path / folder,
                    name=name,
                    status="" if status in UNDECIDED else status,
                    message=str(entry.get("message", "")),
                )
            )
    return Study(path=path, record=record, sources=sources)


def _with_different_names(sources: Sequence[Source]) -> list[Source]:
    """The sources, with as much of their paths for a name as tells them apart."""
    names = [source.name for source in sources]
    longer = [f"{source.path.resolve().parent.name}/{source.name}" for source in sources]
    named = [b if names.count(a) > 1 else a for a, b in zip(names, longer, strict=True)]
    return [
        replace(source, name=str(source.path) if named.count(name) > 1 else name)
        for source, name in zip(sources, named, strict=True)
    ]


def read_views(sources: Sequence[Source]) -> list[RunView]:
    """Reads the runs, one after the other, and finds which differ in the seed alone."""
    n_points = points_per_curve(len(sources))
    views = [
        read_view(
            source.path,
            name=source.name,
            n_points=n_points,
            status=source.status,
            message=source.message,
        )
        for source in _watched(sources)
    ]
    alike: dict[str, list[str]] = {}
    for view in views:
        options = sorted((k, repr(v)) for k, v in view.options.items() if k != "seed")
        alike.setdefault(repr(options), []).append(view.name)
    all_names = [view.name for view in views]
    groups: dict[str, str] = {}
    for names in alike.values():
        groups |= dict.fromkeys(names, group_name(names, all_names))
    return [replace(view, group=groups[view.name]) for view in views]


def _watched(sources: Sequence[Source]) -> Iterable[Source]:
    """The sources, with a bar where somebody watches: 100,000 steps take a second or two."""
    from rich.console import Console
    from rich.progress import track

    console, is_silent = Console(stderr=True), not sys.stderr.isatty()
    return track(sources, "reading runs", console=console, transient=True, disable=is_silent)


def group_name(names: Sequence[str], all_names: Sequence[str] = ()) -> str:
    """What runs that differ in the seed alone are called together, and no other runs are.

    >>> group_name(["ffn=relu2,seed=0", "ffn=relu2,seed=1"])
    'ffn=relu2'
    >>> group_name(["run10", "run11"])
    'run10 and 1 more'
    """
    if len(names) == 1:
        return names[0]
    words = zip(*(re.findall(r"[^\W_]+|[\W_]", name) for name in names), strict=False)
    alike = itertools.takewhile(lambda group: len(set(group)) == 1, words)
    prefix = re.sub(r"[\W_]*(seed)?[\W_]*$", "", "".join(group[0] for group in alike))
    is_of_others = any(name.startswith(prefix) for name in set(all_names) - set(names))
    if is_of_others or not prefix:
        return f"{names[0]} and {len(names) - 1} more"
    return prefix


def make_page(views: Sequence[RunView], studies: Sequence[Study], *, title: str) -> Page:
    """The report on the runs and studies."""
    first, *rest = report_sections.of_runs(views) if views else [None]
    parts = [first, *results(studies), *rest]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Page(
        title=title,
        lead=lead_of(views, studies),
        sections=[part for part in parts if part is not None],
        footer=f"Written by rslm {_version()} on {now}.",
    )


def lead_of(views: Sequence[RunView], studies: Sequence[Study]) -> str:
    """What was run and is best, and how much is still to come, in a few sentences."""
    n_waiting = sum(len(study.record.get("runs", [])) - len(study.sources) for study in studies)
    lead = report_sections.lead(views) if views else "There are no runs here yet."
    if n_waiting:
        lead += f" {n_waiting} more {'are' if n_waiting > 1 else 'is'} still to begin."
    return lead


def results(studies: Sequence[Study]) -> list[Section]:
    """What studies found: effects, sweeps, laws."""
    found = [section for study in studies for section in study_sections(study.path)]
    scaling = [study.path for study in studies if study.record.get("kind") == "scaling"]
    laws = scaling_section([study.path for study in studies], scaling)
    return found if laws is None else [*found, laws]


def title_of(studies: Sequence[Study], sources: Sequence[Source]) -> str:
    """A title for want of one that is given."""
    if len(studies) == 1 and len(studies[0].sources) == len(sources):
        kinds = {"ablate": "Ablation", "sweep": "Sweep", "scaling": "Scaling study"}
        kind = kinds.get(str(studies[0].record.get("kind")), "Study")
        return f"{kind} {studies[0].path.resolve().name}"
    return sources[0].name if len(sources) == 1 else "Training runs"


def _version() -> str:
    try:
        return version("rslm")
    except PackageNotFoundError:  # Used in place, without having been installed.
        return "in place"
