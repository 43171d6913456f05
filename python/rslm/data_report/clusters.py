"""Clusters of duplicates as examples: the texts of their members side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rslm.data.document import Document
from rslm.data.pipeline.places import Place, documents_at
from rslm.data_report import words
from rslm.data_report.examples import cut, unlike
from rslm.data_report.view import PipelineView
from rslm.html_report.blocks import Passage, PassageGroup, Passages

MAX_CLUSTERS = 8
MAX_MEMBERS = 4


def cluster_examples(view: PipelineView, kind: str) -> Passages | None:
    """The largest clusters of a kind; None where there are none."""
    found = view.notes(f"{kind}.cluster", "examples")[:MAX_CLUSTERS]
    shown = [_first_places(example) for example in found]
    wanted = [place for places in shown for place in places]
    documents = documents_at(view.plan, f"{kind}.sign", wanted)
    groups = [
        PassageGroup(
            title=words.plural(example["size"], "document"),
            note=" ".join(documents[places[0]].text[:80].split()),
            passages=list(_members(places, documents)),
        )
        for example, places in zip(found, shown, strict=True)
        if places[0] in documents
    ]
    if not groups:
        return None
    return Passages(
        caption=(
            "The largest clusters: first the document that is kept, then some of the others, with "
            "the words marked that the kept one does not have there."
        ),
        groups=groups,
    )


def _first_places(example: Mapping[str, Any]) -> list[Place]:
    """The kept member, and some others."""
    kept, *others = [tuple(place) for place in (example["kept"], *example["members"])]
    return [kept, *[place for place in others if place != kept][: MAX_MEMBERS - 1]]


def _members(places: Sequence[Place], documents: Mapping[Place, Document]) -> Iterator[Passage]:
    kept = documents[places[0]]
    for place in places:
        if (document := documents.get(place)) is None:
            continue
        text, is_kept = cut(document.text), place == places[0]
        state = "kept" if is_kept else "dropped"
        yield Passage(
            title=document.url or document.id,
            note=(
                f"{state}; {len(document.text):,} characters; from {document.source}; "
                f"id {document.id}"
            ),
            text=text,
            marks=() if is_kept else unlike(text, cut(kept.text)),
        )
