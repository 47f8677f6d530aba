"""Be polite: bound how many requests are under way, to one host and to all, and how often a host is asked.

In:    a host name
Out:   a slot, for as long as a block lasts
Holds: what is remembered of hosts is bounded; waiting for a slot has a deadline
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiolimiter import AsyncLimiter

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics


class QueueError(Exception):
    """No slot became free in time."""


@dataclass(frozen=True, slots=True)
class PaceSettings:
    """How much is asked of the web.

    Args:
        concurrent: pages in memory at a time, from their first byte until they are read.
        per_host: requests under way to one host.
        own: requests under way to servers of ours; more than such a server's backlog would wait a second for their connection.
        per_host_per_s: requests to one host, in a second, after a burst of `per_host`.
        queue_s: how long a request may wait for its turn.
        hosts: how many hosts are remembered.
    """

    concurrent: int = 256
    per_host: int = 4
    own: int = 64
    per_host_per_s: float = 4.0
    queue_s: float = 60.0
    hosts: int = 4096

    def __post_init__(self) -> None:
        for name in ("concurrent", "per_host", "own", "per_host_per_s", "queue_s", "hosts"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")


class Slots:
    """Gives out places at one destination: so many at a time, so many in a second.

    Args:
        at_once: places.
        per_s: how many are given out in a second, after a burst of `burst`; None is any number.
        burst: how many may follow each other at once.
        told: hears how many wait, whenever that changes.
    """

    def __init__(
        self, at_once: int, per_s: float | None, burst: int, told: Callable[[int], None] = lambda waiting: None
    ) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._rate = None if per_s is None else AsyncLimiter(burst, burst / per_s)
        self._told, self._waiting = told, 0
        self.users = 0

    @asynccontextmanager
    async def slot(self, queue_s: float) -> AsyncIterator[None]:
        """Hold a place for as long as the block lasts.

        Raises:
            QueueError: none became free within `queue_s` seconds.
        """
        self.users += 1
        try:
            await self._turn(queue_s)
            try:
                yield
            finally:
                self._places.release()
        finally:
            self.users -= 1

    async def _turn(self, queue_s: float) -> None:
        self._wait(1)
        try:
            async with asyncio.timeout(queue_s):
                await self._places.acquire()
                try:
                    if self._rate is not None:
                        await self._rate.acquire()
                except BaseException:
                    self._places.release()
                    raise
        except TimeoutError:
            raise QueueError from None
        finally:
            self._wait(-1)

    def _wait(self, change: int) -> None:
        self._waiting += change
        self._told(self._waiting)


class Place:
    """The place of one page among all that are in memory, from its first byte until it is read. A context manager.

    Nobody who waits for a host holds one: a host with a long queue would keep everybody else waiting.

    Args:
        slots: gives the places out.
        queue_s: how long one may be waited for.
    """

    def __init__(self, slots: Slots, queue_s: float) -> None:
        self._slots, self._queue_s = slots, queue_s
        self._held: AbstractAsyncContextManager[None] | None = None

    async def take(self) -> None:
        """Hold it, if it is not held.

        Raises:
            WorldDownError: none became free in time.
        """
        if self._held is None:
            slot = self._slots.slot(self._queue_s)
            try:
                await slot.__aenter__()
            except QueueError:
                raise WorldDownError("A page was not opened: too many pages are being opened") from None
            self._held = slot

    async def free(self) -> None:
        """Give it back, if it is held."""
        if self._held is not None:
            held, self._held = self._held, None
            await held.__aexit__(None, None, None)

    async def __aenter__(self) -> Place:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.free()


class Pace:
    """Slots for every host that is asked, for servers of our own, and for all together.

    Args:
        settings: the limits.
        metrics: `web/queue` is how many pages wait for a place in memory.
    """

    def __init__(self, settings: PaceSettings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self._hosts: OrderedDict[str, Slots] = OrderedDict()
        self.own = Slots(settings.own, None, 1)
        self._all = Slots(settings.concurrent, None, 1, partial((metrics or Metrics()).gauge, "web/queue"))

    def place(self) -> Place:
        """Return the place of one page, not held yet."""
        return Place(self._all, self.settings.queue_s)

    @asynccontextmanager
    async def host(self, host: str, *, own: bool = False) -> AsyncIterator[None]:
        """Hold a slot at a host.

        Args:
            host: its name.
            own: whether it is a server of ours, which needs little politeness.

        Raises:
            QueueError: the host's queue is too long.
        """
        if own:
            async with self.own.slot(self.settings.queue_s):
                yield
            return
        if host not in self._hosts:
            self._forget_one()
            self._hosts[host] = Slots(self.settings.per_host, self.settings.per_host_per_s, self.settings.per_host)
        self._hosts.move_to_end(host)
        async with self._hosts[host].slot(self.settings.queue_s):
            yield

    def _forget_one(self) -> None:
        """When as many hosts are known as may be, drop the one that was asked longest ago and that nobody waits for."""
        if len(self._hosts) >= self.settings.hosts:
            idle = next((host for host, slots in self._hosts.items() if not slots.users), None)
            if idle is not None:
                del self._hosts[idle]
