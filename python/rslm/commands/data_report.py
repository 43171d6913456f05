"""`rslm data report | inspect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rslm.terminal import Switch, note, print_json

if TYPE_CHECKING:
    from rslm.data.pipeline import Plan


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What each step of a pipeline did, whether it is finished or not."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of `rslm data run`."""
    html: Path | None = None
    """Write one self-contained page to this file instead, with examples."""
    json: Switch = False
    """Print everything as JSON."""
    files: int | None = None
    """Say what so many input files like these would take: a crawl has about 100,000."""
    cpus: int | None = None
    """Cores to do them on; those of this machine by default."""


def report(options: ReportOptions) -> None:
    """Prints tables or JSON, or writes the page."""
    from rslm.data_report.extrapolate import extrapolate
    from rslm.data_report.numbers import report_record
    from rslm.data_report.table import print_report
    from rslm.data_report.view import read_view
    from rslm.process import n_cpus

    for name in ("files", "cpus"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    if options.cpus is not None and options.files is None:
        raise ValueError("cpus must come with files, got it alone")
    view = read_view(options.folder)
    if options.html is not None:
        require_foreign(options.html, view.plan)
    found = None
    if options.files is not None:
        found = extrapolate(view, options.files, options.cpus or n_cpus())
    if options.html is not None:
        from rslm.data_report.page import write_page

        n_bytes = write_page(view, options.html, found)
        note(f"wrote {options.html}: {n_bytes / 1e6:.1f} MB")
    if options.json:
        print_json(report_record(view, found))
    elif options.html is None:
        print_report(view, found)


def require_foreign(path: Path, plan: "Plan") -> None:
    """Refuses to write over what a pipeline wrote.

    Raises:
        ValueError: the path is one of its files, or in the folder of a stage.
    """
    folder, target = plan.folder.resolve(), path.resolve()
    own = [*(stage.name for stage in plan.stages), "plan.json", "config.toml", "workers.log"]
    if any(target.is_relative_to(folder / name) for name in own):
        raise ValueError(f"html must not be among the files of the pipeline, got {path}")


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """A document's way through a pipeline: what each step saw, decided and changed."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of `rslm data run`."""
    id: Annotated[str | None, tyro.conf.Positional] = None
    """The document's id, as in the report's examples and in the shards."""
    url: str | None = None
    """Its address instead; reads the inputs to find it."""
    random: int | None = None
    """Instead, so many documents drawn by a hash of their ids."""
    reason: str | None = None
    """With --random: only documents that were dropped for this, or those that were "kept"."""
    seed: int = 0
    """With --random: another draws others."""
    json: Switch = False
    """Print JSON, with whole texts."""


def inspect(options: InspectOptions) -> None:
    """Prints the way of each document that is meant."""
    from rslm.data_report.find import find_at_random, find_by_id, find_by_url
    from rslm.data_report.trace import trace_all
    from rslm.data_report.view import read_view
    from rslm.data_report.way import print_trace, trace_record

    given = [name for name in ("id", "url", "random") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ValueError(f"one of id, url and random must be given, got {given or 'none'}")
    if options.reason is not None and options.random is None:
        raise ValueError("reason must come with random, got it alone")
    if options.random is not None and options.random < 1:
        raise ValueError(f"random must be at least 1, got {options.random}")
    view = read_view(options.folder)
    if options.id is not None:
        ways = find_by_id(view, options.id)
    elif options.url is not None:
        ways = find_by_url(view, options.url)
    else:
        assert options.random is not None
        ways = find_at_random(view, options.random, reason=options.reason, seed=options.seed)
    traces = trace_all(view, ways)
    if options.json:
        print_json([trace_record(each) for each in traces])
        return
    for number, each in enumerate(traces):
        print("\n" * bool(number), end="")
        print_trace(each)
