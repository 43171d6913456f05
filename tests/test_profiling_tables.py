"""The tables of `rslm profile`: cells, Markdown, CSV."""

import csv
import io
import math
from pathlib import Path

import pytest

from rslm.architecture import n_parameters
from rslm.profiling.cases import SIZES, sized_model
from rslm.profiling.tables import (
    Table,
    column,
    mebibytes,
    percent,
    print_tables,
    tera,
    time_column,
    to_csv,
    to_markdown,
    write_tables,
)

TABLE = Table(
    name="parts",
    title="Two parts",
    columns=(
        column("part", "part"),
        time_column("time", "seconds"),
        column("MiB", "n_bytes", mebibytes),
    ),
    records=[
        {"part": "a|b", "seconds_mean": 0.25, "seconds_std": 0.001, "n_bytes": 3 * 2**19},
        {"part": "c", "status": "out of memory"},
        {"part": "d", "status": "measured", "n_bytes": 0},
    ],
)


def test_cells_say_what_is_missing_and_why():
    assert TABLE.rows() == [
        ["a|b", "250.00 ± 1.00", "1.50"],
        ["c", "OOM", "OOM"],
        ["d", "-", "0.00"],
    ]


def test_forms_have_their_units():
    assert (tera(1.5e12), percent(0.125)) == ("1.500", "12.5 %")


def test_markdown_has_a_row_for_each_record_and_escapes_bars():
    lines = to_markdown(TABLE).splitlines()
    assert lines[:4] == ["## Two parts", "", "| part | time | MiB |", "| --- | ---: | ---: |"]
    assert lines[4] == "| a\\|b | 250.00 ± 1.00 | 1.50 |"
    assert len(lines) == 7


def test_csv_has_every_key_and_raw_values():
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert list(rows[0]) == ["part", "seconds_mean", "seconds_std", "n_bytes", "status"]
    assert [row["n_bytes"] for row in rows] == ["1572864", "", "0"]
    assert float(rows[0]["seconds_mean"]) == 0.25


def test_a_pipe_gets_aligned_columns(capsys: pytest.CaptureFixture[str]):
    print_tables([TABLE, TABLE])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Two parts"
    assert lines[1].split() == ["part", "time", "MiB"]
    assert len({len(line) for line in lines[1:5]}) == 1
    assert lines[5] == ""
    assert lines[6:] == lines[:5]


def test_a_terminal_gets_a_frame(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_tables([TABLE])
    assert "┃" in capsys.readouterr().out


def test_files_hold_the_tables_that_have_records(tmp_path: Path):
    empty = Table(name="none", title="Nothing", columns=TABLE.columns, records=[])
    write_tables(tmp_path / "new", "all", [TABLE, empty], {"device": "cpu"})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["all.md", "parts.csv"]
    text = (tmp_path / "new" / "all.md").read_text()
    assert text.startswith("# all\n\n- device: cpu\n\n## Two parts\n")
    assert "Nothing" not in text
    assert "OOM: the memory did not suffice." in text


# In millions, as the design's table of sizes has them.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("tinystories", 22.7),
        ("small", 128.6),
        ("medium", 423.2),
        ("large", 969.4),
        ("xl", 3407),
        ("10b", 12830),
    ],
)
def test_named_sizes_have_the_published_parameters(name: str, millions: float):
    count = n_parameters(sized_model(name, vocab_size=10_000, context_length=512)) / 1e6
    assert math.isclose(count, millions, rel_tol=5e-4 if millions < 1e3 else 2e-3)


def test_every_named_size_is_checked():
    assert len(SIZES) == 6


def test_own_sizes_are_width_layers_heads():
    model = sized_model("64x3x4", vocab_size=100, context_length=8)
    assert (model.d_model, model.n_layers, model.n_heads, model.d_ff) == (64, 3, 4, None)


@pytest.mark.parametrize("name", ["huge", "64x3", "64x3x4x5", "ax3x4"])
def test_unknown_sizes_are_refused(name: str):
    with pytest.raises(ValueError, match=f"a size must be tinystories, .*got '{name}'"):
        sized_model(name, vocab_size=100, context_length=8)
