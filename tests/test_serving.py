import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from servers import PATIENCE, Running, running, until
from tiny_models import tiny_model, tiny_tokenizer, write_tiny_model

from rslm.chat import ChatFormat
from rslm.cli import main
from rslm.commands.serve import ServeOptions, engine_options_of, read_token
from rslm.infer.engine import Engine, EngineOptions, PromptLookup
from rslm.infer.load import find_models
from rslm.infer.parameters import Completion, SamplingParameters
from rslm.infer.service import LoadedModel
from rslm.infer.serving import model_loader

TOKENIZER = tiny_tokenizer(has_chat=True)
FORMAT = ChatFormat.of(TOKENIZER)
OPTIONS = EngineOptions(cache_bytes=1 << 19, exact=True, max_step_tokens=48)
CHAT = [{"role": "user", "content": "Say<|end|> something"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(TOKENIZER), TOKENIZER, OPTIONS)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    """A server of an engine in exact mode: what it answers does not hang on what runs beside."""
    model = tiny_model(TOKENIZER)

    def load(path: Path) -> LoadedModel:
        return LoadedModel(
            tokenizer=TOKENIZER,
            chat_format=FORMAT,
            context_length=64,
            block_size=OPTIONS.block_size,
            make_engine=lambda: Engine(model, TOKENIZER, OPTIONS),
        )

    with running(lambda: {"tiny": Path(".")}, load) as server:
        yield server


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    """A client; when it has gone, nothing runs, all blocks are free and nothing was reported."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    until(lambda: served.metrics()['rslm_running{model="tiny"}'] == 0)
    numbers = served.metrics()
    assert numbers['rslm_free_blocks{model="tiny"}'] == numbers['rslm_blocks{model="tiny"}']
    assert served.reports == []


def expected(engine: Engine, prompt: Any, **options: Any) -> list[Completion]:
    return engine.generate([prompt], SamplingParameters(**options))


def test_answers_are_those_of_the_engine(client: openai.OpenAI, engine: Engine):
    for options in (
        {"temperature": 0.0},
        {"seed": 5, "temperature": 0.7, "top_p": 0.9},
        {"seed": 2**63, "n": 3},
        {"seed": 7, "stop": ["e", "\n", "2"]},
    ):
        answer = client.completions.create(
            model="tiny", prompt="Hello", max_tokens=12, logprobs=2, **options
        )
        asked = options | {"stop": tuple(options.get("stop", ()))}
        wanted = expected(engine, "Hello", max_new_tokens=12, log_probs=2, **asked)
        for choice, completion in zip(answer.choices, wanted, strict=True):
            assert choice.text == completion.text
            assert choice.finish_reason == completion.finish_reason
            assert choice.logprobs is not None
            assert completion.log_probs is not None
            given = [entry.log_prob for entry in completion.log_probs]
            assert choice.logprobs.token_logprobs == pytest.approx(given, abs=1e-5)


def test_extensions_reach_the_engine(client: openai.OpenAI, engine: Engine):
    more = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.3}
    answer = client.completions.create(
        model="tiny",
        prompt=list(b"Hello"),
        max_tokens=12,
        seed=1,
        extra_body=more | {"return_token_ids": True},
    )
    (wanted,) = expected(engine, list(b"Hello"), max_new_tokens=12, seed=1, **more)
    (choice,) = answer.choices
    assert choice.model_extra == {
        "token_ids": list(wanted.token_ids),
        "prompt_token_ids": list(b"Hello"),
    }


def test_a_prompt_is_scored(client: openai.OpenAI, engine: Engine):
    answer = client.completions.create(
        model="tiny", prompt=["Hello", "\u6f22"], max_tokens=0, logprobs=0, echo=True
    )
    for choice, text in zip(answer.choices, ("Hello", "\u6f22"), strict=True):
        (wanted,) = expected(engine, text, max_new_tokens=0, log_probs=0, prompt_log_probs=True)
        assert choice.text == text
        assert choice.logprobs is not None
        assert wanted.prompt_log_probs is not None
        assert choice.logprobs.token_logprobs[0] is wanted.prompt_log_probs[0] is None
        given = [entry.log_prob for entry in wanted.prompt_log_probs[1:]]
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(given, abs=1e-5)
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.text_offset == [0, 0, 0]
    assert answer.choices[1].logprobs.tokens == ["bytes:\\xe6", "bytes:\\xbc", "bytes:\\xa2"]


def test_a_chat_is_rendered_by_its_format(client: openai.OpenAI, engine: Engine):
    options = {"seed": 3, "max_tokens": 20}
    answer = client.chat.completions.create(model="tiny", messages=CHAT, **options)
    (wanted,) = expected(
        engine,
        FORMAT.prompt(CHAT),
        max_new_tokens=20,
        seed=3,
        stop_token_ids=FORMAT.stop_token_ids,
    )
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(wanted.prompt_ids)
    stream = client.chat.completions.create(model="tiny", messages=CHAT, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted.text


def test_many_clients_at_once_get_what_each_would_alone(
    client: openai.OpenAI, served: Running, engine: Engine
):
    prompts = [f"{'x' * (i % 7)}{i}" for i in range(32)]

    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=prompts[i], max_tokens=10, seed=i, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, i) for i in range(32)))

    parameters = [SamplingParameters(max_new_tokens=10, seed=i) for i in range(32)]
    wanted = [completion.text for completion in engine.generate(prompts, parameters)]
    assert asyncio.run(ask_all()) == wanted


def test_a_stream_that_is_left_frees_its_blocks(client: openai.OpenAI):
    for _ in range(5):
        stream = client.completions.create(
            model="tiny", prompt="x", max_tokens=60, n=8, seed=0, stream=True
        )
        next(iter(stream))
        stream.close()


def test_what_can_never_fit_is_refused(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="fewer tokens than the context of 64"):
        client.completions.create(model="tiny", prompt="x" * 64)
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.completions.create(model="tiny", prompt=[TOKENIZER.vocab_size])


def test_folders_become_models(tmp_path: Path):
    write_tiny_model(tmp_path / "a" / "base", has_chat=False)
    write_tiny_model(tmp_path / "chat", has_chat=True)
    load = model_loader("cpu", EngineOptions(cache_bytes=1 << 20))
    with running(lambda: find_models(tmp_path), load) as server:
        for name in ("a/base", "chat"):
            asked = {"model": name, "messages": CHAT, "max_tokens": 3}
            status, answer = server.post("/v1/chat/completions", asked)
            assert status == 200
            assert answer["usage"]["completion_tokens"] <= 3
        (tmp_path / "chat" / "tokenizer.json").write_text("{}")
        assert server.post("/tokenize", {"model": "a/base", "prompt": "x"})[0] == 200
        asked = {"model": "chat", "prompt": "x"}
        status, answer = server.post("/v1/completions", asked)
        assert (status, answer["error"]["code"]) == (500, "model_load_failed")


def test_options_of_the_command_reach_the_engine(tmp_path: Path):
    options = ServeOptions(
        run=tmp_path, int8=True, cache_memory="2MiB", draft_tokens=3, max_sequences=5
    )
    assert engine_options_of(ServeOptions(run=tmp_path, exact=True)) == EngineOptions(exact=True)
    assert engine_options_of(options) == EngineOptions(
        quantize="int8",
        cache_bytes=2 << 20,
        speculation=PromptLookup(n_draft=3),
        max_sequences=5,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "a token must be given"),
        (["--port", "70000"], "port must be 0 to 65535"),
        (["--max-models", "0"], "max_models must be at least 1"),
        (["--draft-tokens", "-1"], "draft_tokens must be at least 0"),
        (["--max-queued", "0"], "max_queued must be at least 1"),
        (["--token-file", "missing"], "missing: No such file"),
        (["--cache-memory", "x"], "cache_memory must be a size"),
        (["--close-seconds", "-1"], "close_seconds must be"),
        (["--max-body", "0"], "max_body must be at least 1 byte, got 0"),
        (["--device", "abacus"], "device must be one of this machine, got 'abacus'"),
        (["--exact", "--int8"], "exact must be off with quantize, got 'int8'"),
        ([], "must be or hold a run or model folder"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(["serve", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_tiny_model(tmp_path / "tiny", has_chat=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 2
    assert f"free to listen at, got 127.0.0.1 and {port} (Address" in capsys.readouterr().err


def test_the_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RSLM_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    assert read_token(file) == "from-a-file"
    for text in ("", "\n", "x" * 5000):
        file.write_text(text)
        with pytest.raises(ValueError, match="must hold a token"):
            read_token(file)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_told_to_stop(
    tmp_path: Path, number: signal.Signals, code: int
):
    folder = write_tiny_model(tmp_path / "tiny", has_chat=False)
    command = [sys.executable, "-m", "rslm", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--cache-memory", "1MiB", "--access-log", "--close-seconds", str(PATIENCE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RSLM_TOKEN": "a-token-of-some-length"},
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="a-token-of-some-length") as client:
            stream = client.completions.create(model="tiny", prompt="x", max_tokens=60, stream=True)
            chunks = [next(iter(stream))]
            process.send_signal(number)
            chunks += stream
        assert chunks[-1].choices[0].finish_reason is not None
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code
    assert out == ""
    assert "POST /v1/completions 200" in err
    assert "Traceback" not in err
