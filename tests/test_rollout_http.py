"""Rollouts from a server: rslm's own on a real socket, and one that answers anything."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import END, TOKENIZER, tiny_model
from servers import Running, running
from test_rollout_native import requests, scored

from rslm.checkpoint import weights_hash
from rslm.infer.engine import Engine, EngineOptions
from rslm.infer.load import find_models
from rslm.infer.service import LoadedModel
from rslm.infer.serving import model_loader
from rslm.post.http_exchange import Exchange
from rslm.post.rollout import Rollout, SampleRequest
from rslm.post.rollout_http import HttpSampler, publish_model_folder
from rslm.post.rollout_native import NativeSampler

ONE = SampleRequest(run_seed=0, step=0, prompt_id=3, prompt_ids=[1, 2], n=1)
CHOICE: dict[str, Any] = {
    "index": 0,
    "text": "ignored",
    "token_ids": [104, 105, END],
    "prompt_token_ids": [1, 2],
    "logprobs": {"token_logprobs": [-0.1, -2, 0], "tokens": ["h", "i", ""]},
    "finish_reason": "stop",
}


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    model = tiny_model()
    options = EngineOptions(cache_bytes=1 << 22, exact=True, max_step_tokens=48)

    def load(path: Path) -> LoadedModel:
        return LoadedModel(
            tokenizer=TOKENIZER,
            chat_format=None,
            context_length=64,
            block_size=options.block_size,
            make_engine=lambda: Engine(model, TOKENIZER, options),
        )

    with running(lambda: {"tiny": Path(".")}, load) as server:
        yield server


def http_sampler(url: str, model: str = "tiny", **options: Any) -> HttpSampler:
    defaults: dict[str, Any] = {"vocab_size": 257, "max_new_tokens": 12, "n_connections": 4}
    return HttpSampler(url, model, TOKENIZER, **defaults | options)


def without_hash(rollouts: list[Rollout]) -> list[dict[str, Any]]:
    return [vars(rollout) | {"weights_hash": None} for rollout in rollouts]


@pytest.mark.parametrize("stop", [(), ("e", "st"), ("\ufffd",)])
@pytest.mark.parametrize("keep_stop", [True, False])
def test_an_exact_server_gives_what_the_native_sampler_gives(
    served: Running, stop: tuple[str, ...], keep_stop: bool
):
    options: dict[str, Any] = {"max_new_tokens": 12, "stop": stop, "keep_stop": keep_stop}
    expected = NativeSampler(tiny_model(), TOKENIZER, exact=True, **options)
    found = http_sampler(served.url, **options).sample(requests(5, 3))
    assert without_hash(found) == without_hash(expected.sample(requests(5, 3)))
    drawn, values, _ = scored(tiny_model(), found, exact=True)
    assert torch.equal(drawn, values)


def test_a_published_model_is_what_the_server_draws_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rslm.infer.model_pool._FIND_SECONDS", 0.01)
    model = tiny_model()
    options = EngineOptions(cache_bytes=1 << 22, exact=True)
    with running(lambda: find_models(tmp_path), model_loader("cpu", options)) as server:
        publish = publish_model_folder(model, TOKENIZER, tmp_path)
        sampler = http_sampler(server.url, "", publish=publish)
        hashes = set()
        for step in range(2):
            sampler.update_weights()
            found = sampler.sample(requests(2, 2, step=step))
            assert {rollout.weights_hash for rollout in found} == {weights_hash(model)}
            drawn, values, _ = scored(model, found, exact=True)
            assert torch.equal(drawn, values)
            hashes.add(sampler.weights_hash)
            assert [path.name for path in tmp_path.iterdir()] == [weights_hash(model)]
            with torch.no_grad():
                model.ln_final.weight += 0.5
        assert len(hashes) == 2
        sampler.model = min(hashes - {sampler.model})
        with pytest.raises(ValueError, match=r"status 404: the model .* does not exist"):
            sampler.sample([ONE])


def test_what_the_server_refuses_is_said(served: Running):
    with pytest.raises(
        ValueError, match=r"give sample 0 of prompt 3, and gave status 404: the model 'x'"
    ):
        http_sampler(served.url, "x").sample([ONE])
    with pytest.raises(ValueError, match="status 400: unknown field 'stop_token_ids'"):
        http_sampler(served.url, stop_token_ids=[5]).sample([ONE])
    assert http_sampler(served.url).sample([]) == []


@contextmanager
def answering(
    answer: Callable[[socket.socket], object], seen: list[bytes] | None = None
) -> Iterator[str]:
    """A server that reads a request and then does what it is told."""
    listener = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                read_request(peer, [] if seen is None else seen)
                with suppress(OSError):
                    answer(peer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        is_over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)
        assert not thread.is_alive()


def read_request(peer: socket.socket, seen: list[bytes]) -> None:
    """Keeps the lines of its head."""
    with peer.makefile("rb") as file:
        length = 0
        while line := file.readline().strip():
            seen.append(line)
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        file.read(length)


def reply(body: object, status: int = 200) -> Callable[[socket.socket], None]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(data)}\r\n\r\n".encode()
    return lambda peer: peer.sendall(head + data)


def test_a_server_is_told_to_draw_from_all_ids(monkeypatch: pytest.MonkeyPatch):
    bodies: list[Any] = []

    def ask(*args: Any, **options: Any) -> Any:
        bodies.append(args[3])
        return {"choices": [CHOICE]}

    monkeypatch.setattr(Exchange, "ask", ask)
    http_sampler("http://localhost").sample([ONE])
    (body,) = bodies
    asked = {name: body[name] for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    assert asked == {"temperature": 1, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    assert body["top_k"] == 257


def test_an_answer_of_vllm_is_read():
    """Its fields beside ours are passed over, the text is made of the ids."""
    more = {"stop_reason": None, "routed_experts": None, "prompt_logprobs": None}
    with answering(reply({"choices": [CHOICE | more], "usage": {}, "kv_transfer": None})) as url:
        (found,) = http_sampler(url).sample([ONE])
    assert found.token_ids == (104, 105, END)
    assert found.log_probs == (float(torch.tensor(-0.1)), -2.0, 0.0)
    assert (found.text, found.finish_reason, found.prompt_id) == ("hi", "stop", 3)
    assert found.seed == ONE.seed(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_ids": [104, 105, 257]}, "token_ids must be ids below 257"),
        ({"token_ids": [104, 105, -1]}, "token_ids must be ids below 257"),
        ({"token_ids": [104, 105, True]}, "token_ids must be ids below 257"),
        ({"token_ids": None}, "token_ids must be ids below 257, got None"),
        ({"token_ids": []}, "token_ids must be 1 to 12 ids, got 0"),
        ({"token_ids": [1] * 13}, "token_ids must be 1 to 12 ids, got 13"),
        ({"token_ids": [1, 2]}, "token_logprobs must be as many as token_ids, got 3 and 2"),
        ({"logprobs": None}, "token_logprobs must be numbers up to 0, got None"),
        ({"logprobs": {"token_logprobs": [-1, -1, 0.5]}}, "numbers up to 0"),
        ({"logprobs": {"token_logprobs": [-1, -1, None]}}, "numbers up to 0"),
        ({"logprobs": {"token_logprobs": [-1, -1, float("nan")]}}, "numbers up to 0"),
        ({"logprobs": {"token_logprobs": [-1, -1, -float("inf")]}}, "numbers up to 0"),
        ({"logprobs": {"token_logprobs": [-1, -1, -(10**400)]}}, "numbers up to 0"),
        ({"finish_reason": "abort"}, "finish_reason must be stop or length, got 'abort'"),
        ({"finish_reason": None}, "finish_reason must be stop or length, got None"),
        ({"prompt_token_ids": [0, 1, 2]}, r"those that were sent, got \[0, 1, 2\]"),
    ],
)
def test_answers_that_do_not_fit_are_refused(changes: dict[str, Any], said: str):
    with (
        answering(reply({"choices": [CHOICE | changes]})) as url,
        pytest.raises(ValueError, match=f"gave as sample 0 of prompt 3: .*{said}"),
    ):
        http_sampler(url).sample([ONE])


def flood(peer: socket.socket) -> None:
    """An answer without an end."""
    peer.sendall(b"HTTP/1.1 200 x\r\n\r\n")
    while True:
        peer.sendall(b" " * 65536)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (reply(b"hello"), ValueError, "must give sample 0 of prompt 3 as JSON, got b'hello'"),
        (reply(b"[" * 100_000), ValueError, "as JSON"),
        (reply([1]), ValueError, "choices must be a list of one choice, got None"),
        (reply({"choices": [CHOICE] * 2}), ValueError, "a list of one choice"),
        (reply({"choices": ["x"]}), ValueError, "a list of one choice"),
        (reply(b" " * (2 << 20)), ValueError, "in at most 1097"),
        (flood, ValueError, "in at most 1097"),
        (reply({"error": {"message": "no\nroom"}}, 500), ValueError, "status 500: no; room"),
        (reply({"error": "odd"}, 400), ValueError, "status 400: .*odd"),
        (reply(b"", 302), ValueError, "status 302"),
        (
            lambda peer: None,
            ConnectionError,
            "did not give sample 0 of prompt 3: Remote end closed",
        ),
        (lambda peer: peer.sendall(b"\0\xff" * 9), ConnectionError, "did not give sample 0"),
        (
            lambda peer: peer.sendall(b"HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n{"),
            ConnectionError,
            "IncompleteRead",  # Its length says that more was to come.
        ),
    ],
)
def test_servers_that_answer_anything_get_one_sentence(
    answer: Callable[[socket.socket], None], kind: type[Exception], said: str
):
    with answering(answer) as url, pytest.raises(kind, match=said) as caught:
        http_sampler(url).sample([ONE])
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def drip(peer: socket.socket) -> None:
    """A byte now and then, for ever: each comes well within any timeout of a socket."""
    peer.sendall(b"HTTP/1.1 200 x\r\n")
    while True:
        peer.sendall(b"x")
        time.sleep(0.01)


@pytest.mark.parametrize("answer", [drip, lambda peer: peer.recv(1)])
def test_a_wait_ends_at_its_deadline_and_names_what_it_waited_for(
    answer: Callable[[socket.socket], object],
):
    with (
        answering(answer) as url,
        pytest.raises(TimeoutError, match=r"must give sample 0 of prompt 3 within 0\.3 seconds"),
    ):
        http_sampler(url, seconds=0.3).sample([ONE, ONE, ONE])


def test_a_busy_server_is_asked_again_until_the_deadline(monkeypatch: pytest.MonkeyPatch):
    answers = iter([reply({"error": {"message": "full"}}, 503), reply({"choices": [CHOICE]})])
    with answering(lambda peer: next(answers)(peer)) as url:
        assert len(http_sampler(url).sample([ONE])) == 1
    monkeypatch.setattr("rslm.post.http_exchange._RETRY_SECONDS", 1000)
    with (
        answering(reply({"error": {"message": "full"}}, 503)) as url,
        pytest.raises(TimeoutError, match=r"sample 0 of prompt 3 \(full\) within 99 seconds"),
    ):
        http_sampler(url, seconds=99).sample([ONE])


def test_weights_that_cannot_be_brought_or_are_not_found_are_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("rslm.post.rollout_http._POLL_SECONDS", 1000)
    with pytest.raises(ValueError, match="publish must be given to bring trained weights to http"):
        http_sampler("http://127.0.0.1:1").update_weights()
    with answering(reply({"data": [{"id": "old"}, 5]})) as url:
        sampler = http_sampler(url, "old", seconds=99, publish=lambda: ("new", "ff"))
        with pytest.raises(TimeoutError, match="must know the model new within 99 seconds"):
            sampler.update_weights()
        assert (sampler.model, sampler.weights_hash) == ("old", "")
    with answering(reply({"data": 5})) as url:
        sampler = http_sampler(url, publish=lambda: ("new", "ff"))
        with pytest.raises(ValueError, match="must list its models"):
            sampler.update_weights()


def test_a_server_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(
        ConnectionError, match=f"{url} did not give sample 0 of prompt 3: .*refused"
    ):
        http_sampler(url).sample([ONE])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"n_connections": 0}, "n_connections must be at least 1, got 0"),
        ({"seconds": 0}, "seconds must be above 0 and at most 86400, got 0"),
        ({"seconds": float("inf")}, "seconds must be above 0"),
        ({"url": "127.0.0.1:8000"}, "url must be http://host or https://host"),
        ({"url": "file:///etc/passwd"}, "url must be http://host or https://host"),
        ({"url": "http://"}, "url must be http://host"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        http_sampler(options.pop("url", "http://127.0.0.1:1"), **options)


def test_the_token_goes_with_each_request():
    seen: list[bytes] = []
    with answering(reply({"choices": [CHOICE]}), seen) as url:
        http_sampler(f"{url}/below/", token="secret").sample([ONE])
    assert seen[0] == b"POST /below/v1/completions HTTP/1.1"
    assert b"authorization: Bearer secret" in seen
