"""A paused engine leaves the device to somebody else; who asked meanwhile is answered afterwards, as if nothing had been."""

import asyncio

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
