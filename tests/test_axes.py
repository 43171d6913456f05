from pathlib import Path
from typing import Any

import pytest

from rslm.experiment.axes import Axis, nested, parse_axis, parse_setting, planned_run, require_data

BASE: dict[str, Any] = {"data": {"train": "tokens"}, "model": {"vocab_size": 64}}


@pytest.mark.parametrize(
    ("text", "option", "values"),
    [
        ("model.ffn=swiglu,relu2", "model.ffn", ("swiglu", "relu2")),
        ("n_steps=100,200", "n_steps", (100, 200)),
        ("optimizer.learning_rate=1e-3,1", "optimizer.learning_rate", (0.001, 1.0)),
        ("optimizer.max_grad_norm=inf,1", "optimizer.max_grad_norm", (float("inf"), 1.0)),
        ("model.qk_norm=none,rms", "model.qk_norm", ("none", "rms")),
        ("compile=true,false", "compile", (True, False)),
        ("model.d_ff=none,64", "model.d_ff", (None, 64)),
        ("data.train=a/b,12", "data.train", (Path("a/b"), Path("12"))),
        ("parallel=none,ddp", "parallel", ("none", "ddp")),
    ],
)
def test_values_have_the_type_of_their_option(text: str, option: str, values: tuple[Any, ...]):
    assert parse_axis(text) == Axis(option=option, values=values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.ffn", "axis must be OPTION=VALUE,VALUE,..., got 'model.ffn'"),
        ("model.ffn=", "axis must be OPTION=VALUE"),
        ("model.ffn=relu2,,silu", "axis must be OPTION=VALUE"),
        ("model.ffn=relu2", "at least two values, all different"),
        ("n_steps=1,1", "at least two values, all different"),
        ("model.fnn=relu2,silu", "unknown option model.fnn; the closest known one is model.ffn"),
        ("model=a,b", "unknown option model"),
        ("model.ffn=relu2,selu", "model.ffn must be one of .*, got 'selu'"),
        ("n_steps=1.5,2", "n_steps must be a whole number, got 1.5"),
        ("compile=yes,no", "compile must be true or false, got 'yes'"),
        ("seed=1,2", "seed is set for each run of a study"),
        ("out=a,b", "out is set for each run of a study"),
    ],
)
def test_what_is_no_axis_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_axis(text)


def test_setting_is_a_nested_record():
    assert parse_setting("optimizer.muon.momentum=0.9") == {
        "optimizer": {"muon": {"momentum": 0.9}}
    }
    assert nested("n_steps", 3) == {"n_steps": 3}
    with pytest.raises(ValueError, match="set must be OPTION=VALUE, got 'n_steps'"):
        parse_setting("n_steps")


def test_planned_run_is_complete_and_checked():
    run = planned_run("a", BASE, {"data.train": Path("tokens")}, dict)
    assert run.options["optimizer"]["beta2"] == 0.95
    assert "out" not in run.options
    assert run.labels == {"data.train": "tokens"}
    with pytest.raises(ValueError, match="a: warmup_steps must be at most n_steps 5, got 100"):
        planned_run("a", BASE | {"n_steps": 5}, {}, dict)


def test_what_follows_from_other_options_is_filled_in():
    run = planned_run("a", BASE, {}, lambda record: record | {"n_steps": 300})
    assert run.options["n_steps"] == 300


def test_data_must_be_there():
    with pytest.raises(FileNotFoundError):
        require_data([planned_run("a", BASE, {}, dict)])
