import asyncio
import functools
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import Faults
from servers import PATIENCE, Running, fake_loader, running, until

from rslm.tokenizer import Tokenizer

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ["<|endoftext|>"]
    return Tokenizer({i: bytes([i]) for i in range(256)}, [], special)


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, faults: Faults) -> Iterator[Running]:
    with running(lambda: {"m": Path(".")}, fake_loader(tokenizer, faults)) as server:
        yield server


@pytest.fixture
def server(served: Running, faults: Faults) -> Iterator[Running]:
    """The server, as well as it was before each test."""
    served.reports.clear()
    yield served
    faults.pieces, faults.gate, faults.step_seconds = [], None, 0.0
    until(lambda: served.metrics().get('rslm_running{model="m"}', 0) == 0)
    assert served.reports == []


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(data: bytes) -> list[Any]:
    """The objects of a stream that ended well."""
    parts = data.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def anonymous(data: bytes) -> bytes:
    """A stream without its id, its time and its timings, each of which must be one for all."""
    ids = set(re.findall(rb'"id":"((?:chat)?cmpl-[0-9a-f]{24})"', data))
    assert len(ids) == 1
    assert len(set(re.findall(rb'"created":(\d+)', data))) == 1
    data = data.replace(ids.pop(), b"ID")
    data = re.sub(rb'"created":\d+', b'"created":0', data)
    return re.sub(rb'"timings":\{[^}]*\}', b'"timings":{}', data)


STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", {"stream_options": {"include_usage": True}}),
    "chat_log_probs": (
        "chat/completions",
        {"logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    ),
    "chat_n": ("chat/completions", {"n": 2, "seed": 3}),
    "plain": ("completions", {}),
    "plain_echo": ("completions", {"echo": True, "return_token_ids": True, "stop": ["cd"]}),
    "plain_scored": ("completions", {"echo": True, "logprobs": 1}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_stream_is_golden(server: Running, check_golden: Callable[[str, bytes], None], name: str):
    path, options = STREAMS[name]
    prompt = {} if "chat" in path else {"prompt": "hi"}
    base = CHAT if "chat" in path else {"model": "m"}
    record = {**base, **prompt, "max_tokens": 4, "stream": True, **options}
    response, data = server.ask("POST", f"/v1/{path}", record)
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    check_golden(f"sse/{name}.txt", anonymous(data))


def test_pieces_of_a_stream_join_to_the_whole_answer(server: Running, faults: Faults):
    # Characters of two to four bytes, cut into their bytes.
    faults.pieces = [bytes([byte]) for byte in "é 漢字 🎈!".encode()]
    for options in ({}, {"stop": ["字 "]}, {"max_tokens": 7}, {"n": 2, "seed": 1}):
        asked = {"model": "m", "prompt": "x", "max_tokens": 17} | options
        status, whole = server.post("/v1/completions", asked)
        assert status == 200
        _, data = server.ask("POST", "/v1/completions", asked | {"stream": True})
        pieces = events(data)
        for choice in whole["choices"]:
            mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
            assert "".join(piece["text"] for piece in mine) == choice["text"]
            reasons = [piece["finish_reason"] for piece in mine]
            assert reasons == [None] * (len(mine) - 1) + [choice["finish_reason"]]
    assert whole["choices"][0]["text"] == "é 漢字 🎈!é"


def test_openai_client_lists_and_retrieves_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "rslm"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("a/b")
    assert caught.value.code == "model_not_found"


def test_openai_client_completes(client: openai.OpenAI):
    answer = client.completions.create(
        model="m", prompt=["hi", "you"], max_tokens=3, n=2, seed=1, logprobs=2, echo=True
    )
    assert [choice.text for choice in answer.choices] == ["hibcd", "hicde", "youbcd", "youcde"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    log_probs = answer.choices[2].logprobs
    assert log_probs is not None
    assert log_probs.tokens == list("youbcd")
    assert log_probs.text_offset == [0, 1, 2, 3, 4, 5]
    assert log_probs.token_logprobs == [None, *[-0.25] * 5]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2, "one of each prompt"


def test_openai_client_scores_a_prompt_without_going_on(client: openai.OpenAI):
    answer = client.completions.create(
        model="m", prompt=[104, 105], max_tokens=0, logprobs=1, echo=True
    )
    (choice,) = answer.choices
    assert choice.text == "hi"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["h", "i"]
    assert choice.finish_reason == "length"


def test_openai_client_chats(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="m",
        messages=[{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}],
        max_completion_tokens=9,
        stop="ef",
        logprobs=True,
        top_logprobs=3,
        user="me",
    )
    (choice,) = answer.choices
    assert choice.message.content == "abcd"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [entry.token for entry in choice.logprobs.content] == list("abcdef")
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [3] * 6
    assert choice.logprobs.content[0].bytes == [97]


def test_openai_client_streams_a_chat(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "abcde"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_openai_client_streams_completions(client: openai.OpenAI):
    stream = client.completions.create(
        model="m", prompt="hi", max_tokens=4, n=2, logprobs=1, stream=True
    )
    texts = ["", ""]
    for chunk in stream:
        (choice,) = chunk.choices
        assert choice.logprobs is not None
        texts[choice.index] += choice.text
    assert texts == ["abcd", "bcde"]


def test_openai_clients_errors_are_its_own(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="hi", temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt=[257])
    assert "[0, 257)" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="x" * 64)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="hi")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], tool_choice="required"
        )
    assert caught.value.code == "unsupported_parameter"


def test_async_openai_client_streams_many_at_once(server: Running):
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.completions.create(
            model="m", prompt="hi", max_tokens=8, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, seed % 26) for seed in range(32)))

    alphabet = "abcdefghijklmnopqrstuvwxyz" * 2
    assert asyncio.run(ask_all()) == [alphabet[seed % 26 :][:8] for seed in range(32)]


def test_a_chat_ends_where_its_format_says(server: Running, faults: Faults):
    faults.pieces = [bytes([byte]) for byte in b"Yes.\n\nUser:\nNo?"]
    status, answer = server.post("/v1/chat/completions", CHAT)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "Yes."
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_chat_goes_on_with_an_unfinished_answer(server: Running):
    messages = [*CHAT["messages"], {"role": "assistant", "content": "So"}]
    asked = {"model": "m", "messages": messages, "add_generation_prompt": False}
    _, ids = server.post("/tokenize", asked)
    assert bytes(ids["tokens"][1:]).endswith(b"Assistant:\nSo")
    _, answer = server.post("/v1/chat/completions", asked | {"return_token_ids": True})
    assert answer["prompt_token_ids"] == ids["tokens"]
    assert answer["choices"][0]["token_ids"][0] == ord("a")


def test_a_chat_without_a_length_fills_the_context(server: Running):
    _, answer = server.post("/v1/chat/completions", CHAT)
    assert answer["usage"]["total_tokens"] == 64
    _, answer = server.post("/v1/chat/completions", CHAT | {"max_tokens": 1000})
    assert answer["usage"]["total_tokens"] == 64


def test_tokens_of_a_text_and_the_text_of_tokens(server: Running):
    _, answer = server.post("/tokenize", {"model": "m", "prompt": "é<|endoftext|>"})
    assert bytes(answer["tokens"]).decode() == "é<|endoftext|>", "no text becomes a special token"
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_bytes"])
    assert answer["token_strs"][:2] == ["\ufffd", "\ufffd"]
    assert answer["max_model_len"] == 64
    tokens = [*answer["tokens"], 300, 10**12]
    assert server.post("/detokenize", {"model": "m", "tokens": tokens}) == (
        200,
        {"prompt": "é<|endoftext|>"},
    )


def test_an_empty_prompt_begins_a_document(server: Running):
    asked = {"model": "m", "return_token_ids": True}
    for prompt in ({}, {"prompt": None}, {"prompt": ""}, {"prompt": []}):
        _, answer = server.post("/v1/completions", asked | prompt)
        assert answer["choices"][0]["prompt_token_ids"] == [256]
        assert answer["usage"]["completion_tokens"] == 16


def test_ids_beside_the_text_are_those_of_the_log_probs(server: Running):
    asked = {"model": "m", "prompt": "x", "max_tokens": 5, "return_token_ids": True, "logprobs": 0}
    _, answer = server.post("/v1/completions", asked)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == list(b"abcde")
    assert choice["logprobs"]["tokens"] == list("abcde")
    assert choice["logprobs"]["top_logprobs"] == [{letter: -0.25} for letter in "abcde"]


def test_the_page_comes_with_its_policy(server: Running):
    response, html = server.ask("GET", "/")
    assert response.status == 200
    assert html.startswith(b"<!")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/models", 200),
        ("HEAD", "/health", 200),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/", 405),
        ("OPTIONS", "/v1/completions", 405),
        ("GET", "/health/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/ui/main.js", 404),
        ("GET", "/v1/models/../../../etc/passwd", 404),
        ("GET", "/v1/models/%2e%2e%2fetc", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/%00", 404),
        ("GET", "/%ff%fe", 404),
    ],
)
def test_every_answer_says_what_browsers_may_do(
    server: Running, method: str, path: str, status: int
):
    response, data = server.ask(method, path)
    assert response.status == status
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["access-control-allow-origin"] is None
    if status >= 400:
        assert json.loads(data)["error"]["message"]


def test_metrics_are_in_prometheus_format(server: Running):
    server.post("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 2})
    response, data = server.ask("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    name, labels = r"[a-z_]+", r'(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})?'
    line = re.compile(rf"# (HELP|TYPE) {name} .+|{name}{labels} (\+Inf|-?[0-9.e+-]+)")
    lines = data.decode().splitlines()
    assert all(line.fullmatch(each) for each in lines)
    helped = [each.split()[2] for each in lines if each.startswith("# TYPE")]
    assert len(helped) == len(set(helped)), "a family stands once"
    numbers = server.metrics()
    assert numbers['rslm_completions_total{reason="length"}'] >= 1
    assert (
        numbers['rslm_first_token_seconds_bucket{le="+Inf"}']
        == (numbers["rslm_first_token_seconds_count"])
    )


def test_a_disconnect_cancels_within_a_step(server: Running, faults: Faults):
    gate = threading.Semaphore(0)
    reached = threading.Event()

    def wait() -> None:
        reached.set()
        assert gate.acquire(timeout=PATIENCE)

    faults.gate = wait
    for n_gone, stream in enumerate((True, False), 1):
        reached.clear()
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 50, "stream": stream})
        connection = server.connect()
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        assert reached.wait(PATIENCE)
        connection.close()
        gone = 'rslm_requests_total{path="/v1/completions",status="499"}'
        until(functools.partial(has_counted, server, gone, n_gone))
        gate.release()
        until(lambda: server.metrics()['rslm_running{model="m"}'] == 0)
        numbers = server.metrics()
        assert numbers['rslm_free_blocks{model="m"}'] == numbers['rslm_blocks{model="m"}']
        # Of the fifty steps at most the one that was under way and one more were made.
        assert gate.acquire(blocking=False) is False


def has_counted(server: Running, name: str, n: int) -> bool:
    return server.metrics()[name] == n
