"""The batch of one step, and what its rows of logits are for."""

from collections.abc import Sequence

from rslm.infer.paged_cache import StepBatch
from rslm.infer.requests import SequenceState
from rslm.infer.sampling import Draw
from rslm.infer.scheduler import Share


class Step:
    """The tokens of all shares side by side, and the rows of logits in the same order.

    Attributes:
        batch: for the runner.
        scored: (sequence, position) of the prompts' ids that some rows score.
        score_rows: these rows.
        draws: share by share, for a share that draws one after its last token, and one after
            each id of its draft.
        draw_rows: the rows they draw from.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self.batch = StepBatch([], [], [], [], [])
        self.scored: list[tuple[SequenceState, int]] = []
        self.score_rows: list[int] = []
        self.draws: list[Draw] = []
        self.draw_rows: list[int] = []
        batch = self.batch
        for share in shares:
            sequence, first = share.sequence, len(batch.token_ids)
            start = sequence.n_computed
            new = sequence.token_ids[start : start + share.n_tokens] + share.draft
            batch.token_ids += new
            batch.positions += range(start, start + len(new))
            batch.lengths.append(len(new))
            batch.block_tables.append(sequence.blocks)
            if sequence.request.prompt_log_probs is not None and sequence.scores_prompt:
                self._add_scores(share, first)
            if share.draws:
                last = first + share.n_tokens - 1
                self._add_rows(self.draw_rows, last, len(share.draft) + 1)
                self._add_draws(sequence, share.draft)

    def _add_scores(self, share: Share, first: int) -> None:
        sequence = share.sequence
        start = sequence.n_computed
        end = min(start + share.n_tokens, sequence.n_prompt - 1)
        self._add_rows(self.score_rows, first, end - start)
        self.scored += [(sequence, position) for position in range(start + 1, end + 1)]

    def _add_rows(self, rows: list[int], first: int, n: int) -> None:
        n_before = len(self.batch.rows)
        self.batch.rows += range(first, first + n)
        rows += range(n_before, n_before + max(0, n))

    def _add_draws(self, sequence: SequenceState, draft: list[int]) -> None:
        parameters, seen = sequence.request.parameters, sequence.seen
        position, n_top = len(sequence.token_ids), parameters.log_probs
        self.draws.append(Draw(parameters, sequence.key, position, seen, n_top))
        for n, token_id in enumerate(draft, 1):
            # What is drawn here counts only if the draft up to here was right.
            if seen is not None:
                seen = seen.clone()
                seen[token_id] = True
            self.draws.append(Draw(parameters, sequence.key, position + n, seen, n_top))
