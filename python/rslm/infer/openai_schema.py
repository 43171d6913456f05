"""What clients of the OpenAI API may ask, checked field by field.

Every value is refused that the server would not act on; `IGNORED` lists the fields that OpenAI's
clients send and that change nothing here, `NEUTRAL` those that are taken at their default only.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from rslm.chat import ROLES, Message, Role
from rslm.infer.api_fields import ApiError, Fields, unknown_field
from rslm.infer.parameters import PENALTIES, SamplingParameters

MAX_CHOICES = 128
"""Completions of one request, over all its prompts."""
MAX_TOP_LOG_PROBS = 20
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1000
MAX_TEMPERATURE = 2.0
MAX_PENALTY = 100
DEFAULT_COMPLETION_TOKENS = 16

IGNORED = frozenset(
    {
        *["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"],
        *["prompt_cache_options", "prompt_cache_retention", "parallel_tool_calls"],
    }
)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "suffix": (None,),
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
_MESSAGE_NEUTRAL = ("refusal", "annotations", "audio", "function_call", "tool_calls", "name")
_SEED_RANGE = (-(2**63), 2**64 - 1)
_MAX_TOKENS = 2**31 - 1

Prompt = str | tuple[int, ...]


class Form(NamedTuple):
    """What an answer looks like."""

    stream: bool
    """It comes in pieces."""
    include_usage: bool
    """The last of which counts tokens."""
    return_token_ids: bool
    """The ids come beside the text."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A checked request for completions, of prompts or of a conversation.

    Attributes:
        model: as the client names it.
        prompts: texts or ids; none where there are `messages`.
        messages: role and content of each; None of a request for plain completions.
        add_generation_prompt: the model is to answer, rather than go on with the last message.
        max_tokens: None leaves it to the context's length.
        sampling: all else that the engine is told.
        echo: the answer begins with the prompt.
        form: of the answer.
    """

    model: str
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] | None = None
    add_generation_prompt: bool = True
    max_tokens: int | None
    sampling: SamplingParameters
    echo: bool = False
    form: Form

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return self.messages is not None


def completion_request(record: Mapping[str, Any]) -> GenerationRequest:
    """The request that a body of /v1/completions holds.

    Raises:
        ApiError: a field is missing, unknown, of the wrong type or out of range.
    """
    fields = Fields(record)
    model = fields.text("model")
    prompts = _prompts(fields)
    log_probs = fields.integer("logprobs", None, 0, MAX_TOP_LOG_PROBS)
    echo = fields.boolean("echo", False)
    max_tokens = fields.integer("max_tokens", DEFAULT_COMPLETION_TOKENS, 0, _MAX_TOKENS)
    if max_tokens == 0 and not echo:
        raise ApiError("max_tokens must be at least 1 unless echo is true, got 0", "max_tokens")
    n = _n_choices(fields, len(prompts))
    best_of = fields.integer("best_of", None, 1, MAX_CHOICES)
    if best_of not in (None, n):
        raise ApiError("best_of must equal n: every completion is returned", "best_of")
    sampling = _sampling(fields, n, log_probs, scores_prompt=echo and log_probs is not None)
    request = GenerationRequest(
        model=model,
        prompts=prompts,
        max_tokens=max_tokens,
        sampling=sampling,
        echo=echo,
        form=_form(fields),
    )
    _refuse_rest(fields)
    return request


def chat_request(record: Mapping[str, Any]) -> GenerationRequest:
    """The request that a body of /v1/chat/completions holds.

    Raises:
        ApiError: a field is missing, unknown, of the wrong type or out of range.
    """
    fields = Fields(record)
    model = fields.text("model")
    messages = _messages(fields)
    wanted, top = fields.boolean("logprobs", False), _top_log_probs(fields)
    if top is not None and not wanted:
        raise ApiError("top_logprobs must come with logprobs: true", "top_logprobs")
    sampling = _sampling(fields, _n_choices(fields, 1), (top or 0) if wanted else None)
    request = GenerationRequest(
        model=model,
        messages=messages,
        add_generation_prompt=fields.boolean("add_generation_prompt", True),
        max_tokens=_max_chat_tokens(fields),
        sampling=sampling,
        form=_form(fields),
    )
    _refuse_rest(fields)
    return request


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """A text or a conversation to be cut into tokens."""

    model: str
    prompt: str | None
    messages: tuple[Message, ...] | None
    add_generation_prompt: bool


def tokenize_request(record: Mapping[str, Any]) -> TokenizeRequest:
    """The request that a body of /tokenize holds.

    Raises:
        ApiError: it does not hold exactly one of prompt and messages, or a bad field.
    """
    fields = Fields(record)
    model = fields.text("model")
    if fields.has("prompt") == fields.has("messages"):
        raise ApiError("exactly one of prompt and messages must be given", "prompt")
    request = TokenizeRequest(
        model=model,
        prompt=fields.text("prompt") if fields.has("prompt") else None,
        messages=_messages(fields) if fields.has("messages") else None,
        add_generation_prompt=fields.boolean("add_generation_prompt", True),
    )
    _refuse_rest(fields)
    return request


def detokenize_request(record: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Model and token ids of a body of /detokenize.

    Raises:
        ApiError: a field is missing, unknown or of the wrong type.
    """
    fields = Fields(record)
    model, tokens = fields.text("model"), fields.take("tokens")
    if not _is_ids(tokens):
        raise ApiError("tokens must be a list of token ids", "tokens", code="invalid_type")
    _refuse_rest(fields)
    return model, tuple(tokens)


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    """A string, several, token ids, or several lists of these; nothing begins a document."""
    given = fields.take("prompt")
    if given is None or given == []:
        return ("",)
    if isinstance(given, str):
        return (fields.checked_text("prompt", given),)
    if _is_ids(given):
        return (tuple(given),)
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return tuple(fields.checked_text("prompt", item) for item in given)
    if isinstance(given, list) and all(_is_ids(item) for item in given):
        return tuple(map(tuple, given))
    raise ApiError(
        "prompt must be a string, a list of strings, a list of token ids, or a list of such lists",
        "prompt",
        code="invalid_type",
    )


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _messages(fields: Fields) -> tuple[Message, ...]:
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise ApiError("messages must be a list of at least one message", "messages")
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(given))


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise ApiError(f"{where} must be an object", where, code="invalid_type")
    fields = Fields(item, where)
    given = fields.text("role")
    role = cast(Role, "system" if given == "developer" else given)
    if role not in ROLES:
        raise ApiError(
            f"{where}.role must be one of {', '.join(ROLES)}, got {given!r:.40}", f"{where}.role"
        )
    for name in _MESSAGE_NEUTRAL:
        if fields.take(name) not in (None, []):
            raise ApiError(
                f"{where}.{name} is not supported", f"{where}.{name}", code="unsupported_parameter"
            )
    # After those: beside calls of tools there is none.
    content = _content(fields, f"{where}.content")
    fields.take("tool_call_id")
    if rest := fields.rest():
        raise unknown_field(f"{where}.{rest[0]}", [])
    return {"role": role, "content": content}


def _content(fields: Fields, where: str) -> str:
    """A string, or parts that are all text."""
    given = fields.take("content")
    if isinstance(given, str):
        return fields.checked_text("content", given)
    if not isinstance(given, list):
        raise ApiError(f"{where} must be a string or a list of text parts", where)
    texts = []
    for part in given:
        if not (isinstance(part, dict) and part.get("type") == "text"):
            raise ApiError(f"{where} must hold parts of type text alone", where)
        texts.append(Fields(part, where).text("text"))
    return "".join(texts)


def _sampling(
    fields: Fields, n: int, log_probs: int | None, *, scores_prompt: bool = False
) -> SamplingParameters:
    """What the engine is told, but for the length."""
    temperature = fields.number("temperature", 1.0, 0, MAX_TEMPERATURE)
    top_p = fields.number("top_p", None, 0, 1)
    top_k = fields.integer("top_k", None, 1, _MAX_TOKENS)
    min_p = fields.number("min_p", None, 0, 1)
    penalty = fields.number("repetition_penalty", 1.0, PENALTIES[0], MAX_PENALTY)
    return SamplingParameters(
        temperature=temperature,
        # The smallest set of ids that have any mass at all is the likeliest id.
        top_k=1 if top_p == 0 else top_k,
        top_p=top_p or None,
        min_p=min_p,
        repetition_penalty=penalty,
        stop=_stops(fields),
        seed=fields.integer("seed", None, *_SEED_RANGE),
        n=n,
        log_probs=log_probs,
        prompt_log_probs=scores_prompt,
    )


def _stops(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop")
    stops = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ApiError("stop must be a string or a list of strings", "stop", code="invalid_type")
    if len(stops) > MAX_STOPS:
        raise ApiError(f"stop must hold at most {MAX_STOPS} strings, got {len(stops)}", "stop")
    for stop in stops:
        if not 0 < len(fields.checked_text("stop", stop)) <= MAX_STOP_CHARACTERS:
            raise ApiError(
                f"a stop string must have 1 to {MAX_STOP_CHARACTERS} characters, got {len(stop)}",
                "stop",
            )
    return tuple(stops)


def _n_choices(fields: Fields, n_prompts: int) -> int:
    n = fields.integer("n", 1, 1, MAX_CHOICES)
    if n * n_prompts > MAX_CHOICES:
        raise ApiError(
            f"a request must ask for at most {MAX_CHOICES} completions, got {n} of each of "
            f"{n_prompts} prompts",
            "n",
        )
    return n


def _top_log_probs(fields: Fields) -> int | None:
    return fields.integer("top_logprobs", None, 0, MAX_TOP_LOG_PROBS)


def _max_chat_tokens(fields: Fields) -> int | None:
    """Its old name and its new one must agree."""
    old = fields.integer("max_tokens", None, 1, _MAX_TOKENS)
    new = fields.integer("max_completion_tokens", None, 1, _MAX_TOKENS)
    if None not in (old, new) and old != new:
        raise ApiError(
            f"max_tokens and max_completion_tokens must agree, got {old} and {new}", "max_tokens"
        )
    return new if new is not None else old


def _form(fields: Fields) -> Form:
    stream, options = fields.boolean("stream", False), fields.take("stream_options")
    include_usage = False
    if options is not None:
        if not stream:
            raise ApiError("stream_options must come with stream: true", "stream_options")
        if not isinstance(options, dict):
            raise ApiError("stream_options must be an object", "stream_options")
        inner = Fields(options, "stream_options")
        include_usage = inner.boolean("include_usage", False)
        inner.boolean("include_obfuscation", False)
        if rest := inner.rest():
            raise unknown_field(f"stream_options.{rest[0]}", [])
    return Form(stream, include_usage, fields.boolean("return_token_ids", False))


def _refuse_rest(fields: Fields) -> None:
    """What is left must be known to change nothing."""
    for name in fields.rest():
        if name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise unknown_field(name, difflib.get_close_matches(name, fields.taken(), n=1))
        value = fields.take(name)
        if not any(type(value) is not bool and value == neutral for neutral in NEUTRAL[name]):
            raise ApiError(f"{name} is not supported", name, code="unsupported_parameter")
