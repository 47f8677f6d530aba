"""A paused engine leaves the device to somebody else; who asked meanwhile is answered afterwards, as if nothing had been."""

import asyncio
import threading
import time

import pytest

from dr_jax.engine.engine import Engine, EngineStoppedError
from dr_jax.engine.settings import EngineSettings
from dr_jax.tokens.policy import RequestKey, Sampling
from tests.engine.oracle import SIZES, assert_same, sample, weights

SETTINGS = EngineSettings(slots=4, page_size=4, max_context=96, tokens_per_call=4, prefill_rows=(2,), prefill_width=8, block=8)
ASKED = (list(range(1, 20)), Sampling(30), RequestKey(1, "q", 0, 0))


async def test_nothing_is_drawn_while_it_is_paused() -> None:
    with Engine(weights(0), SIZES, SETTINGS) as engine:
        engine.warm_up()
        engine.metrics.drain()
        with engine.paused():
            asking = asyncio.ensure_future(engine.sample(*ASKED))
            engine.adopt(weights(0), version=3)
            await asyncio.sleep(0.2)
            assert not asking.done()
            assert not {"engine/decode_tokens", "engine/prefill_tokens"} & engine.metrics.drain().keys()
        found = await asking
    assert_same(found, sample(weights(0), *ASKED))
    assert set(found.versions) == {3}


async def test_an_engine_that_has_ended_cannot_be_paused() -> None:
    with Engine(weights(0), SIZES, SETTINGS) as engine:
        pass
    with pytest.raises(EngineStoppedError), engine.paused():
        raise AssertionError("it was not told")


def asked(engine: Engine) -> None:
    """Wait until something is asked of an engine that is paused."""
    while not engine._inbox:
        time.sleep(0.001)


def closing(engine: Engine) -> threading.Thread:
    """Have the engine end as soon as it may."""
    thread = threading.Thread(target=engine.close)
    thread.start()
    while not engine._closing:
        time.sleep(0.001)
    return thread


async def test_who_asks_for_a_pause_of_an_engine_that_then_ends_is_told() -> None:
    def pause() -> None:
        with engine.paused():
            raise AssertionError("it was not told")

    with Engine(weights(0), SIZES, SETTINGS) as engine:
        with engine.paused():
            asking = asyncio.get_running_loop().run_in_executor(None, pause)
            asked(engine)
            ending = closing(engine)
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(asking, 10)
        ending.join()


async def test_6_who_asked_behind_something_that_fails_is_told() -> None:
    def fail(name: str, done: int, count: int) -> None:
        raise KeyError("a bug")

    with Engine(weights(0), SIZES, SETTINGS) as engine:
        with engine.paused():
            warming = asyncio.get_running_loop().run_in_executor(None, engine.warm_up, fail)
            asked(engine)
            asking = asyncio.ensure_future(engine.sample(*ASKED))  # both are found at once when the engine goes on
            await asyncio.sleep(0.01)
        with pytest.raises(EngineStoppedError, match="a bug"):
            await asyncio.wait_for(asking, 10)
        with pytest.raises(KeyError, match="a bug"):
            await warming
