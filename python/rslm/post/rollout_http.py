"""Rollouts drawn by another process: a server with OpenAI's /v1/completions, ours or vLLM."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rslm.chat import END_TOKENS, FormatName
from rslm.checkpoint import model_tensors, weights_hash
from rslm.infer.model_folder import ModelFolderConfig, write_model_folder
from rslm.infer.stopping import StoppedText
from rslm.model import Transformer
from rslm.post.http_exchange import Exchange
from rslm.post.rollout import FinishReason, Rollout, SampleRequest
from rslm.tokenizer import Tokenizer

_BYTES, _BYTES_PER_TOKEN = 1 << 20, 4096
"""An answer's bound: a token comes with its text, its place and its log-probability."""
_POLL_SECONDS, _MOST_SECONDS = 0.2, 86_400

# Said, as vLLM else goes by the generation_config.json of the model, which often has a top-k.
_NOTHING_LEFT_OUT = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

Publish = Callable[[], tuple[str, str]]
"""Makes the trained weights ones that the server has; its name for them, and their hash."""


class HttpSampler:
    """Samples of a model that a server runs.

    A sample is a request of its own, of the prompt's ids, with the sample's seed; ids and
    log-probs come back, and the text is made of the ids here. So `rslm serve --exact` gives what
    `NativeSampler` gives; a server in other arithmetic another sampler, whose mismatch is to be
    measured and corrected. Samples are drawn at temperature 1: at others these servers tell
    log-probs of temperature 1 all the same.

    What a server answers is not trusted: ids, log-probs and their numbers are checked.

    Args:
        url: of the server, without /v1.
        model: as the server calls it.
        tokenizer: the model's own.
        vocab_size: the model's; ids are below it.
        max_new_tokens: after which a sample is cut off.
        stop_token_ids: that end a sample beside the server's own ends; `rslm serve` takes none.
        stop: strings that end it.
        keep_stop: such a string stays in its text.
        token: that the server wants.
        n_connections: requests at once.
        seconds: in which a sample must be here, and a published model be known.
        weights_hash: of the server's weights as they are; "" where nobody knows.
        publish: how `update_weights` brings weights to the server. For `rslm serve` it writes a
            model folder below the one that is served, see `publish_model_folder`. For vLLM it is
            to do, in this order, /pause, /update_weights, /reset_prefix_cache and /resume, the
            weights going by a group that /init_weight_transfer_engine has opened.

    Attributes:
        model: as the server calls it now.
        weights_hash: of the weights that were published last.

    Raises:
        ValueError: an option lies outside its range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_new_tokens: int,
        stop_token_ids: Iterable[int] = (),
        stop: Sequence[str] = (),
        keep_stop: bool = True,
        token: str | None = None,
        n_connections: int = 32,
        seconds: float = 600.0,
        weights_hash: str = "",
        publish: Publish | None = None,
    ) -> None:
        for name, value in (("max_new_tokens", max_new_tokens), ("n_connections", n_connections)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < seconds <= _MOST_SECONDS:
            raise ValueError(f"seconds must be above 0 and at most {_MOST_SECONDS}, got {seconds}")
        self.model, self.weights_hash = model, weights_hash
        self._exchange, self._tokenizer = Exchange(url, token=token), tokenizer
        self._vocab_size, self._max_new_tokens = vocab_size, max_new_tokens
        self._stop, self._keep_stop = tuple(stop), keep_stop
        self._stop_token_ids = tuple(stop_token_ids)
        self._n_connections, self._seconds, self._publish = n_connections, seconds, publish
        specials = tokenizer.special_tokens
        ends = {specials[name] for name in END_TOKENS if name in specials}
        textless = set(range(vocab_size)) - tokenizer.vocab.keys()
        self._silent = ends | textless | set(self._stop_token_ids)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """The samples of all requests: by request, then by index.

        Raises:
            TimeoutError: one did not come in time.
            ConnectionError: the server cannot be reached, or hangs up.
            ValueError: it refuses a request, or its answer is not what was asked for.
        """
        places = [(request, i) for request in requests for i in range(request.n)]
        pool = ThreadPoolExecutor(self._n_connections, thread_name_prefix="rollout")
        try:
            return list(pool.map(self._sample, *zip(*places, strict=True))) if places else []
        finally:
            # After an error nobody wants those that have not begun.
            pool.shutdown(cancel_futures=True)

    def update_weights(self) -> None:
        """Publishes the trained weights and waits until the server knows them.

        Raises:
            ValueError: there is no way to bring weights to the server.
            TimeoutError: the server does not know them in time.
        """
        if self._publish is None:
            raise ValueError(
                f"publish must be given to bring trained weights to {self._exchange.url}, got None"
            )
        name, hash_of_weights = self._publish()
        end = time.monotonic() + self._seconds
        while not self._is_served(name, end):
            if time.monotonic() + _POLL_SECONDS > end:
                raise TimeoutError(
                    f"{self._exchange.url} must know the model {name} within "
                    f"{self._seconds:g} seconds"
                )
            time.sleep(_POLL_SECONDS)
        self.model, self.weights_hash = name, hash_of_weights

    def _is_served(self, name: str, end: float) -> bool:
        left = max(0.001, end - time.monotonic())
        answer = self._exchange.ask(
            "GET", "/v1/models", what="its models", seconds=left, max_bytes=_BYTES
        )
        models = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(models, list):
            raise ValueError(f"{self._exchange.url} must list its models, got {answer!r:.80}")
        return any(isinstance(each, dict) and each.get("id") == name for each in models)

    def _sample(self, request: SampleRequest, index: int) -> Rollout:
        seed = request.seed(index)
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.prompt_ids),
            "max_tokens": self._max_new_tokens,
            **_NOTHING_LEFT_OUT,
            "top_k": self._vocab_size,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
        }
        if self._stop:
            body["stop"] = list(self._stop)
        if self._stop_token_ids:
            body["stop_token_ids"] = list(self._stop_token_ids)
        what = f"sample {index} of prompt {request.prompt_id}"
        answer = self._exchange.ask(
            "POST",
            "/v1/completions",
            body,
            what=what,
            seconds=self._seconds,
            max_bytes=_BYTES + _BYTES_PER_TOKEN * self._max_new_tokens,
        )
        try:
            token_ids, log_probs, finish_reason = self._checked(answer, request.prompt_ids)
        except ValueError as error:
            raise ValueError(f"{self._exchange.url} gave as {what}: {error}") from None
        return Rollout(
            prompt_id=request.prompt_id,
            sample_index=index,
            step=request.step,
            prompt_ids=tuple(request.prompt_ids),
            token_ids=token_ids,
            log_probs=log_probs,
            train_mask=(True,) * len(token_ids),
            finish_reason=finish_reason,
            text=self._text(token_ids),
            weights_hash=self.weights_hash,
            seed=seed,
        )

    def _checked(
        self, answer: object, prompt_ids: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[float, ...], FinishReason]:
        """Ids, log-probs and ending of the one choice."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise ValueError(f"choices must be a list of one choice, got {choices!r:.80}")
        choice = choices[0]
        token_ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        if not isinstance(token_ids, list) or not all(map(self._is_id, token_ids)):
            raise ValueError(
                f"token_ids must be ids below {self._vocab_size}, got {token_ids!r:.80}"
            )
        if not 1 <= len(token_ids) <= self._max_new_tokens:
            raise ValueError(
                f"token_ids must be 1 to {self._max_new_tokens} ids, got {len(token_ids)}"
            )
        scores = choice.get("logprobs")
        log_probs = scores.get("token_logprobs") if isinstance(scores, dict) else None
        if not isinstance(log_probs, list) or not all(map(_is_log_prob, log_probs)):
            raise ValueError(f"token_logprobs must be numbers up to 0, got {log_probs!r:.80}")
        if len(log_probs) != len(token_ids):
            raise ValueError(
                f"token_logprobs must be as many as token_ids, got {len(log_probs)} and "
                f"{len(token_ids)}"
            )
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason must be stop or length, got {reason!r:.80}")
        read = choice.get("prompt_token_ids")
        if read is not None and read != list(prompt_ids):
            raise ValueError(f"prompt_token_ids must be those that were sent, got {read!r:.80}")
        return tuple(token_ids), tuple(float(np.float32(x)) for x in log_probs), reason

    def _is_id(self, value: object) -> bool:
        return type(value) is int and 0 <= value < self._vocab_size

    def _text(self, token_ids: Sequence[int]) -> str:
        """As the engine makes it."""
        decoder = self._tokenizer.stream_decoder()
        text = StoppedText(decoder, self._stop, keep_stop=self._keep_stop)
        pieces = []
        for token_id in token_ids:
            if token_id in self._silent or text.stopped_by is not None:
                break
            pieces.append(text.add(token_id))
        if text.stopped_by is None:
            pieces.append(text.finish())
        return "".join(pieces)


def _is_log_prob(value: object) -> bool:
    """A number that float32 holds, too."""
    return type(value) in (int, float) and _LOWEST <= value <= 0  # type: ignore[operator]


_LOWEST = float(np.finfo(np.float32).min)


def publish_model_folder(
    model: Transformer, tokenizer: Tokenizer, folder: Path, *, chat_format: FormatName | None = None
) -> Publish:
    """What `HttpSampler.publish` is for `rslm serve` of a folder on a disk that both see.

    The name of a published model is the hash of its weights, so a server cannot answer by older
    ones. The one published before is removed; a server that has it loaded keeps it in memory.

    Args:
        model: that is trained.
        tokenizer: its own.
        folder: that is served, itself no model.
        chat_format: see `ModelFolderConfig`.
    """
    before: list[Path] = []

    def publish() -> tuple[str, str]:
        name = weights_hash(model)
        out = folder / name
        if not out.exists():
            config = ModelFolderConfig(model=model.config, chat_format=chat_format)
            write_model_folder(out, config, model_tensors(model).items(), tokenizer)
        while before:
            old = before.pop()
            if old != out:
                shutil.rmtree(old, ignore_errors=True)
        before.append(out)
        return name, name

    return publish
