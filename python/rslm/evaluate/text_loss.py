"""Loss and bits per byte as tasks: of a token file, and of a text."""

import math
import time

from rslm.evaluate.choice import Progress
from rslm.evaluate.continuations import Continuation, ContinuationScorer
from rslm.evaluate.few_shot import begin_ids
from rslm.evaluate.loss import evaluate_loss
from rslm.evaluate.results import TaskResult, ratio_and_error, require_numbers
from rslm.evaluate.text_scores import windows
from rslm.model import Transformer
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer

_MIN_BATCHES = 16
"""That a token file is scored in, where it has so many windows."""


def evaluate_token_file(
    name: str,
    token_file: TokenFile,
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """The loss on a whole token file, in nats a token; in `details` bits per byte.

    Batches are small enough that there are some for a standard error, and their windows side by
    side, so that a document that several share is in few batches.

    Raises:
        ValueError: it was made by another tokenizer, or has no token to predict.
        FloatingPointError: the model's logits are no numbers.
    """
    started = time.perf_counter()
    stated = token_file.tokenizer_sha256
    if stated is not None and not has_ids_of(tokenizer, stated):
        raise ValueError(f"{name} must be made by the model's own tokenizer, and is by another")
    lengths = tokenizer.token_byte_lengths
    n_windows = (len(token_file) - 1) // model.config.context_length
    batch_size = max(1, min(batch_size, n_windows // _MIN_BATCHES))
    found = evaluate_loss(model, token_file, batch_size=batch_size, token_byte_lengths=lengths)
    assert found is not None, "nothing stops it"
    require_numbers([found.loss])
    progress(found.n_tokens, found.n_tokens)
    return TaskResult(
        name=name,
        metric="loss",
        value=found.loss,
        stderr=found.stderr,
        n=found.n_tokens,
        seconds=time.perf_counter() - started,
        details={"bits_per_byte": found.bits_per_byte, "n_bytes": found.n_bytes},
    )


def has_ids_of(tokenizer: Tokenizer, sha256: str) -> bool:
    """Whether ids of a tokenizer with that hash mean the same to this one.

    They do where this one got its last special tokens later, as those for chat: they stand behind
    all other ids.
    """
    vocab, special_tokens = tokenizer.vocab, tokenizer.special_tokens
    earlier = tokenizer
    for name in sorted(special_tokens, key=special_tokens.__getitem__, reverse=True):
        if earlier.sha256 == sha256 or special_tokens[name] != max(vocab):
            break
        del vocab[special_tokens.pop(name)]
        earlier = Tokenizer(vocab, tokenizer.merges, special_tokens, pattern=tokenizer.pattern)
    return earlier.sha256 == sha256


def evaluate_text(
    name: str,
    text: str,
    scorer: ContinuationScorer,
    tokenizer: Tokenizer,
    *,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """Bits per byte of a text, as of the begin of a document; in `details` the loss.

    Beyond the context's length windows overlap by half, as in `score_text`; the standard error
    is that over windows.

    Raises:
        ValueError: there is no token to predict.
        FloatingPointError: the model's logits are no numbers.
    """
    started = time.perf_counter()
    token_ids = [*begin_ids(tokenizer), *tokenizer.encode_ordinary(text)]
    n = len(token_ids) - 1
    if n < 1:
        raise ValueError(f"{name} must have a token to predict, got {len(token_ids)} tokens")
    wanted = [
        Continuation(tuple(token_ids[start : stop + 1]), first - start + 1)
        for start, first, stop in windows(n, scorer.context_length)
    ]
    scores = scorer.score(wanted, progress=lambda done: progress(done, len(wanted)))
    nats = [-math.fsum(score.log_probs) for score in scores]
    require_numbers(nats)
    lengths = tokenizer.token_byte_lengths
    n_bytes = [int(lengths[list(ids[first:])].sum()) for ids, first in wanted]
    value, error = ratio_and_error([each / math.log(2) for each in nats], n_bytes)
    return TaskResult(
        name=name,
        metric="bits_per_byte",
        value=value,
        stderr=error,
        n=n,
        seconds=time.perf_counter() - started,
        details={"loss": math.fsum(nats) / n, "n_bytes": sum(n_bytes)},
    )
