"""`rslm eval` and what it is made of: names of tasks, the record, the table."""

import json
import math
import random
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer, write_tiny_model

from rslm import cli
from rslm.evaluate import suite
from rslm.evaluate.drawn import is_for_test
from rslm.evaluate.evaluations import EvaluationRecord, ModelIdentity
from rslm.evaluate.results import TaskResult, mean_and_error
from rslm.evaluate.suite import evaluate_tasks, scores_over_tasks
from rslm.evaluate.task_plan import EvalSettings, Examinee, plan_tasks
from rslm.evaluate.text_loss import evaluate_text
from rslm.evaluate.text_scores import score_text
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer

TOKENIZER = tiny_tokenizer(has_chat=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder `m` and two files of questions beside it, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "m", has_chat=True)
    rows = [
        {"query": f"{i} and one are", "choices": [str(i + 1), str(i)], "gold": i % 2}
        for i in range(9)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_lines(
        tmp_path / "last.jsonl", [{"context": f"{i}, then", "continuation": "x"} for i in range(5)]
    )
    return tmp_path


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def record(folder: Path, name: str = "tasks") -> Any:
    return json.loads((folder / "evaluations" / f"{name}.json").read_text())


def test_a_table_a_record_and_json(folder: Path, capsys):
    write_tiny_model(folder / "other", has_chat=True)
    command = ["eval", "m", "other", "--tasks", "sums.jsonl", "last.jsonl", "arithmetic:test=4"]
    assert cli.main([*command, "--max-new-tokens", "4", "--json", "all.json"]) == 0
    captured = capsys.readouterr()
    header, *rows = captured.out.splitlines()
    assert header.split() == ["task", "metric", "m", "other", "n", "shots", "notes"]
    assert [row.split()[0] for row in rows] == ["sums.jsonl", "last.jsonl", "arithmetic:test=4"]
    assert "±" in rows[0]
    assert captured.err == ""
    kept = record(folder / "m")
    assert kept["tasks"]["sums.jsonl"]["result"]["n"] == 9
    assert kept["options"]["seed"] == 0
    assert kept["environment"]["versions"]["torch"]
    assert len(kept["model"]["weights_hash"]) == 32
    everything = json.loads((folder / "all.json").read_text())
    assert everything["m"]["tasks"] == [
        kept["tasks"][name]["result"] for name in ("sums.jsonl", "last.jsonl", "arithmetic:test=4")
    ]


def test_what_is_there_is_not_measured_again(folder: Path, monkeypatch, capsys):
    command = ["eval", "m", "--tasks", "sums.jsonl"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    monkeypatch.setattr("rslm.evaluate.task_plan.evaluate_questions", None)
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == out
    assert "has 1 of 1 results already" in captured.err
    for change in (["--shots", "1"], ["--max-examples", "3"], ["--dialect", "nanochat"]):
        with pytest.raises(TypeError):  # It is measured again.
            cli.main([*command, *change])
    # So are other questions, and another model.
    write_lines(folder / "sums.jsonl", [{"query": "a", "choices": ["b", "c"], "gold": 0}] * 2)
    with pytest.raises(TypeError):
        cli.main(command)


def test_other_weights_are_measured_again(folder: Path):
    result = TaskResult(name="t", metric="accuracy", value=0.5, stderr=math.inf, n=1)
    models = [tiny_model(TOKENIZER), tiny_model(TOKENIZER)]
    models[1].lm_head.weight.data[0, 0] += 1
    first, second = (ModelIdentity.of(model, TOKENIZER) for model in models)
    path = folder / "evaluations" / "a.json"
    EvaluationRecord(path, first, {}).add(result, {"n_shots": 1})
    again = EvaluationRecord(path, first, {})
    assert again.find("t", {"n_shots": 1}) == replace(result, stderr=None)
    assert again.find("t", {"n_shots": 2}) is None
    assert EvaluationRecord(path, second, {}).find("t", {"n_shots": 1}) is None


@pytest.mark.slow
def test_a_killed_evaluation_loses_at_most_a_task(folder: Path):
    program = """
import os, signal, sys
from rslm import cli
from rslm.evaluate import task_plan
before = task_plan.evaluate_questions
def once(name, *args, **options):
    if name == "last.jsonl":
        os.kill(os.getpid(), signal.SIGKILL)
    return before(name, *args, **options)
task_plan.evaluate_questions = once
cli.main(sys.argv[1:])
"""
    arguments = ["eval", "m", "--tasks", "sums.jsonl", "last.jsonl"]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert list(record(folder / "m")["tasks"]) == ["sums.jsonl"]
    first = record(folder / "m")["tasks"]["sums.jsonl"]
    assert cli.main(arguments) == 0
    assert list(record(folder / "m")["tasks"]) == ["sums.jsonl", "last.jsonl"]
    assert record(folder / "m")["tasks"]["sums.jsonl"] == first


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"tasks": 3}', '{"tasks": {"sums": 3}}', "[" * 10_000]
)
def test_a_damaged_record_is_refused(folder: Path, content: str, capsys):
    (folder / "m" / "evaluations").mkdir()
    (folder / "m" / "evaluations" / "tasks.json").write_text(content)
    assert cli.main(["eval", "m", "--tasks", "sums.jsonl"]) == 2
    assert "must be the record of an evaluation" in capsys.readouterr().err
    assert (folder / "m" / "evaluations" / "tasks.json").read_text() == content


def test_a_damaged_result_is_refused(folder: Path, capsys):
    assert cli.main(["eval", "m", "--tasks", "sums.jsonl"]) == 0
    kept = record(folder / "m")
    del kept["tasks"]["sums.jsonl"]["result"]["n"]
    (folder / "m" / "evaluations" / "tasks.json").write_text(json.dumps(kept))
    assert cli.main(["eval", "m", "--tasks", "sums.jsonl"]) == 2
    assert "the result of sums.jsonl is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of suite and tasks must be given"),
        (["--tasks", "nothing"], "tasks must be one of core, mmlu"),
        (["--tasks", "no.jsonl"], "no.jsonl"),
        (["--tasks", "core"], "task core needs data"),
        (["--suite", "offline"], "needs data"),
        (["--tasks", "mmlu", "--data", "."], "must hold files whose names end in _test.csv"),
        (["--tasks", "arc_easy", "--data", "."], "must hold the tasks of CORE"),
        (["--tasks", "sums.jsonl", "--max-examples", "0"], "max_examples must be at least 1"),
        (["--tasks", "sums.jsonl", "--shots", "-1"], "shots must be at least 0"),
        (["--tasks", "sums.jsonl", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--tasks", "sums.jsonl", "--n-samples", "2"], "needs a temperature above 0"),
        (["--tasks", "sums.jsonl", "--name", "a/b"], "name must be that of a file"),
        (["--tasks", "text:missing"], "missing"),
        (["--tasks", "text:m/model.safetensors"], "m/model.safetensors: must be UTF-8"),
        (["--tasks", "sums.jsonl", "--json", "no/where.json"], "no/where.json"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: list[str], message: str, capsys):
    assert cli.main(["eval", "m", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""
    assert not (folder / "m" / "evaluations").exists()


def test_a_bad_line_stops_before_the_first_task(folder: Path, capsys):
    (folder / "bad.jsonl").write_text('{"query": "a", "choices": ["b", ""], "gold": 0}')
    assert cli.main(["eval", "m", "--tasks", "sums.jsonl", "bad.jsonl"]) == 2
    assert "bad.jsonl: line 1: choices must be text that is not empty" in capsys.readouterr().err
    assert not (folder / "m" / "evaluations").exists()


def test_a_run_folder_is_evaluated(tiny_config, quick, tmp_path: Path):
    from rslm.train import train

    config = tiny_config()
    train(config)
    assert cli.main(["eval", str(config.out), "--tasks", f"loss:{config.data.valid}"]) == 0
    (result,) = (entry["result"] for entry in record(config.out)["tasks"].values())
    assert 0 < result["details"]["bits_per_byte"] < 8


def test_loss_and_text_are_tasks(folder: Path, token_files, tmp_path: Path):
    tokenizer = tiny_tokenizer(has_chat=False)
    model = tiny_model(tokenizer)
    text = "the cat sees a dog. " * 20
    (tmp_path / "text.txt").write_text(text)
    _, valid = token_files
    found = evaluate_tasks(model, tokenizer, ["text:text.txt", f"loss:{valid}"], batch_size=3)
    scores = score_text(model, tokenizer, tokenizer.encode_ordinary(text))
    assert found[0].value == pytest.approx(scores.bits_per_byte)
    assert found[0].details["loss"] == pytest.approx(scores.loss)
    assert (found[1].metric, found[1].n) == ("loss", len(TokenFile.open(valid)) - 1)
    assert all(0 < one.stderr < 0.5 * one.value for one in found)
    other = Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|end|>"])
    with pytest.raises(ValueError, match="must be made by the model's own tokenizer"):
        evaluate_tasks(tiny_model(other), other, [f"loss:{valid}"])


def test_errors_cover_what_other_texts_score():
    """Of many texts from one source, the scores spread by the error that each gives itself."""
    tokenizer = tiny_tokenizer(has_chat=False)
    examinee = Examinee(tiny_model(tokenizer), tokenizer)
    draw = random.Random(0)
    found = []
    for _ in range(30):
        text = "".join(draw.choices(["the cat ", "a", "zzz", "dog. "], k=300))
        found.append(evaluate_text("t", text, examinee.scorer, tokenizer))
    spread = statistics.stdev(one.value for one in found)
    claimed = statistics.fmean(one.stderr for one in found)
    # 30 texts tell a spread to an eighth of itself.
    assert claimed == pytest.approx(spread, rel=0.4)


def test_a_broken_model_has_no_loss(token_files):
    tokenizer = tiny_tokenizer(has_chat=False)
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.token_embeddings.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="must be numbers"):
        evaluate_tasks(model, tokenizer, [f"loss:{token_files[1]}"])


def test_each_task_is_planned_once_and_suites_are_lists():
    names = [task.name for task in plan_tasks(["procedural", "sort"], EvalSettings())]
    assert len(names) == len(set(names)) == 7


def test_two_tasks_of_one_name_are_refused(folder: Path):
    (folder / "b").mkdir()
    write_lines(folder / "b" / "sums.jsonl", [{"context": "a", "continuation": "b"}])
    with pytest.raises(ValueError, match=r"two of sums\.jsonl"):
        plan_tasks(["sums.jsonl", "b/sums.jsonl"], EvalSettings())


def test_a_file_without_questions_to_test_on_is_refused(folder: Path):
    prompt = next(letter for letter in "abcdef" if not is_for_test(letter))
    write_lines(folder / "one.jsonl", [{"prompt": prompt, "gold": "b"}])
    with pytest.raises(ValueError, match="must have questions to test on"):
        plan_tasks(["one.jsonl"], EvalSettings())


def test_the_record_is_json_whatever_the_numbers(folder: Path):
    identity = ModelIdentity.of(tiny_model(TOKENIZER), TOKENIZER)
    path = folder / "evaluations" / "a.json"
    details = {"inner": {"stderr": math.inf}}
    result = TaskResult(name="t", metric="loss", value=math.nan, stderr=None, n=1, details=details)
    kept, other = EvaluationRecord(path, identity, {}), EvaluationRecord(path, identity, {})
    kept.add(result, {})
    other.add(replace(result, name="u"), {})
    kept.write({"CORE": {"stderr": math.inf}})
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = EvaluationRecord(path, identity, {})
    assert found.find("u", {}) is not None
    assert math.isnan(found.find("t", {}).value)


def test_all_scores_with_an_error_are_rows(folder: Path):
    settings = EvalSettings(n_samples=2, temperature=1.0, max_new_tokens=2)
    model, tokenizer = tiny_model(TOKENIZER), TOKENIZER
    found = evaluate_tasks(model, tokenizer, ["arithmetic:test=3", "sums.jsonl"], settings)
    _, rows = suite.table_of(["m"], [found], "v2")
    assert [row[:2] for row in rows] == [
        ["arithmetic:test=3", "pass@1"],
        ["sums.jsonl", "accuracy"],
        ["arithmetic:test=3", "pass@2"],
    ]
    assert all("±" in row[2] for row in rows)


def test_core_needs_all_its_tasks():
    result = TaskResult(name="copa", metric="accuracy", value=0.5, stderr=0.05, n=100)
    assert scores_over_tasks([result], "v2") == {}


def test_a_mean_of_one_has_no_error():
    assert mean_and_error([1.0]) == (1.0, math.inf)
    assert suite._with_error(0.5, math.inf) == "0.5"


@pytest.mark.slow
def test_the_public_tasks_end_in_core_18(folder: Path, test_data: Path, capsys):
    command = ["eval", "m", "--suite", "offline", "--data", str(test_data / "eval")]
    assert cli.main([*command, "--max-examples", "2", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "CORE-18" in out
    assert "baselines v2" in out
    scores = record(folder / "m", "offline")["scores"]
    assert len(scores["CORE-18"]["centred"]) == 18
    assert scores["CORE-18"]["baselines"] == "v2"


def test_an_examinee_makes_what_it_needs_alone():
    examinee = Examinee(tiny_model(TOKENIZER), TOKENIZER)
    assert "engine" not in vars(examinee)
    assert examinee.scorer is examinee.scorer
