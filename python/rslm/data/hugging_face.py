"""Data sets of Hugging Face as files: what `datasets` fetched, or `save_to_disk` wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rslm.data.download import is_network_error

# What tells folders that `save_to_disk` wrote of those with files to load.
_SAVED = ("state.json", "dataset_dict.json")


def dataset_files(
    dataset: str, *, subset: str | None = None, split: str = "train", revision: str | None = None
) -> list[Path]:
    """The Arrow files of a split, in the order of its rows.

    They are fetched and converted into the cache of `datasets` where they are not there yet. A
    split is taken whole: files are what tasks are made of, not rows.

    Args:
        dataset: its name, a folder of JSON lines, Parquet or such, or one of `save_to_disk`.
        subset: of its configurations, where it has several.
        split: the name of one.
        revision: commit, branch or tag.

    Raises:
        ValueError: `datasets` is not installed, or there is no such data set, subset or split, or
            it cannot be reached.
    """
    if not re.fullmatch(r"\w+(\.\w+)*", split):
        raise ValueError(f"split must be the name of a split, got {split!r}")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            "data sets need datasets, which is not installed: pip install 'rslm[data]'"
        ) from error
    try:
        loaded = _load(datasets, dataset, subset, split, revision)
    # The libraries below raise errors that have no base in common.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if is_network_error(error):
            reason = f"is there a network? {reason}"
        raise ValueError(f"dataset {dataset!r} cannot be loaded: {reason}") from error
    return [Path(file["filename"]) for file in loaded.cache_files]


def _load(datasets: Any, dataset: str, subset: str | None, split: str, revision: str | None) -> Any:
    if not any((Path(dataset) / name).is_file() for name in _SAVED):
        return datasets.load_dataset(dataset, subset, split=split, revision=revision)
    if subset is not None or revision is not None:
        raise ValueError("a folder of save_to_disk has neither subset nor revision")
    loaded = datasets.load_from_disk(dataset)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(f"split must be one of {', '.join(loaded)}, got {split!r}")
    return loaded[split]
