"""How an engine runs, what it counts, and its one refusal: plain data, without torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rslm.model import Transformer

Acceptance = Literal["keyed", "rejection"]


class QueueFull(RuntimeError):
    """As many sequences wait as may; none was added."""


@dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Drafts by what followed the last ids where they stood before.

    Attributes:
        n_draft: ids drafted at most, for each sequence and step.
        max_ngram: the longest run of last ids that is looked for; shorter ones after it.
        acceptance: how drafts are verified, see `EngineOptions.speculation`.

    Raises:
        ValueError: one of them is below 1.

    Source: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.
    """

    n_draft: int = 8
    max_ngram: int = 3
    acceptance: Acceptance = "keyed"

    def __post_init__(self) -> None:
        """Refuse what drafts nothing."""
        for name, value in (("n_draft", self.n_draft), ("max_ngram", self.max_ngram)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class DraftModel:
    """Drafts by a smaller model of the same vocabulary.

    Attributes:
        model: the smaller one.
        n_draft: ids drafted at most, for each sequence and step.
        acceptance: how drafts are verified, see `EngineOptions.speculation`.

    Raises:
        ValueError: `n_draft` is below 1.

    Source: Leviathan et al. 2023 (arXiv:2211.17192); Chen et al. 2023 (arXiv:2302.01318).
    """

    model: "Transformer"
    n_draft: int = 4
    acceptance: Acceptance = "keyed"

    def __post_init__(self) -> None:
        """Refuse what drafts nothing."""
        if self.n_draft < 1:
            raise ValueError(f"n_draft must be at least 1, got {self.n_draft}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine shares the machine among its requests.

    Attributes:
        block_size: tokens whose keys and values are kept, shared and freed together.
        max_sequences: that run at once; more wait.
        max_step_tokens: of prompts that one step reads; longer prompts take several steps, and
            what runs goes on in each of them.
        cache_bytes: for keys and values; None takes half of the memory that is free when the
            engine is made, and never more than `max_sequences` whole contexts can use.
        max_queued: sequences that may wait.
        prefix_cache: prompts that begin alike share what is computed for their beginning, also
            after a request has ended.
        exact: log-probabilities are those of a whole forward pass bit for bit, whatever runs
            beside it (`rslm.exact`); slower.
        quantize: "int8" keeps weights of matrix products in 8 bits.
        compile: compiles the step.
        speculation: drafts several ids and verifies them in one step. By "keyed" acceptance the
            ids are those that come without it; by "rejection" they have their distribution, but
            depend on the drafts, and so on what else runs.

    Raises:
        ValueError: a size is below 1, or exact mode is asked to compute otherwise.
    """

    block_size: int = 16
    max_sequences: int = 64
    max_step_tokens: int = 512
    cache_bytes: int | None = None
    max_queued: int = 512
    prefix_cache: bool = True
    exact: bool = False
    quantize: Literal["int8"] | None = None
    compile: bool = False
    speculation: PromptLookup | DraftModel | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that nothing fits in."""
        names = ("block_size", "max_sequences", "max_step_tokens", "cache_bytes", "max_queued")
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.quantize not in (None, "int8"):
            raise ValueError(f"quantize must be int8 or None, got {self.quantize!r}")
        if self.exact and self.quantize is not None:
            raise ValueError(f"exact must be off with quantize, got {self.quantize!r}")


@dataclass(frozen=True)
class EngineStatistics:
    """Where an engine stands, and what it has done since it was made.

    Attributes:
        n_running: sequences that hold blocks.
        n_waiting: sequences that wait for their turn.
        n_blocks: blocks of the cache.
        n_free_blocks: of them not held by a sequence; some still hold prefixes.
        prefix_lookups: tokens of prompts that were looked for in the prefix cache.
        prefix_hits: of them found.
        prompt_tokens: of prompts that have been read, found ones included.
        generated_tokens: drawn.
        steps: made.
        draft_proposed: drafted ids that were verified.
        draft_accepted: of them right.
        preemptions: sequences that lost their blocks to an older one and were read again.
    """

    n_running: int
    n_waiting: int
    n_blocks: int
    n_free_blocks: int
    prefix_lookups: int
    prefix_hits: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    draft_proposed: int
    draft_accepted: int
    preemptions: int
