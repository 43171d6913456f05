"""Ids drafted ahead, for one step to verify.

A draft is right as far as it equals what the model draws with the same key at the same places
(keyed acceptance), so the ids are those of plain decoding, whatever was drafted;
`rslm.infer.rejection` has another rule, for those who ask for it. A drafting model
draws with the same key, too: where both find an id likely, the noise they share picks it for both.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from rslm.infer.options import Acceptance, DraftModel, EngineOptions, PromptLookup
from rslm.infer.paged_cache import StepBatch
from rslm.infer.rejection import seen_ids
from rslm.infer.requests import SequenceState
from rslm.infer.sampling import Draw, sample_tokens
from rslm.infer.sampling_reference import processed_probabilities
from rslm.model import Transformer

_ID_BYTES = array("I").itemsize


class StepRunner(Protocol):
    """What runs a step: `rslm.infer.runner.Runner`, or the plain one of the tests."""

    def forward(self, batch: StepBatch) -> Tensor:
        """Float32 logits (rows, vocab_size) after the tokens that `batch.rows` names."""
        ...

    def update_weights(self) -> None:
        """Takes over weights of the model that have changed."""
        ...


@dataclass(slots=True)
class Draft:
    """Ids drafted for one sequence.

    Attributes:
        token_ids: drafted.
        probabilities: a distribution for each, from which it was drawn; None where nobody asks,
            or where nothing was left to chance.
    """

    token_ids: list[int] = field(default_factory=list)
    probabilities: Tensor | None = None


class Speculator(Protocol):
    """What drafts."""

    n_draft: int
    acceptance: Acceptance

    def propose(self, sequences: Sequence[SequenceState], room: Sequence[int]) -> list[Draft]:
        """Ids that may follow each sequence, at most `room` of each."""
        ...

    def update_weights(self) -> None:
        """Takes over weights that have changed."""
        ...


def make_speculator(
    options: EngineOptions,
    model: Transformer,
    *,
    n_blocks: int,
    make_runner: Callable[..., StepRunner],
) -> Speculator | None:
    """What `options.speculation` asks for; None where it asks for nothing.

    Raises:
        ValueError: a drafting model has another vocabulary or device.
    """
    speculation = options.speculation
    if isinstance(speculation, DraftModel):
        _check_draft_model(speculation.model, model)
        runner = make_runner(
            speculation.model,
            n_blocks=n_blocks,
            block_size=options.block_size,
            exact=False,
            quantize=options.quantize,
            compile=options.compile,
        )
        return ModelDrafter(speculation, runner, options.max_step_tokens)
    return None if speculation is None else LookupDrafter(speculation)


class LookupDrafter:
    """Drafts what followed the last ids where they stood before, see `lookup_draft`."""

    def __init__(self, speculation: PromptLookup) -> None:
        self.n_draft, self.acceptance = speculation.n_draft, speculation.acceptance
        self._max_ngram = speculation.max_ngram

    def propose(self, sequences: Sequence[SequenceState], room: Sequence[int]) -> list[Draft]:
        """Ids that may follow each sequence, at most `room` of each."""
        return [
            Draft(lookup_draft(sequence.token_ids, n, self._max_ngram) if n > 0 else [])
            for sequence, n in zip(sequences, room, strict=True)
        ]

    def update_weights(self) -> None:
        """There are none."""


def lookup_draft(token_ids: Sequence[int], n: int, max_ngram: int) -> list[int]:
    """The `n` ids that followed the longest run of last ids where it last stood before.

    Where they reach the end they go on with themselves: what repeats is taken to go on
    repeating. Empty if not even the last id stood anywhere before.
    """
    # Searched as bytes, in C: ids stand where offsets are whole multiples of their size.
    data = array("I", token_ids).tobytes()
    for length in range(min(max_ngram, len(token_ids) - 1), 0, -1):
        n_bytes = length * _ID_BYTES
        run, end = data[-n_bytes:], len(data) - _ID_BYTES
        while (at := data.rfind(run, 0, end)) >= 0:
            if at % _ID_BYTES == 0:
                found = list(token_ids[at // _ID_BYTES + length :][:n])
                while len(found) < n:
                    found += found[: n - len(found)]
                return found
            end = at + n_bytes - 1
    return []


class ModelDrafter:
    """Drafts by a smaller model, whose keys and values lie in blocks of the same numbers.

    It reads whole sequences by itself, also what the prefix cache spares the model: a sequence
    with the same beginning may have ended before it drafted.
    """

    def __init__(self, speculation: DraftModel, runner: StepRunner, max_step_tokens: int) -> None:
        self.n_draft, self.acceptance = speculation.n_draft, speculation.acceptance
        self._runner, self._max_step_tokens = runner, max_step_tokens
        self._context_length = speculation.model.config.context_length

    def propose(self, sequences: Sequence[SequenceState], room: Sequence[int]) -> list[Draft]:
        """Ids that may follow each sequence, at most `room` of each."""
        drafts = [Draft() for _ in sequences]
        wanted = [
            min(n, self._context_length - len(sequence.token_ids) + 1)
            for sequence, n in zip(sequences, room, strict=True)
        ]
        for sequence, n in zip(sequences, wanted, strict=True):
            if n > 0:
                self._catch_up(sequence)
        for round_number in range(max(wanted, default=0)):
            active = [i for i, n in enumerate(wanted) if n > round_number]
            self._draw([(sequences[i], drafts[i]) for i in active])
        return drafts

    def update_weights(self) -> None:
        """Takes over weights of the smaller model that have changed."""
        self._runner.update_weights()

    def _catch_up(self, sequence: SequenceState) -> None:
        """Reads all but the last of what it has not read; ids of a wrong draft count as unread."""
        last = len(sequence.token_ids) - 1
        sequence.n_drafted = min(sequence.n_drafted, last)
        # One or two are missing after a draft; they are read with the drawing.
        while last - sequence.n_drafted > 1:
            end = min(last, sequence.n_drafted + self._max_step_tokens)
            batch = StepBatch([], [], [], [], [])
            _add_tokens(batch, sequence, sequence.token_ids[sequence.n_drafted : end])
            self._runner.forward(batch)

    def _draw(self, active: Sequence[tuple[SequenceState, Draft]]) -> None:
        """Adds the next id to each draft, by the noise with which the model will draw there."""
        batch, draws = StepBatch([], [], [], [], []), []
        for sequence, draft in active:
            drafted = draft.token_ids
            n_read = sequence.n_drafted - len(sequence.token_ids)
            _add_tokens(batch, sequence, drafted[-1:] or sequence.token_ids[n_read:])
            batch.rows.append(len(batch.token_ids) - 1)
            seen = sequence.seen
            if seen is not None and drafted:
                seen = seen.clone()
                seen[drafted] = True
            position = len(sequence.token_ids) + len(drafted)
            draws.append(Draw(sequence.request.parameters, sequence.key, position, seen))
        logits = self._runner.forward(batch)
        drawn = sample_tokens(logits, draws).token_ids
        for (_, draft), token_id, row, draw in zip(active, drawn, logits, draws, strict=True):
            draft.token_ids.append(token_id)
            if self.acceptance == "rejection":
                probabilities = processed_probabilities(row.cpu(), draw.parameters, seen_ids(draw))
                before = [] if draft.probabilities is None else [draft.probabilities]
                draft.probabilities = torch.cat([*before, probabilities[None]])


def _add_tokens(batch: StepBatch, sequence: SequenceState, token_ids: Sequence[int]) -> None:
    """Adds ids that a drafting model reads next of a sequence."""
    start = sequence.n_drafted
    batch.token_ids += token_ids
    batch.positions += range(start, start + len(token_ids))
    batch.lengths.append(len(token_ids))
    batch.block_tables.append(sequence.blocks)
    sequence.n_drafted += len(token_ids)


def _check_draft_model(draft: Transformer, model: Transformer) -> None:
    """Refuse a model whose ids mean something else."""
    theirs, ours = draft.config.resolved_vocab_size, model.config.resolved_vocab_size
    if theirs != ours:
        raise ValueError(f"a draft model must have the model's vocab_size {ours}, got {theirs}")
    there, here = draft.token_embeddings.weight.device, model.token_embeddings.weight.device
    if there != here:
        raise ValueError(f"a draft model must be on the model's device {here}, got {there}")
