"""Drawing tokens from a model, one at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rslm.attention import softmax
from rslm.infer.stopping import StoppedText
from rslm.kv_cache import KeyValueCache
from rslm.model import Transformer

if TYPE_CHECKING:
    from rslm.tokenizer import StreamDecoder


def sample_token(
    logits: Float[Tensor, "... vocab_size"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "..."]:
    """An id drawn for each vector of logits.

    Logits are divided by the temperature, cut to the `top_k` largest, then to the
    smallest set of ids whose probabilities reach `top_p`; what remains is drawn from in
    proportion. Ties at a cut are broken by torch's sort.

    Args:
        logits: unnormalised log-probabilities of the next token.
        temperature: 0 takes the largest logit (the first of equals), without chance.
        top_k: None keeps all.
        top_p: None keeps all.
        generator: on the logits' device; None is torch's global one.

    Raises:
        ValueError: an option lies outside its range.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section
    3.1, for top-p (arXiv:1904.09751); Fan et al. 2018, section 5.2, for top-k.
    """
    _check_options(temperature, top_k, top_p)
    if temperature < 1e-6:  # float32 knows no smaller differences of logits of size one.
        return logits.argmax(-1)
    vocab_size = logits.shape[-1]
    # Dividing after subtracting the largest keeps tiny temperatures from overflowing.
    scaled = (logits.float() - logits.float().amax(-1, keepdim=True)) / temperature
    if top_k is None and top_p is None:
        return _draw(softmax(scaled, dim=-1), generator)
    kept, kept_ids = scaled.topk(min(top_k or vocab_size, vocab_size), dim=-1)
    probabilities = softmax(kept, dim=-1)
    if top_p is not None:
        mass_before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(mass_before >= top_p, 0.0)
    chosen = _draw(probabilities, generator)
    return kept_ids.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def generate(
    model: Transformer,
    token_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token_ids: Iterable[int] = (),
    seed: int | None = None,
) -> Iterator[int]:
    """Ids that continue `token_ids`, each computed when it is asked for.

    Ends after `max_new_tokens` or before the first of `stop_token_ids`, which is not
    yielded. Up to `context_length` ids a token costs a forward pass over itself alone, as
    keys and values are kept. Beyond, the model sees the last `context_length` ids, whose
    positions all change, so a token costs a pass over them. Equal seeds give equal ids on
    the same machine; None draws from torch's global generator.

    Raises:
        ValueError: an option lies outside its range, `token_ids` is empty or holds an id
            that the model does not have. Raised by this call, not by the first `next`.
    """
    _check_options(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    _check_prompt(token_ids, model.config.resolved_vocab_size)
    generator = None
    if seed is not None:
        device = model.token_embeddings.weight.device
        generator = torch.Generator(device).manual_seed(seed)

    def continuation() -> Iterator[int]:
        sequence, stops = list(token_ids), frozenset(stop_token_ids)
        cache = KeyValueCache(model.config)
        for _ in range(max_new_tokens):
            logits = _next_logits(model, sequence, cache)
            drawn = sample_token(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
            )
            token_id = int(drawn.item())
            if token_id in stops:
                return
            yield token_id
            sequence.append(token_id)

    return continuation()


def generate_text(
    model: Transformer,
    token_ids: Sequence[int],
    decoder: "StreamDecoder",
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token_ids: Iterable[int] = (),
    stop_strings: Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[str]:
    """Text that continues `token_ids`, in pieces as soon as they are certain.

    As `generate`, and ends before the first of `stop_strings` as well.

    Raises:
        ValueError: as `generate`, or a stop string is empty.
    """
    new_token_ids = generate(
        model,
        token_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_token_ids=stop_token_ids,
        seed=seed,
    )
    return decode_until(new_token_ids, decoder, stop_strings)


def decode_until(
    token_ids: Iterable[int], decoder: "StreamDecoder", stop_strings: Sequence[str]
) -> Iterator[str]:
    """Pieces of the decoded text, which ends before the first of `stop_strings`.

    See `rslm.infer.stopping.StoppedText`. No id is taken after the one that completes a stop
    string.

    Raises:
        ValueError: a stop string is empty.
    """
    if "" in stop_strings:
        raise ValueError("stop_strings must not hold an empty string")

    def pieces() -> Iterator[str]:
        text = StoppedText(decoder, stop_strings)
        for token_id in token_ids:
            if piece := text.add(token_id):
                yield piece
            if text.stopped_by is not None:
                return
        if rest := text.finish():
            yield rest

    return pieces()


@torch.inference_mode()
def _next_logits(model: Transformer, token_ids: list[int], cache: KeyValueCache) -> Tensor:
    """Logits of the token after `token_ids`, of which the model sees the last window.

    The cache holds what came before, as long as that is the beginning of what is seen.
    """
    length = model.config.context_length
    fits = len(token_ids) <= length
    unread = token_ids[cache.length :] if fits else token_ids[-length:]
    # PyTorch's fused attention wants a batch dimension.
    batch = torch.tensor([unread], device=model.token_embeddings.weight.device)
    logits: Tensor = model(batch, cache=cache if fits else None, last_only=True)
    return logits[0, -1]


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """An index for each row of `probabilities` (need not sum to 1)."""
    rows = probabilities.flatten(0, -2) if probabilities.ndim > 1 else probabilities
    drawn = torch.multinomial(rows, num_samples=1, generator=generator)
    return drawn.view(probabilities.shape[:-1])


def _check_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse what no distribution can be drawn with."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")


def _check_prompt(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse a prompt that the model cannot read."""
    if len(token_ids) == 0:
        raise ValueError("token_ids must hold at least one id to continue from")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise ValueError(
            f"token_ids must lie in [0, {vocab_size}), got {min(token_ids)} to {max(token_ids)}"
        )
