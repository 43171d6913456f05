"""What a pipeline is told and will do: its config, its plan, its inputs, its commands."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipelines import ALL_STEPS, config_of, write_inputs

from rslm import Tokenizer, cli
from rslm.config import from_record, read_config, to_toml
from rslm.data.documents import read_documents
from rslm.data.pipeline import PipelineConfig, Plan, make_plan, read_pipeline_config, read_plan
from rslm.data.pipeline.checks import check_config
from rslm.data.pipeline.config import preset_names
from rslm.data.pipeline.plan import write_plan
from rslm.errors import FormatError


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_a_config(tmp_path: Path, name: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        f'out = "o"\npreset = "{name}"\n[pii]\npreset = "dolma"\n[[inputs]]\npaths = ["a"]\n'
    )
    config = read_pipeline_config(file)
    assert config.quality.presets
    # What the file says wins over the preset, and the rest is the preset's.
    assert config.pii.preset == "dolma"
    assert config.minhash.preset is not None
    file.write_text(to_toml(config))
    assert read_config(PipelineConfig, file) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"langauge": {}}, "unknown key langauge; the closest known one is language"),
        ({"language": {"lang": ["en"]}}, "unknown key language.lang; .* language.languages"),
        ({"inputs": [{"path": ["a"]}]}, "unknown key inputs.path; .* inputs.paths"),
        ({"quality": {"presets": ["best"]}}, "quality.presets must be one of"),
        ({"quality": {"presets": ["c4", "c4"]}}, "quality.presets must differ"),
        ({"minhash": {"preset": "course", "n_bands": 7}}, "n_bands must divide n_hashes"),
        ({"watchdog_seconds": 0.1}, "watchdog_seconds must be from 1 to 86400, got 0.1"),
        ({"n_samples": -1}, "n_samples must be from 0 to 100000, got -1"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"tokenize": {"validation_share": 1.0}}, "tokenize.validation_share must be"),
        ({"n_ranges": 10**10}, "n_ranges must be from 0 to 4096, got 10000000000"),
        (
            {"language": {"languages": ["en"], "min_score": 7.0}},
            "language.min_score must be from 0",
        ),
        ({"language": {"languages": ["en"], "min_score": float("nan")}}, "to 1, got nan"),
        ({"language": {"languages": ["any", "en"]}}, r'must be \["any"\] or codes, got any, en'),
        ({"language": {"languages": [""]}}, "must be codes such as"),
        ({"lines": {"keep": "first", "min_words": -3}}, "lines.min_words must be from 0"),
        ({"minhash": {"preset": "course", "ngram_words": 10**20}}, "ngram_words must be from 1 to"),
        ({"limits": {"max_record_bytes": 0}}, "max_record_bytes must be from 1 to"),
        ({"decontaminate": {"paths": [""]}}, "decontaminate.paths must be a path, got ''"),
        ({"out": ""}, "out must be a path, got ''"),
        ({"lines": {"min_words": 5}}, "lines.min_words must come with lines.keep"),
        ({"minhash": {"n_bands": 5}}, "minhash.n_bands must come with minhash.preset"),
        ({"language": {"min_score": 0.5}}, "must come with language.languages"),
        (
            {"classifiers": [{"model": "m", "label": "a", "min_score": 0.5, "max_score": 0.4}]},
            "max_score of the classifier m must be from 0.5 to 1, got 0.4",
        ),
        ({"tokenize": {"score": "x"}}, "tokenize.score must be the name of a classifier"),
        ({"inputs": [{"paths": ["a"], "weight": 1.0}]}, "must have a name, got none for a"),
        (
            {"inputs": [{"paths": ["a"], "name": "a", "weight": 1.0}, {"paths": ["b"]}]},
            "either all inputs must have a weight or none",
        ),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record(PipelineConfig, {"out": "o", "inputs": [{"paths": ["a"]}]} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": {"languages": ["en"], "model": "/no/model"}}, "language.model must exist"),
        ({"tokenize": {"tokenizer": "/no/tokenizer"}}, "tokenize.tokenizer must exist"),
        ({"url_filter": {"lists": "/no/lists"}}, "url_filter.lists must exist"),
        ({"url_filter": {"lists": __file__}}, "url_filter.lists must be a folder"),
        ({"classifiers": [{"model": "/no/c.bin", "label": "a"}]}, "classifier c must exist"),
        ({"decontaminate": {"paths": ["/no/set"]}}, "decontaminate.paths must exist"),
        ({"language": {"languages": ["english"]}}, "codes that the model knows, .* got 'english'"),
        ({"out": __file__}, "out must be a folder"),
        ({"tokenize": {"tokenizer": __file__}}, Path(__file__).name),
        ({"url_filter": {"lists": str(Path(__file__).parent)}}, "must hold one of"),
    ],
)
def test_what_is_missing_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    record = {"out": str(tmp_path / "out"), "inputs": [{"paths": [str(tmp_path)]}]}
    config = from_record(PipelineConfig, record | changes)
    with pytest.raises((ValueError, OSError), match=message):
        check_config(config)
    assert not (tmp_path / "out").exists()


def test_plan_survives_writing(tmp_path: Path) -> None:
    plan = make_plan(config_of(write_inputs(tmp_path / "in"), tmp_path / "out", **ALL_STEPS))
    plan.folder.mkdir()
    write_plan(plan)
    assert read_plan(plan.folder) == plan
    changed = json.loads((plan.folder / "plan.json").read_text())
    changed["stages"][0]["n_tasks"] = 1
    for text in ("{}", "[]", "[" * 100_000, "", json.dumps(changed)):
        (plan.folder / "plan.json").write_text(text)
        with pytest.raises(FormatError, match="must hold the plan of a pipeline"):
            read_plan(plan.folder)


def test_hash_is_of_what_determines_bytes(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "in")

    def hashes(out: str = "out", **changes: Any) -> dict[str, str]:
        plan = make_plan(config_of(folder, tmp_path / out, **ALL_STEPS | changes))
        return {stage.name: plan.task_hash(stage.name, 0) for stage in plan.stages}

    before = hashes()
    assert hashes("elsewhere") == before
    assert hashes(watchdog_seconds=99.0, max_worker_bytes=1 << 30) == before
    changed = hashes(pii={"preset": "dolma"})
    assert {name for name in before if changed[name] != before[name]} == {"finalize"}
    assert all(hashes(seed=1)[name] != before[name] for name in before)


def test_hash_is_of_what_models_hold_and_not_of_where_they_lie(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    folder = write_inputs(tmp_path / "in")
    byte_tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "set.jsonl").write_text("a")

    def plan_of(model: Path, contents: bytes) -> Plan:
        model.write_bytes(contents)
        return make_plan(
            config_of(
                folder,
                tmp_path / "out",
                language={"languages": ["en"], "model": str(model)},
                decontaminate={"paths": [str(tmp_path / "set.jsonl")]},
                tokenize={"tokenizer": str(tmp_path / "tokenizer.json")},
            )
        )

    def changed(plan: Plan) -> set[str]:
        stages = zip(before.stages, plan.stages, strict=True)
        return {stage.name for known, stage in stages if known.hash != stage.hash}

    before = plan_of(tmp_path / "a.bin", b"model")
    assert changed(plan_of(tmp_path / "b.bin", b"model")) == set()
    assert changed(plan_of(tmp_path / "a.bin", b"other")) == {"filter"}
    (tmp_path / "set.jsonl").write_text("b")
    assert changed(plan_of(tmp_path / "a.bin", b"model")) == {"filter"}
    (tmp_path / "set.jsonl").write_text("a")
    saved = tmp_path / "tokenizer.json"
    saved.write_text(saved.read_text() + "\n")
    assert changed(plan_of(tmp_path / "a.bin", b"model")) == {"tokenize"}
    named = {each.what: each for each in before.made_with}
    assert named["model of languages"].name == "a.bin"
    assert named["model of languages"].sha256 == hashlib.sha256(b"model").hexdigest()
    assert {"program", "characters", "extractor", "evaluation set", "tokenizer"} <= set(named)


def test_pages_of_a_folder_are_one_task(tmp_path: Path) -> None:
    for name in ("b/index.html", "a/index.html", "a/x.txt", "a/picture.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<p>x")
    shards = make_plan(config_of(tmp_path / "in", tmp_path / "out")).shards
    assert [[name for _, name, _ in shard.files] for shard in shards] == [
        ["a/index.html", "b/index.html"],
        ["a/x.txt"],
    ]


def test_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"inputs must exist, got .*/\*\.jsonl"):
        make_plan(config_of(tmp_path / "*.jsonl", tmp_path / "out"))


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "in", 1, 1)
    os.mkfifo(folder / "pipe.jsonl")
    for place in (folder, folder / "pipe.jsonl", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is a pipe or device"):
            make_plan(config_of(place, tmp_path / "out"))
    with pytest.raises(ValueError, match="is a pipe or device"):
        list(read_documents(folder / "pipe.jsonl"))
    config = config_of(folder, tmp_path / "out", tokenize={"tokenizer": str(folder / "pipe.jsonl")})
    with pytest.raises(ValueError, match="is a pipe or device"):
        check_config(config)


def test_links_in_circles_lead_to_a_file_once(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "in", 2, 1)
    (folder / "again").symlink_to(".")
    for place in (folder, folder / "**" / "*.jsonl"):
        shards = make_plan(config_of(place, tmp_path / "out")).shards
        assert [file for shard in shards for file, _, _ in shard.files] == [
            str(folder / "0.jsonl"),
            str(folder / "1.jsonl"),
        ]


def test_folder_to_write_into_is_no_input(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "in")
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, folder / "out", tmp_path / "link" / "out"):
        with pytest.raises(ValueError, match=r"must not lie in .*, got "):
            make_plan(config_of(folder, out))
    with pytest.raises(ValueError, match=r"inputs must not lie in out, .*, got .*0\.jsonl"):
        make_plan(config_of(folder, tmp_path))


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`command(args...)`: `rslm data ...` in this process: code, stdout, stderr."""

    def call(*args: str) -> tuple[int, str, str]:
        code = cli.main(["data", *args])
        return code, *capsys.readouterr()

    return call


def test_commands_plan_run_and_refuse(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(to_toml(config_of(write_inputs(tmp_path / "in"), tmp_path / "out")))
    code, out, _ = command("plan", str(config), "--json")
    assert code == 0
    assert [(stage["stage"], stage["done"]) for stage in json.loads(out)["stages"]] == [
        ("filter", 0),
        ("finalize", 0),
    ]
    assert not (tmp_path / "out").exists()
    code, _, errors = command("run", str(config), "--stage", "finalize")
    assert (code, errors.count("\n")) == (2, 1)
    assert "filter/00000.report.json" in errors
    code, out, errors = command("run", str(config), "--workers", "1")
    assert code == 0
    assert out.strip() == str(tmp_path / "out" / "finalize")
    # In a pipe the run itself is silent, unless it takes long.
    assert errors == f"next: rslm data report {tmp_path / 'out'}\n"
    code, out, _ = command("plan", str(config))
    assert code == 0
    assert "3 shards" in out
    assert command("run", str(config), "--task-index", "1")[0] == 2
    assert command("run", str(config), "--stage", "filters")[0] == 2
    assert command("run", str(tmp_path / "none.toml"))[0] == 2


def test_array_of_slurm_names_the_tasks(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(to_toml(config_of(write_inputs(tmp_path / "in"), tmp_path / "out")))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert command("run", str(config), "--stage", "filter")[0] == 0
    done = sorted(path.name for path in (tmp_path / "out" / "filter").glob("*.report.json"))
    assert done == ["00001.report.json"]
    code, _, told = command("run", str(config), "--stage", "filter", "--n-tasks", "0")
    assert (code, told) == (2, "error: task_index must be at least 0 and below n_tasks, 0, got 0\n")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "two")
    code, _, told = command("run", str(config), "--stage", "filter")
    assert code == 2
    assert "SLURM_ARRAY_TASK_MIN must be whole numbers, got two, 2, 1" in told
