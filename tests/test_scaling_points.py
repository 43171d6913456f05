import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.errors import FormatError
from rslm.scaling.points import COLUMNS, ScalingPoints, read_points


def written(folder: Path, text: str, name: str = "points.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_csv_with_all_columns_is_read_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, "parameters,tokens,flops,loss,note\n10,20,1300,3.5,x\n30,40,8000,2,\n")
    points = read_points(path)
    assert points.n_parameters.tolist() == [10, 30]
    assert points.n_tokens.tolist() == [20, 40]
    assert points.train_flops.tolist() == [1300, 8000]
    assert points.loss.tolist() == [3.5, 2]
    assert points.flop_budget is None
    assert points.loss.dtype == np.float64


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("n,d,loss", "10,20,3", (10, 20, 1200)),
        ("n,c,loss", "10,1200,3", (10, 20, 1200)),
        ("d,c,loss", "20,1200,3", (10, 20, 1200)),
        ("Model Size,Training-FLOP,loss", "10,1200,3", (10, 20, 1200)),
        ("\ufeffparams , compute budget,final_loss", "10,1200,3", (10, 20, 1200)),
    ],
)
def test_third_of_n_d_and_c_is_that_of_six_nd(
    tmp_path: Path, header: str, row: str, expected: tuple[float, float, float]
) -> None:
    points = read_points(written(tmp_path, f"{header}\n{row}\n"))
    found = (points.n_parameters[0], points.n_tokens[0], points.train_flops[0])
    assert found == pytest.approx(expected)


def test_every_documented_name_is_accepted(tmp_path: Path) -> None:
    for quantity, names in COLUMNS.items():
        for name in names:
            columns = {"n_parameters": 10, "n_tokens": 20, "train_flops": 1200, "loss": 3}
            columns.pop(quantity, None)
            columns[name] = 7
            header, row = ",".join(columns), ",".join(map(str, columns.values()))
            points = read_points(written(tmp_path, f"{header}\n{row}\n"))
            assert getattr(points, quantity).tolist() == [7]


def test_json_of_the_exercise_is_read_with_its_budgets(tmp_path: Path) -> None:
    entries = [
        {"parameters": 50, "compute_budget": 6e3, "final_loss": 7.1},
        {"parameters": 100, "compute_budget": 6e3, "final_loss": 6.5},
    ]
    points = read_points(written(tmp_path, json.dumps(entries), "runs.json"))
    assert points.flop_budget is not None
    assert points.train_flops.tolist() == points.flop_budget.tolist() == [6000, 6000]
    assert points.n_tokens.tolist() == [20, 10]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "at least one point"),
        ("n,d,loss\n", "at least one point"),
        ("n,d\n1,2\n", "line 2 must have a loss and two of"),
        ("n,loss\n1,2\n", "line 2 must have a loss and two of"),
        ("n,d,loss\n1,2,3\n1,2\n", "line 3 must have 3 cells"),
        ("n,d,loss\n1,2,3\n1,x,3\n", "line 3: n_tokens must be a positive number, got 'x'"),
        ("n,d,loss\n1,2,nan\n", "line 2: loss must be a positive number"),
        ("n,d,loss\n1,inf,3\n", "line 2: n_tokens must be a positive number"),
        ("n,d,loss\n-1,2,3\n", "line 2: n_parameters must be a positive number"),
        ("n,d,loss\n0,2,3\n", "line 2: n_parameters must be a positive number"),
        ("n,d,loss\n1e300,1e300,3\n", "line 2: n_parameters must be a positive number"),
        ("n,params,d,loss\n1,1,2,3\n", "must have one column for n_parameters"),
        ("n,d,loss\n1,\0,3\n", "line 2"),
    ],
)
def test_hostile_csv_is_refused_with_its_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(FormatError, match=fault) as caught:
        read_points(written(tmp_path, text))
    assert str(tmp_path / "points.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"n": 1}', "must be a list of objects"),
        ("[1]", "must be a list of objects"),
        ('[{"n": true, "d": 2, "loss": 3}]', "entry 0: n_parameters must be a positive number"),
        ('[{"n": [1], "d": 2, "loss": 3}]', "entry 0: n_parameters must be a positive number"),
        (
            '[{"n": 1, "d": 2, "loss": 3}, {"n": 1, "c": 2, "loss": 3}]',
            "entry 1: n_tokens must be in every entry or in none",
        ),
    ],
)
def test_hostile_json_is_refused_with_its_entry(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(FormatError, match=fault):
        read_points(written(tmp_path, text, "runs.json"))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(b"n,d,loss\n1,2,\xff\n")
    with pytest.raises(FormatError, match="must be UTF-8"):
        read_points(path)
    with pytest.raises(FormatError, match="regular file"):
        read_points(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_points(tmp_path / "missing.csv")


@given(st.binary(max_size=200))
def test_any_bytes_are_points_or_a_format_error(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "points.csv"
    path.write_bytes(b"n,d,loss\n" + data)
    try:
        points = read_points(path)
    except FormatError:
        return
    assert np.isfinite(points.loss).all()


def test_arrays_that_are_no_points_are_refused() -> None:
    good = {name: np.ones(3) for name in ("n_parameters", "n_tokens", "train_flops", "loss")}
    for bad in (np.ones(2), np.zeros(3), np.full(3, np.nan), np.ones((3, 1)), np.ones(0)):
        with pytest.raises(ValueError, match="n_tokens must be"):
            ScalingPoints(**good | {"n_tokens": bad})


def test_flops_that_are_close_are_one_budget() -> None:
    flops = np.array([1.0, 300, 1.1, 310, 0.95, 1000])
    points = ScalingPoints(
        n_parameters=np.ones(6), n_tokens=np.ones(6), train_flops=flops, loss=np.ones(6)
    )
    groups = points.by_budget()
    assert [sorted(own.train_flops) for own in groups.values()] == [
        [0.95, 1, 1.1],
        [300, 310],
        [1000],
    ]
    assert list(groups) == pytest.approx([(0.95 * 1.1) ** (1 / 3), 93_000**0.5, 1000])
    assert points.flops_factor_spread == pytest.approx(1000 / 0.95)
