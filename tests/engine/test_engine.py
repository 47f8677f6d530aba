"""The engine against a plain full-forward sampler, and everything that a caller relies on.

Invariant 8 is the first half: alone, in a full batch, with and without shared pages, before and after being put back, on one
device and on eight, in plain JAX and with the kernel of a CPU, a request draws the same ids with the same log-probabilities.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Iterator

import jax
import pytest

from dr_jax.base.errors import CapacityError, CheckpointError
from dr_jax.engine.cpu import OnCpu
from dr_jax.engine.engine import Engine, EngineStoppedError
from dr_jax.engine.settings import EngineSettings, memory_bytes
from dr_jax.model.decoder import describe
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_weights
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from tests.engine.oracle import COMPILER, SIZES, assert_same, sample, weights

SETTINGS = EngineSettings(
    slots=4, pages=97, page_size=4, max_context=96, tokens_per_call=4, prefill_rows=(2, 4), prefill_width=8, block=8
)
SMALL = dataclasses.replace(SETTINGS, pages=25, attention="plain")
SAMPLINGS = (
    Sampling(9, temperature=0.0),
    Sampling(9),
    Sampling(9, temperature=0.7, top_p=0.8),
    Sampling(9, temperature=1.3, top_k=5),
    Sampling(9, temperature=1.0, top_k=20, top_p=0.9, stop_ids=(3, 11, 17, 40)),
)


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    with Engine(weights(0), SIZES, SETTINGS) as one:
        assert one._device._tiles.kernel == (OnCpu() if COMPILER else None)
        one.warm_up()
        yield one


@pytest.fixture
def engine(running: Engine) -> Engine:
    """The shared engine, without known pages, with weights of version 0, and with empty metrics."""
    running.adopt(weights(0), version=0)
    running.metrics.drain()
    return running


def prompt(seed: int, length: int = 21) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(SIZES.vocab) for _ in range(length)]


def key(sibling: int, turn: int = 0) -> RequestKey:
    return RequestKey(1, "q", sibling, turn)


def asked(number: int) -> tuple[list[int], Sampling, RequestKey]:
    """A request of mixed length, budget, temperature, cuts and stop ids."""
    rng = random.Random(number)
    sampling = Sampling(
        rng.randint(1, 20),
        temperature=rng.choice([0.0, 0.5, 1.0]),
        top_p=rng.choice([0.5, 1.0]),
        top_k=rng.choice([0, 4]),
        stop_ids=tuple(rng.sample(range(SIZES.vocab), rng.randrange(8))),
    )
    return prompt(number % 50, rng.randint(1, 70)), sampling, key(number)


async def until(true: Callable[[], object]) -> None:
    """Let the engine's thread work until something holds."""
    for _ in range(5000):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came true")


def decoding(engine: Engine) -> bool:
    """Whether some ids were drawn by a decode call since the metrics were drained."""
    return engine.metrics.drain().get("engine/decode_tokens", 0) > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_8_alone_it_draws_what_a_full_forward_draws(engine: Engine, sampling: Sampling) -> None:
    found = await engine.sample(prompt(1), sampling, key(0))
    assert_same(found, sample(weights(0), prompt(1), sampling, key(0)))
    assert found.versions == (0,) * len(found.ids)


async def test_8_in_a_full_batch_it_draws_the_same(engine: Engine) -> None:
    requests = [(prompt(one, 3 + 5 * one), SAMPLINGS[one % len(SAMPLINGS)], key(one)) for one in range(12)]
    found = await asyncio.gather(*(engine.sample(*one) for one in requests))
    for one, sampled in zip(requests, found, strict=True):
        assert_same(sampled, sample(weights(0), *one))
    assert engine.metrics.drain()["engine/slots_busy_max"] == 4


async def test_8_siblings_compute_their_prompt_once_and_draw_the_same(engine: Engine) -> None:
    ids, sampling = prompt(2, 23), Sampling(6)
    found = await asyncio.gather(*(engine.sample(ids, sampling, key(sibling)) for sibling in range(4)))
    numbers = engine.metrics.drain()
    assert numbers["engine/prefill_tokens"] == 23
    assert numbers["engine/prefix_hit_tokens"] == 3 * 22  # all but the last id, whose output is what is sampled from
    for sibling, sampled in enumerate(found):
        assert_same(sampled, sample(weights(0), ids, sampling, key(sibling)))
    assert len({sampled.ids for sampled in found}) > 1


async def test_8_before_and_after_preemption_it_draws_the_same() -> None:
    requests = [(prompt(40 + one, 20), Sampling(40), key(one)) for one in range(4)]  # 4 x 60 tokens in room for 96
    with Engine(weights(0), SIZES, SMALL) as engine:
        found = await asyncio.gather(*(engine.sample(*one) for one in requests))
        numbers = engine.metrics.drain()
        assert engine._pool.held == 0
    assert numbers["engine/preempted"] >= 2
    for one, sampled in zip(requests, found, strict=True):
        assert_same(sampled, sample(weights(0), *one))


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 1, 4)])
async def test_8_on_eight_devices_it_draws_the_same(shape: tuple[int, int, int]) -> None:
    mesh = make_mesh(MeshSettings(*shape))
    placed = place_weights(weights(0), describe(SIZES), mesh)
    requests = [(prompt(one, 9 + 4 * one), SAMPLINGS[one], key(one)) for one in range(5)]
    with Engine(placed, SIZES, SETTINGS, mesh=mesh) as engine:
        found = await asyncio.gather(*(engine.sample(*one) for one in requests))
        engine.adopt(placed, version=1)
        again = await engine.sample(*requests[1])
    for one, sampled in zip(requests, found, strict=True):
        assert_same(sampled, sample(weights(0), *one))
    assert_same(again, sample(weights(0), *requests[1]))


async def test_a_later_turn_computes_only_what_is_new(engine: Engine) -> None:
    sampling, context = Sampling(7), prompt(3, 18)
    for turn in range(4):
        found = await engine.sample(context, sampling, key(0, turn))
        assert_same(found, sample(weights(0), context, sampling, key(0, turn)))
        context = [*context, *found.ids, *prompt(30 + turn, 5)]
    # 18, then three times an observation of 5 and the id that was drawn last and never fed in.
    assert engine.metrics.drain()["engine/prefill_tokens"] == 18 + 3 * (5 + 1)


async def test_siblings_that_part_resume_on_their_own_pages(engine: Engine) -> None:
    sampling, start = Sampling(5), prompt(4, 14)

    async def episode(sibling: int) -> None:
        context = list(start)
        for turn in range(3):
            found = await engine.sample(context, sampling, key(sibling, turn))
            assert_same(found, sample(weights(0), context, sampling, key(sibling, turn)))
            context = [*context, *found.ids, *prompt(100 * sibling + turn, 6)]

    await asyncio.gather(*(episode(sibling) for sibling in range(4)))
    assert engine.metrics.drain()["engine/prefill_tokens"] == 14 + 4 * 2 * (6 + 1)


async def test_nothing_compiles_after_warm_up(engine: Engine) -> None:
    compiled: list[str] = []

    def heard(event: str, seconds: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    async def later(number: int) -> Sampled:
        await asyncio.sleep(random.Random(number).random() / 2)
        return await engine.sample(*asked(number))

    newer = {name: weight + 0 for name, weight in weights(0).items()}
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        jax.jit(lambda x: x + 3)(1.0)
        assert compiled, "the listener hears of compilations"
        compiled.clear()
        found = await asyncio.gather(*(later(number) for number in range(200)))
        engine.adopt(newer, version=1)
        after = await engine.sample(*asked(7))
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert compiled == []
    assert_same(after, dataclasses.replace(found[7], versions=after.versions))


async def test_weights_adopted_in_the_middle_draw_what_comes_later() -> None:
    first, second = weights(0), weights(1)
    greedy = Sampling(70, temperature=0.0)
    with Engine(first, SIZES, SETTINGS, version=4) as engine:
        task = asyncio.create_task(engine.sample(prompt(6), greedy, key(0)))
        await until(lambda: decoding(engine))
        engine.adopt(second, version=5)
        found = await task
        after = await engine.sample(prompt(6), Sampling(8), key(1))
        hits = engine.metrics.drain().get("engine/prefix_hit_tokens", 0)
    assert set(found.versions) == {4, 5}
    assert list(found.versions) == sorted(found.versions)
    swapped = found.versions.index(5)
    assert found.ids[:swapped] == sample(first, prompt(6), Sampling(swapped, temperature=0.0), key(0)).ids
    assert found.ids != sample(first, prompt(6), greedy, key(0)).ids
    assert hits == 0, "a new request shares nothing with what the old weights computed"
    assert set(after.versions) == {5}
    assert_same(after, sample(second, prompt(6), Sampling(8), key(1)))


async def test_what_was_queued_for_those_who_ended_is_read_while_nobody_asks(engine: Engine) -> None:
    """A call that follows one in which everybody stops would otherwise seem to take as long as nobody asks for anything."""
    drawn = await engine.sample(prompt(6), Sampling(12), key(0))
    assert drawn.ids[1] != drawn.ids[0]
    engine.metrics.drain()
    await engine.sample(prompt(6), Sampling(12, stop_ids=(drawn.ids[1],)), key(0))  # ends in the first of two queued calls
    await asyncio.sleep(2.0)
    await engine.sample(prompt(6), Sampling(1), key(0))
    numbers = engine.metrics.drain()
    assert numbers["engine/decode_s_n"] == 3, "the prompt is known: each begins to draw at once"
    assert numbers["engine/decode_s_max"] < 1.5


async def test_cancelling_frees_slot_and_pages(engine: Engine) -> None:
    tasks = [asyncio.create_task(engine.sample(prompt(50 + one), Sampling(70), key(one))) for one in range(8)]
    await until(lambda: decoding(engine))
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await until(lambda: not engine._scheduler.requests and not engine._inbox)
    assert engine._pool.held == 0
    assert_same(await engine.sample(*asked(3)), sample(weights(0), *asked(3)))


async def test_closing_tells_everybody_who_waits() -> None:
    engine = Engine(weights(0), SIZES, SETTINGS).start()
    tasks = [asyncio.create_task(engine.sample(prompt(one), Sampling(70), key(one))) for one in range(8)]
    await until(lambda: engine._scheduler.running)
    await asyncio.to_thread(engine.close)
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(isinstance(end, EngineStoppedError) for end in ends)
    assert engine._thread is not None
    assert not engine._thread.is_alive()
    engine.close()
    for late in (engine.start, engine.warm_up):
        with pytest.raises(EngineStoppedError, match="closed"):
            late()
    with pytest.raises(EngineStoppedError, match="closed"):
        await engine.sample(*asked(1))


async def test_an_engine_that_was_never_started_tells_too() -> None:
    engine = Engine(weights(0), SIZES, SETTINGS)
    task = asyncio.create_task(engine.sample(*asked(1)))
    await asyncio.sleep(0)
    engine.close()
    with pytest.raises(EngineStoppedError):
        await asyncio.wait_for(task, 10)


async def test_an_error_in_the_thread_reaches_everybody() -> None:
    with Engine(weights(0), SIZES, SETTINGS) as engine:
        tasks = [asyncio.create_task(engine.sample(prompt(one), Sampling(70), key(one))) for one in range(6)]
        await until(lambda: engine._scheduler.running)

        def fail() -> None:
            raise MemoryError("the device is full")

        engine._tell(fail, lambda error: None)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        for end in ends:
            assert isinstance(end, EngineStoppedError)
            assert "the device is full" in str(end)
            assert isinstance(end.__cause__, MemoryError)
        with pytest.raises(EngineStoppedError, match="the device is full"):
            engine.adopt(weights(0), 1)


async def test_a_full_queue_makes_callers_wait_and_not_fail() -> None:
    with Engine(weights(0), SIZES, dataclasses.replace(SETTINGS, max_waiting=2)) as engine:
        tasks = [asyncio.create_task(engine.sample(*asked(one))) for one in range(9)]
        most = 0

        def all_done() -> bool:
            nonlocal most
            most = max(most, len(engine._scheduler.requests))
            return all(task.done() for task in tasks)

        await until(all_done)
        assert 0 < most <= 2
        for one, task in enumerate(tasks):
            assert_same(await task, sample(weights(0), *asked(one)))


@pytest.mark.parametrize(
    ("ids", "sampling", "told"),
    [
        (prompt(1, 90), Sampling(7), "90 ids and 7 new ones make 97.*at most 96"),
        ([], Sampling(7), "at least one id"),
        ([3, 61], Sampling(7), "from 0 to 60"),
        ([3], Sampling(7, stop_ids=tuple(range(9))), "at most 8"),
    ],
)
async def test_what_cannot_fit_is_refused_at_once(engine: Engine, ids: list[int], sampling: Sampling, told: str) -> None:
    with pytest.raises(CapacityError, match=told):
        await engine.sample(ids, sampling, key(0))


async def test_a_request_as_large_as_the_pool_ends() -> None:
    with Engine(weights(0), SIZES, dataclasses.replace(SETTINGS, pages=13)) as engine:
        with pytest.raises(CapacityError, match="at most 48"):
            await engine.sample(prompt(1, 40), Sampling(9), key(0))
        for seed in (1, 1, 2):  # the second finds its own pages, the third takes them
            found = await engine.sample(prompt(seed, 39), Sampling(9), key(0))
            assert_same(found, sample(weights(0), prompt(seed, 39), Sampling(9), key(0)))


def test_other_weights_are_refused(engine: Engine) -> None:
    with pytest.raises(CheckpointError, match="final_norm"):
        engine.adopt({name: weight for name, weight in weights(0).items() if name != "final_norm"}, 1)


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(CapacityError, match="max_context = 2048"):
        Engine(weights(0), SIZES)


def test_memory_is_what_the_pools_take(engine: Engine) -> None:
    # 97 pages of 4 tokens, 2 layers, keys and values of 2 heads of 16 numbers of 4 bytes
    assert memory_bytes(SETTINGS, SIZES) == 97 * 4 * 2 * 2 * 2 * 16 * 4
    assert sum(pool.nbytes for pool in engine._device.pools) == memory_bytes(SETTINGS, SIZES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"slots": 0}, "slots = 0"),
        ({"prefill_rows": (8, 2)}, "rising"),
        ({"pages": 1}, "at least 2"),
        ({"block": 6}, "multiple of page_size"),
    ],
)
def test_settings_say_what_is_wrong(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(SETTINGS, **change)
