"""`rslm report`."""

from dataclasses import dataclass
from pathlib import Path

from rslm.commands.inputs import Files
from rslm.terminal import note


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write one self-contained page on runs and studies, to be read in a browser."""

    runs: Files
    """Run folders, folders of studies, or folders of either."""
    out: Path = Path("report.html")
    """HTML file to write; one that is there is replaced."""
    title: str | None = None
    """Title of the page; by default made from what it is about."""


def report(options: ReportOptions) -> None:
    """Writes the page."""
    from rslm.experiment.report import write_report

    if not options.runs:
        raise ValueError("runs must name at least one run folder or study")
    n_runs = write_report(options.runs, options.out, title=options.title)
    n_bytes = options.out.stat().st_size
    note(f"wrote {options.out}: {n_runs} runs, {n_bytes / 1e6:.1f} MB")
