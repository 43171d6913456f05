"""An OpenAI-compatible server of the models below a folder, as an ASGI application.

| request | answer |
|---|---|
| GET / | the page |
| GET /v1/models, /v1/models/{id} | the models there are |
| POST /v1/completions, /v1/chat/completions | what a model says, whole or as server-sent events |
| POST /tokenize, /detokenize | ids of a text or a conversation; the text of ids |
| GET /health | 200 while requests can be served |
| GET /metrics | numbers for Prometheus |

Errors are `{"error": {"message", "type", "param", "code"}}`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from rslm.chat import Message
from rslm.infer import metrics, openai_schema
from rslm.infer.api_fields import ApiError
from rslm.infer.http_guard import Limits, read_json
from rslm.infer.model_pool import Loaded, ModelPool
from rslm.infer.openai_answers import Answer, decode, token_bytes
from rslm.infer.openai_schema import GenerationRequest, TokenizeRequest
from rslm.infer.page import page_and_csp
from rslm.infer.parameters import Chunk, Completion, SamplingParameters
from rslm.infer.server_metrics import ServerMetrics
from rslm.infer.token_stream import Stream


class Server:
    """The routes, over a pool of models."""

    def __init__(self, pool: ModelPool, limits: Limits, measured: ServerMetrics) -> None:
        self._pool = pool
        self._limits = limits
        self._measured = measured

    def app(self) -> ASGIApp:
        """The application, without what guards it; errors leave it as `ApiError`."""
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{id:path}", self._model, methods=["GET"]),
            Route("/v1/completions", _Post(self._completions)),
            Route("/v1/chat/completions", _Post(self._chat)),
            Route("/tokenize", _Post(self._tokenize)),
            Route("/detokenize", _Post(self._detokenize)),
        ]
        router = Router(routes, redirect_slashes=False)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                # The router raises, rather than answers itself, where it is part of an app.
                await router({**scope, "app": router}, receive, send)
            except HTTPException as error:
                raise _no_route(scope, error) from None

        return app

    async def _page(self, request: Request) -> Response:
        html, policy = await asyncio.to_thread(page_and_csp)
        headers = {"content-security-policy": policy}
        return Response(html, media_type="text/html", headers=headers)

    async def _health(self, request: Request) -> Response:
        broken = [loaded.service.broken for loaded in self._pool.loaded.values()]
        is_well = not any(broken)
        status = {"status": "ok" if is_well else "the engine has failed"}
        return JSONResponse(status, 200 if is_well else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self._measured.text(self._pool), media_type=metrics.CONTENT_TYPE)

    async def _models(self, request: Request) -> Response:
        models = await self._pool.models()
        data = [self._describe(name, path) for name, path in models.items()]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        name, models = request.path_params["id"], await self._pool.models()
        if name not in models:
            raise ApiError(
                f"the model {name!r:.80} does not exist",
                "model",
                status=404,
                code="model_not_found",
            )
        return JSONResponse(self._describe(name, models[name]))

    def _describe(self, name: str, path: Path) -> dict[str, Any]:
        loaded = self._pool.loaded.get(name)
        try:
            created = int(path.stat().st_mtime)
        except OSError:
            created = 0
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "rslm",
            "loaded": loaded is not None,
            "max_model_len": None if loaded is None else loaded.model.context_length,
            "has_chat_format": None if loaded is None else loaded.model.chat_format is not None,
        }

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = await read_json(scope, receive, self._limits)
        await self._generate(openai_schema.completion_request(record), receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = await read_json(scope, receive, self._limits)
        await self._generate(openai_schema.chat_request(record), receive, send)

    async def _generate(self, request: GenerationRequest, receive: Receive, send: Send) -> None:
        async with _until_disconnected(receive), self._pool.lease(request.model) as loaded:
            # A long text takes a while, in which others' tokens go on.
            prompt_ids = await asyncio.to_thread(_prompt_ids, request, loaded)
            sampling = _sampling(request, prompt_ids, loaded)
            answer = Answer(request, loaded.model.tokenizer, prompt_ids)
            stream = Stream(prompt_ids, sampling)
            loaded.service.submit(stream)
            try:
                await stream.accepted
                if request.form.stream:
                    await self._send_pieces(answer, stream, send)
                else:
                    await self._send_whole(answer, stream, send)
            finally:
                if not stream.is_over:
                    loaded.service.cancel(stream)

    async def _send_whole(self, answer: Answer, stream: Stream, send: Send) -> None:
        completions: dict[int, Completion] = {}
        async for index, chunk in stream.chunks():
            self._note(index, chunk, completions)
        whole = answer.whole([completions[index] for index in sorted(completions)])
        await _send_json(send, _json(whole))

    async def _send_pieces(self, answer: Answer, stream: Stream, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        completions: dict[int, Completion] = {}
        try:
            async for index, chunk in stream.chunks():
                self._note(index, chunk, completions)
                for piece in answer.pieces(index, chunk):
                    await _send_event(send, piece)
            if answer.request.form.include_usage:
                await _send_event(send, answer.usage_piece(completions.values()))
            end = b"data: [DONE]\n\n"
        except ApiError as error:
            end = _event(error.body())
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _note(self, index: int, chunk: Chunk, completions: dict[int, Completion]) -> None:
        if chunk.completion is not None:
            completions[index] = chunk.completion
            self._measured.note_completion(chunk.completion)

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = openai_schema.tokenize_request(await read_json(scope, receive, self._limits))
        async with self._pool.lease(asked.model) as loaded:
            body = await asyncio.to_thread(_tokenized, asked, loaded)
        await _send_json(send, body)

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = await read_json(scope, receive, self._limits)
        name, token_ids = openai_schema.detokenize_request(record)
        async with self._pool.lease(name) as loaded:
            text = await asyncio.to_thread(decode, loaded.model.tokenizer, token_ids)
        await _send_json(send, _json({"prompt": text}))


class _Post:
    """A route that reads its own body and writes its own answer."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"allow": "POST"})
        await self._answer(scope, receive, send)


@asynccontextmanager
async def _until_disconnected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client goes away."""
    block = asyncio.current_task()
    assert block is not None
    has_gone = False

    async def watch() -> None:
        nonlocal has_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        has_gone = True
        block.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not has_gone or block.uncancel():
            raise
        raise ApiError("the client has gone", status=499, code="disconnected") from None
    finally:
        watching.cancel()


def _prompt_ids(request: GenerationRequest, loaded: Loaded) -> list[tuple[int, ...]]:
    """The ids of each prompt, checked against the model's."""
    if request.messages is not None:
        return [_chat_ids(request.messages, request.add_generation_prompt, loaded)]
    tokenizer = loaded.model.tokenizer
    end = tokenizer.end_of_text
    begin = (0 if end is None else end,)
    prompts = []
    for prompt in request.prompts:
        # What looks like a special token is text.
        ids = tokenizer.encode_ordinary(prompt) if isinstance(prompt, str) else prompt
        prompts.append(tuple(ids) or begin)
    return prompts


def _tokenized(asked: TokenizeRequest, loaded: Loaded) -> bytes:
    """The answer that shows tokens, as JSON; a long text makes some megabytes of it."""
    model = loaded.model
    if asked.messages is not None:
        ids = _chat_ids(asked.messages, asked.add_generation_prompt, loaded)
    else:
        ids = tuple(model.tokenizer.encode_ordinary(asked.prompt or ""))
    pieces = {token_id: token_bytes(model.tokenizer, token_id) for token_id in set(ids)}
    texts = {token_id: piece.decode("utf-8", "replace") for token_id, piece in pieces.items()}
    return _json(
        {
            "count": len(ids),
            "max_model_len": model.context_length,
            "tokens": ids,
            "token_strs": [texts[token_id] for token_id in ids],
            "token_bytes": [list(pieces[token_id]) for token_id in ids],
        }
    )


def _chat_ids(
    messages: tuple[Message, ...], add_generation_prompt: bool, loaded: Loaded
) -> tuple[int, ...]:
    """The ids of a conversation; without generation prompt an unfinished answer goes on."""
    chat_format = loaded.model.chat_format
    if chat_format is None:
        raise ApiError(
            f"the model {loaded.name!r:.80} has no chat format; ask /v1/completions",
            "model",
            code="no_chat_format",
        )
    try:
        if add_generation_prompt:
            return tuple(chat_format.prompt(messages))
        is_answer = messages[-1]["role"] == "assistant"
        return tuple(chat_format.render(messages, finished=not is_answer).token_ids)
    except ValueError as error:
        raise ApiError(str(error), "messages") from None


def _sampling(
    request: GenerationRequest, prompt_ids: list[tuple[int, ...]], loaded: Loaded
) -> SamplingParameters:
    """What the engine is told: as many tokens as there is room for, and where a turn ends."""
    model, longest = loaded.model, max(map(len, prompt_ids))
    room = model.context_length - longest
    if room < (0 if request.max_tokens == 0 else 1):
        raise ApiError(
            f"a prompt must have fewer tokens than the context of {model.context_length}, "
            f"got {longest}",
            "messages" if request.is_chat else "prompt",
            code="context_length_exceeded",
        )
    if request.max_tokens is None:
        statistics = loaded.service.statistics
        if statistics is not None:
            # A small cache may hold less than the context. The last id needs no place in it.
            cached = statistics.n_blocks * model.block_size
            room = max(1, min(room, cached + 1 - longest))
        length = room
    else:
        length = min(request.max_tokens, room)
    if model.chat_format is None or not request.is_chat:
        return replace(request.sampling, max_new_tokens=length)
    return replace(
        request.sampling,
        max_new_tokens=length,
        stop=(*request.sampling.stop, *model.chat_format.stop),
        stop_token_ids=model.chat_format.stop_token_ids,
    )


def _no_route(scope: Scope, error: HTTPException) -> ApiError:
    path, is_missing = f"{scope['path']!r:.80}", error.status_code == 404
    return ApiError(
        f"there is no {path}" if is_missing else f"{path} does not take {scope['method']:.20}",
        status=error.status_code,
        code="not_found" if is_missing else "method_not_allowed",
    )


async def _send_json(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_event(send: Send, record: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": _event(record), "more_body": True})


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + _json(record) + b"\n\n"


def _json(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
