"""Requests that move between two real engines, without Ray: the same ids and log-probabilities as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import jax
import pytest

from dr_jax.base.errors import ContextFullError
from dr_jax.base.metrics import Metrics
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings
from dr_jax.tokens.policy import Begun, RequestKey, Sampled, Sampling
from dr_jax.train.elastic.facts import ahead_s, difference, facts
from dr_jax.train.elastic.hand import FarHand
from dr_jax.train.elastic.pool import DesertedError, Pool
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.elastic.wire import Ask, LostError, News
from dr_jax.train.elastic.worker import Spec, Worker, hired
from tests.engine.oracle import SIZES, assert_same, sample, weights

SETTINGS = EngineSettings(
    slots=4, pages=97, page_size=4, max_context=96, tokens_per_call=2, prefill_rows=(4,), prefill_width=8, block=8
)
FAR = RaySettings(workers=1, report_s=0.02, silent_s=5.0, stalled_s=30.0)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def key(sibling: int, question: str = "q", turn: int = 0) -> RequestKey:
    return RequestKey(7, question, sibling, turn)


class Line:
    """A wire to a worker of this process that can be cut after just so many ids, as a kill would."""

    def __init__(self, worker: Worker, cut_after: int | None = None) -> None:
        self.worker, self.cut_after, self.told, self.taken = worker, cut_after, 0, list[Ask]()
        self.busy = asyncio.Event()

    async def take(self, asks: Sequence[Ask]) -> None:
        self.taken += asks
        self.busy.set()
        await self.worker.take(asks)

    async def drop(self, numbers: Sequence[int]) -> None:
        await self.worker.drop(numbers)

    async def news(self, wait_s: float) -> News:
        if self.cut_after is not None and self.told >= self.cut_after:
            await self.worker.drop([ask.number for ask in self.taken])
            raise LostError("it was killed")
        news = await self.worker.news(wait_s)
        told: dict[int, Begun] = {}
        for number, more in news.drawn.items():  # an engine may be done with everything when it is asked first
            count = len(more.ids) if self.cut_after is None else min(len(more.ids), self.cut_after - self.told)
            told[number] = Begun(more.ids[:count], more.logprobs[:count], more.versions[:count])
            self.told += count
        return replace(news, drawn=told)

    async def adopt(self, weights: Mapping[str, Any], version: int) -> None:
        await self.worker.adopt(weights, version)


@asynccontextmanager
async def joined(pool: Pool, line: Line, room: int = 4, settings: RaySettings = FAR) -> AsyncIterator[FarHand]:
    """Let a worker take part until the block ends."""
    hand = FarHand(f"worker {id(line)}", line, room, line.worker.engine.version, settings, Metrics())
    pool.join(hand)
    task = asyncio.create_task(hand.run(pool.changed))
    task.add_done_callback(lambda _: pool.leave(hand))
    try:
        yield hand
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(scope="module")
def engines() -> list[Engine]:
    return [Engine(weights(0), SIZES, SETTINGS).start() for _ in range(2)]


@pytest.fixture
async def workers(engines: list[Engine]) -> list[Worker]:
    """Two workers with weights of version 0."""
    for engine in engines:
        engine.adopt(weights(0), 0)
    return [Worker(engine, {name: weight.sharding for name, weight in weights(0).items()}) for engine in engines]


def pool_of(metrics: Metrics | None = None, staleness: int = 0, alone_s: float = 5.0) -> Pool:
    return Pool(staleness=staleness, alone_s=alone_s, metrics=metrics or Metrics())


@pytest.mark.parametrize("cut", [1, 7, 19])
async def test_8_an_engine_goes_on_from_what_another_drew(engines: list[Engine], cut: int) -> None:
    sampling, pieces = Sampling(20), list[Begun]()
    whole = await engines[0].continued(PROMPT, sampling, key(0), Begun(), pieces.append)
    assert_same(whole, sample(weights(0), PROMPT, sampling, key(0)))
    drawn = Begun()
    for piece in pieces:
        drawn = drawn.then(piece)
    assert drawn.ended(sampling) == whole
    begun = Begun(whole.ids[:cut], whole.logprobs[:cut], whole.versions[:cut])
    assert_same(await engines[1].continued(PROMPT, sampling, key(0), begun), whole, tolerance=1e-5)
    assert await engines[1].continued(PROMPT, sampling, key(0), drawn) == whole, "there is nothing left to draw"


@pytest.mark.parametrize("cut_after", [0, 9, 60])
async def test_8_what_a_killed_worker_had_begun_goes_on_elsewhere(workers: list[Worker], cut_after: int) -> None:
    metrics, sampling = Metrics(), Sampling(40)
    pool = pool_of(metrics)
    async with joined(pool, Line(workers[0], cut_after)), joined(pool, other := Line(workers[1])):
        asked = [(PROMPT, sampling, key(one, f"question {one}")) for one in range(6)]
        found = await asyncio.wait_for(asyncio.gather(*(pool.sample(*one) for one in asked)), 30)
    for one, sampled in zip(asked, found, strict=True):
        assert_same(sampled, sample(weights(0), *one))
        assert len(sampled.ids) == 40
    numbers = metrics.drain()
    assert numbers["rollout/migrated"] >= 1
    assert sum(len(ask.begun.ids) for ask in other.taken) == numbers["rollout/carried_tokens"]
    assert (numbers["rollout/carried_tokens"] > 0) == (cut_after > 0)


async def test_turns_and_siblings_stay_where_their_pages_are(workers: list[Worker]) -> None:
    pool, lines = pool_of(), [Line(worker) for worker in workers]
    async with joined(pool, lines[0]), joined(pool, lines[1]):
        for turn in range(3):
            await asyncio.gather(*(pool.sample(PROMPT, Sampling(4), key(n, q, turn)) for n in range(2) for q in "ab"))
    met = [{ask.key.question for ask in line.taken} for line in lines]
    assert [len(questions) for questions in met] == [1, 1]
    assert met[0] != met[1]


async def test_9_a_worker_behind_the_bound_is_asked_for_nothing_until_it_has_caught_up(workers: list[Worker]) -> None:
    pool, line = pool_of(staleness=1), Line(workers[0])
    async with joined(pool, line) as hand:
        pool.newest = 1
        assert (await pool.sample(PROMPT, Sampling(3), key(0))).versions == (0, 0, 0)
        measuring = asyncio.create_task(pool.exact().sample(PROMPT, Sampling(3), key(1)))
        pool.newest = 2
        training = asyncio.create_task(pool.sample(PROMPT, Sampling(3), key(2)))
        await asyncio.sleep(0.2)
        assert len(line.taken) == 1
        hand.publish(jax.device_get(weights(1)), 2)
        for found in await asyncio.wait_for(asyncio.gather(measuring, training), 20):
            assert found.versions == (2, 2, 2)
    expected = sample(weights(1), PROMPT, Sampling(3), key(2))
    assert training.result().ids == expected.ids


async def test_who_joins_takes_what_waits_and_who_drains_ends_what_it_has(workers: list[Worker]) -> None:
    pool, lines = pool_of(), [Line(worker) for worker in workers]
    async with joined(pool, lines[0], room=1) as first:
        tasks = [asyncio.create_task(pool.sample(PROMPT, Sampling(60), key(0, str(n)))) for n in range(4)]
        await lines[0].busy.wait()  # not a moment longer: it may end what it has
        pool.drain(first)
        async with joined(pool, lines[1], room=4):
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert [len(line.taken) for line in lines] == [1, 3]


async def test_6_with_nobody_there_those_who_wait_are_told(workers: list[Worker]) -> None:
    pool = pool_of(alone_s=0.1)
    with pytest.raises(DesertedError, match="alone_s"):
        await asyncio.wait_for(pool.sample(PROMPT, Sampling(3), key(0)), 5)
    async with joined(pool, Line(workers[0])):
        assert len((await pool.sample(PROMPT, Sampling(3), key(0))).ids) == 3


async def test_cancelling_frees_the_workers_slot(workers: list[Worker]) -> None:
    pool, line = pool_of(), Line(workers[0])
    async with joined(pool, line, room=1):
        task = asyncio.create_task(pool.sample(PROMPT, Sampling(80), key(0)))
        while not line.taken:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        found = await asyncio.wait_for(pool.sample(PROMPT, Sampling(5), key(1)), 20)
        assert_same(found, sample(weights(0), PROMPT, Sampling(5), key(1)))
        for _ in range(500):
            if not workers[0]._tasks:
                break
            await asyncio.sleep(0.01)
        assert not workers[0]._tasks


async def test_what_can_never_fit_is_refused_and_not_passed_on(workers: list[Worker]) -> None:
    pool = pool_of()
    async with joined(pool, Line(workers[0])):
        with pytest.raises(ContextFullError, match="at most 96"):
            await asyncio.wait_for(pool.sample(PROMPT, Sampling(90), key(0)), 10)
        assert len(pool.hands) == 1


class Silent(Line):
    """A worker that takes everything and says nothing any more."""

    async def news(self, wait_s: float) -> News:
        await asyncio.Event().wait()
        raise AssertionError


async def test_6_a_worker_that_says_nothing_is_given_up_after_the_deadline(workers: list[Worker]) -> None:
    pool = pool_of()
    impatient = RaySettings(workers=1, report_s=0.02, silent_s=0.3)
    async with joined(pool, Silent(workers[0]), settings=impatient):
        task = asyncio.create_task(pool.sample(PROMPT, Sampling(6), key(0)))
        await asyncio.sleep(0.05)
        async with joined(pool, Line(workers[1])):
            found: Sampled = await asyncio.wait_for(task, 10)
    assert_same(found, sample(weights(0), PROMPT, Sampling(6), key(0)))


async def test_a_hired_worker_draws_as_any_engine_does() -> None:
    worker = await asyncio.to_thread(hired, Spec(SIZES, SETTINGS), jax.device_get(weights(0)), 3)
    pool = pool_of()
    pool.newest = 3
    async with joined(pool, Line(worker)):
        found = await asyncio.wait_for(pool.sample(PROMPT, Sampling(8), key(4)), 60)
    await worker.close()
    assert_same(found, sample(weights(0), PROMPT, Sampling(8), key(4)))
    assert set(found.versions) == {3}


def test_hosts_that_differ_are_refused_with_both_named() -> None:
    here = facts()
    assert difference(here, {**here, "host": "other"}, 0.0, 5.0) == ""
    other = difference(here, {**here, "jax": "0.9.1"}, 0.0, 5.0)
    assert "0.9.1" in other
    assert jax.__version__ in other
    assert "source 00000000" in difference(here, {**here, "dr_jax": "0.1.0 (source 00000000)"}, 0.0, 5.0)
    assert "clock" in difference(here, here, -7.5, 5.0)
    # Asked at 100, answered at 102: 101 is no difference; 109 is at least 7 ahead, 95 at least 5 behind.
    assert [ahead_s(100.0, clock, 102.0) for clock in (101.0, 109.0, 95.0)] == [0.0, 7.0, -5.0]
