"""Loss and bits per byte as tasks: of a token file, and of a text."""

import math
import time

from rslm.evaluate.choice import Progress
from rslm.evaluate.continuations import Continuation, ContinuationScorer
from rslm.evaluate.few_shot import begin_ids
from rslm.evaluate.loss import evaluate_loss
from rslm.evaluate.results import TaskResult
from rslm.evaluate.text_scores import windows
from rslm.model import Transformer
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer


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

    Raises:
        ValueError: it was made by another tokenizer, or has no token to predict.
    """
    started = time.perf_counter()
    if token_file.tokenizer_sha256 not in (None, tokenizer.sha256):
        raise ValueError(f"{name} must be made by the model's own tokenizer, and is by another")
    lengths = tokenizer.token_byte_lengths
    found = evaluate_loss(model, token_file, batch_size=batch_size, token_byte_lengths=lengths)
    assert found is not None, "nothing stops it"
    progress(found.n_tokens, found.n_tokens)
    return TaskResult(
        name=name,
        metric="loss",
        value=found.loss,
        stderr=None,
        n=found.n_tokens,
        seconds=time.perf_counter() - started,
        details={"bits_per_byte": found.bits_per_byte, "n_bytes": found.n_bytes},
    )


def evaluate_text(
    name: str,
    text: str,
    scorer: ContinuationScorer,
    tokenizer: Tokenizer,
    *,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """Bits per byte of a text, as of the begin of a document; in `details` the loss.

    Beyond the context's length windows overlap by half, as in `score_text`.

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
    nats = -math.fsum(log_prob for score in scores for log_prob in score.log_probs)
    if math.isnan(nats):
        raise FloatingPointError("log-probabilities must be numbers, got NaN from the model")
    # Of a tokenizer without end of text nothing predicts the first token.
    n_bytes = sum(int(tokenizer.token_byte_lengths[token_id]) for token_id in token_ids[1:])
    return TaskResult(
        name=name,
        metric="bits_per_byte",
        value=nats / (math.log(2) * n_bytes),
        stderr=None,
        n=n,
        seconds=time.perf_counter() - started,
        details={"loss": nats / n, "n_bytes": n_bytes},
    )
