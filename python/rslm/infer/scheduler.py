"""Which sequences take part in a step, with how many tokens, and in which blocks."""

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from rslm.infer.blocks import BlockManager
from rslm.infer.requests import SequenceState


@dataclass(slots=True)
class Share:
    """A sequence's part of a step, for which it has blocks.

    Attributes:
        sequence: whose it is.
        n_tokens: of its own, the next that are not computed.
        draft: ids that may follow its last one, to be verified.
        draft_probabilities: what they were drafted from; None where nothing was left to chance.
        draws: whether it reaches the sequence's end, after which an id is to be drawn.
    """

    sequence: SequenceState
    n_tokens: int
    draft: list[int] = field(default_factory=list)
    draft_probabilities: Tensor | None = None
    draws: bool = field(init=False)

    def __post_init__(self) -> None:
        """Look at the sequence as it is before the step."""
        sequence, n_ids = self.sequence, len(self.sequence.token_ids)
        is_end = sequence.n_computed + self.n_tokens == n_ids
        self.draws = is_end and n_ids < sequence.max_length


class Scheduler:
    """The sequences that run and those that wait, oldest first in both.

    A step goes on with every sequence that runs: one token where only the last is missing, else
    as many as are left of `max_step_tokens`, which the oldest take first. What is left of these
    then admits those that wait, strictly in turn, while blocks for all their tokens are free. A
    sequence that finds no free block takes those of the youngest that runs, which goes back to
    the head of those that wait and is read again later. So the oldest always advances, and as a
    sequence that does not fit alone is never accepted, every one ends.

    The later sequences of a request wait until the first has read the prompt, so that they
    share its blocks; those behind them may pass meanwhile.
    """

    def __init__(
        self,
        manager: BlockManager,
        *,
        max_sequences: int,
        max_step_tokens: int,
        max_scored_tokens: int,
        prefix_cache: bool,
        root: bytes,
    ) -> None:
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.n_preemptions = self.prefix_lookups = self.prefix_hits = 0
        self._manager = manager
        self._max_sequences, self._max_step_tokens = max_sequences, max_step_tokens
        self._max_scored_tokens, self._prefix_cache = max_scored_tokens, prefix_cache
        self._root = root

    def plan(self) -> list[Share]:
        """The next step; empty only if nothing runs or waits."""
        budget, n_before = self._max_step_tokens, self.n_preemptions
        shares: list[Share] = []
        for i, sequence in enumerate(list(self.running)):
            if i >= len(self.running):
                break  # Preempted by one before it, as were all that follow.
            n_tokens = sequence.n_missing
            if n_tokens > 1:
                n_tokens = min(n_tokens, budget, self._most(sequence))
                budget -= n_tokens
            if n_tokens and self._make_room(sequence, n_tokens):
                shares.append(Share(sequence, n_tokens))
        if self.n_preemptions == n_before:
            self._admit(shares, budget)
        return shares

    def _admit(self, shares: list[Share], budget: int) -> None:
        manager = self._manager
        # What runs will want blocks, too. It may hold some beyond these, for drafts.
        n_wanted = sum(map(self._n_wanted, self.running)) if self.waiting else 0
        passed_over: list[SequenceState] = []
        while self.waiting and budget > 0 and len(self.running) < self._max_sequences:
            sequence = self.waiting[0]
            if not _may_start(sequence):
                passed_over.append(self.waiting.popleft())
                continue
            prefix = self._find_prefix(sequence)
            n_needed = manager.blocks_of(len(sequence.token_ids)) - len(prefix)
            if manager.n_free - manager.n_resting(prefix) - n_wanted < n_needed:
                break
            self.waiting.popleft()
            self._start(sequence, prefix)
            n_tokens = min(sequence.n_missing, budget, self._most(sequence))
            self._take_blocks(sequence, n_tokens)
            shares.append(Share(sequence, n_tokens))
            budget -= n_tokens
            n_wanted += self._n_wanted(sequence)
        self.waiting.extendleft(reversed(passed_over))

    def _n_wanted(self, sequence: SequenceState) -> int:
        """Blocks for the rest of what it reads and one id more."""
        return max(0, self._manager.blocks_of(len(sequence.token_ids) + 1) - len(sequence.blocks))

    def reserve(self, sequence: SequenceState, n_tokens: int) -> int:
        """Blocks for up to `n_tokens` after its own, of those nobody needs; how many fit."""
        manager = self._manager
        room = (len(sequence.blocks) + manager.n_free) * manager.block_size
        n_tokens = min(n_tokens, room - len(sequence.token_ids))
        if n_tokens > 0:
            self._take_blocks(sequence, sequence.n_missing + n_tokens)
        return max(0, n_tokens)

    def advance(self, sequence: SequenceState, n_tokens: int) -> None:
        """Counts computed tokens, and makes blocks that are full now known by name."""
        manager = self._manager
        sequence.n_computed += n_tokens
        if sequence.n_computed >= sequence.n_prompt:
            sequence.prompt_is_read = True
        if not self._shares_blocks(sequence):
            return
        n_full = sequence.n_computed // manager.block_size
        if n_full > sequence.n_registered:
            names = sequence.names(self._root_of(sequence), n_full, manager.block_size)
            for i in range(sequence.n_registered, n_full):
                manager.register(sequence.blocks[i], names[i])
            sequence.n_registered = n_full

    def remove(self, sequence: SequenceState) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def restart(self, root: bytes) -> None:
        """Sends all that runs back to be read again, into blocks named from another root."""
        while self.running:
            self._preempt()
        self._root = root
        for sequence in self.waiting:
            sequence.forget_names()

    def _find_prefix(self, sequence: SequenceState) -> list[int]:
        """Known blocks of its beginning; at least one token is left to compute."""
        if not self._shares_blocks(sequence) or sequence.scores_prompt:
            return []
        block_size = self._manager.block_size
        n_blocks = (len(sequence.token_ids) - 1) // block_size
        names = sequence.names(self._root_of(sequence), n_blocks, block_size)
        return self._manager.find_prefix(names)

    def _shares_blocks(self, sequence: SequenceState) -> bool:
        return self._prefix_cache or sequence.request.parameters.n > 1

    def _root_of(self, sequence: SequenceState) -> bytes:
        """Without a prefix cache only the sequences of one request share, by a root of its own."""
        return self._root if self._prefix_cache else self._root + b" %d" % sequence.request.number

    def _start(self, sequence: SequenceState, prefix: list[int]) -> None:
        self._manager.hold(prefix)
        sequence.blocks = prefix
        sequence.n_registered = len(prefix)
        sequence.n_computed = len(prefix) * self._manager.block_size
        if sequence.n_cached is None:
            sequence.n_cached = min(sequence.n_computed, sequence.n_prompt)
            self.prefix_lookups += sequence.n_prompt
            self.prefix_hits += sequence.n_cached
        self.running.append(sequence)

    def _make_room(self, sequence: SequenceState, n_tokens: int) -> bool:
        """Blocks for the next tokens, from the youngest if need be; False if that is itself."""
        manager = self._manager
        n_more = manager.blocks_of(sequence.n_computed + n_tokens) - len(sequence.blocks)
        if n_more <= 0:
            return True
        while manager.n_free < n_more:
            self.n_preemptions += 1
            if self._preempt() is sequence:
                return False
        self._take_blocks(sequence, n_tokens)
        return True

    def _take_blocks(self, sequence: SequenceState, n_tokens: int) -> None:
        n_blocks = self._manager.blocks_of(sequence.n_computed + n_tokens)
        while len(sequence.blocks) < n_blocks:
            sequence.blocks.append(self._manager.allocate())

    def _preempt(self) -> SequenceState:
        youngest = self.running.pop()
        self._free(youngest)
        self.waiting.appendleft(youngest)
        return youngest

    def _free(self, sequence: SequenceState) -> None:
        self._manager.release(sequence.blocks)
        sequence.blocks = []
        sequence.n_computed = sequence.n_registered = sequence.n_drafted = 0

    def _most(self, sequence: SequenceState) -> int:
        """Tokens that a sequence may take at once: the logits of a scored prompt are large."""
        return self._max_scored_tokens if sequence.scores_prompt else self._max_step_tokens


def _may_start(sequence: SequenceState) -> bool:
    """Whether it is the first sequence of its request, or that one has read the prompt."""
    first = sequence.request.sequences[0]
    return sequence is first or first.prompt_is_read
