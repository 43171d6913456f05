"""What the check found, as files that are whole after each section."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rslm.files import write_atomically
from rslm.gpu_check.budget import Budget
from rslm.gpu_check.pictures import draw_speed
from rslm.gpu_check.sweep import table_patch
from rslm.profiling.tables import Record, Table, write_tables


@dataclass(kw_only=True)
class Report:
    """The tables so far.

    Attributes:
        out: folder of the files.
        setting: what the numbers depend on.
        budget: of the check; says what was left out.
        tables: of the sections that are over.
    """

    out: Path
    setting: Record
    budget: Budget
    tables: list[Table] = field(default_factory=list)

    def records(self, name: str) -> list[Record]:
        """The records of a section; none while it is not over."""
        return next((table.records for table in self.tables if table.name == name), [])

    @property
    def passed(self) -> bool:
        """Whether no result was wrong."""
        return all(record.get("passed", True) for t in self.tables for record in t.records)

    @property
    def patch(self) -> list[str]:
        """Rows that the launch table should have instead of its own."""
        return table_patch(self.records("sweep"))

    def write(self) -> None:
        """Writes Markdown, CSV, JSON and the picture."""
        setting = self.setting | {"seconds": round(self.budget.spent)}
        write_tables(self.out, "gpu-check", self.tables, setting)
        report = {"setting": setting, "passed": self.passed, "patch": self.patch}
        report |= {"left_out": self.budget.left_out}
        report |= {table.name: table.records for table in self.tables}
        path = self.out / "gpu-check.json"
        write_atomically(path, json.dumps(report, indent=1, default=str).encode())
        draw_speed(self.records("speed"), self.out / "speed.png")
