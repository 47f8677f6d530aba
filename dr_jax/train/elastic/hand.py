"""Those who draw for a run: its own engine, and workers elsewhere.

In:    a request, with what was drawn of it before
Out:   `Sampled`; on the way there, what was drawn
Fails: LostError when a worker is gone; what it had told is not lost
Holds: every call to a worker has a deadline; when `run` ends, everybody who waits for that worker has been told
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dr_jax.base.errors import DrJaxError
from dr_jax.base.metrics import Metrics
from dr_jax.engine.engine import Engine
from dr_jax.tokens.policy import Begun, RequestKey, Sampled, Sampling, Told
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.elastic.wire import Ask, LostError, News, Wire

Answer = TypeVar("Answer")


class Hand(Protocol):
    """Somebody who draws."""

    name: str
    room: int

    @property
    def version(self) -> int:
        """Of the weights that it draws with, as far as is known."""
        ...

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, begun: Begun, told: Told) -> Sampled:
        """Draw what is left of a continuation.

        Raises:
            LostError: it is gone; what it had drawn was told.
        """
        ...


class OwnHand:
    """The engine of this process.

    Args:
        engine: it.
        room: how many requests it is given at once.
    """

    def __init__(self, engine: Engine, room: int) -> None:
        self.name, self.room, self._engine = "the trainer's own engine", room, engine

    @property
    def version(self) -> int:
        """Of its weights."""
        return self._engine.version

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, begun: Begun, told: Told) -> Sampled:
        """Draw; see `Hand`."""
        return await self._engine.continued(prompt_ids, sampling, key, begun, told)


@dataclass(slots=True)
class _Waiting:
    """Somebody who waits for a worker."""

    answer: asyncio.Future[Sampled]
    sampling: Sampling
    begun: Begun
    told: Told


class FarHand:
    """A worker elsewhere.

    Args:
        name: for people.
        wire: how it is reached.
        room: how many requests it is given at once.
        version: of the weights that it began with.
        settings: deadlines.
        metrics: counts `rollout/drawn_elsewhere`, ids.
    """

    def __init__(self, name: str, wire: Wire, room: int, version: int, settings: RaySettings, metrics: Metrics) -> None:
        self.name, self.room, self.version = name, room, version
        self._wire, self._settings, self._metrics = wire, settings, metrics
        self._numbers = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._asks: list[Ask] = []
        self._dropped: list[int] = []
        self._spoken = asyncio.Event()
        self._newer: tuple[Mapping[str, Any], int] | None = None
        self._published = asyncio.Event()
        self._gained = time.monotonic()  # when it last told of something drawn, or began to have something to draw
        self._lost: LostError | None = None

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, begun: Begun, told: Told) -> Sampled:
        """Draw; see `Hand`. Cancelling the awaiting task has the worker drop the request."""
        if self._lost is not None:
            raise self._lost
        number = next(self._numbers)
        if not self._waiting:
            self._gained = time.monotonic()
        waiting = _Waiting(asyncio.get_running_loop().create_future(), sampling, begun, told)
        self._waiting[number] = waiting
        self._asks.append(Ask(number, tuple(prompt_ids), sampling, key, begun))
        self._spoken.set()
        try:
            return await waiting.answer
        finally:
            self._waiting.pop(number, None)
            if waiting.answer.cancelled():
                self._dropped.append(number)
                self._spoken.set()

    def publish(self, weights: Mapping[str, Any], version: int) -> None:
        """Have the worker adopt weights as soon as it has adopted those before; those that are overtaken are left out."""
        self._newer = (weights, version)
        self._published.set()

    async def run(self, changed: Callable[[], None]) -> LostError:
        """Talk with the worker until it is lost, and return why.

        Args:
            changed: called when it draws with newer weights.
        """
        tasks = [asyncio.create_task(one) for one in (self._listen(changed), self._speak(), self._carry())]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            error = next(iter(ended)).exception()
            if not isinstance(error, DrJaxError):
                raise error or AssertionError("they talk for ever")
            return error if isinstance(error, LostError) else LostError(str(error))
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            self.give_up(next((end for end in ends if isinstance(end, LostError)), LostError(f"{self.name} was given up")))

    def give_up(self, why: LostError) -> None:
        """Tell everybody who waits that nothing more will come from here."""
        self._lost = self._lost or why
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(why)

    async def _listen(self, changed: Callable[[], None]) -> None:
        while True:
            news = await self._within(self._wire.news(self._settings.report_s), self._settings.silent_s, "said nothing")
            self._hear(news)
            if news.version != self.version:
                self.version = news.version
                changed()
            if self._waiting and time.monotonic() - self._gained > self._settings.stalled_s:
                raise LostError(f"{self.name} is alive, and has drawn nothing for {self._settings.stalled_s:g} s")

    def _hear(self, news: News) -> None:
        if news.drawn or not self._waiting:
            self._gained = time.monotonic()
        for number, more in news.drawn.items():
            self._metrics.add("rollout/drawn_elsewhere", len(more.ids))
            waiting = self._waiting.get(number)
            if waiting is None or waiting.answer.done():
                continue  # dropped meanwhile
            waiting.begun = waiting.begun.then(more)
            waiting.told(more)
            if (whole := waiting.begun.ended(waiting.sampling)) is not None:
                waiting.answer.set_result(whole)
        for number, error in news.refused.items():
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting.answer.done():
                waiting.answer.set_exception(error)

    async def _speak(self) -> None:
        while True:
            await self._spoken.wait()
            self._spoken.clear()
            asks, self._asks = self._asks, []
            dropped, self._dropped = self._dropped, []
            if asks:
                await self._within(self._wire.take(asks), self._settings.silent_s, "did not take what it was asked for")
            if dropped:
                await self._within(self._wire.drop(dropped), self._settings.silent_s, "did not drop what it was told to")

    async def _carry(self) -> None:
        while True:
            await self._published.wait()
            self._published.clear()
            assert self._newer is not None
            await self._within(self._wire.adopt(*self._newer), self._settings.start_s, "did not take up newer weights")

    async def _within(self, call: Awaitable[Answer], seconds: float, otherwise: str) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError:
            raise LostError(f"{self.name} {otherwise} for {seconds:g} s") from None
