import contextlib
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Faults
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import PATIENCE, Running, fake_loader, running, until
from starlette.datastructures import Headers

from rslm.infer.http_guard import Access, Limits, host_name, is_same_origin
from rslm.infer.serving import ServingOptions, check_token
from rslm.tokenizer import Tokenizer

PLAIN = {"model": "m", "prompt": "hi", "max_tokens": 3}
LIMITS = Limits(body_bytes=10_000, discard_seconds=20, connections=64)
SHORT = Limits(body_seconds=0.3, header_seconds=0.3, idle_seconds=0.3, discard_seconds=0.1)
"""Deadlines for tests in which nothing has to come in time."""
HALF = Limits(body_seconds=0.3, discard_seconds=0.1, header_seconds=PATIENCE)
"""Deadlines for those in which the header must come, and nothing behind it."""
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"])


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, faults: Faults) -> Iterator[Running]:
    load = fake_loader(tokenizer, faults, context=4096)
    with running(lambda: {"m": Path(".")}, load, limits=LIMITS) as server:
        assert server.post("/v1/completions", PLAIN)[0] == 200
        yield server


@pytest.fixture(scope="module")
def hasty(tokenizer: Tokenizer) -> Iterator[Running]:
    """A server whose deadlines are short."""
    with running(
        lambda: {"m": Path(".")}, fake_loader(tokenizer, Faults()), limits=SHORT
    ) as server:
        yield server


@pytest.fixture(scope="module")
def half_hasty(tokenizer: Tokenizer) -> Iterator[Running]:
    """A server that waits for a header, and hardly for a body."""
    with running(lambda: {"m": Path(".")}, fake_loader(tokenizer, Faults()), limits=HALF) as server:
        yield server


@pytest.fixture
def server(served: Running, faults: Faults) -> Iterator[Running]:
    """The server, which must be as well after each test as it was before."""
    served.reports.clear()
    yield served
    faults.step_seconds, faults.gate = 0.0, None
    until(lambda: served.metrics()['rslm_running{model="m"}'] == 0)
    assert served.post("/v1/completions", PLAIN)[1]["choices"][0]["text"] == "abc"
    assert served.reports == []


def request_bytes(body: bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    """A POST as it goes over the wire; a header that is given replaces none."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + body


def answer_to(server: Running, data: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "192.168.0.7", "[::2]"]
    + ["localhost:1x", "127.0.0.2", "[localhost", "localhost@evil.example", "0.0.0.0"],
)
def test_a_name_that_leads_here_from_elsewhere_is_refused(server: Running, host: str):
    for path in ("/", "/v1/models", "/metrics"):
        status, answer = server.get(path, host=host)
        assert status == 403
        assert answer["error"]["code"] == "host_not_allowed"
    assert server.post("/v1/completions", PLAIN, host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:9", "[::1]"])
def test_names_of_this_machine_are_taken(server: Running, host: str):
    assert server.get("/v1/models", host=host)[0] == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://localhost:1", "https://localhost:2", "file://"]
    + ["http://[", "http://localhost.evil.example", "http://127.0.0.1:80@evil.example"],
)
def test_pages_of_other_origins_are_refused(server: Running, origin: str):
    status, answer = server.post("/v1/completions", PLAIN, host="localhost", origin=origin)
    assert (status, answer["error"]["code"]) in [(403, "origin_not_allowed")]


def test_the_servers_own_page_is_taken(server: Running):
    host = f"localhost:{server.port}"
    assert server.post("/v1/completions", PLAIN, host=host, origin=f"http://{host}")[0] == 200


def test_a_form_of_another_page_is_refused_by_its_type(server: Running):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        body = json.dumps(PLAIN).encode()
        response, _ = server.ask("POST", "/v1/completions", body, content_type=kind)
        assert response.status == 415


def test_a_token_is_asked_for_everywhere_but_at_the_page(tokenizer: Tokenizer, faults: Faults):
    with running(lambda: {"m": Path(".")}, fake_loader(tokenizer, faults), token=TOKEN) as server:
        assert server.ask("GET", "/")[0].status == 200
        assert server.get("/health")[0] == 200
        for wrong in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}):
            for path in ("/v1/models", "/metrics", "/v1/models/m", "/nowhere"):
                response, _ = server.ask("GET", path, **wrong)
                assert response.status == 401
                assert response.headers["www-authenticate"] == "Bearer"
            status, answer = server.post("/v1/completions", PLAIN, **wrong)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert TOKEN not in json.dumps(answer)
        right = {"authorization": f"bearer  {TOKEN} "}
        assert server.get("/v1/models", **right)[0] == 200
        assert server.post("/v1/completions", PLAIN, **right)[0] == 200


def test_others_are_served_with_a_token_only():
    with pytest.raises(ValueError, match="token must be given"):
        ServingOptions(host="0.0.0.0")
    for short in ("", "short", "with blanks in the middle", "ümläut-" * 4):
        with pytest.raises(ValueError, match="visible ASCII"):
            check_token(short)
    access = ServingOptions(host="0.0.0.0", token=TOKEN, allowed_hosts=("Gpu.example",)).access
    assert TOKEN not in repr(access)
    headers = {"authorization": f"Bearer {TOKEN}"}
    for host in ("10.0.0.3:80", "gpu.example", "[fe80::1]:80", "localhost"):
        access.check("/metrics", Headers(headers | {"host": host}))
    for host in ("evil.example", "gpu.example.evil", "10.0.0.3.evil.example"):
        with pytest.raises(Exception, match="host must be"):
            access.check("/metrics", Headers(headers | {"host": host}))


@given(st.text("[]:.@/ab1\u00e9\ud800 ", max_size=12))
def test_any_host_and_origin_is_judged(text: str):
    ours = Access()._is_ours(host_name(text))
    assert not ours or text.strip().lower().startswith(("localhost", "127.0.0.1", "[::1]", "::1"))
    assert not is_same_origin(text, "localhost")


def test_a_long_body_is_refused_by_its_declared_length_and_by_its_count(
    server: Running, half_hasty: Running
):
    body = b'{"model": "m", "prompt": "' + b"x" * 20_000 + b'"}'
    declared = answer_to(server, request_bytes(body, f"Content-Length: {len(body)}"))
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    counted = answer_to(
        server, request_bytes(chunked, "Transfer-Encoding: chunked", "Connection: close")
    )
    # Nothing but the header: the answer does not wait for the body.
    unsent = answer_to(half_hasty, request_bytes(b"", "Content-Length: 999999999999"))
    assert b"connection: close" in declared.lower()
    assert b"connection: close" in unsent.lower()
    for answer in (declared, counted, unsent):
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"request_too_large" in answer


def test_a_client_sees_why_its_long_body_is_refused(server: Running):
    # It sends everything before it reads.
    response, data = server.ask("POST", "/v1/completions", b"x" * (8 << 20))
    assert response.status == 413
    assert json.loads(data)["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_come_is_given_up(half_hasty: Running):
    started = time.monotonic()
    answer = answer_to(half_hasty, request_bytes(b'{"model"', "Content-Length: 100"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started >= HALF.body_seconds


def test_a_body_that_nobody_reads_holds_no_connection(server: Running):
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    answer = answer_to(server, asked)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()


def test_headers_that_drip_are_given_up(hasty: Running):
    with hasty.connect() as connection, contextlib.suppress(ConnectionError):
        for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: " + b"b" * 10_000:
            connection.sendall(bytes([byte]))
            if connection_is_closed(connection):
                break
            time.sleep(0.02)
        else:
            pytest.fail("the connection stayed open")


def connection_is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        connection.setblocking(True)


def test_a_silent_connection_is_closed(hasty: Running):
    with hasty.connect() as connection:
        assert read_all(connection) == b""


def test_a_connection_is_closed_that_is_silent_after_its_request(tokenizer: Tokenizer):
    load = fake_loader(tokenizer, Faults())
    limits = Limits(idle_seconds=0.2, header_seconds=PATIENCE)
    with (
        running(lambda: {"m": Path(".")}, load, limits=limits) as server,
        server.connect() as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_a_second_request_that_drips_is_given_up(tokenizer: Tokenizer):
    limits = Limits(header_seconds=0.3)
    load = fake_loader(tokenizer, Faults())
    with running(lambda: {"m": Path(".")}, load, limits=limits) as server:
        until(lambda: second_request_is_given_up(server))


def second_request_is_given_up(server: Running) -> bool:
    with server.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            if not (part := connection.recv(1 << 16)):
                # This machine was too slow for the first one.
                return False
            answer += part
        # The first byte ends the time for which a connection may stand idle.
        connection.sendall(b"GET / HT")
        assert read_all(connection) == b""
    return True


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_or_cut_off(hasty: Running, data: bytes):
    answer = answer_to(hasty, data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    if answer:
        assert b"nosniff" in answer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_do_no_harm(served: Running, data: bytes):
    with served.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert served.get("/health")[0] == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = ["model", "prompt", "messages", "max_tokens", "n", "stop", "stream", "logprobs", "seed"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    record=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5),
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
)
def test_any_json_is_answered(served: Running, record: dict[str, Any], path: str):
    response, data = served.ask("POST", path, {"model": "m", **record})
    assert response.status in (200, 400, 404)
    if response.status != 200:
        assert json.loads(data)["error"]["message"]


def test_a_slow_reader_loses_its_request_and_harms_nobody(tokenizer: Tokenizer, faults: Faults):
    # An answer of some megabytes, of which nothing is read: what the system buffers fills up.
    load = fake_loader(tokenizer, faults, context=1 << 17)
    limits = Limits(write_seconds=0.3)
    with running(lambda: {"m": Path(".")}, load, limits=limits) as server:
        body = json.dumps(PLAIN | {"max_tokens": 100_000, "stream": True, "logprobs": 20})
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request_bytes(body.encode(), f"Content-Length: {len(body)}"))
            until(lambda: server.metrics()['rslm_steps_total{model="m"}'] > 100)
            assert server.post("/v1/completions", PLAIN)[0] == 200
            until(lambda: server.metrics()['rslm_running{model="m"}'] == 0)
            assert server.metrics()['rslm_steps_total{model="m"}'] < 50_000
            # Only the one that asks is left.
            until(lambda: server.metrics()["rslm_connections"] == 1)


def test_a_vanished_client_frees_its_place(server: Running, faults: Faults):
    faults.step_seconds = 0.005
    body = json.dumps(PLAIN | {"max_tokens": 4000, "stream": True})
    for end in (reset, half_close):
        connection = server.connect()
        connection.sendall(request_bytes(body.encode(), f"Content-Length: {len(body)}"))
        assert connection.recv(100)
        end(connection)
        until(lambda: server.metrics()['rslm_running{model="m"}'] == 0)
        numbers = server.metrics()
        assert numbers['rslm_free_blocks{model="m"}'] == numbers['rslm_blocks{model="m"}']
        connection.close()


def reset(connection: socket.socket) -> None:
    """Closes without a word of farewell."""
    linger = b"\1\0\0\0\0\0\0\0"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def test_too_many_connections_are_told_so(tokenizer: Tokenizer, faults: Faults):
    limits = Limits(connections=3, header_seconds=PATIENCE)
    load = fake_loader(tokenizer, faults)
    with running(lambda: {"m": Path(".")}, load, limits=limits) as server:
        held = [server.connect() for _ in range(3)]
        until(lambda: is_told_to_come_again(refused_by(server)))
        for connection in held:
            connection.close()
        until(lambda: is_taken(server))


def refused_by(server: Running) -> bytes:
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
        return read_all(connection)


def is_told_to_come_again(answer: bytes) -> bool:
    return b" 503 " in answer and b"retry-after: 1" in answer


def is_taken(server: Running) -> bool:
    return b" 200 " in refused_by(server)


def test_a_full_queue_answers_503_with_retry_after(tokenizer: Tokenizer):
    gate = threading.Semaphore(0)
    faults = Faults(gate=lambda: gate.acquire(timeout=PATIENCE))
    load = fake_loader(tokenizer, faults, max_queued=4)
    with running(lambda: {"m": Path(".")}, load, max_queued=8) as server:
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(server.ask, "POST", "/v1/completions", PLAIN) for _ in range(20)]
            # While the engine stands still nothing else can be answered.
            done, _ = wait(asked, return_when=FIRST_COMPLETED)
            assert all(future.result()[0].status == 503 for future in done)
            for _ in range(1000):
                gate.release()
            answers = [future.result() for future in asked]
        for response, data in answers:
            assert response.status in (200, 503)
            if response.status == 503:
                assert response.headers["retry-after"] == "1"
                assert json.loads(data)["error"]["code"] == "queue_full"
        assert sum(response.status == 200 for response, _ in answers) >= 4
        status, answer = server.post("/v1/completions", PLAIN | {"n": 9})
        assert (status, answer["error"]["param"]) == (400, "n")
        assert server.post("/v1/completions", PLAIN)[0] == 200


def test_the_end_of_the_server_lets_streams_finish(tokenizer: Tokenizer):
    faults = Faults(step_seconds=0.02)
    load = fake_loader(tokenizer, faults)
    with running(lambda: {"m": Path(".")}, load, close_seconds=PATIENCE) as server:
        lines = streamed(server, PLAIN | {"max_tokens": 10, "stream": True})
        first = next(lines)
        server.server.should_exit = True
        rest = list(lines)
    assert first.startswith(b"data: {")
    assert rest[-1] == b"data: [DONE]"
    assert not server.errors


def test_the_end_of_the_server_ends_streams_that_take_too_long(tokenizer: Tokenizer):
    faults = Faults(step_seconds=0.02)
    load = fake_loader(tokenizer, faults, context=4096)
    with running(lambda: {"m": Path(".")}, load, close_seconds=0.1) as server:
        lines = streamed(server, PLAIN | {"max_tokens": 4000, "stream": True})
        next(lines)
        server.server.should_exit = True
        rest = list(lines)
        assert json.loads(rest[-1].removeprefix(b"data: "))["error"]["code"] == "stopping"
        server.thread.join(PATIENCE)
        with pytest.raises(OSError, match="refused"):
            server.connect()


def streamed(server: Running, record: object) -> Iterator[bytes]:
    """The lines of a stream that hold something, as they come."""
    body = json.dumps(record).encode()
    with server.connect() as connection:
        connection.sendall(request_bytes(body, f"Content-Length: {len(body)}"))
        with connection.makefile("rb") as file:
            assert file.readline().startswith(b"HTTP/1.1 200")
            for line in file:
                if line.startswith(b"data: "):
                    yield line.rstrip()


def test_a_failed_step_ends_its_requests_and_no_others(tokenizer: Tokenizer):
    faults = Faults()
    with running(lambda: {"m": Path(".")}, fake_loader(tokenizer, faults)) as server:
        for n_failures in (1, 2):
            faults.fail_steps = n_failures
            for _ in range(n_failures):
                status, answer = server.post("/v1/completions", PLAIN)
                assert status == 500
                assert answer["error"]["message"] == (
                    "the engine failed: a step went wrong; here is a long story"
                )
            assert server.post("/v1/completions", PLAIN)[1]["choices"][0]["text"] == "abc"
            assert server.get("/health")[0] == 200
        assert len(server.reports) == 3
        faults.fail_steps = 1
        response, data = server.ask("POST", "/v1/completions", PLAIN | {"stream": True})
        assert response.status == 200
        assert b'data: {"error":{"message":"the engine failed' in data
        assert b"[DONE]" not in data
        assert server.metrics()['rslm_failed_steps_total{model="m"}'] == 4


def test_an_engine_that_keeps_failing_is_given_up_and_loaded_anew(tokenizer: Tokenizer):
    faults = Faults()
    with running(lambda: {"m": Path(".")}, fake_loader(tokenizer, faults)) as server:
        faults.fail_steps = 3
        assert [server.post("/v1/completions", PLAIN)[0] for _ in range(3)] == [500] * 3
        until(lambda: server.get("/health")[0] == 503)
        assert server.metrics()['rslm_model_loaded{model="m"}'] == 0
        # The next request tries again from the start, and so do those that fail to load.
        faults.fail_make = True
        status, answer = server.post("/v1/completions", PLAIN)
        assert (status, answer["error"]["code"]) == (500, "model_load_failed")
        faults.fail_make = False
        assert server.post("/v1/completions", PLAIN)[0] == 200
        assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no weights"), MemoryError(), ValueError("damaged\nbadly")]
)
def test_a_model_that_cannot_be_loaded_is_said_so(tokenizer: Tokenizer, error: Exception):
    faults = Faults(fail_load=error)
    with running(lambda: {"m": Path(".")}, fake_loader(tokenizer, faults)) as server:
        for _ in range(2):
            status, answer = server.post("/v1/completions", PLAIN)
            assert (status, answer["error"]["code"]) == (500, "model_load_failed")
        faults.fail_load = None
        assert server.post("/v1/completions", PLAIN)[0] == 200


def test_models_take_turns(tokenizer: Tokenizer):
    faults = Faults(step_seconds=0.002)
    names = [f"folder/{letter}" for letter in "abc"]
    models = {name: Path(name) for name in names}
    with running(lambda: models, fake_loader(tokenizer, faults)) as server:
        with ThreadPoolExecutor(12) as pool:
            asked = [PLAIN | {"model": names[i % 3], "seed": i} for i in range(12)]
            answers = list(pool.map(lambda record: server.post("/v1/completions", record), asked))
        for i, (status, answer) in enumerate(answers):
            assert status == 200
            assert answer["choices"][0]["text"] == "abcdefghijklmnopqrstuvwxyz"[i : i + 3]
        _, listed = server.get("/v1/models")
        assert [model["id"] for model in listed["data"]] == names
        assert sum(model["loaded"] for model in listed["data"]) == 1
        assert server.get("/v1/models/folder/a")[0] == 200


def test_a_busy_model_makes_room_for_another(tokenizer: Tokenizer):
    faults = Faults(step_seconds=0.002)
    models = {"a": Path("a"), "b": Path("b")}
    stop = threading.Event()
    with running(lambda: models, fake_loader(tokenizer, faults)) as server:

        def keep_asking() -> None:
            while not stop.is_set():
                assert server.post("/v1/completions", PLAIN | {"model": "a"})[0] == 200

        with ThreadPoolExecutor(4) as pool:
            busy = [pool.submit(keep_asking) for _ in range(3)]
            try:
                for _ in range(3):
                    assert server.post("/v1/completions", PLAIN | {"model": "b"})[0] == 200
            finally:
                stop.set()
            for future in busy:
                future.result()


def test_as_many_models_stay_as_may(tokenizer: Tokenizer):
    models = {name: Path(name) for name in "abc"}
    with running(lambda: models, fake_loader(tokenizer, Faults()), max_models=2) as server:
        for name, loads in [("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)]:
            assert server.post("/v1/completions", PLAIN | {"model": name})[0] == 200
            assert server.metrics()["rslm_model_loads_total"] == loads


def ask_in_parallel(server: Running, n_clients: int) -> None:
    def ask(i: int) -> None:
        record = PLAIN | {"max_tokens": 8, "seed": i % 26, "stream": i % 2 == 0}
        response, data = server.ask("POST", "/v1/completions", record)
        assert response.status == 200
        letters = ("abcdefghijklmnopqrstuvwxyz" * 2)[i % 26 :][:8]
        if record["stream"]:
            parts = [json.loads(p[6:]) for p in data.decode().split("\n\n")[:-2]]
            assert "".join(part["choices"][0]["text"] for part in parts) == letters
        else:
            assert json.loads(data)["choices"][0]["text"] == letters

    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(ask, range(n_clients)))


def n_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts files in /proc")
@pytest.mark.parametrize("n_clients", [32, pytest.param(200, marks=pytest.mark.slow)])
def test_clients_at_once_leave_nothing_behind(tokenizer: Tokenizer, n_clients: int):
    gc.collect()
    threads, files = threading.active_count(), n_files()
    load = fake_loader(tokenizer, Faults(), max_queued=400)
    with running(lambda: {"m": Path(".")}, load) as server:
        ask_in_parallel(server, n_clients)
        until(lambda: server.metrics()["rslm_connections"] == 1)
        assert server.metrics()['rslm_running{model="m"}'] == 0
    gc.collect()
    # Fewer, where a connection of a test before was still closing.
    until(lambda: threading.active_count() <= threads and n_files() <= files)


@pytest.mark.slow
def test_memory_stays_flat(tokenizer: Tokenizer):
    import tracemalloc

    def rounds(n: int) -> int:
        """Bytes in use after so many rounds of 32 requests."""
        for _ in range(n):
            ask_in_parallel(server, 32)
        until(lambda: server.metrics()["rslm_connections"] == 1)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    def growths() -> Iterator[int]:
        before = rounds(3)
        for _ in range(6):
            after = rounds(n_rounds)
            yield after - before
            before = after

    n_rounds = 10
    load = fake_loader(tokenizer, Faults(), max_queued=400)
    with running(lambda: {"m": Path(".")}, load) as server:
        rounds(1)
        tracemalloc.start()
        # Of a request nothing is kept, or every ten rounds would take more than the ten before.
        # Python keeps freed objects to use them again, as many as were ever alive at a time,
        # which depends on how the clients met: some rounds grow by that, not all.
        assert any(growth < n_rounds * 32 * 100 for growth in growths())
        tracemalloc.stop()
