"""A server that speaks as `rslm serve` does, with scripted answers, for tests of its page."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """What the server answers: pieces of text with their tokens' bytes, and how it ends."""

    pieces: Sequence[bytes] = (b"The", b" quick", b" fox", b".")
    log_probs: Sequence[float] = (-0.02, -1.5, -4.0, -0.3)
    seconds_between: float = 0.0
    drop_after: int | None = None
    """The connection is cut behind so many pieces."""
    hold_after: int | None = None
    """No more comes behind so many pieces, until the reader is gone or `released` is set."""
    error_event: str | None = None
    refuse: tuple[int, str] | None = None
    token: str | None = None
    models: Sequence[str] = ("demo", "tinystories-33m")
    released: threading.Event = field(default_factory=threading.Event)


class FakeServer:
    """The server, its script, and what it was asked."""

    def __init__(self, page: bytes, policy: str) -> None:
        self.page, self.policy = page, policy
        self.script = Script()
        self.asked: list[tuple[str, Any]] = []
        self.n_gone = 0
        server = self

        class Handler(_Handler):
            outer = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=[0.01], daemon=True)

    @contextmanager
    def running(self) -> Iterator["FakeServer"]:
        """Serves until the block ends."""
        self._thread.start()
        try:
            yield self
        finally:
            self.script.released.set()
            self._http.shutdown()
            self._http.server_close()

    def bodies(self, path: str) -> list[Any]:
        """What was sent to a route, in order."""
        return [body for asked, body in self.asked if asked == path]


class _Handler(BaseHTTPRequestHandler):
    outer: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/":
            headers = {"Content-Security-Policy": self.outer.policy}
            self._send(200, self.outer.page, "text/html; charset=utf-8", headers)
        elif self._is_allowed() and self.path == "/v1/models":
            names = self.outer.script.models
            models = [{"id": name, "object": "model", "created": 0} for name in names]
            self._json({"object": "list", "data": models})
        elif self.path != "/v1/models":
            self._json({"error": {"message": f"no {self.path}"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.outer.asked.append((self.path, body))
        if not self._is_allowed():
            return
        script = self.outer.script
        if script.refuse:
            status, message = script.refuse
            self._json({"error": {"message": message}}, status)
        elif self.path == "/tokenize":
            self._json(_tokenized(body["prompt"]))
        elif body.get("max_tokens") == 0:
            self._json({"choices": [_legacy_choice(script, body["prompt"])]})
        else:
            self._stream(body)

    def _is_allowed(self) -> bool:
        wanted = self.outer.script.token
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self._json({"error": {"message": "a token, please"}}, 401)
        return False

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        headers |= {"Content-Type": kind, "Content-Length": str(len(data))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._events(body)
        except OSError:
            self.outer.n_gone += 1

    def _events(self, body: dict[str, Any]) -> None:
        script, is_chat = self.outer.script, "messages" in body
        model = body["model"]
        if is_chat:
            self._event({"model": model, "choices": [{"delta": {"role": "assistant"}}]})
        # As a real decoder does, this one holds back bytes that are half a character.
        held = b""
        pairs = zip(script.pieces, script.log_probs, strict=True)
        for number, (piece, log_prob) in enumerate(pairs):
            if script.hold_after == number:
                while not script.released.wait(0.02):
                    self.wfile.write(b": still here\n\n")
                    self.wfile.flush()
            if script.drop_after == number:
                return
            held += piece
            text = held.decode(errors="ignore")
            held = held[len(text.encode()) :]
            choice = _chat_choice if is_chat else _completion_choice
            self._event({"model": model, "choices": [choice(text, piece, log_prob)]})
            time.sleep(script.seconds_between)
        if script.error_event:
            self._event({"error": {"message": script.error_event}})
            return
        self._event({"choices": [{"delta": {}, "text": "", "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 3, "completion_tokens": len(script.pieces)}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: object) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


def _entry(piece: bytes, log_prob: float) -> dict[str, Any]:
    text = piece.decode(errors="replace")
    return {"token": text, "bytes": list(piece), "logprob": log_prob}


OTHERS = (b" slow", b" <b>brown</b>", b"\n", b"\xe2\x82")


def _chat_choice(text: str, piece: bytes, log_prob: float) -> dict[str, Any]:
    others = [_entry(other, -1.0 - 2 * n) for n, other in enumerate(OTHERS)]
    top = sorted([_entry(piece, log_prob), *others], key=lambda one: -one["logprob"])
    content = [_entry(piece, log_prob) | {"top_logprobs": top}]
    return {"delta": {"content": text}, "logprobs": {"content": content}, "finish_reason": None}


def _name(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _completion_choice(text: str, piece: bytes, log_prob: float) -> dict[str, Any]:
    top = {_name(piece): log_prob, " slow": -1.0, _name(OTHERS[3]): -7.0}
    log_probs = {"tokens": [_name(piece)], "token_logprobs": [log_prob], "top_logprobs": [top]}
    return {"text": text, "logprobs": log_probs, "finish_reason": None}


def _legacy_choice(script: Script, prompt: str) -> dict[str, Any]:
    words = [word if n == 0 else f" {word}" for n, word in enumerate(prompt.split(" "))]
    log_probs = [None, *(-0.5 * n for n in range(1, len(words)))]
    top = [None, *({word: value} for word, value in zip(words[1:], log_probs[1:], strict=True))]
    scored = {"tokens": words, "token_logprobs": log_probs, "top_logprobs": top}
    return {"text": prompt, "logprobs": scored, "finish_reason": "length"}


def _tokenized(text: str) -> dict[str, Any]:
    words = list(_words(text))
    ids = [sum(byte * 31**n for n, byte in enumerate(word)) % 50_257 for word in words]
    return {"tokens": ids, "token_bytes": list(map(list, words)), "count": len(ids)}


def _words(text: str) -> Iterator[bytes]:
    """Words with the blank before them; what is not ASCII byte by byte."""
    word = b""
    for byte in text.encode(errors="surrogatepass"):
        if word and (byte in b" \n" or byte >= 0x80 or word[-1] >= 0x80):
            yield word
            word = b""
        word += bytes([byte])
    if word:
        yield word
