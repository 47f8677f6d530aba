"""Workers as actors of Ray: started where there is room, told of newer weights, replaced when they are lost.

In:    a pool to join, what a worker's engine is made of, weights of one version after another
Out:   hands in the pool
Holds: a host that joins the cluster gets a worker by itself, because as many are asked for as may be used; one of another
       dr_jax or JAX, or with another clock, is refused; each version's weights lie once in Ray's object store, and the worker
       fetches them from there, one array at a time, while it draws with what it has
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import numpy as np
import ray

from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.model.decoder import Weights
from dr_jax.sharding import hosts
from dr_jax.train.compiled import keep_compiled
from dr_jax.train.elastic.cluster import answered, arrived, connected, staffed, taking
from dr_jax.train.elastic.facts import Facts, ahead_s, difference, facts
from dr_jax.train.elastic.hand import FarHand
from dr_jax.train.elastic.pool import Pool
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.elastic.wire import Ask, LostError, News
from dr_jax.train.elastic.worker import Spec, Worker, hired

_log = logger(__name__)


class Stored(Mapping[str, np.ndarray]):
    """Weights in Ray's object store, by name; each is fetched when it is looked at.

    Args:
        refs: by name.
    """

    def __init__(self, refs: Mapping[str, Any]) -> None:
        self.refs = refs

    def __getitem__(self, name: str) -> np.ndarray:
        return ray.get(self.refs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)


class RolloutWorker:
    """The actor: a `Worker` that is reached from afar."""

    async def facts(self) -> Facts:
        """Say what is installed here."""
        return facts()

    async def clock(self) -> float:
        """Say what time it is."""
        return time.time()

    async def open(self, spec: Spec, weights: Stored, version: int) -> None:
        """Build the engine and compile its programs."""
        keep_compiled()
        self._worker: Worker = await asyncio.to_thread(hired, spec, weights, version)

    async def take(self, asks: Sequence[Ask]) -> None:
        """See `Wire`."""
        await self._worker.take(asks)

    async def drop(self, numbers: Sequence[int]) -> None:
        """See `Wire`."""
        await self._worker.drop(numbers)

    async def news(self, wait_s: float) -> News:
        """See `Wire`."""
        return await self._worker.news(wait_s)

    async def adopt(self, weights: Stored, version: int) -> None:
        """See `Wire`."""
        await self._worker.adopt(weights, version)


class RayWire:
    """An actor, as a `Wire`.

    Args:
        actor: its handle.
        name: for people.
    """

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    async def take(self, asks: Sequence[Ask]) -> None:
        """See `Wire`."""
        await answered(self._actor.take.remote(list(asks)), self._name)

    async def drop(self, numbers: Sequence[int]) -> None:
        """See `Wire`."""
        await answered(self._actor.drop.remote(list(numbers)), self._name)

    async def news(self, wait_s: float) -> News:
        """See `Wire`."""
        return await answered(self._actor.news.remote(wait_s), self._name)

    async def adopt(self, weights: Mapping[str, Any], version: int) -> None:
        """See `Wire`."""
        await answered(self._actor.adopt.remote(weights, version), self._name)


class Crew:
    """All workers of a run; an asynchronous context manager.

    Args:
        settings: how many, and deadlines.
        spec: of their engines.
        weights: the first.
        version: of those.
        pool: that they join.
        metrics: counts `rollout/workers_lost`, `rollout/workers_refused`; times `rollout/publish_s`.
    """

    def __init__(self, settings: RaySettings, spec: Spec, weights: Weights, version: int, pool: Pool, metrics: Metrics) -> None:
        self._settings, self._spec, self._pool, self._metrics = settings, spec, pool, metrics
        self._first = (weights, version)
        self._stack = AsyncExitStack()
        self._hands: set[FarHand] = set()
        self.actors: dict[str, Any] = {}  # those in use, by name

    async def __aenter__(self) -> Crew:
        self._loop = asyncio.get_running_loop()
        await self._stack.enter_async_context(connected(self._settings))
        self._actor = ray.remote(RolloutWorker).options(
            **taking(self._settings.cpus, self._settings.gpus, self._settings.resource)
        )
        weights, version = self._first
        self._adopted(await asyncio.to_thread(self._put, weights), version)
        self._tasks = [asyncio.create_task(self._staff(number)) for number in range(self._settings.workers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def publish(self, weights: Weights, version: int) -> None:
        """Have every worker draw with these weights as soon as it has fetched them. From any thread; they are copied."""
        with timed(self._metrics, "rollout/publish_s"):
            stored = self._put(weights)
        self._loop.call_soon_threadsafe(self._adopted, stored, version)

    def _put(self, weights: Weights) -> Stored:
        return Stored({name: ray.put(hosts.whole(weight)) for name, weight in weights.items()})

    def _adopted(self, stored: Stored, version: int) -> None:
        self._stored, self._version = stored, version  # what was stored before is freed when nobody fetches it any more
        self._pool.newest = version
        for hand in self._hands:
            hand.publish(stored, version)
        self._pool.changed()

    async def _staff(self, number: int) -> None:
        """Keep one worker, for ever."""

        async def use(actor: Any, well: Callable[[], None]) -> None:
            hand = await self._hire(actor, f"rollout worker {number}.{time.time():.0f}")
            well()
            await self._keep(hand, actor)

        await staffed(self._actor.remote, use, self._settings.rest_s)

    async def _hire(self, actor: Any, name: str) -> FarHand:
        """Wait until an actor has a host, see whether that is fit, and open it.

        Raises:
            LostError: it is unfit, died, or took too long.
        """
        theirs = await arrived(actor.facts.remote(), name, str(self._settings))
        name = f"{name} on {theirs['host']}"
        asked = time.time()
        clock = await answered(actor.clock.remote(), name)
        refusal = difference(facts(), theirs, ahead_s(asked, clock, time.time()), self._settings.clock_s)
        if refusal:
            self._metrics.add("rollout/workers_refused")
            raise LostError(f"{name} is refused: {refusal}")
        stored, version = self._stored, self._version
        try:
            async with asyncio.timeout(self._settings.start_s):
                await answered(actor.open.remote(self._spec, stored, version), name)
        except TimeoutError:
            raise LostError(f"{name} was not ready after rollout.ray.start_s = {self._settings.start_s:g} s") from None
        room = self._settings.in_flight or self._spec.settings.slots
        return FarHand(name, RayWire(actor, name), room, version, self._settings, self._metrics)

    async def _keep(self, hand: FarHand, actor: Any) -> None:
        self._hands.add(hand)
        self.actors[hand.name] = actor
        if hand.version != self._version:  # published while it opened
            hand.publish(self._stored, self._version)
        self._pool.join(hand)
        _log.info("%s has joined", hand.name)
        try:
            why = await hand.run(self._pool.changed)
            self._metrics.add("rollout/workers_lost")
            _log.warning("%s; what it had begun goes on elsewhere", why)
        finally:
            self._hands.discard(hand)
            del self.actors[hand.name]
            self._pool.leave(hand)
