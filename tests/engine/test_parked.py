"""Pages that wait in host memory: nothing that is drawn shows where they were, and nothing is computed twice."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random

import jax
import numpy as np
import pytest

from dr_jax.base.errors import CapacityError
from dr_jax.engine.engine import Engine
from dr_jax.engine.parked import HostPages
from dr_jax.engine.runner import Pages
from dr_jax.engine.settings import EngineSettings, host_bytes
from dr_jax.model.decoder import describe
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_weights
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from tests.engine.oracle import SIZES, assert_same, sample, weights

LARGE = EngineSettings(
    slots=4, pages=257, page_size=4, max_context=96, tokens_per_call=4, prefill_rows=(2, 4), prefill_width=8, block=8
)
SMALL = dataclasses.replace(LARGE, pages=25)  # 96 tokens: one long conversation
PARKING = dataclasses.replace(SMALL, host_pages=200)
TURNS, EPISODES = 3, 6
# Six prompts of 22 to 27 ids; then twice an observation of 5 and the id that was drawn last and never fed in.
NEW = sum(range(22, 28)) + EPISODES * 2 * (5 + 1)


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(SIZES.vocab) for _ in range(length)]


def asked(one: int) -> list[int]:
    """What a conversation begins with: no two with the same id."""
    return [one, *ids(one, 21 + one)]


async def turns(engine: Engine) -> tuple[list[Sampled], float]:
    """Have some conversations take turns, each waiting for all others; return what was drawn and how much was prefilled."""
    contexts = [asked(one) for one in range(EPISODES)]
    found = []
    engine.metrics.drain()
    for turn in range(TURNS):
        for one, context in enumerate(contexts):
            drawn = await engine.sample(context, Sampling(7), RequestKey(1, "q", one, turn))
            found.append(drawn)
            context += [*drawn.ids, *ids(1000 + 10 * one + turn, 5)]
    return found, engine.metrics.drain()["engine/prefill_tokens"]


async def test_a_turn_after_its_pages_were_needed_draws_the_same_and_computes_only_what_is_new() -> None:
    found = {}
    for name, settings in (("large", LARGE), ("small", SMALL), ("parking", PARKING)):
        with Engine(weights(0), SIZES, settings) as engine:
            found[name] = await turns(engine)
    assert found["large"][1] == found["parking"][1] == NEW
    assert found["small"][1] > 2 * NEW, "without a place to wait all is computed again, every turn"
    for whole, fetched in zip(found["large"][0], found["parking"][0], strict=True):
        assert (whole.ids, whole.logprobs) == (fetched.ids, fetched.logprobs)  # to the last bit: the same pages came back


async def test_parked_pages_are_bounded_counted_and_forgotten_with_their_weights() -> None:
    bounded = dataclasses.replace(PARKING, host_pages=20)
    with Engine(weights(0), SIZES, bounded) as engine:
        first, computed = await turns(engine)
        assert computed > NEW, "room for 80 tokens is not enough for all"
        assert engine._pool.parked == 20
        other = await engine.sample(ids(7, 80), Sampling(1), RequestKey(1, "q", 0, 9))  # takes the whole pool
        numbers = engine.metrics.drain()
        assert numbers["engine/parked_pages"] == 20
        engine.adopt(weights(1), version=1)
        again = await engine.sample(ids(7, 80), Sampling(1), RequestKey(1, "q", 0, 9))
        numbers = engine.metrics.drain()
        assert "engine/parked_hit_tokens" not in numbers
        assert (numbers["engine/prefill_tokens"], engine._pool.parked) == (80, 0)
    assert_same(other, sample(weights(0), ids(7, 80), Sampling(1), RequestKey(1, "q", 0, 9)))
    assert again.logprobs != other.logprobs
    assert len(first) == TURNS * EPISODES


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_asked_it_draws_what_an_engine_draws_that_gives_nothing_up(seed: int) -> None:
    rng = random.Random(seed)
    parking = dataclasses.replace(SMALL, host_pages=rng.randint(5, 40))
    prompts = [ids(seed, rng.randint(1, 40)) for _ in range(3)]  # each begins as the longest of them does
    pauses = [[rng.random() / 50 for _ in range(4)] for _ in range(10)]

    async def converse(engine: Engine, number: int) -> list[Sampled]:
        context, found = list(prompts[number % 3]), []
        for turn, pause in enumerate(pauses[number]):
            await asyncio.sleep(pause)
            drawn = await engine.sample(context, Sampling(1 + number), RequestKey(seed, "q", number, turn))
            found.append(drawn)
            context += [*drawn.ids, *ids(number + turn, 1 + number % 4)]
            del context[80:]
        return found

    async def all_of(settings: EngineSettings) -> list[list[Sampled]]:
        with Engine(weights(0), SIZES, settings) as engine:
            drawn = await asyncio.gather(*(converse(engine, number) for number in range(10)))
            if settings.host_pages:
                assert engine.metrics.drain()["engine/parked_hit_tokens"] > 0
            assert engine._pool.held == 0
        return drawn

    for whole, fetched in zip(await all_of(LARGE), await all_of(parking), strict=True):
        for one, other in zip(whole, fetched, strict=True):
            assert_same(other, one, 1e-5)


async def test_heads_on_several_devices_come_back_to_them() -> None:
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=2), jax.devices()[:2])
    placed = place_weights(weights(0), describe(SIZES), mesh)
    with Engine(placed, SIZES, PARKING, mesh=mesh) as engine:
        found, computed = await turns(engine)
    assert computed == NEW
    context = asked(2)
    for turn in range(TURNS):  # the third conversation
        drawn, key = found[turn * EPISODES + 2], RequestKey(1, "q", 2, turn)
        assert_same(drawn, sample(weights(0), context, Sampling(7), key))
        context += [*drawn.ids, *ids(1000 + 20 + turn, 5)]


async def test_nothing_compiles_when_pages_move_after_warm_up() -> None:
    compiled: list[str] = []

    def heard(event: str, seconds: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    with Engine(weights(0), SIZES, dataclasses.replace(PARKING, pages=26)) as engine:
        engine.warm_up()
        jax.monitoring.register_event_duration_secs_listener(heard)
        try:
            await turns(engine)
        finally:
            jax.monitoring.unregister_event_duration_listener(heard)
        assert engine._pool.parked
    assert compiled == []


def test_a_place_that_is_used_again_keeps_what_came_last() -> None:
    host = HostPages(3, (1, 1, 1, 2), "float32")

    def lifted(*numbers: int) -> Pages:
        page = np.zeros((4, 1, 1, 1, 2), np.float32)
        page[: len(numbers)] = np.reshape(numbers, (-1, 1, 1, 1, 1))
        return Pages(jax.numpy.asarray(page), jax.numpy.asarray(-page))

    for count in range(5):
        host.put(lifted(10 + count, 20 + count), [count % 2, 2])
    keys, values = host.get([2, 0, 1], 4)
    assert keys[:, 0, 0, 0, 0].tolist() == [24, 14, 13, 0]
    assert values[:, 0, 0, 0, 1].tolist() == [-24, -14, -13, 0]


def test_more_parked_pages_than_the_machine_has_memory_are_refused() -> None:
    # 4 tokens, 2 layers, keys and values of 2 heads of 16 numbers of 4 bytes
    assert host_bytes(PARKING, SIZES) == 200 * 4 * 2 * 2 * 2 * 16 * 4
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with pytest.raises(CapacityError, match=r"engine.host_pages = \d+ can take .* Fix: engine.host_pages=\d+"):
        Engine(weights(0), SIZES, dataclasses.replace(PARKING, host_pages=machine // 1024))
    with pytest.raises(ValueError, match="host_pages = -1"):
        EngineSettings(host_pages=-1)
