"""Tables of measurements: printed, and written as Markdown and CSV."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rslm.files import write_atomically
from rslm.terminal import print_table, readable

Record = dict[str, Any]
"""One measurement: names and plain values, in SI units and bytes."""

OUT_OF_MEMORY = "out of memory"
"""The `status` of a record whose measurement did not fit."""


@dataclass(frozen=True)
class Column:
    """A column of a table as people read it.

    Attributes:
        heading: its first line.
        show: a cell from a record; where it finds nothing it raises KeyError.
    """

    heading: str
    show: Callable[[Record], str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Records, and how to show them.

    Attributes:
        name: of its CSV file, which holds every key of the records.
        title: a line above it.
        columns: what is shown.
        records: the measurements.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    records: list[Record]

    @property
    def headings(self) -> list[str]:
        """The first line."""
        return [column.heading for column in self.columns]

    def rows(self) -> list[list[str]]:
        """The cells; "-" where there is no value, "OOM" where memory did not suffice for it."""
        return [[_cell(column, record) for column in self.columns] for record in self.records]


def _cell(column: Column, record: Record) -> str:
    try:
        return column.show(record)
    except KeyError:
        return "OOM" if record.get("status") == OUT_OF_MEMORY else "-"


def column(heading: str, key: str, form: Callable[[Any], str] = readable) -> Column:
    """A column of one value."""
    return Column(heading, lambda record: form(record[key]))


def time_column(heading: str, key: str) -> Column:
    """A column of milliseconds, mean ± standard deviation of `key`."""

    def show(record: Record) -> str:
        mean, std = record[f"{key}_mean"], record[f"{key}_std"]
        return f"{1e3 * mean:,.2f} ± {1e3 * std:,.2f}"

    return Column(heading, show)


def mebibytes(n_bytes: int) -> str:
    """Bytes in units of 2^20."""
    return f"{n_bytes / 2**20:,.2f}"


def tera(number: float) -> str:
    """A number in units of 10^12."""
    return f"{number / 1e12:,.3f}"


def percent(share: float) -> str:
    """A share as per cent."""
    return f"{100 * share:.1f} %"


def print_tables(tables: Sequence[Table]) -> None:
    """Prints the tables on stdout: framed on a terminal, aligned columns in a pipe."""
    for number, table in enumerate(tables):
        if sys.stdout.isatty():
            _print_framed(table)
            continue
        if number:
            print()
        print(table.title)
        print_table(table.headings, table.rows())


def _print_framed(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Frame

    frame = Frame(title=table.title, title_justify="left")
    for number, heading in enumerate(table.headings):
        frame.add_column(heading, justify="right" if number else "left")
    for row in table.rows():
        frame.add_row(*row)
    Console().print(frame)


def to_markdown(table: Table) -> str:
    """The table under its title, in GitHub's Markdown."""
    lines = [f"## {table.title}", "", _markdown_row(table.headings)]
    lines.append(_markdown_row(["---", *["---:"] * (len(table.columns) - 1)]))
    lines += [_markdown_row(row) for row in table.rows()]
    return "\n".join([*lines, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def to_csv(table: Table) -> str:
    """Every key of the records, in the order in which they first come; raw values."""
    keys = list(dict.fromkeys(key for record in table.records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def write_tables(folder: Path, name: str, tables: Sequence[Table], setting: Record) -> None:
    """Writes `name`.md with all tables, and a CSV file for each, into a folder that may be new.

    Args:
        folder: where.
        name: of the Markdown file, and its heading.
        tables: the tables; one without records is left out.
        setting: machine, versions and options, written under the heading.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {name}", "", *(f"- {key}: {value}" for key, value in setting.items()), ""]
    written = [table for table in tables if table.records]
    pages = ["\n".join(lines), *map(to_markdown, written)]
    if any(record.get("status") == OUT_OF_MEMORY for table in written for record in table.records):
        pages.append("OOM: the memory did not suffice.\n")
    write_atomically(folder / f"{name}.md", "\n".join(pages).encode())
    for table in written:
        write_atomically(folder / f"{table.name}.csv", to_csv(table).encode())
