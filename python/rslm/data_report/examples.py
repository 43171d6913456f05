"""Documents as examples: of each step and reason some, with the number that decided."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, cast, get_args

from rslm.data.pipeline.tally import StepTally
from rslm.data.quality import Preset
from rslm.data_report import words
from rslm.data_report.measures import Measure, quality_steps
from rslm.data_report.reasons import meaning
from rslm.data_report.view import PipelineView
from rslm.html_report.blocks import Passage, PassageGroup, Passages

SHOWN_CHARACTERS = 1200
MAX_EXAMPLES = 10
"""Of each step and reason, on a page of few of them."""
MAX_BYTES = 1_000_000
"""Of all examples together; where they are more, each reason shows fewer."""
Sample = Mapping[str, Any]


def examples(view: PipelineView) -> Passages | None:
    """Kept and dropped documents of each step; None where there are none."""
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in view.samples():
        key = sample["stage"], sample["step"], sample["reason"]
        groups.setdefault(key, []).append(sample)
    n = n_examples(list(groups.values()))
    shown = []
    for step in view.steps:
        reasons = sorted(
            (reason for stage, name, reason in groups if (stage, name) == (step.stage, step.name)),
            key=lambda reason: (not reason, -_n_documents(step.tally, reason)),
        )
        for reason in reasons:
            shown.append(
                PassageGroup(
                    title=f"{step.name}: {reason or 'kept'}",
                    note=_note(reason, _n_documents(step.tally, reason)),
                    passages=[
                        passage(sample) for sample in groups[step.stage, step.name, reason][:n]
                    ],
                )
            )
    if not shown:
        return None
    return Passages(
        caption=(
            "Documents drawn by a hash of their ids: dropped ones as they came into the step, "
            "kept ones as they left it. Control characters and marks that turn the direction of "
            r"text are written as escapes such as \x1b."
        ),
        groups=shown,
    )


def _n_documents(tally: StepTally, reason: str) -> int:
    return tally.drops.get(reason, tally.given).documents


def _note(reason: str, n: int) -> str:
    return "; ".join(filter(None, [words.plural(n, "document"), meaning(reason)]))


def n_examples(groups: Sequence[Sequence[Sample]]) -> int:
    """How many of each group fit on a page: at least one."""
    for n in range(MAX_EXAMPLES, 1, -1):
        texts = (sample["text"][:SHOWN_CHARACTERS] for group in groups for sample in group[:n])
        if sum(len(text.encode("utf-8", "replace")) for text in texts) <= MAX_BYTES:
            return n
    return 1


def passage(sample: Sample) -> Passage:
    """A sample with where it is from and why it was dropped."""
    notes = [f"{sample['characters']:,} characters", f"from {sample['source']}"]
    if sample["language"]:
        notes.append(f"language {sample['language']}")
    if sample["url"]:
        notes.append(f"id {sample['id']}")
    if found := deciding(sample):
        notes.append(in_words(found))
    return Passage(
        title=sample["url"] or sample["id"],
        note="; ".join(notes),
        text=cut(sample["text"], sample["characters"]),
    )


def deciding(sample: Sample) -> Measure | None:
    """The number that dropped a sample by a rule, where all of its text is there."""
    family, _, preset = sample["step"].partition(".")
    is_whole = sample["characters"] == len(sample["text"])
    if family != "quality" or preset not in get_args(Preset) or not is_whole:
        return None
    if not sample["reason"]:
        return None
    last = quality_steps(sample["text"], cast(Preset, preset))[-1]
    hits = (m for m in last.measures if m.reason == sample["reason"] and not m.holds)
    return next(hits, None)


def in_words(measure: Measure) -> str:
    """A measure as a clause: what is, and what must be."""
    value, limit = number(measure.value), number(measure.limit)
    return f"{measure.name}: {value}, must be {measure.relation} {limit}"


def number(value: float) -> str:
    """Whole or with three digits."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def cut(text: str, n_characters: int | None = None, limit: int = SHOWN_CHARACTERS) -> str:
    """The beginning of a text, and how much more of it there is."""
    total = len(text) if n_characters is None else n_characters
    if total <= limit:
        return text
    return f"{text[:limit]}\n[... {words.plural(total - limit, 'more character')}]"


def unlike(text: str, other: str) -> list[tuple[int, int]]:
    """Stretches of a text whose words the other has not, in the order of both."""
    ours, theirs = (list(re.finditer(r"\S+", each)) for each in (text, other))
    matcher = SequenceMatcher(None, [w[0] for w in ours], [w[0] for w in theirs], autojunk=False)
    return [
        (ours[start].start(), ours[stop - 1].end())
        for kind, start, stop, _, _ in matcher.get_opcodes()
        if kind in ("replace", "delete")
    ]
