"""The tasks of CORE: their files, examples, delimiters and baselines, and the centred score.

A task's centred score is (accuracy - baseline) / (1 - baseline); CORE is the mean over all 22.
Two tables of baselines exist: DCLM corrected its own in September 2025 (mlfoundations/dclm#114,
#115). Scores by the second table run about 0.02 lower; nanochat's are by the first, GPT-2-XL's
0.2565 among them. Without the four tasks whose files do not come with the others the mean has
another name, since it is another number.

Source: Li et al. 2024, DataComp-LM, section 3.5 and appendix G (arXiv:2406.11794).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rslm.errors import FormatError
from rslm.evaluate.archive import read_files
from rslm.evaluate.tasks import find_source

BaselineVersion = Literal["v1", "v2"]
BASELINE_VERSIONS: tuple[BaselineVersion, ...] = get_args(BaselineVersion)

_ANSWER = "\nAnswer: "


@dataclass(frozen=True)
class CoreTask:
    """One task.

    Attributes:
        name: as CORE has it.
        file: of its questions, without ending.
        n_shots: examples before each question.
        baseline: accuracy without knowledge, by the first table and by the second.
        delimiter: between context and continuation.
    """

    name: str
    file: str
    n_shots: int
    baseline: tuple[float, float] = (0.0, 0.0)
    delimiter: str = " "


CORE_TASKS = (
    CoreTask("hellaswag_zeroshot", "hellaswag", 0, (0.25, 0.25)),
    CoreTask("jeopardy", "jeopardy_all", 10, delimiter=_ANSWER),
    CoreTask("bigbench_qa_wikidata", "bigbench_qa_wikidata", 10),
    CoreTask("arc_easy", "arc_easy", 10, (0.25, 0.25), _ANSWER),
    CoreTask("arc_challenge", "arc_challenge", 10, (0.25, 0.25), _ANSWER),
    CoreTask("copa", "copa", 0, (0.5, 0.5)),
    # The second table has the share of the commonest letter, 492 of 1 221.
    CoreTask("commonsense_qa", "commonsense_qa", 10, (0.2, 0.403)),
    CoreTask("piqa", "piqa", 10, (0.5, 0.5), _ANSWER),
    CoreTask("openbook_qa", "openbook_qa", 0, (0.25, 0.25)),
    CoreTask("lambada_openai", "lambada_openai", 0),
    CoreTask("hellaswag", "hellaswag", 10, (0.25, 0.25)),
    CoreTask("winograd", "winograd_wsc", 0, (0.5, 0.5)),
    CoreTask("winogrande", "winogrande", 0, (0.5, 0.5)),
    CoreTask("bigbench_dyck_languages", "bigbench_dyck_languages", 10),
    CoreTask("agi_eval_lsat_ar", "agi_eval_lsat_ar", 3, (0.2, 0.25)),
    CoreTask("bigbench_cs_algorithms", "bigbench_cs_algorithms", 10),
    CoreTask("bigbench_operators", "bigbench_operators", 10),
    CoreTask("bigbench_repeat_copy_logic", "bigbench_repeat_copy_logic", 10),
    CoreTask("squad", "squad", 10),
    CoreTask("coqa", "coqa", 0),
    CoreTask("boolq", "boolq", 10, (0.62, 0.62), _ANSWER),
    CoreTask(
        "bigbench_language_identification",
        "bigbench_language_identification",
        10,
        # Four options a question; the first table has one in eleven languages.
        (0.091, 0.25),
    ),
)
_EXTRA = ("hellaswag", "squad", "coqa")
"""Files that most copies of the tasks lack; the score without any of them is CORE-18."""


def core_files(data: Path) -> dict[str, bytes]:
    """The files of the tasks by name, from a folder or an archive; those that are there.

    Raises:
        OSError: there is nothing at `data`.
        FormatError: one is missing that belongs to CORE-18, or is there more than once.
    """
    source = find_source(data, "core")
    names = {f"{task.file}.jsonl" for task in CORE_TASKS}
    found = {
        name.removesuffix(".jsonl"): content
        for name, content in read_files(source, lambda name: name in names)
    }
    for task in CORE_TASKS:
        if task.file not in found and task.file not in _EXTRA:
            raise FormatError(f"{source} must hold the tasks of CORE, and lacks {task.file}.jsonl")
    return found


@dataclass(frozen=True)
class CoreScore:
    """The mean of centred accuracies.

    Attributes:
        name: CORE for all 22 tasks, else CORE-N for N of them.
        version: of the baselines.
        value: the mean.
        stderr: its standard error, of the choice of questions.
        centred: of each task.
    """

    name: str
    version: BaselineVersion
    value: float
    stderr: float
    centred: dict[str, float]


def centre(accuracy: float, baseline: float) -> float:
    """0 for what is reached without knowledge, 1 for all.

    >>> centre(0.625, 0.25)
    0.5
    """
    return (accuracy - baseline) / (1 - baseline)


def baseline_of(task: CoreTask, version: BaselineVersion) -> float:
    """The task's baseline by one of the tables."""
    return task.baseline[BASELINE_VERSIONS.index(version)]


def core_score(
    accuracies: Mapping[str, tuple[float, float]], version: BaselineVersion
) -> CoreScore | None:
    """The score from (accuracy, standard error) of each task; None without one of the eighteen."""
    tasks = [task for task in CORE_TASKS if task.name in accuracies]
    if {task.name for task in CORE_TASKS if task.file not in _EXTRA} - accuracies.keys():
        return None
    centred = {
        task.name: centre(accuracies[task.name][0], baseline_of(task, version)) for task in tasks
    }
    errors = [accuracies[task.name][1] / (1 - baseline_of(task, version)) for task in tasks]
    return CoreScore(
        name="CORE" if len(tasks) == len(CORE_TASKS) else f"CORE-{len(tasks)}",
        version=version,
        value=math.fsum(centred.values()) / len(tasks),
        stderr=math.hypot(*errors) / len(tasks),
        centred=centred,
    )
