"""Models of rslm for EleutherAI's lm-eval, in one process with it.

`lm_eval.simple_evaluate(model=lm_eval_model(model, tokenizer), tasks=[...])`. The package is
loaded when a model is wrapped, so only who wants it needs it.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from rslm.chat import ChatFormat
from rslm.evaluate.continuations import Continuation
from rslm.evaluate.few_shot import begin_ids, cropped
from rslm.evaluate.task_plan import Examinee
from rslm.infer.parameters import SamplingParameters
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

_MAX_NEW_TOKENS = 256


def lm_eval_model(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    chat_format: ChatFormat | None = None,
    batch_size: int = 64,
) -> Any:
    """The model as lm-eval's `TemplateLM`.

    Texts begin with end of text, as in training. Special tokens in questions stay text until
    lm-eval asks for the chat template: from then on the texts it gives are taken for rendered
    conversations. A context that is too long loses its begin.

    Raises:
        ValueError: the tokenizer has no end of text, which lm-eval cannot do without.
        ModuleNotFoundError: lm-eval is not installed: pip install 'rslm[lm-eval]'.
    """
    api = import_module("lm_eval.api.model")
    utils = import_module("lm_eval.utils")
    begin = begin_ids(tokenizer)
    if not begin:
        raise ValueError("the tokenizer must have <|endoftext|> for lm-eval, and has not")
    examinee = Examinee(model, tokenizer, chat_format=chat_format, batch_size=batch_size)

    class Wrapped(api.TemplateLM):  # type: ignore[misc, name-defined]
        """What lm-eval asks for."""

        is_chat = False
        max_length = examinee.context_length
        tokenizer_name = tokenizer.sha256

        @property
        def eot_token_id(self) -> int:
            return begin[0]

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            encode = tokenizer.encode if self.is_chat else tokenizer.encode_ordinary
            token_ids = encode(string)
            has_begin = self.is_chat or token_ids[:1] == begin
            return token_ids if add_special_tokens is False or has_begin else begin + token_ids

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            wanted: list[Continuation] = []
            for _strings, context, after in requests:
                context = context or begin
                wanted += cropped([(context + after, len(context))], 0, self.max_length).options
            scores = examinee.scorer.score(wanted)
            return [(sum(score.log_probs), score.is_greedy) for score in scores]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            sums = []
            for (string,) in (request.args for request in requests):
                token_ids = self.tok_encode(string, add_special_tokens=False)
                windows = utils.get_rolling_token_windows(
                    token_ids, begin[0], self.max_length - 1, context_len=1
                )
                parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
                sums.append(sum(nats for nats, _ in self._loglikelihood_tokens(parts)))
            return sums

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            prompts, parameters = [], []
            for text, options in (request.args for request in requests):
                until = options.get("until") or []
                wanted = options.get("max_gen_toks", _MAX_NEW_TOKENS)
                n_new = min(wanted, self.max_length - 1)
                prompts.append(self.tok_encode(text)[-(self.max_length - n_new) :])
                parameters.append(
                    SamplingParameters(
                        max_new_tokens=n_new,
                        temperature=float(options.get("temperature") or 0.0)
                        if options.get("do_sample", True)
                        else 0.0,
                        top_p=options.get("top_p"),
                        top_k=options.get("top_k"),
                        stop=tuple(filter(None, [until] if isinstance(until, str) else until)),
                        seed=0,
                    )
                )
            return [one.text for one in examinee.engine.generate(prompts, parameters)]

        def apply_chat_template(
            self, chat_history: list[Any], add_generation_prompt: bool = True
        ) -> str:
            self.is_chat = True
            if add_generation_prompt:
                token_ids = examinee.chat_format.prompt(chat_history)
            else:
                token_ids = examinee.chat_format.render(chat_history, finished=False).token_ids
            return tokenizer.decode(token_ids)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return examinee.chat_format.template if chat_template else None

    return Wrapped()
