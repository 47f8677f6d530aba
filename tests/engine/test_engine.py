"""The engine against the oracle: alone and in a crowd, with and without shared pages, before and after preemption."""

import asyncio
import random
from collections.abc import Iterator

import jax.monitoring
import pytest

from dr_jax.base.errors import CapacityError
from dr_jax.base.metrics import Metrics
from dr_jax.engine.engine import Engine, EngineStoppedError
from dr_jax.engine.settings import EngineSettings
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from tests.engine.oracle import CONTEXT, SIZES, assert_same, sample, weights

SETTINGS = EngineSettings(slots=4, max_context=CONTEXT, page_size=8, tokens_per_call=4, prefill_rows=(2, 4), prefill_width=16)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(weights(0), SIZES, SETTINGS) as running:
        running.warm_up()
        yield running


def prompt(seed: int, length: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(SIZES.vocab) for _ in range(length))


def asked(seed: int) -> tuple[tuple[int, ...], Sampling, RequestKey]:
    """A request of mixed length, temperature, cut and budget."""
    rng = random.Random(seed)
    sampling = Sampling(
        rng.randint(1, 12), rng.choice([0.0, 0.7, 1.0]), rng.choice([1.0, 1.0, 0.8]), rng.choice([0, 0, 5]), stop_ids=(3, 7)
    )
    return prompt(seed, rng.randint(2, 60)), sampling, RequestKey(0, f"q{seed}", seed % 3, 0)


async def test_8_alone_and_in_a_crowd_the_same_ids_as_the_oracle(engine: Engine) -> None:
    requests = [asked(seed) for seed in range(12)]
    expected = [sample(weights(0), *one) for one in requests]
    for one, wanted in list(zip(requests, expected, strict=True))[:4]:
        assert_same(await engine.sample(*one), wanted)
    for found, wanted in zip(await asyncio.gather(*(engine.sample(*one) for one in requests)), expected, strict=True):
        assert_same(found, wanted)


async def test_siblings_share_their_prompt_and_a_later_turn_pays_only_for_what_is_new() -> None:
    metrics, shared, sampling = Metrics(), prompt(99, 40), Sampling(6, stop_ids=())
    with Engine(weights(0), SIZES, SETTINGS, metrics=metrics) as engine:
        keys = [RequestKey(0, "shared", sibling, 0) for sibling in range(4)]
        found = await asyncio.gather(*(engine.sample(shared, sampling, key) for key in keys))
        for key, one in zip(keys, found, strict=True):
            assert_same(one, sample(weights(0), shared, sampling, key))
        assert len({one.ids for one in found}) > 1
        first = metrics.drain()
        assert first["engine/prefill_tokens"] < 4 * 40 / 2, "the prompt was computed for every sibling"
        turn = (*shared, *found[0].ids, *prompt(5, 10))
        again = await engine.sample(turn, sampling, RequestKey(0, "shared", 0, 1))
        assert_same(again, sample(weights(0), turn, sampling, RequestKey(0, "shared", 0, 1)))
        assert metrics.drain()["engine/prefill_tokens"] <= 10 + 1, "a later turn paid for more than the observation"


async def test_preemption_changes_no_id() -> None:
    metrics = Metrics()
    tight = EngineSettings(
        slots=4, pages=1 + 14, max_context=CONTEXT, page_size=8, tokens_per_call=4, prefill_rows=(2, 4), prefill_width=16
    )
    requests = [(prompt(seed, 20), Sampling(30), RequestKey(0, f"p{seed}", 0, 0)) for seed in range(4)]
    with Engine(weights(0), SIZES, tight, metrics=metrics) as engine:
        found = await asyncio.gather(*(engine.sample(*one) for one in requests))
    assert metrics.drain().get("engine/preempted", 0) > 0, "nothing was preempted, so nothing was shown"
    for one, request in zip(found, requests, strict=True):
        assert_same(one, sample(weights(0), *request))


async def test_nothing_compiles_after_warm_up(engine: Engine) -> None:
    await asyncio.gather(*(engine.sample(*asked(seed)) for seed in range(500, 504)))
    compiled: list[str] = []

    def heard(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        found = await asyncio.gather(*(engine.sample(*asked(seed)) for seed in range(200)))
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert len(found) == 200
    assert compiled == []


async def test_weights_are_adopted_in_flight_and_versions_say_so() -> None:
    with Engine(weights(0), SIZES, SETTINGS) as engine:
        engine.warm_up()
        task = asyncio.create_task(engine.sample(prompt(1, 8), Sampling(80), RequestKey(0, "a", 0, 0)))
        await asyncio.sleep(0)
        engine.adopt(weights(1), version=1)
        found = await task
        assert list(found.versions) == sorted(found.versions)
        assert found.versions[-1] == 1
        after = await engine.sample(prompt(1, 8), Sampling(6), RequestKey(0, "b", 0, 0))
        assert set(after.versions) == {1}
        expected = sample(weights(1), prompt(1, 8), Sampling(6), RequestKey(0, "b", 0, 0))
        assert (after.ids, after.finish) == (expected.ids, expected.finish)


async def test_a_cancelled_request_frees_what_it_held(engine: Engine) -> None:
    tasks = [asyncio.create_task(engine.sample(prompt(n, 20), Sampling(70), RequestKey(0, f"c{n}", 0, 0))) for n in range(8)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    one = asked(3)
    assert_same(await asyncio.wait_for(engine.sample(*one), 30), sample(weights(0), *one))


async def test_what_can_never_fit_is_refused(engine: Engine) -> None:
    with pytest.raises(CapacityError):
        await engine.sample(prompt(0, CONTEXT), Sampling(10), RequestKey(0, "x", 0, 0))


async def test_closing_tells_everybody_who_waits() -> None:
    engine = Engine(weights(0), SIZES, SETTINGS).start()
    waiting: list[asyncio.Task[Sampled]] = [
        asyncio.create_task(engine.sample(prompt(n, 20), Sampling(70), RequestKey(0, f"d{n}", 0, 0))) for n in range(8)
    ]
    await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.close)
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert any(isinstance(one, EngineStoppedError) for one in results)
    with pytest.raises(EngineStoppedError):
        await engine.sample(prompt(0, 4), Sampling(1), RequestKey(0, "e", 0, 0))
