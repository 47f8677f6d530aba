"""Who draws while others are prefilled gets an id after every chunk: what it draws alone, as probable as alone."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Iterator

import jax
import pytest

from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.decoder import describe
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_weights
from dr_jax.tokens.policy import Begun, RequestKey, Sampled, Sampling
from tests.engine.oracle import SIZES, assert_same, sample, weights

SETTINGS = EngineSettings(
    slots=4, page_size=4, max_context=96, tokens_per_call=4, prefill_rows=(1, 2), prefill_width=4, block=8
)
Asked = tuple[list[int], Sampling, RequestKey]


@pytest.fixture(scope="module", params=["plain", "kernel"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(weights(0), SIZES, dataclasses.replace(SETTINGS, attention=request.param)) as one:
        one.warm_up()
        yield one


def asked(number: int, length: int, sampling: Sampling) -> Asked:
    rng = random.Random(number)
    return [rng.randrange(SIZES.vocab) for _ in range(length)], sampling, RequestKey(1, "q", number, 0)


async def beside(engine: Engine, drawing: Asked, *others: Asked) -> tuple[list[Sampled], int, dict[str, float]]:
    """Have one draw, and others come with their prompts; also return how often it was told of ids before any other was."""
    loop, begins = asyncio.get_running_loop(), asyncio.Event()
    told: list[int] = []  # by whom

    def first(begun: Begun) -> None:
        told.append(0)
        loop.call_soon_threadsafe(begins.set)

    engine.metrics.drain()
    one = asyncio.create_task(engine.continued(*drawing, Begun(), first))
    await begins.wait()
    with engine.paused():
        before = len(told)
        rest = [asyncio.create_task(engine.continued(*other, Begun(), lambda begun: told.append(1))) for other in others]
        await asyncio.sleep(0.05)
    found = await asyncio.gather(one, *rest)
    until = told.index(1) if 1 in told else len(told)
    return list(found), until - before, engine.metrics.drain()


async def test_it_gets_an_id_after_every_chunk_of_a_long_prompt_and_all_draw_what_they_draw_alone(engine: Engine) -> None:
    drawing, long = asked(1, 5, Sampling(80)), asked(2, 75, Sampling(9))
    alone = [await engine.sample(*one) for one in (drawing, long)]
    engine.adopt(weights(0), 0)  # nothing is known of their prompts
    found, ids, numbers = await beside(engine, drawing, long)
    # Chunks of 2 x 4: ten of them. One call goes on before the engine hears of the prompt; the one that ends it tells of its
    # first id before it tells of the other's.
    assert numbers["engine/mixed_s_n"] == 10
    assert ids == 1 + 9
    for one, other in zip(found, alone, strict=True):
        assert_same(one, other, 1e-5)
    assert_same(found[0], sample(weights(0), *drawing))


async def test_who_ends_in_a_mixed_call_ends_there(engine: Engine) -> None:
    whole = sample(weights(0), *asked(1, 5, Sampling(40)))
    for end in (6, 9):
        stop = whole.ids[end]
        ends = whole.ids.index(stop)
        engine.adopt(weights(0), 0)
        drawing = asked(1, 5, Sampling(40, stop_ids=(stop,)))
        found, _, numbers = await beside(engine, drawing, asked(2, 75, Sampling(3)), asked(3, 70, Sampling(3)))
        assert numbers["engine/mixed_s_n"] > 0
        assert (found[0].ids, found[0].finish) == (whole.ids[: ends + 1], "stop")
        for one, other in zip(found[1:], (asked(2, 75, Sampling(3)), asked(3, 70, Sampling(3))), strict=True):
            assert_same(one, sample(weights(0), *other))


async def test_heads_on_several_devices_draw_the_same() -> None:
    mesh = make_mesh(MeshSettings(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    placed = place_weights(weights(0), describe(SIZES), mesh)
    drawing, long = asked(1, 5, Sampling(40)), asked(2, 40, Sampling(9))
    with Engine(placed, SIZES, dataclasses.replace(SETTINGS, prefill_rows=(2,)), mesh=mesh) as engine:
        found, _, numbers = await beside(engine, drawing, long)
    assert numbers["engine/mixed_s_n"] > 0
    for one, other in zip(found, (drawing, long), strict=True):
        assert_same(one, sample(weights(0), *other))
