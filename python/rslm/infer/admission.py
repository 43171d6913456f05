"""Which requests an engine can serve at all."""

from collections.abc import Sequence
from operator import index

from rslm.architecture import TransformerConfig
from rslm.infer.blocks import BlockManager
from rslm.infer.options import EngineOptions
from rslm.infer.parameters import SamplingParameters


def max_length(n_prompt: int, parameters: SamplingParameters, config: TransformerConfig) -> int:
    """Tokens, the prompt's among them, with which a sequence ends at the latest."""
    return min(n_prompt + parameters.max_new_tokens, config.context_length)


def plain_ids(prompt_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids as numbers of Python's, whatever array or tensor they come in.

    Raises:
        ValueError: they are no whole numbers.
    """
    try:
        if isinstance(prompt_ids, str | bytes) or any(
            isinstance(each, bool) for each in prompt_ids
        ):
            raise TypeError
        return tuple(map(index, prompt_ids))
    except TypeError:
        raise ValueError(
            f"a prompt must be a text or a list of token ids, got {prompt_ids!r:.80}"
        ) from None


def check_request(
    prompt_ids: Sequence[int],
    parameters: SamplingParameters,
    config: TransformerConfig,
    options: EngineOptions,
    manager: BlockManager,
) -> None:
    """Refuses what no step could ever serve, so that nothing waits in vain.

    Raises:
        ValueError: the prompt is empty, holds an id that the model does not have, or leaves no
            room in the model's context or in the cache; or `n` is more than may wait.
    """
    vocab_size, n_prompt = config.resolved_vocab_size, len(prompt_ids)
    if n_prompt == 0:
        raise ValueError("a prompt must hold at least one token id to continue from")
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
        raise ValueError(
            f"a prompt's token ids must lie in [0, {vocab_size}), "
            f"got {min(prompt_ids)} to {max(prompt_ids)}"
        )
    most = config.context_length - (parameters.max_new_tokens > 0)
    if n_prompt > most:
        raise ValueError(
            f"a prompt must hold at most {most} tokens to be continued within the model's "
            f"context_length {config.context_length}, got {n_prompt}"
        )
    if parameters.n > options.max_queued:
        raise ValueError(f"n must be at most max_queued {options.max_queued}, got {parameters.n}")
    # The last id that is drawn needs no keys and values.
    n_tokens = max(n_prompt, max_length(n_prompt, parameters, config) - 1)
    if manager.blocks_of(n_tokens) > manager.n_blocks:
        raise ValueError(
            f"prompt and max_new_tokens must fit into a cache of "
            f"{manager.n_blocks * manager.block_size} tokens, got {n_tokens}: "
            "raise cache_bytes or ask for fewer new tokens"
        )
