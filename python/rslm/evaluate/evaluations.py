"""The record of a model's evaluation: a file of the run folder that grows by a task at a time."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rslm.checkpoint import weights_hash
from rslm.config import to_record
from rslm.environment import describe_environment, versions
from rslm.errors import FormatError
from rslm.evaluate.results import TaskResult, finite
from rslm.files import write_atomically
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

FOLDER = "evaluations"


def digest(thing: object) -> str:
    """A hash of plain data, as records of texts and numbers."""
    return hashlib.blake2b(repr(thing).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ModelIdentity:
    """What of a model its scores depend on."""

    weights_hash: str
    tokenizer_sha256: str
    config: dict[str, Any]

    @classmethod
    def of(cls, model: Transformer, tokenizer: Tokenizer) -> "ModelIdentity":
        """That of a model."""
        return cls(weights_hash(model), tokenizer.sha256, to_record(model.config))


class EvaluationRecord:
    """The results of one model that are kept in a file, each as soon as it is there.

    A result is found again by what decided it: the weights, the tokenizer, the task's options
    and data. Results of other weights or options give way to those of the same task.

    Args:
        path: the file; it is read, if there is one, and written at the first result.
        identity: of the model.
        options: what was asked for, for the reader.

    Raises:
        FormatError: the file is no such record.
    """

    def __init__(self, path: Path, identity: ModelIdentity, options: dict[str, Any]) -> None:
        self._path, self._identity, self._options = path, identity, options
        self._kept, self._added = _read(path), dict[str, Any]()

    def find(self, name: str, options: dict[str, Any]) -> TaskResult | None:
        """The result of a task with these options, if it is there."""
        entry = self._kept.get(name)
        if entry is None or entry["key"] != self._key(name, options):
            return None
        try:
            return TaskResult.of_record(entry["result"])
        except (KeyError, TypeError) as error:
            raise _fault(self._path, f"the result of {name} is damaged") from error

    def add(self, result: TaskResult, options: dict[str, Any]) -> None:
        """Keeps a result, on disk when this returns."""
        entry = {"key": self._key(result.name, options), "options": options}
        self._added[result.name] = entry | {"result": result.record()}
        self.write({})

    def write(self, scores: dict[str, Any]) -> None:
        """Writes the file, with scores over several tasks."""
        # Read again: another process may have added results meanwhile.
        self._kept = _read(self._path) | self._added
        record = {
            "model": vars(self._identity),
            "environment": describe_environment(),
            "options": self._options,
            "scores": finite(scores),
            "tasks": self._kept,
        }
        self._path.parent.mkdir(exist_ok=True)
        write_atomically(self._path, json.dumps(record, indent=1, ensure_ascii=False).encode())

    def _key(self, name: str, options: dict[str, Any]) -> str:
        decides = (vars(self._identity), {"rslm": versions()["rslm"]}, options)
        return digest((name, *(sorted(each.items()) for each in decides)))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a record by task; none if there is no record yet."""
    if not path.exists():
        return {}
    try:
        tasks: dict[str, dict[str, Any]] = json.loads(path.read_bytes())["tasks"]
        for name, entry in tasks.items():
            if not {"key", "options", "result"} <= entry.keys():
                raise _fault(path, f"what it says of {name!r:.40} is no result")
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise _fault(path, "is none") from error
    except UnicodeDecodeError as error:
        raise _fault(path, "is no text") from error
    return tasks


def _fault(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path} must be the record of an evaluation, but {what}\nmove it away to begin anew"
    )
