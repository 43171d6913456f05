"""What decided: the numbers that each kind of step goes by, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from rslm import _rslm
from rslm.data.dedup.near_duplicates import MinHashOptions
from rslm.data.dedup.normalize import normalize
from rslm.data.dedup.shingles import jaccard, make_shingles
from rslm.data.document import Document
from rslm.data.pipeline.config import ANY_LANGUAGE, PipelineConfig
from rslm.data.pipeline.plan import Plan
from rslm.data.pipeline.steps import Decision
from rslm.data.quality import Preset
from rslm.data_report import words
from rslm.data_report.again import MAX_MEMBERS, Cluster, Crossing
from rslm.data_report.measures import Measure, quality_steps
from rslm.data_report.view import PipelineView
from rslm.token_file import TokenFile

Facts = dict[str, str]


def of_decision(
    config: PipelineConfig, name: str, before: Document, decision: Decision
) -> tuple[Facts, Sequence[Measure]]:
    """What a step looked at, and the numbers of quality rules."""
    family, _, rest = name.partition(".")
    after, facts = decision.document, Facts()
    measures: list[Measure] = []
    match family:
        case "url":
            facts["address"] = before.url or "none"
        case "extract" if before.metadata.get("media_type") == "text/html":
            facts["page"] = f"{len(before.text):,} characters with markup"
            facts["text"] = "none" if decision.reason else f"{len(after.text):,} characters"
        case "language":
            facts |= _language(config, after)
        case "quality":
            for step in quality_steps(before.text, cast(Preset, rest)):
                measures += step.measures
        case "classify":
            facts |= _score(config, rest, after)
    facts |= {reason: words.plural(n, "line") for reason, n in decision.lines_removed.items()}
    facts |= {what: f"{n:,}" for what, n in decision.counts.items() if n}
    return facts, measures


def _language(config: PipelineConfig, after: Document) -> Facts:
    wanted = config.language
    code, score = (str(after.metadata.get(name)) for name in ("language", "language_score"))
    if ANY_LANGUAGE in wanted.languages:
        return {"language": code, "score": score}
    return {
        "language": f"{code}, must be {' or '.join(wanted.languages)}",
        "score": f"{score}, must be at least {wanted.min_score:g}",
    }


def _score(config: PipelineConfig, name: str, after: Document) -> Facts:
    wanted = next(each for each in config.classifiers if each.name == name)
    limits = [f"at least {wanted.min_score:g}"] if wanted.min_score is not None else []
    limits += [f"at most {wanted.max_score:g}"] if wanted.max_score is not None else []
    score = after.metadata.get("scores", {}).get(name)
    must = f", must be {' and '.join(limits)}" if limits else ""
    return {f"score for {wanted.label}": f"{score}{must}"}


def of_duplicates(plan: Plan, crossing: Crossing, cluster: Cluster, document: Document) -> Facts:
    """The cluster that a document is in, and which of its members is kept."""
    members, kept, documents = cluster.members, cluster.kept, cluster.documents
    if len(members) == 1:
        return {"cluster": "none: no other document is alike"}
    facts = {"cluster": f"{len(members):,} documents"}
    if kept == crossing.place:
        facts["kept of it"] = "this one"
    elif kept is not None and kept in documents:
        facts["kept of it"] = _name(documents[kept])
        if crossing.kind == "minhash":
            value = similarity(document, documents[kept], plan.config.minhash.options())
            threshold = plan.config.minhash.options().jaccard_threshold
            asked = "" if threshold is None else f"; pairs of at least {threshold:g} are linked"
            facts["similarity to it"] = f"{value:.3f}{asked}"
    shown = [m for m in cluster.shown if m in documents and m not in (crossing.place, kept)]
    for number, member in enumerate(shown, 1):
        facts[f"member {number}"] = _name(documents[member])
    if len(members) > len(cluster.shown):
        facts["members not shown"] = f"{len(members) - len(cluster.shown):,}"
    return facts


def _name(document: Document) -> str:
    return f"{document.id} {document.url}".strip()


def similarity(document: Document, other: Document, options: MinHashOptions) -> float:
    """The share of shingles that two documents have in common."""
    first, second = (
        make_shingles(
            normalize(each.text, options.normalization).split(),
            options.ngram_words,
            options.short_documents,
        )
        for each in (document, other)
    )
    return jaccard(first, second)


def of_tokens(view: PipelineView, document: Document) -> Facts:
    """Where a document's tokens lie; of copies of one text the first place is as good as any."""
    config = view.plan.config.tokenize
    assert config.tokenizer is not None
    core = _rslm.Tokenizer.load(config.tokenizer, None, None, [])
    token_ids = core.encode_ordinary(document.text)
    facts = {"tokens": f"{len(token_ids):,}"}
    for side in ("train", "valid"):
        folder = view.plan.folder / "tokenize" / "tokens" / side
        if folder.is_dir():
            tokens = TokenFile.open(folder)
            places = positions(tokens, token_ids)
            for number, (index, start) in enumerate(places[:MAX_MEMBERS], 1):
                copy = f", copy {number} of {len(places)}" if len(places) > 1 else ""
                facts[f"{side} file{copy}"] = f"document {index:,}, from token {start:,} on"
    return facts


def positions(tokens: TokenFile, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Documents of these tokens, by number and first token; only those as long are read."""
    starts = tokens.document_starts
    lengths = np.diff(starts, append=len(tokens))
    wanted = np.array(token_ids, tokens.dtype)
    # Behind each document stands the token that ends it.
    return [
        (int(index), int(starts[index]))
        for index in np.flatnonzero(lengths == len(wanted) + 1)
        if np.array_equal(tokens.document(int(index))[:-1], wanted)
    ]
