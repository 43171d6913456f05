"""The steps that judge or change one document, over batches of them.

A step takes documents and decides on each: it goes on, changed or not, or is dropped for a reason.
What a step needs, such as a model, is loaded where the step is made, and its module only then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rslm.data.document import Document
from rslm.data.pii import Preset as PiiPreset
from rslm.data.pipeline.config import (
    ANY_LANGUAGE,
    ClassifierConfig,
    DecontaminateConfig,
    ExtractConfig,
    LanguageConfig,
    LinesConfig,
    PipelineConfig,
)
from rslm.data.quality import Preset as QualityPreset

_SCORE_DIGITS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a step makes of a document.

    Attributes:
        document: to go on with; as it came in where it is dropped.
        reason: why it is dropped; "" keeps it.
        lines_removed: lines that went, by reason.
        counts: whatever else is to be counted, by name.
        group: what it is counted under in the step's histogram; "" for nothing.
    """

    document: Document
    reason: str = ""
    lines_removed: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    group: str = ""


Step = Callable[[Sequence[Document]], list[Decision]]


@functools.lru_cache(maxsize=1)
def filter_steps(config: PipelineConfig) -> dict[str, Step]:
    """The steps between reading and deduplication, by name, in their order.

    Kept for the next task of the process, for models and lists take longer to load than some
    shards to be judged.

    Cheap ones stand first, and what learned from text that passed the rules behind the rules.
    Personal data is masked after deduplication: two pages that differ in their addresses alone
    would otherwise be taken for copies, and lines that hold nothing but a mask for repeated ones.
    """
    return {name: make() for name, make in _makers(config).items()}


def filter_step_names(config: PipelineConfig) -> list[str]:
    """The names of those steps; loads nothing."""
    return list(_makers(config))


def _makers(config: PipelineConfig) -> dict[str, Callable[[], Step]]:
    makers: dict[str, Callable[[], Step]] = {}
    if config.url_filter.lists is not None:
        makers["url"] = functools.partial(url_step, config.url_filter.lists)
    makers["extract"] = functools.partial(extract_step, config.extract)
    if config.language.languages:
        makers["language"] = functools.partial(language_step, config.language)
    for preset in config.quality.presets:
        makers[f"quality.{preset}"] = functools.partial(quality_step, preset)
    for classifier in config.classifiers:
        makers[f"classify.{classifier.name}"] = functools.partial(classify_step, classifier)
    if config.decontaminate.paths:
        makers["decontaminate"] = functools.partial(decontaminate_step, config.decontaminate)
    return makers


def url_step(lists: Path) -> Step:
    """Drops pages whose address is on a list."""
    from rslm.data.url_filter import UrlFilter

    url_filter = UrlFilter.read(lists)

    def judge(documents: Sequence[Document]) -> list[Decision]:
        # One without an address is kept.
        reasons = url_filter.reason_batch([document.url for document in documents])
        return [
            Decision(document=document, reason=reason)
            for document, reason in zip(documents, reasons, strict=True)
        ]

    return judge


def extract_step(config: ExtractConfig) -> Step:
    """Makes text of pages; what is text already passes."""

    def extract(documents: Sequence[Document]) -> list[Decision]:
        pages = [i for i, document in enumerate(documents) if _is_page(document)]
        if not pages:
            return [Decision(document=document) for document in documents]
        from rslm.data.extract import extract_batch

        html = [documents[i].text for i in pages]
        extracted = dict(
            zip(pages, extract_batch(html, extractor=config.extractor, n_threads=1), strict=True)
        )
        return [
            _extracted(document, extracted[i].text, extracted[i].problem)
            if i in extracted
            else Decision(document=document)
            for i, document in enumerate(documents)
        ]

    return extract


def _is_page(document: Document) -> bool:
    return document.metadata.get("media_type") == "text/html"


def _extracted(page: Document, text: str, problem: str) -> Decision:
    if problem or not text.strip():
        return Decision(document=page, reason=problem or "empty")
    metadata = {key: value for key, value in page.metadata.items() if key != "media_type"}
    return Decision(document=replace(page, text=text, metadata=metadata))


def language_step(config: LanguageConfig) -> Step:
    """Writes the language down and drops what is in none of those to keep, or not surely."""
    from rslm.data.language import UNDETERMINED, LanguageModel

    model = LanguageModel(config.model, max_chars=config.max_chars)
    keeps_all = ANY_LANGUAGE in config.languages
    known = model.codes()
    for code in config.languages:
        if not keeps_all and code not in known and code != UNDETERMINED[0]:
            raise ValueError(
                f"language.languages must be codes that the model knows, {', '.join(known)}, "
                f"got {code!r}"
            )

    def reason_of(code: str, score: float) -> str:
        if keeps_all:
            return ""
        if code not in config.languages:
            return "other_language"
        return "language_score" if score < config.min_score else ""

    def identify(documents: Sequence[Document]) -> list[Decision]:
        found = model.identify_batch([document.text for document in documents])
        return [
            Decision(
                document=_with(document, language=code, language_score=round(score, _SCORE_DIGITS)),
                reason=reason_of(code, score),
                group=code,
            )
            for document, (code, score) in zip(documents, found, strict=True)
        ]

    return identify


def _with(document: Document, **metadata: Any) -> Document:
    return replace(document, metadata=document.metadata | metadata)


def quality_step(preset: QualityPreset) -> Step:
    """Keeps, edits or drops by a published recipe."""
    from rslm.data.quality import check_quality_batch

    def check(documents: Sequence[Document]) -> list[Decision]:
        texts = [document.text for document in documents]
        verdicts = check_quality_batch(texts, preset, n_threads=1)
        return [
            Decision(
                document=replace(document, text=verdict.text)
                if verdict.decision == "edit"
                else document,
                reason=verdict.reason,
                lines_removed=verdict.lines_removed,
            )
            for document, verdict in zip(documents, verdicts, strict=True)
        ]

    return check


def classify_step(config: ClassifierConfig) -> Step:
    """Writes a classifier's score down, and drops what it is too low or too high for."""
    from rslm.data.classify import Classifier

    classifier = Classifier.load(config.model)
    # A label that the model has not is an error now, and not one of every page.
    classifier.scores_batch([], config.label)

    def reason_of(score: float) -> str:
        if config.min_score is not None and score < config.min_score:
            return "score_too_low"
        if config.max_score is not None and score > config.max_score:
            return "score_too_high"
        return ""

    def classify(documents: Sequence[Document]) -> list[Decision]:
        texts = [document.text for document in documents]
        scores = classifier.scores_batch(texts, config.label)
        return [
            Decision(
                document=_with(
                    document,
                    scores=document.metadata.get("scores", {})
                    | {config.name: round(score, _SCORE_DIGITS)},
                ),
                reason=reason_of(score),
                group=f"{score:.2f}",
            )
            for document, score in zip(documents, scores, strict=True)
        ]

    return classify


def decontaminate_step(config: DecontaminateConfig) -> Step:
    """Drops what shares words in a row with an evaluation set."""
    from rslm.data.decontaminate import EvaluationNgrams

    ngrams = EvaluationNgrams.read(config.paths, ngram_words=config.ngram_words)

    def compare(documents: Sequence[Document]) -> list[Decision]:
        overlaps = ngrams.overlaps_batch([document.text for document in documents])
        return [
            Decision(document=document, reason="overlap" if overlap else "")
            for document, overlap in zip(documents, overlaps, strict=True)
        ]

    return compare


def pii_step(preset: PiiPreset) -> Step:
    """Masks personal data, and drops what a recipe drops for having much of it."""
    from rslm.data.pii import mask_pii_batch

    def mask(documents: Sequence[Document]) -> list[Decision]:
        texts = [document.text for document in documents]
        return [
            Decision(
                document=document if masked.drop_reason else replace(document, text=masked.text),
                reason=masked.drop_reason,
                counts=masked.counts,
            )
            for document, masked in zip(
                documents, mask_pii_batch(texts, preset, n_threads=1), strict=True
            )
        ]

    return mask


def drop_rows(dropped: Collection[int], reason: str) -> Step:
    """Drops by the number of the document in the order in which they come."""
    row = 0

    def drop(documents: Sequence[Document]) -> list[Decision]:
        nonlocal row
        first, row = row, row + len(documents)
        return [
            Decision(document=document, reason=reason if number in dropped else "")
            for number, document in enumerate(documents, first)
        ]

    return drop


def lines_step(merged: Sequence[Path], shard: int, config: LinesConfig) -> Step:
    """Takes repeated lines out, and drops what is left with too few words."""
    from rslm.data.dedup.stages import RepeatedLines

    assert config.keep is not None
    keep, repeated, row = config.keep, RepeatedLines(merged), 0

    def reason_of(text: str, removed: int) -> str:
        if not text.strip():
            return "no_lines_left"
        too_few = removed and len(text.split(maxsplit=config.min_words)) < config.min_words
        return "too_few_words_left" if too_few else ""

    def rewrite(documents: Sequence[Document]) -> list[Decision]:
        nonlocal row
        first, row = row, row + len(documents)
        texts = [document.text for document in documents]
        rewritten = repeated.rewrite(texts, shard, first, keep)
        decisions = []
        for document, (text, removed) in zip(documents, rewritten, strict=True):
            reason = reason_of(text, removed)
            decisions.append(
                Decision(
                    document=document if reason else replace(document, text=text),
                    reason=reason,
                    lines_removed={"repeated_line": removed} if removed else {},
                )
            )
        return decisions

    return rewrite
