"""Rollouts drawn in this process, by `rslm.infer.Engine` from the weights that are trained."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rslm.checkpoint import weights_hash
from rslm.infer.engine import Engine
from rslm.infer.options import EngineOptions, PromptLookup
from rslm.infer.parameters import Completion, SamplingParameters
from rslm.model import Transformer
from rslm.post.rollout import Rollout, SampleRequest
from rslm.tokenizer import Tokenizer

_STEP_TOKENS = 4096
"""Of prompts that a step reads: those of a training step come all at once."""


class NativeSampler:
    """Samples of a model by an engine that is kept from step to step.

    Samples are drawn by temperature alone: top-k, top-p and min-p draw from a distribution that
    the trainer does not score, so they are not offered. With `exact` a sample's ids and log-probs
    are a function of weights, prompt and seed; else rounding depends on what is computed
    together, and ids differ where two scores nearly tie.

    Args:
        model: the policy, whose weights are read where they lie.
        tokenizer: its own.
        exact: the bits that `rslm.post.log_probs` gives with `exact`; float32 on a CPU.
        max_new_tokens: after which a sample is cut off.
        temperature: divides the logits; 0 takes the likeliest id, whose log-prob is then that
            of temperature 1.
        stop_token_ids: that end a sample.
        stop: strings that end it.
        keep_stop: such a string stays in its text.
        end_ids: see `Engine`.
        max_sequences: that run at once.
        cache_bytes: for keys and values, see `EngineOptions`.
        draft_tokens: guessed ahead from the text so far; changes no id.

    Attributes:
        weights_hash: of the weights taken over last.

    Raises:
        ValueError: an option lies outside its range, or `exact` does not go with the weights.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        exact: bool,
        max_new_tokens: int,
        temperature: float = 1.0,
        stop_token_ids: Iterable[int] = (),
        stop: Sequence[str] = (),
        keep_stop: bool = True,
        end_ids: Iterable[int] | None = None,
        max_sequences: int = 256,
        cache_bytes: int | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self._parameters = SamplingParameters(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop_token_ids=tuple(stop_token_ids),
            stop=tuple(stop),
            keep_stop=keep_stop,
            log_probs=0,
        )
        options = EngineOptions(
            exact=exact,
            max_sequences=max_sequences,
            # All wait here: the caller has them in memory anyway.
            max_queued=1 << 20,
            max_step_tokens=_STEP_TOKENS,
            cache_bytes=cache_bytes,
            speculation=PromptLookup(n_draft=draft_tokens) if draft_tokens else None,
        )
        self._engine = Engine(model, tokenizer, options, end_ids=end_ids)
        self.weights_hash = weights_hash(model)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """The samples of all requests: by request, then by index.

        Raises:
            ValueError: a prompt is empty or leaves no room in the context, see `Engine.submit`,
                or the model gives no finite logits.
        """
        # A group is one request of the engine, which reads its prompt once.
        parameters = [
            replace(self._parameters, n=request.n, seeds=tuple(map(request.seed, range(request.n))))
            for request in requests
        ]
        completions = self._engine.generate([each.prompt_ids for each in requests], parameters)
        return [self._rollout(requests[each.prompt_index], each) for each in completions]

    def update_weights(self) -> None:
        """Takes over the model's weights as they are now."""
        self._engine.update_weights()
        self.weights_hash = weights_hash(self._engine.model)

    def _rollout(self, request: SampleRequest, completion: Completion) -> Rollout:
        assert completion.log_probs is not None, "asked for"
        assert completion.finish_reason != "cancelled", "nobody cancels"
        is_drawn_at_1 = self._parameters.temperature in (0, 1)
        return Rollout(
            prompt_id=request.prompt_id,
            sample_index=completion.index,
            step=request.step,
            prompt_ids=completion.prompt_ids,
            token_ids=completion.token_ids,
            log_probs=tuple(
                score.log_prob if is_drawn_at_1 else score.processed_log_prob
                for score in completion.log_probs
            ),
            train_mask=(True,) * len(completion.token_ids),
            finish_reason=completion.finish_reason,
            text=completion.text,
            weights_hash=self.weights_hash,
            seed=completion.seed,
        )
