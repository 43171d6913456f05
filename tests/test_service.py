import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_engine import Faults
from hypothesis import given
from hypothesis import strategies as st
from servers import PATIENCE, fake_loader
from tiny_models import tiny_tokenizer

from rslm.infer.api_fields import ApiError
from rslm.infer.model_pool import ModelPool
from rslm.infer.parameters import SamplingParameters
from rslm.infer.service import EngineService
from rslm.infer.token_stream import Stream

Result = TypeVar("Result")

TOKENIZER = tiny_tokenizer(has_chat=False)
PROMPT = (104, 105)


def make_service(faults: Faults, *, max_waiting: int = 10, context: int = 64) -> EngineService:
    load = fake_loader(TOKENIZER, faults, context=context)
    return EngineService(lambda: load(Path(".")), max_waiting=max_waiting, report=lambda _: None)


def with_service(
    use: Callable[[EngineService], Awaitable[Result]], faults: Faults, **options: Any
) -> Result:
    """What `use` returns of a service, which ends after it within the test's own deadline."""

    async def work() -> Result:
        service = make_service(faults, **options)
        await service.start()
        try:
            return await use(service)
        finally:
            await service.stop(0)
            service._thread.join(PATIENCE)
            assert not service._thread.is_alive()

    return asyncio.run(work())


def stream_of(n_tokens: int = 3, *, n_prompts: int = 1, **options: Any) -> Stream:
    given = {name: options.pop(name) for name in ("max_chunks",) if name in options}
    parameters = SamplingParameters(max_new_tokens=n_tokens, **options)
    return Stream([PROMPT] * n_prompts, parameters, **given)


async def text_of(stream: Stream) -> str:
    return "".join([chunk.text async for _, chunk in stream.chunks()])


async def until_idle(service: EngineService) -> None:
    """Waits until nothing runs; what a broken engine ran is told as it was at its end."""
    while service.broken is None and (
        service.n_open or service.statistics is None or service.statistics.n_running
    ):
        await asyncio.sleep(0.005)


def test_tokens_come_back_to_the_loop():
    async def use(service: EngineService) -> list[str]:
        streams = [stream_of(4, seed=seed) for seed in range(3)]
        for stream in streams:
            service.submit(stream)
        return [await text_of(stream) for stream in streams]

    assert with_service(use, Faults()) == ["abcd", "bcde", "cdef"]


def test_choices_are_numbered_over_the_prompts():
    async def use(service: EngineService) -> dict[int, str]:
        stream = stream_of(2, n_prompts=2, n=2, seed=0)
        service.submit(stream)
        texts: dict[int, str] = {}
        async for index, chunk in stream.chunks():
            texts[index] = texts.get(index, "") + chunk.text
        return texts

    assert with_service(use, Faults()) == {0: "ab", 1: "bc", 2: "ab", 3: "bc"}


def test_a_reader_that_leaves_too_much_loses_its_request_alone():
    async def use(service: EngineService) -> None:
        slow, quick = stream_of(60, max_chunks=5), stream_of(60)
        service.submit(slow)
        service.submit(quick)
        assert len(await text_of(quick)) == 60
        with pytest.raises(ApiError, match="not read in time"):
            await text_of(slow)
        assert len(slow._chunks) == 0
        await until_idle(service)

    with_service(use, Faults())


def test_many_choices_may_leave_as_much_each():
    async def use(service: EngineService) -> None:
        many = stream_of(5, n=4, max_chunks=5)
        service.submit(many)
        await until_idle(service)
        assert len(many._chunks) == 20
        assert len(await text_of(many)) == 20

    with_service(use, Faults())


def test_a_request_that_is_cancelled_at_once_is_never_run():
    async def use(service: EngineService) -> None:
        gate.clear()
        first = stream_of(2)
        service.submit(first)
        await first.accepted
        # The thread stands in a step; this one comes and goes before the next.
        second = stream_of(2)
        service.submit(second)
        service.cancel(second)
        gate.set()
        assert await text_of(first) == "ab"
        await until_idle(service)
        assert not second.accepted.done()

    gate = threading.Event()
    with_service(use, Faults(gate=lambda: gate.wait(PATIENCE)))


def test_of_several_prompts_all_run_or_none():
    async def use(service: EngineService) -> None:
        stream = Stream([PROMPT, (10**6,)], SamplingParameters(max_new_tokens=60))
        service.submit(stream)
        with pytest.raises(ApiError, match="token ids"):
            await stream.accepted
        await until_idle(service)

    with_service(use, Faults())


def test_more_than_may_wait_is_refused_at_once():
    async def use(service: EngineService) -> None:
        with pytest.raises(ApiError, match="at most 10 completions"):
            service.submit(stream_of(n_prompts=6, n=2))
        first = stream_of(2)
        service.submit(first)
        await first.accepted
        for _ in range(10):
            service.submit(stream_of(2))
        with pytest.raises(ApiError) as caught:
            service.submit(stream_of(2))
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
        gate.set()
        await until_idle(service)

    gate = threading.Event()
    with_service(use, Faults(gate=lambda: gate.wait(PATIENCE)))


def test_an_end_tells_everybody_who_waits():
    async def work() -> None:
        gate = threading.Event()
        service = make_service(Faults(gate=lambda: gate.wait(PATIENCE)))
        await service.start()
        running, waiting = stream_of(2), stream_of(2)
        service.submit(running)
        await running.accepted
        service.submit(waiting)
        ending = asyncio.create_task(service.stop(0))
        for stream in (running, waiting):
            with pytest.raises(ApiError, match="is stopping"):
                await text_of(stream)
        with pytest.raises(ApiError, match="is stopping"):
            service.submit(stream_of(2))
        gate.set()
        await ending
        service._thread.join(PATIENCE)

    asyncio.run(work())


def test_an_engine_that_cannot_be_made_again_is_broken():
    async def use(service: EngineService) -> None:
        faults.fail_steps, faults.fail_make = 1, True
        stream = stream_of(3)
        service.submit(stream)
        with pytest.raises(ApiError, match="a step went wrong"):
            await text_of(stream)
        while service.broken is None:
            await asyncio.sleep(0.005)
        assert service.broken == "no room for a cache"
        with pytest.raises(ApiError, match="the engine has failed"):
            service.submit(stream_of(3))

    faults = Faults()
    with_service(use, faults)


def test_a_pool_forgets_those_who_gave_up_waiting():
    """Turns that nobody takes would keep a model for ever."""

    async def work() -> None:
        gate = threading.Event()
        faults = Faults(gate=lambda: gate.wait(PATIENCE))
        pool = ModelPool(
            lambda: {"a": Path("a"), "b": Path("b")},
            lambda path: make_service(faults),
            max_models=1,
            max_waiting=3,
        )
        async with pool.lease("a") as loaded:
            asked = [asyncio.create_task(hold(pool, name)) for name in ("b", "a", "b")]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert pool.n_waiting == 3
            with pytest.raises(ApiError) as caught:
                await hold(pool, "a")
            assert caught.value.status == 503
            for task in asked[:2]:
                task.cancel()
            await asyncio.wait(asked[:2])
            assert pool.n_waiting == 1
            assert loaded.n_leases == 1
        await asked[2]
        assert list(pool.loaded) == ["b"]
        with pytest.raises(ApiError) as caught:
            await hold(pool, "c")
        assert caught.value.code == "model_not_found"
        gate.set()
        await pool.close(1)
        with pytest.raises(ApiError, match="is stopping"):
            await hold(pool, "b")

    asyncio.run(work())


def test_a_model_that_is_used_stays_however_long_ago_it_was_asked_for():
    async def work() -> None:
        pool = ModelPool(
            lambda: {name: Path(name) for name in "abc"},
            lambda path: make_service(Faults()),
            max_models=2,
            max_waiting=3,
        )
        async with pool.lease("a"):
            await hold(pool, "b")
            await hold(pool, "c")
            assert list(pool.loaded) == ["a", "c"]
        await pool.close(0)

    asyncio.run(work())


async def hold(pool: ModelPool, name: str) -> None:
    async with pool.lease(name):
        pass


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "cancel", "fail", "yield"]), st.integers(0, 5), st.integers(1, 4)
    ),
    max_size=15,
)


@given(ACTIONS)
def test_whatever_comes_every_request_ends_and_nothing_is_left(
    actions: list[tuple[str, int, int]],
):
    async def use(service: EngineService) -> None:
        streams: list[Stream] = []
        cancelled: set[int] = set()
        refused: list[int] = []
        failed: list[int] = []
        for action, place, n in actions:
            if action == "ask":
                try:
                    service.submit(stream := stream_of(place, n=n, seed=0))
                except ApiError as error:
                    refused.append(error.status)
                    continue
                streams.append(stream)
            elif action == "cancel" and place < len(streams):
                service.cancel(streams[place])
                cancelled.add(place)
            elif action == "fail":
                faults.fail_steps = 1
            else:
                await asyncio.sleep(0)
        for i, stream in enumerate(streams):
            if i in cancelled:
                continue
            try:
                async for _ in stream.chunks():
                    pass
            except ApiError as error:
                failed.append(error.status)
            assert stream.is_over
        assert set(refused) <= {500, 503}
        assert set(failed) <= {500}
        await until_idle(service)

    faults = Faults()
    with_service(use, faults, max_waiting=8)
