import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.infer.api_fields import ApiError
from rslm.infer.http_guard import MAX_JSON_DEPTH, parse_object
from rslm.infer.openai_schema import (
    chat_request,
    completion_request,
    detokenize_request,
    tokenize_request,
)
from rslm.infer.parameters import SamplingParameters

PLAIN = {"model": "m", "prompt": "hi"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
READERS = [completion_request, chat_request, tokenize_request, detokenize_request]


def refusal(read: Any, record: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(record)
    assert caught.value.status == 400
    assert caught.value.message
    return caught.value


def test_defaults_are_those_of_the_api():
    plain, chat = completion_request(PLAIN), chat_request(CHAT)
    assert plain.prompts == ("hi",)
    assert plain.max_tokens == 16
    assert chat.max_tokens is None
    assert chat.messages == ({"role": "user", "content": "hi"},)
    assert plain.sampling == chat.sampling == SamplingParameters()
    assert not any(plain.form)
    assert (plain.is_chat, chat.is_chat) == (False, True)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (None, ("",)),
        ([], ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_prompts_are_texts_or_ids_one_or_several(given: Any, prompts: Any):
    assert completion_request(PLAIN | {"prompt": given}).prompts == prompts


@pytest.mark.parametrize(
    "given", [3, True, {}, [True], ["a", 1], [1.5], [-1], [["a"]], [[1], "a"], [None], "\ud800"]
)
def test_other_prompts_are_refused(given: Any):
    assert refusal(completion_request, PLAIN | {"prompt": given}).param == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("top_p", 1.01),
        ("top_p", -0.0001),
        ("min_p", 2),
        ("top_k", 0),
        ("top_k", 1.5),
        ("top_k", True),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-45),
        ("repetition_penalty", 101),
        ("n", 0),
        ("n", 129),
        ("n", 10**30),
        ("seed", 2**64),
        ("seed", "1"),
        ("seed", False),
        ("stream", 1),
        ("stream", "true"),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("stop", [""]),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop", "x" * 1001),
        ("stop", "\udfff"),
        ("return_token_ids", 0),
        ("stream_options", {"include_usage": True}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("presence_penalty", False),
        ("logit_bias", {"1": 2}),
        ("model", 3),
        ("model", None),
        ("model", "\ud800"),
        ("no_such_field", None),
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("max_tokens", 1.5),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_values_out_of_range_are_refused_with_the_name_of_the_field(
    kind: str, field: str, value: Any
):
    read, record = (completion_request, PLAIN) if kind == "plain" else (chat_request, CHAT)
    error = refusal(read, record | {field: value})
    assert error.param == field
    assert len(error.message) < 300


def test_what_calls_tools_is_refused_by_its_name():
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    error = refusal(chat_request, CHAT | {"messages": [message]})
    assert error.message == "messages[0].tool_calls is not supported"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("logprobs", 21),
        ("echo", 1),
        ("suffix", "x"),
        ("best_of", 2),
        ("max_tokens", 0),
        ("messages", []),
        ("max_completion_tokens", 3),
    ],
)
def test_values_that_completions_refuse(field: str, value: Any):
    assert refusal(completion_request, PLAIN | {field: value}).param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", 1),
        ("top_logprobs", 3),
        ("messages", "hi"),
        ("messages", []),
        ("messages", {}),
        ("messages", None),
        ("tools", [{}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["audio"]),
        ("max_tokens", 0),
        ("prompt", "x"),
        ("echo", True),
    ],
)
def test_values_that_chat_refuses(field: str, value: Any):
    assert refusal(chat_request, CHAT | {field: value}).param == field


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"content": "hi"}, "messages[0].role"),
        ({"role": "robot", "content": "hi"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "user", "content": "\ud800"}, "messages[0].content"),
        ({"role": "assistant", "content": "x", "tool_calls": [1]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "hi", "nam": "x"}, "messages[0].nam"),
    ],
)
def test_messages_that_are_none_are_refused_with_their_place(message: Any, param: str):
    assert refusal(chat_request, CHAT | {"messages": [message]}).param == param


def test_text_parts_are_joined_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"role": "developer", "content": parts, "refusal": None, "tool_calls": None}
    assert chat_request(CHAT | {"messages": [message]}).messages == (
        {"role": "system", "content": "ab"},
    )


def test_all_fields_reach_the_engine():
    request = completion_request(
        PLAIN
        | {"temperature": 0, "top_p": 0.5, "top_k": 3.0, "min_p": 0.25, "repetition_penalty": 2}
        | {"n": 2, "stop": "x", "seed": -5, "logprobs": 4, "echo": True, "max_tokens": 0}
        | {"user": "me", "best_of": 2, "frequency_penalty": 0.0, "logit_bias": {}}
    )
    assert request.sampling == SamplingParameters(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.25,
        repetition_penalty=2,
        n=2,
        stop=("x",),
        seed=-5,
        log_probs=4,
        prompt_log_probs=True,
    )
    assert request.echo
    assert request.max_tokens == 0


def test_top_p_0_takes_the_likeliest_token():
    sampling = completion_request(PLAIN | {"top_p": 0}).sampling
    assert (sampling.top_k, sampling.top_p) == (1, None)


def test_both_names_of_the_length_must_agree():
    both = {"max_tokens": 5, "max_completion_tokens": 5}
    assert chat_request(CHAT | both).max_tokens == 5
    assert chat_request(CHAT | {"max_completion_tokens": 7}).max_tokens == 7
    refusal(chat_request, CHAT | both | {"max_tokens": 6})


def test_completions_of_all_prompts_together_are_bounded():
    record = PLAIN | {"prompt": ["a"] * 64, "n": 2}
    assert completion_request(record).sampling.n == 2
    assert refusal(completion_request, record | {"n": 3}).param == "n"


def test_stream_options_come_with_a_stream():
    record = PLAIN | {"stream": True, "stream_options": {"include_usage": True}}
    assert completion_request(record).form.include_usage
    refusal(completion_request, record | {"stream_options": {"include_usage": 1}})
    refusal(completion_request, record | {"stream_options": {"includes": True}})
    refusal(completion_request, record | {"stream_options": [1]})


def test_an_unknown_field_is_refused_with_the_one_that_is_close():
    error = refusal(chat_request, CHAT | {"temprature": 1})
    assert error.code == "unknown_parameter"
    assert "temperature" in error.message


def test_tokenize_takes_a_prompt_or_messages():
    assert tokenize_request({"model": "m", "prompt": ""}).prompt == ""
    messages = tokenize_request({"model": "m", "messages": CHAT["messages"]}).messages
    assert messages is not None
    refusal(tokenize_request, {"model": "m"})
    refusal(tokenize_request, PLAIN | CHAT)
    refusal(tokenize_request, {"model": "m", "prompt": [1]})
    assert detokenize_request({"model": "m", "tokens": [1, 2]}) == ("m", (1, 2))
    for tokens in ("a", ["a"], [True], [-1], [1.0], None):
        refusal(detokenize_request, {"model": "m", "tokens": tokens})


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"]
    + ["top_k", "min_p", "n", "stop", "seed", "stream", "stream_options", "logprobs", "echo"]
    + ["top_logprobs", "best_of", "tools", "tokens", "return_token_ids", "user", "logit_bias", "?"]
)
RECORDS = st.dictionaries(NAMES, VALUES, max_size=6)


def refused(read: Any, given: Any) -> ApiError | None:
    try:
        read(given)
    except ApiError as error:
        return error
    return None


@given(RECORDS, st.sampled_from(READERS), st.sampled_from([{}, PLAIN, CHAT]))
def test_any_object_is_read_or_refused(record: dict[str, Any], read: Any, base: Any):
    error = refused(read, {**base, **record})
    if error is not None:
        assert error.status == 400
        json.dumps(error.body()).encode()
        assert len(error.message) < 1000


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_object_or_refused(data: bytes):
    error = refused(parse_object, data)
    assert error is None or error.code == "invalid_json"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'\xff\xfe{"a": 1}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b'{"a":' * 70 + b"1" + b"}" * 71,
    ],
)
def test_bodies_that_are_no_object_of_json_are_refused(body: bytes):
    with pytest.raises(ApiError, match="body"):
        parse_object(body)


def test_nesting_is_bounded_exactly():
    deepest = {}
    for _ in range(MAX_JSON_DEPTH - 1):
        deepest = {"a": deepest}
    assert parse_object(json.dumps(deepest).encode()) == deepest
    with pytest.raises(ApiError, match="nested"):
        parse_object(json.dumps({"a": deepest}).encode())
