import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from rslm import config as configs
from rslm.config import (
    closest_key,
    from_record,
    merge_records,
    parse_flags,
    preset_names,
    read_config,
    read_preset,
    read_sources,
    to_record,
    to_toml,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """The inner table."""

    learning_rate: float = 1e-3
    """Peak rate."""
    warmup_steps: int = 10

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate must be at least 0, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The whole."""

    out: Path
    """Where it goes."""
    optimizer: Inner = field(default_factory=Inner)
    n_steps: int = 5
    compile: bool = False
    prompt: str = ""
    precision: Literal["float32", "bfloat16"] = "float32"
    n_threads: int | None = None
    init_from: Path | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """As a command declares them."""

    preset: str | None = None
    config: Path | None = None
    run: Annotated[Outer, tyro.conf.arg(name="")]


def parse(args: list[str]) -> Outer:
    record = {"run": read_sources(Outer, args)}
    return parse_flags(Options, args, prog="test", record=record).run


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package" / "presets"
    folder.mkdir(parents=True)
    (folder / "small.toml").write_text("n_steps = 7\n[optimizer]\nwarmup_steps = 3\n")
    monkeypatch.setattr(configs.resources, "files", lambda _: tmp_path / "package")


SOME = Outer(
    out=Path("runs/a b"),
    optimizer=Inner(learning_rate=float("inf"), warmup_steps=3),
    compile=True,
    prompt='Once "upon"\n\t\x7f\x00 a ☃ \\ time',
    precision="bfloat16",
    n_threads=2,
    names=("a", "b"),
)


def test_toml_read_back_gives_an_equal_config(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(SOME))
    assert read_config(Outer, path) == SOME


@given(st.text(), st.floats(allow_nan=False, min_value=0), st.integers(-(2**63), 2**63 - 1))
def test_toml_round_trip_holds_for_any_value(prompt: str, rate: float, steps: int) -> None:
    config = Outer(out=Path("x"), prompt=prompt, n_steps=steps, optimizer=Inner(learning_rate=rate))
    record = configs._parse_toml(to_toml(config).encode("utf-8", "surrogatepass"), "toml")
    assert from_record(Outer, record) == config


def test_record_round_trip() -> None:
    assert from_record(Outer, to_record(SOME)) == SOME
    assert to_record(SOME)["optimizer"] == {"learning_rate": float("inf"), "warmup_steps": 3}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"out": "x", "n_step": 3},
            "unknown key n_step in f.toml; the closest known one is n_steps",
        ),
        (
            {"out": "x", "learning_rate": 3.0},
            "unknown key learning_rate in f.toml; the closest known one is optimizer.learning_rate",
        ),
        (
            {"out": "x", "optimizer": {"warmup": 3}},
            "unknown key optimizer.warmup in f.toml; the closest known one is "
            "optimizer.warmup_steps",
        ),
        ({"out": "x", "n_steps": "3"}, "n_steps must be a whole number in f.toml, got '3'"),
        ({"out": "x", "n_steps": 3.0}, "n_steps must be a whole number in f.toml, got 3.0"),
        ({"out": "x", "n_steps": True}, "n_steps must be a whole number in f.toml, got True"),
        ({"out": "x", "compile": 1}, "compile must be true or false in f.toml, got 1"),
        ({"out": 3}, "out must be a path in f.toml, got 3"),
        ({"out": "x", "names": "a"}, "names must be a list in f.toml, got 'a'"),
        ({"out": "x", "optimizer": 3}, "optimizer must be a table in f.toml, got 3"),
        (
            {"out": "x", "precision": "fp16"},
            "precision must be one of float32, bfloat16 in f.toml, got 'fp16'",
        ),
        ({}, "out must be given in f.toml"),
        ({"out": "x", "optimizer": {"learning_rate": -1}}, "learning_rate must be at least 0"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_record(Outer, record, "f.toml")


def test_numbers_may_be_whole_where_fractions_are_allowed() -> None:
    config = from_record(Outer, {"out": "x", "optimizer": {"learning_rate": 1}})
    assert isinstance(config.optimizer.learning_rate, float)


def test_flag_wins_over_file_over_preset_over_default(tmp_path: Path, preset: None) -> None:
    file = tmp_path / "my.toml"
    file.write_text('out = "f"\nn_steps = 8\n[optimizer]\nlearning_rate = 0.5\n')
    assert parse(["--out", "o"]).n_steps == 5
    assert parse(["--out", "o", "--preset", "small"]).n_steps == 7
    both = parse([f"--config={file}", "--preset", "small"])
    assert both == Outer(
        out=Path("f"), n_steps=8, optimizer=Inner(learning_rate=0.5, warmup_steps=3)
    )
    args = ["--preset", "small", "--config", str(file), "--n-steps", "9", "--compile"]
    flagged = parse([*args, "--optimizer.learning-rate", "0.25"])
    assert (flagged.n_steps, flagged.compile) == (9, True)
    assert flagged.optimizer == Inner(learning_rate=0.25, warmup_steps=3)


def test_checks_of_the_config_run_after_flags_and_not_on_what_they_replace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.toml"
    file.write_text('out = "f"\n[optimizer]\nlearning_rate = -1.0\n')
    args = ["--config", str(file)]
    assert parse([*args, "--optimizer.learning-rate", "1"]).optimizer.learning_rate == 1
    with pytest.raises(SystemExit) as stop:
        parse(args)
    assert stop.value.code == 2
    assert "learning_rate must be at least 0, got -1" in capsys.readouterr().err


def test_help_shows_docstrings_and_the_defaults_of_the_sources(
    preset: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--preset", "small", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Where it goes." in shown
    assert "(default: 7)" in shown
    assert "--optimizer.learning-rate" in shown


def test_files_that_are_not_there_or_not_toml_are_refused(tmp_path: Path, preset: None) -> None:
    with pytest.raises(ValueError, match="preset must be one of small, got 'big'"):
        read_sources(Outer, ["--preset", "big"])
    with pytest.raises(FileNotFoundError):
        read_sources(Outer, ["--config", str(tmp_path / "none.toml")])
    (tmp_path / "bad.toml").write_text("n_steps = = 3")
    with pytest.raises(ValueError, match=r"bad\.toml is not a TOML file: .*line 1"):
        read_sources(Outer, ["--config", str(tmp_path / "bad.toml")])


def test_toml_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfn_steps = 3")
    assert read_sources(Outer, ["--config", str(tmp_path / "bom.toml")]) == {"n_steps": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[optimizer]\nlearning_rate = 1{'0' * 400}", "learning_rate must be at most 1.8e308 in"),
        (f"n_steps = 1{'0' * 5000}", "is not a TOML file: Exceeds the limit"),
        ("n_steps = 1" + "0" * 400 + ".5e", "is not a TOML file"),
    ],
)
def test_numbers_too_large_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "huge.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_sources(Outer, ["--config", str(tmp_path / "huge.toml")])
    assert "huge.toml" in str(error.value)


def test_merged_records_keep_what_only_one_has() -> None:
    below = {"a": 1, "t": {"x": 1, "y": 2}}
    assert merge_records(below, {"b": 2, "t": {"y": 3}}) == {
        "a": 1,
        "b": 2,
        "t": {"x": 1, "y": 3},
    }
    assert below["t"] == {"x": 1, "y": 2}


def test_key_with_a_dot_is_told_its_table() -> None:
    with pytest.raises(ValueError, match="it is learning_rate of the table optimizer, not a name"):
        configs.check_record(Outer, {"optimizer.learning_rate": 1.0})


def test_closest_key_is_always_a_known_one() -> None:
    assert closest_key(Outer, "optimiser.learning_rate") == "optimizer.learning_rate"
    assert closest_key(Outer, "zzz") in configs.known_keys(Outer)


def test_every_shipped_preset_fits_the_training_config() -> None:
    from rslm.train_config import TrainConfig

    for name in preset_names():
        configs.check_record(TrainConfig, read_preset(name), name)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An item of an array of tables."""

    path: Path
    weight: float = 1.0
    steps: tuple[Inner, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A config with an array of tables."""

    name: str = ""
    parts: tuple[Part, ...] = ()
    optimizer: Inner = field(default_factory=Inner)


def test_array_of_tables_survives_toml(tmp_path: Path) -> None:
    steps = (Inner(warmup_steps=1), Inner(learning_rate=0.5))
    config = Listing(name="x", parts=(Part(path=Path("a"), steps=steps), Part(path=Path("b"))))
    (tmp_path / "c.toml").write_text(to_toml(config))
    assert read_config(Listing, tmp_path / "c.toml") == config
    assert from_record(Listing, to_record(config)) == config


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"parts": {"path": "a"}}, "parts must be an array of tables"),
        ({"parts": [1]}, "parts must be an array of tables"),
        ({"parts": [{"path": "a", "wieght": 1}]}, "unknown key parts.wieght; .*parts.weight"),
        ({"parts": [{"weight": 1}]}, "path must be given"),
    ],
)
def test_array_of_tables_is_checked(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record(Listing, record)
