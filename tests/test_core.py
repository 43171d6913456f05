"""CORE's tasks: the tables, the centred score, the files."""

import json
import math
from pathlib import Path

import pytest

from rslm.errors import FormatError
from rslm.evaluate.core import (
    CORE_TASKS,
    baseline_of,
    centre,
    core_files,
    core_score,
)
from rslm.evaluate.questions import read_questions
from rslm.evaluate.task_files import load_mmlu

ALL = [task.name for task in CORE_TASKS]
EIGHTEEN = [task.name for task in CORE_TASKS if task.file not in ("hellaswag", "squad", "coqa")]


def test_there_are_22_tasks_and_18_offline():
    assert len(set(ALL)) == 22
    assert len(EIGHTEEN) == 18


def test_the_tables_differ_in_three_tasks():
    changed = {task.name: task.baseline for task in CORE_TASKS if len(set(task.baseline)) > 1}
    assert changed == {
        "commonsense_qa": (0.2, 0.403),
        "agi_eval_lsat_ar": (0.2, 0.25),
        "bigbench_language_identification": (0.091, 0.25),
    }


def test_the_centre_of_language_identification():
    """A raw quarter is 0.18 by the first table, as nanochat's reports have it, else nothing."""
    (task,) = (task for task in CORE_TASKS if "language_identification" in task.name)
    assert centre(0.25, baseline_of(task, "v1")) == pytest.approx(0.175, abs=1e-3)
    assert centre(0.25, baseline_of(task, "v2")) == 0


def test_baselines_score_nothing_and_all_right_scores_one():
    for version in ("v1", "v2"):
        chance = {task.name: (baseline_of(task, version), 0.0) for task in CORE_TASKS}
        score = core_score(chance, version)
        assert score is not None
        assert (score.name, score.value, score.version) == ("CORE", 0.0, version)
        perfect = core_score(dict.fromkeys(ALL, (1.0, 0.0)), version)
        assert perfect is not None
        assert perfect.value == pytest.approx(1)


def test_without_the_four_it_is_core_18():
    score = core_score(dict.fromkeys(EIGHTEEN, (0.5, 0.03)), "v2")
    assert score is not None
    assert score.name == "CORE-18"
    baselines = [baseline_of(task, "v2") for task in CORE_TASKS if task.name in EIGHTEEN]
    assert score.value == pytest.approx(sum((0.5 - b) / (1 - b) for b in baselines) / 18)
    error = math.sqrt(sum((0.03 / (1 - b)) ** 2 for b in baselines)) / 18
    assert score.stderr == pytest.approx(error)
    partly = core_score(dict.fromkeys([*EIGHTEEN, "squad"], (0.5, 0.03)), "v2")
    assert partly is not None
    assert partly.name == "CORE-19"


def test_without_one_of_the_eighteen_there_is_no_score():
    assert core_score(dict.fromkeys(ALL[1:3], (0.5, 0.0)), "v2") is None


def write_core(folder: Path, *, without: str = "") -> Path:
    (folder / "core").mkdir(parents=True)
    for name in {task.file for task in CORE_TASKS} - {without, "hellaswag", "squad", "coqa"}:
        row = {"context": "a", "continuation": "b"}
        (folder / "core" / f"{name}.jsonl").write_text(json.dumps(row))
    return folder


def test_a_missing_file_is_named(tmp_path: Path):
    assert len(core_files(write_core(tmp_path / "all"))) == 18
    with pytest.raises(FormatError, match=r"lacks piqa\.jsonl"):
        core_files(write_core(tmp_path / "less", without="piqa"))


def test_the_public_files_are_read(test_data: Path):
    n_questions = {
        name: len(read_questions(content, name))
        for name, content in core_files(test_data / "eval").items()
    }
    assert len(n_questions) == 18
    assert (n_questions["arc_easy"], n_questions["lambada_openai"]) == (2376, 5153)
    asked = load_mmlu(test_data / "eval" / "mmlu.tar.xz", "test")
    assert (len(asked), sum(map(len, asked.values()))) == (57, 14_042)
