"""One document's way through a pipeline: what each step saw, decided and changed, and why.

The run wrote down which step dropped it; the numbers behind that are found by taking the steps
once more, on the text that is read again. Where the two do not agree, it says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rslm.data.document import Document
from rslm.data.pipeline.places import writer_before
from rslm.data.pipeline.plan import DOCUMENTS, PLACES
from rslm.data.pipeline.report import Entry
from rslm.data.pipeline.steps import Decision, Step, filter_steps, lines_step, pii_step
from rslm.data_report.again import Again
from rslm.data_report.details import of_decision, of_duplicates, of_tokens
from rslm.data_report.find import Way
from rslm.data_report.measures import Measure
from rslm.data_report.view import PipelineView

KEPT, EDITED, DROPPED, UNKNOWN = "kept", "edited", "dropped", "unknown"


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A step on the way.

    Attributes:
        verdict: "kept", "edited", "dropped", or "unknown" where it cannot be told any more.
        reason: why it was dropped.
        facts: what was looked at, in words, by name.
        measures: numbers of quality rules with their limits.
        before, after: the text, where it was read again; of a page with markup only `after`.
        remark: what does not fit, or is missing.
    """

    stage: str
    step: str
    verdict: str
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    measures: Sequence[Measure] = ()
    before: str | None = None
    after: str | None = None
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A document and its way.

    Attributes:
        document: as it was read; None where that cannot be done again.
        shard: the number of its shard, and of the tasks that it was in.
        number: among the documents of the shard.
        files: what the shard was read from.
    """

    id: str
    shard: int
    number: int
    files: Sequence[str]
    document: Document | None
    stops: Sequence[Stop]

    @property
    def is_dropped(self) -> bool:
        """Whether a step dropped it."""
        return any(stop.verdict == DROPPED for stop in self.stops)


def trace(view: PipelineView, way: Way) -> Trace:
    """What became of a document, with everything that can be found out again."""
    return next(trace_all(view, [way]))


def trace_all(view: PipelineView, ways: Sequence[Way]) -> Iterator[Trace]:
    """The same of several; each shard is read once, and their documents are held together."""
    again = Again(view, ways)
    return (_trace(view, way, again) for way in ways)


def _trace(view: PipelineView, way: Way, again: Again) -> Trace:
    first = way[0]
    document, problem = _read_again(again, first)
    stops: list[Stop] = []
    for entry in way:
        if entry.stage == "filter":
            stops += _filter_stops(view, entry, document, problem)
        else:
            stops += _later_stops(view, entry, again)
    last = way[-1]
    if last.row is not None and last.stage == "finalize":
        stops += _end(view, last, again)
    return Trace(
        id=first.id,
        shard=first.shard,
        number=first.number,
        files=[name for _, name, _ in view.plan.shards[first.shard].files],
        document=document,
        stops=stops,
    )


def _read_again(again: Again, entry: Entry) -> tuple[Document | None, str]:
    """The document as it was read, or why that cannot be done again."""
    try:
        document = again.input(entry)
    except OSError as error:
        return None, f"the input cannot be read any more: {error.strerror}: {error.filename}"
    if document is None or document.id != entry.id:
        return None, "the input is not the one that was read"
    return document, ""


def _filter_stops(
    view: PipelineView, entry: Entry, document: Document | None, problem: str
) -> Iterator[Stop]:
    """The steps of the first pass, up to the one that dropped it."""
    # What ended a worker must not be taken once more.
    if document is None or entry.step == "skip":
        yield _as_recorded(entry, problem or "not taken once more, since it ended a worker")
        return
    try:
        steps = filter_steps(view.plan.config)
    except (ImportError, OSError, ValueError) as error:
        yield _as_recorded(entry, f"the steps cannot be taken once more: {error}")
        return
    yield from _take(view, entry, document, steps)


def _as_recorded(entry: Entry, remark: str) -> Stop:
    """What the run wrote down, and nothing else."""
    return Stop(
        stage=entry.stage,
        step=entry.step or "all steps",
        verdict=DROPPED if entry.row is None else KEPT,
        reason=entry.reason,
        remark=remark,
    )


def _take(
    view: PipelineView, entry: Entry, document: Document, steps: Mapping[str, Step]
) -> Iterator[Stop]:
    """Takes steps once more and holds them against what was written down."""
    for name, step in steps.items():
        try:
            (decision,) = step([document])
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            decision = Decision(document=document, reason=f"{name.partition('.')[0]}_error")
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = ""
        yield _stop(view, entry, name, document, decision, problem)
        if name == entry.step or decision.reason:
            return
        document = decision.document


def _stop(
    view: PipelineView,
    entry: Entry,
    name: str,
    before: Document,
    decision: Decision,
    problem: str,
) -> Stop:
    recorded = entry.reason if entry.step == name else ""
    if decision.reason != recorded:
        problem = (
            f"the run wrote down {recorded or KEPT}, and now it is {decision.reason or KEPT}: "
            "versions or models are others"
        )
    facts, measures = of_decision(view.plan.config, name, before, decision)
    is_page = before.metadata.get("media_type") == "text/html"
    changed = decision.document.text != before.text
    verdict = DROPPED if recorded else EDITED if changed and not is_page else KEPT
    return Stop(
        stage=entry.stage,
        step=name,
        verdict=verdict,
        reason=recorded,
        facts=facts,
        measures=measures,
        before=None if is_page else before.text,
        after=None if decision.reason else decision.document.text,
        remark=problem,
    )


def _later_stops(view: PipelineView, entry: Entry, again: Again) -> Iterator[Stop]:
    """What deduplication and masking did with a document that the first pass wrote."""
    writer = writer_before(view.plan, entry.stage)
    document = again.written(writer, entry.shard, entry.number)
    if entry.step == "skip":
        yield _as_recorded(entry, "not taken once more, since it ended a worker")
        return
    for crossing in again.crossings(entry):
        yield Stop(
            stage=crossing.mask,
            step=crossing.kind,
            verdict=DROPPED if crossing.is_dropped else KEPT,
            reason=entry.reason if crossing.is_dropped else "",
            facts=of_duplicates(view.plan, crossing, again.cluster(crossing), document),
        )
        if crossing.is_dropped:
            return
    steps = _steps_after(view, entry, again.row_before(entry))
    yield from _take(view, entry, document, steps)


def _steps_after(view: PipelineView, entry: Entry, row: int) -> dict[str, Step]:
    """The steps of a later pass that look at the document itself."""
    config = view.plan.config
    if entry.stage == "lines.rewrite":
        merge = view.plan.stage("lines.merge")
        merged = [view.plan.path(merge.name, n, PLACES) for n in range(merge.n_tasks)]
        step = lines_step(merged, entry.shard, config.lines)
        # It counts the rows that it has seen.
        step([Document(text="", id="")] * row)
        return {"lines": step}
    return {} if config.pii.preset is None else {"pii": pii_step(config.pii.preset)}


def _end(view: PipelineView, entry: Entry, again: Again) -> Iterator[Stop]:
    """Where the text lies that is left, and its tokens."""
    assert entry.row is not None
    path = view.plan.path(entry.stage, entry.shard, DOCUMENTS)
    document = again.written(entry.stage, entry.shard, entry.row)
    yield Stop(
        stage=entry.stage,
        step="written",
        verdict=KEPT,
        facts={"file": path.name, "row": f"{entry.row:,}", "characters": f"{len(document.text):,}"},
        after=document.text,
    )
    tokenize = view.stage("tokenize")
    if tokenize is not None and tokenize.is_complete:
        yield Stop(stage="tokenize", step="tokenize", verdict=KEPT, facts=of_tokens(view, document))
