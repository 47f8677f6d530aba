"""The policy that many draw for: each request goes to one of them, and on to another when that one is lost.

In:    requests, as to any policy; hands that join and leave; the newest version of the weights
Out:   `Sampled`, once for each request
Holds: an episode's turns go to the hand that has its pages, and its siblings' too, while that has room; a hand whose weights
       are older than the bound is asked for nothing; what was drawn by a hand that is lost is not drawn again, nor twice;
       with nobody to ask, those who wait are told so after a deadline
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dr_jax.base.errors import DrJaxError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.tokens.policy import Begun, Policy, RequestKey, Sampled, Sampling, Told, joined
from dr_jax.train.elastic.hand import Hand
from dr_jax.train.elastic.wire import LostError

_log = logger(__name__)
_REMEMBERED = 1 << 16  # episodes and groups whose hand is known


class DesertedError(DrJaxError):
    """There has been nobody to draw for too long."""


@dataclass(eq=False, slots=True)
class _Seat:
    """A hand, and how many requests it has."""

    hand: Hand
    taken: int = 0
    leaving: bool = False

    @property
    def load(self) -> float:
        """Share of its room that is taken."""
        return self.taken / self.hand.room


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request that no hand has taken yet."""

    key: RequestKey
    staleness: int
    seat: asyncio.Future[_Seat] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Pool:
    """Spreads requests over hands; implements `tokens.policy.Policy`. It belongs to one event loop.

    It counts `rollout/migrated` (requests that went on elsewhere) and `rollout/carried_tokens` (what had been drawn of them by
    then); it gauges `rollout/hands` and `rollout/queued`.

    Args:
        staleness: how many versions a hand may be behind the newest weights and still be asked for something.
        alone_s: how long requests wait when nobody at all could take them.
        metrics: of the run.
    """

    def __init__(self, *, staleness: int, alone_s: float, metrics: Metrics) -> None:
        self._staleness, self._alone_s, self._metrics = staleness, alone_s, metrics
        self.newest = 0
        self._seats: list[_Seat] = []
        self._waiters: list[_Waiter] = []
        self._homes: OrderedDict[tuple[object, ...], _Seat] = OrderedDict()
        self._alone: asyncio.TimerHandle | None = None

    @property
    def hands(self) -> tuple[Hand, ...]:
        """Those that may be asked, and those that are leaving."""
        return tuple(seat.hand for seat in self._seats)

    def join(self, hand: Hand) -> None:
        """Ask this hand, too."""
        self._seats.append(_Seat(hand))
        self.changed()

    def drain(self, hand: Hand) -> None:
        """Ask this hand for nothing more; what it has, it may end."""
        for seat in self._seats:
            if seat.hand is hand:
                seat.leaving = True
        self._forget(hand)
        self.changed()

    def leave(self, hand: Hand) -> None:
        """Forget a hand; a second time does nothing."""
        self._seats = [seat for seat in self._seats if seat.hand is not hand]
        self._forget(hand)
        self.changed()

    def exact(self) -> Policy:
        """Return the same policy, drawing with the newest weights only: what an evaluation measures."""
        return _Exact(self)

    async def sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, *, staleness: int | None = None
    ) -> Sampled:
        """Draw a continuation; see `continued`, which goes on from nothing here."""
        return await self.continued(prompt_ids, sampling, key, Begun(), staleness=staleness)

    async def continued(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        key: RequestKey,
        begun: Begun,
        told: Told | None = None,
        *,
        staleness: int | None = None,
    ) -> Sampled:
        """Draw what is left of a continuation; see `tokens.policy`.

        Args:
            prompt_ids, sampling, key, begun, told: as everywhere.
            staleness: versions that the hand may be behind, if not as many as the pool allows.

        Raises:
            DesertedError: there was nobody to draw for too long.
        """

        drawn = [begun]

        def noted(more: Begun) -> None:
            drawn.append(more)
            if told is not None:
                told(more)

        while True:
            seat = await self._seat(key, self._staleness if staleness is None else staleness)
            try:
                return await seat.hand.sample(prompt_ids, sampling, key, begun, noted)
            except LostError as error:
                begun = joined(drawn)
                self._metrics.add("rollout/migrated")
                self._metrics.add("rollout/carried_tokens", len(begun.ids))
                _log.debug("%s goes on elsewhere after %d ids: %s", key, len(begun.ids), error)
                self.leave(seat.hand)
            finally:
                seat.taken -= 1
                self.changed()
            if (whole := begun.ended(sampling)) is not None:
                return whole

    def changed(self) -> None:
        """Give those who wait to hands that have become free, or whose weights have; first come, first served."""
        left: list[_Waiter] = []
        free = any(seat.taken < seat.hand.room for seat in self._seats)
        for waiter in self._waiters:
            if waiter.seat.done():
                continue
            seat = self._chosen(waiter) if free else None
            if seat is None:
                left.append(waiter)
                continue
            seat.taken += 1
            self._remember(waiter.key, seat)
            waiter.seat.set_result(seat)
        self._waiters = left
        self._metrics.gauge("rollout/hands", len(self._seats))
        self._metrics.gauge("rollout/queued", len(left))
        self._watch()

    async def _seat(self, key: RequestKey, staleness: int) -> _Seat:
        waiter = _Waiter(key, staleness)
        self._waiters.append(waiter)
        self.changed()
        try:
            return await waiter.seat
        except asyncio.CancelledError:
            if waiter.seat.done() and not waiter.seat.cancelled() and waiter.seat.exception() is None:
                waiter.seat.result().taken -= 1  # it was given a place, and does not come
                self.changed()
            raise

    def _chosen(self, waiter: _Waiter) -> _Seat | None:
        """The hand that has the episode's pages, or its siblings', or else the one with the least to do; None: all are full."""
        able = [
            seat
            for seat in self._seats
            if not seat.leaving and seat.taken < seat.hand.room and self.newest - seat.hand.version <= waiter.staleness
        ]
        for home in _homes(waiter.key):
            if (seat := self._homes.get(home)) in able:
                return seat
        return min(able, key=lambda seat: seat.load, default=None)

    def _remember(self, key: RequestKey, seat: _Seat) -> None:
        for home in _homes(key):
            self._homes[home] = seat
            self._homes.move_to_end(home)
        while len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)

    def _forget(self, hand: Hand) -> None:
        for home in [home for home, seat in self._homes.items() if seat.hand is hand]:
            del self._homes[home]

    def _watch(self) -> None:
        """Begin to count the time when somebody waits and nobody is there who could come to be free."""
        deserted = bool(self._waiters) and all(seat.leaving for seat in self._seats)
        if not deserted and self._alone is not None:
            self._alone.cancel()
            self._alone = None
        elif deserted and self._alone is None:
            self._alone = asyncio.get_running_loop().call_later(self._alone_s, self._desert)

    def _desert(self) -> None:
        self._alone = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.seat.done():
                waiter.seat.set_exception(
                    DesertedError(
                        f"No worker has been there to draw for {self._alone_s:g} s (rollout.ray.alone_s); the run stops"
                    )
                )


@dataclass(frozen=True, slots=True)
class _Exact:
    """A pool of which only those with the newest weights are asked."""

    pool: Pool

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        return await self.pool.sample(prompt_ids, sampling, key, staleness=0)


def _homes(key: RequestKey) -> tuple[tuple[object, ...], ...]:
    """What a hand may have pages of: the episode (or what it reads), then the question."""
    group = (key.run, key.question, key.purpose)
    return (*group, key.sibling), group
