"""Keep groups in flight across updates, whatever the trainer is doing meanwhile.

In:    questions as they are drawn, how to run the group of one, the oldest weights that the next update may learn from
Out:   the groups of one update after another, each as soon as there are enough of them
Holds: groups are begun and gathered while nobody asks for them, too; none is begun that is likely to be too old when its turn
       comes; who is sure to be is cancelled, and its question given back once; closing this ends every task
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType

from dr_jax.base.metrics import Metrics
from dr_jax.data.stream import Stream
from dr_jax.rollout.harvest import Harvest
from dr_jax.rollout.underway import Flight, UnderWay
from dr_jax.tokens.trajectory import Group

_PAUSE_S = 0.001  # in which a signal or a cancellation is noticed, however many groups are waiting


Fly = Callable[[Flight], Awaitable[Group]]


class Flights:
    """All groups under way; an asynchronous context manager.

    What is cancelled for its age is counted: `rollout/cancelled_groups`, the episodes of theirs that had begun
    `rollout/cancelled_episodes`, those that were complete and became too old while they waited `rollout/stale_groups`.

    Args:
        stream: of questions, which those that are retired are given back to.
        under_way: draws questions, and keeps what is known of groups that have not ended.
        harvest: gathers those that have ended.
        fly: runs a group, as `run_group` does when it is given the flight.
        at_once: groups under way together.
        staleness: versions that a token may be behind the weights that learn from it. With 0 nothing is begun between the
            taking of an update's groups and the next asking: it would be drawn with the weights that are being replaced.
        most: groups under way, waiting to be taken, and being learned from, together. With more than those of
            `staleness + 1` updates some will be too old when it is their turn, unless others are given up before them.
        metrics: of the run.
    """

    def __init__(
        self,
        stream: Stream,
        under_way: UnderWay,
        harvest: Harvest,
        fly: Fly,
        *,
        at_once: int,
        staleness: int,
        most: int,
        metrics: Metrics,
    ) -> None:
        self._stream, self._under_way, self._harvest, self._fly, self._metrics = stream, under_way, harvest, fly, metrics
        self._at_once, self._staleness, self._most = at_once, staleness, most
        self._running: dict[Flight, asyncio.Task[Group]] = {}
        self._ending: set[asyncio.Task[Group]] = set()  # cancelled, and not over yet
        self._limit = 0  # the oldest version that may be learned from next
        self._begins = False
        self._learning = 0  # groups that are being learned from
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    async def take(self, version: int) -> list[Group]:
        """Return the groups of one update as soon as there are enough, those with the oldest tokens first.

        Args:
            version: of the weights that will learn from them. The update after it is taken to be of `version + 1`, until the
                next asking says otherwise: an update that finds nothing to learn leaves the version as it is.

        Raises:
            WorldDownError: the world fails one group after another, or has been down for too long.
        """
        await asyncio.sleep(_PAUSE_S)
        self._begins, self._learning = True, 0
        self._give_up_below(version - self._staleness)
        self._fill()
        while self._error is None and self._harvest.missing:
            self._changed.clear()
            await self._changed.wait()
        return self.take_at_once(version)

    def take_at_once(self, version: int) -> list[Group]:
        """Return what there is, up to the groups of one update; see `take`.

        Raises:
            WorldDownError: as `take`.
        """
        if self._error is not None:
            raise self._error
        taken = self._harvest.take()
        self._begins, self._learning = self._staleness > 0, sum(bool(group.trainable) for group in taken)
        self._give_up_below(version + 1 - self._staleness)
        self._fill()
        return taken

    async def __aenter__(self) -> Flights:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel everybody; their questions stay in flight, and how far they are stays known to whoever saves it."""
        self._begins = False
        tasks = [*self._running.values(), *self._ending]
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        """Begin as many groups as there is room for."""
        while (
            self._begins
            and self._error is None
            and len(self._running) < self._at_once
            and len(self._running) + len(self._harvest.waiting) + self._learning < self._most
            and (self._staleness or self._harvest.missing)
        ):
            flight = self._under_way.next(self._limit)
            flight.aged = self._noted
            task = asyncio.create_task(self._flown(flight))
            self._running[flight] = task
            task.add_done_callback(partial(self._landed, flight))
        self._metrics.gauge("rollout/groups_in_flight", len(self._running))

    async def _flown(self, flight: Flight) -> Group:
        return await self._fly(flight)

    def _landed(self, flight: Flight, task: asyncio.Task[Group]) -> None:
        """Gather a group that has ended, unless it was given up before."""
        self._ending.discard(task)
        found = asyncio.CancelledError() if task.cancelled() else task.exception()
        given_up = self._running.pop(flight, None) is None  # then what it ended with concerns nobody
        try:
            if not given_up:
                if found is not None:
                    raise found
                self._under_way.land(flight)
                self._gather(task.result())
            self._fill()
        # Nobody awaits this: whatever it is, it is raised where the groups are asked for.
        except BaseException as error:  # noqa: BLE001
            self._error = self._error or error
        self._changed.set()

    def _gather(self, group: Group) -> None:
        if group.oldest_version is not None and group.oldest_version < self._limit:
            self._retire(group)
        else:
            self._harvest.add(group)

    def _noted(self, flight: Flight) -> None:
        """Give up a flight that turns out to be too old; another is begun when it is over."""
        if flight in self._running and flight.oldest is not None and flight.oldest < self._limit:
            self._cancel(flight)

    def _give_up_below(self, oldest: int) -> None:
        """Give up what is older, on the way or complete: the next update will not learn from it."""
        self._limit = oldest
        for flight in [one for one in self._running if one.oldest is not None and one.oldest < self._limit]:
            self._cancel(flight)
        for group in self._harvest.retire(self._limit):
            self._retire(group)

    def _cancel(self, flight: Flight) -> None:
        task = self._running[flight]
        if task.done():
            return  # it is about to land, and is given back there
        del self._running[flight]
        self._ending.add(task)
        task.cancel()
        self._under_way.give_up(flight)
        self._metrics.add("rollout/cancelled_groups")
        self._metrics.add("rollout/cancelled_episodes", flight.opened)

    def _retire(self, group: Group) -> None:
        self._stream.give_back(group.question_id, group.epoch, failed=False)
        self._metrics.add("rollout/stale_groups")
