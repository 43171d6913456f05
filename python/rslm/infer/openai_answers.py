"""What the server answers: the objects of OpenAI's API, whole and in pieces."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rslm.infer.openai_schema import GenerationRequest
from rslm.infer.parameters import Chunk, Completion, TokenLogProb

if TYPE_CHECKING:
    from rslm.tokenizer import StreamDecoder, Tokenizer

Object = dict[str, Any]

LOWEST_LOG_PROB = -9999.0
"""What stands for minus infinity, which JSON does not have."""


@dataclass
class _Choice:
    """How far one completion's answer has come."""

    decoder: "StreamDecoder"
    n_characters: int = 0
    """Of all tokens so far."""
    started: bool = False


@dataclass
class Answer:
    """The answer to one request, built of what the engine gives.

    Choices are numbered over the prompts: `n` for the first, then `n` for the second.

    Args:
        request: what was asked.
        tokenizer: of the model.
        prompt_ids: of each prompt, as the engine got them.
    """

    request: GenerationRequest
    tokenizer: "Tokenizer"
    prompt_ids: Sequence[tuple[int, ...]]
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Draw an id, and begin each choice."""
        prefix = "chatcmpl" if self.request.is_chat else "cmpl"
        self.id = self.id or f"{prefix}-{secrets.token_hex(12)}"
        n_choices = len(self.prompt_ids) * self.request.sampling.n
        self._choices = [_Choice(self.tokenizer.stream_decoder()) for _ in range(n_choices)]

    def whole(self, completions: Sequence[Completion]) -> Object:
        """The answer in one piece; completions in the order of their choices."""
        kind = "chat.completion" if self.request.is_chat else "text_completion"
        choices = [self._whole_choice(i, completion) for i, completion in enumerate(completions)]
        answer = self._envelope(kind, choices) | {"usage": self.usage(completions)}
        if self.request.is_chat and self.request.form.return_token_ids:
            answer["prompt_token_ids"] = list(self.prompt_ids[0])
        return answer

    def pieces(self, index: int, chunk: Chunk) -> list[Object]:
        """What one chunk of the engine adds to a stream: none, one, or one behind the first.

        Log-probabilities of a prompt come with a completion's last chunk. Where they are asked
        for, with the text they belong to, the whole choice is one piece.
        """
        if self.request.sampling.prompt_log_probs:
            if chunk.completion is None:
                return []
            return [self._piece([self._whole_choice(index, chunk.completion)])]
        choice = self._choices[index]
        first = [] if choice.started else self._first_pieces(index)
        choice.started = True
        end = None if chunk.completion is None else chunk.completion.finish_reason
        log_probs = self._log_probs(index, chunk)
        if not (chunk.text or end or log_probs or self.request.form.return_token_ids):
            return first
        answer: Object = {"index": index}
        if self.request.is_chat:
            answer["delta"] = {"content": chunk.text} if chunk.text else {}
        else:
            answer["text"] = chunk.text
        answer |= {"logprobs": log_probs, "finish_reason": end}
        if self.request.form.return_token_ids:
            answer["token_ids"] = list(chunk.token_ids)
        return [*first, self._piece([answer])]

    def _first_pieces(self, index: int) -> list[Object]:
        """What a choice begins with: the role, or the prompt that is echoed."""
        ids = list(self._prompt_of(index)) if self.request.form.return_token_ids else None
        choice: Object = {"index": index}
        if self.request.is_chat:
            choice["delta"] = {"role": "assistant", "content": ""}
        else:
            choice["text"] = self._prompt_text(index)
            if ids is None and not choice["text"]:
                return []
        choice |= {"logprobs": None, "finish_reason": None}
        if ids is None:
            return [self._piece([choice])]
        if self.request.is_chat:
            return [self._piece([choice]) | {"prompt_token_ids": ids}]
        return [self._piece([choice | {"prompt_token_ids": ids}])]

    def usage_piece(self, completions: Iterable[Completion]) -> Object:
        """The last piece of a stream that counts tokens."""
        completions = list(completions)
        timings = {
            "first_token_seconds": min(c.first_token_seconds for c in completions),
            "seconds": max(c.seconds for c in completions),
        }
        return self._piece([]) | {"usage": self.usage(completions), "timings": timings}

    def usage(self, completions: Iterable[Completion]) -> Object:
        """Tokens read and written; a prompt counts once however often it is continued."""
        completions = list(completions)
        n_prompt = sum(map(len, self.prompt_ids))
        n_new = sum(len(completion.token_ids) for completion in completions)
        firsts = completions[:: self.request.sampling.n]
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
            "prompt_tokens_details": {
                "cached_tokens": sum(completion.n_cached_tokens for completion in firsts)
            },
        }

    def _envelope(self, kind: str, choices: list[Object]) -> Object:
        head = {"id": self.id, "object": kind, "created": self.created}
        return head | {"model": self.request.model, "choices": choices}

    def _piece(self, choices: list[Object]) -> Object:
        kind = "chat.completion.chunk" if self.request.is_chat else "text_completion"
        piece = self._envelope(kind, choices)
        return piece | {"usage": None} if self.request.form.include_usage else piece

    def _whole_choice(self, index: int, completion: Completion) -> Object:
        chunk = Chunk(index, completion.text, completion.token_ids, completion.log_probs)
        choice: Object = {"index": index}
        if self.request.is_chat:
            choice["message"] = {"role": "assistant", "content": completion.text, "refusal": None}
        else:
            choice["text"] = self._prompt_text(index) + completion.text
        choice["logprobs"] = self._log_probs(index, chunk, completion.prompt_log_probs)
        choice["finish_reason"] = completion.finish_reason
        if self.request.form.return_token_ids:
            choice["token_ids"] = list(completion.token_ids)
            if not self.request.is_chat:
                choice["prompt_token_ids"] = list(self._prompt_of(index))
        return choice

    def _prompt_of(self, index: int) -> tuple[int, ...]:
        return self.prompt_ids[index // self.request.sampling.n]

    def _prompt_text(self, index: int) -> str:
        """The prompt as it was given, where it is asked back."""
        if not self.request.echo:
            return ""
        prompt = self.request.prompts[index // self.request.sampling.n]
        return prompt if isinstance(prompt, str) else decode(self.tokenizer, prompt)

    def _log_probs(
        self,
        index: int,
        chunk: Chunk,
        prompt_log_probs: tuple[TokenLogProb | None, ...] | None = None,
    ) -> Object | None:
        if self.request.sampling.log_probs is None:
            return None
        entries = list(chunk.log_probs or ())
        if self.request.is_chat:
            content = [self._chat_entry(entry) for entry in entries]
            return {"content": content, "refusal": None} if content else None
        scored: list[tuple[int, TokenLogProb | None]] = []
        if prompt_log_probs is not None:
            scored += zip(self._prompt_of(index), prompt_log_probs, strict=True)
        scored += [(entry.token_id, entry) for entry in entries]
        return self._plain_log_probs(self._choices[index], scored) if scored else None

    def _plain_log_probs(
        self, choice: _Choice, scored: Iterable[tuple[int, TokenLogProb | None]]
    ) -> Object:
        """Four lists in step, as /v1/completions gives them."""
        columns: Object = {"text_offset": [], "token_logprobs": [], "tokens": []}
        columns["top_logprobs"] = []
        for token_id, entry in scored:
            columns["text_offset"].append(choice.n_characters)
            columns["tokens"].append(token_text(self.tokenizer, token_id))
            columns["token_logprobs"].append(None if entry is None else finite(entry.log_prob))
            columns["top_logprobs"].append(None if entry is None else self._top(entry))
            if is_known(self.tokenizer, token_id):
                choice.n_characters += len(choice.decoder.add(token_id))
        return columns

    def _top(self, entry: TokenLogProb) -> dict[str, float]:
        """The likeliest tokens and the one drawn, the likelier of two with the same text."""
        top: dict[str, float] = {}
        for token_id, log_prob in (*entry.top, (entry.token_id, entry.log_prob)):
            top.setdefault(token_text(self.tokenizer, token_id), finite(log_prob))
        return top

    def _chat_entry(self, entry: TokenLogProb) -> Object:
        top = [self._scored(token_id, log_prob) for token_id, log_prob in entry.top]
        return self._scored(entry.token_id, entry.log_prob) | {"top_logprobs": top}

    def _scored(self, token_id: int, log_prob: float) -> Object:
        data = token_bytes(self.tokenizer, token_id)
        text = data.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(log_prob), "bytes": list(data)}


def decode(tokenizer: "Tokenizer", token_ids: Iterable[int]) -> str:
    """The text of ids; those that stand for no text, as padding does, give none."""
    return b"".join(token_bytes(tokenizer, i) for i in token_ids).decode("utf-8", "replace")


def is_known(tokenizer: "Tokenizer", token_id: int) -> bool:
    """Whether the id stands for bytes; a model may have more ids than its tokenizer."""
    try:
        tokenizer.id_to_token(token_id)
    except (ValueError, OverflowError):
        return False
    return True


def token_bytes(tokenizer: "Tokenizer", token_id: int) -> bytes:
    """The bytes of an id, none where it is not in the vocabulary."""
    return tokenizer.id_to_token(token_id) if is_known(tokenizer, token_id) else b""


def token_text(tokenizer: "Tokenizer", token_id: int) -> str:
    r"""A token as text, or as `bytes:\xe2\x82` where it is part of a character."""
    data = token_bytes(tokenizer, token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(log_prob: float) -> float:
    """A number of JSON, whatever the logarithm of nothing is."""
    return max(log_prob, LOWEST_LOG_PROB) if log_prob == log_prob else LOWEST_LOG_PROB
