"""Decide what the device does next. Pure Python: no arrays, no clock, no threads.

In:    requests as they arrive, the page pool
Out:   Prefill (stretches of known ids to compute) or Decode (requests to draw ids for), and moves of pages to make first
Holds: first come, first served, except that who waits for a sibling's prompt lets others pass; the oldest running request
       always gets its pages, from the youngest if need be, so something always finishes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dr_jax.base.metrics import Metrics
from dr_jax.engine.moves import Move
from dr_jax.engine.pages import PagePool
from dr_jax.engine.request import Request

PREFILLS_IN_A_ROW = 8  # then those who are decoding get a turn


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ids `start` to `stop` of a request, computed together in one row."""

    request: Request
    start: int
    stop: int

    @property
    def ids(self) -> list[int]:
        """The ids themselves."""
        return self.request.ids[self.start : self.stop]

    @property
    def last(self) -> bool:
        """Whether the request's next id is drawn after it."""
        return self.stop == len(self.request.ids)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute these stretches in a call of `rows` rows."""

    stretches: tuple[Stretch, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Draw up to `tokens_per_call` ids for each of these.

    Args:
        requests: who draws.
        unread: most ids of each that were drawn and are not known here yet.
    """

    requests: tuple[Request, ...]
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves of pages, in order, and then the work."""

    moves: tuple[Move, ...]
    work: Prefill | Decode | None


@dataclass(slots=True)
class Scheduler:
    """Who waits, who runs, who is put back.

    Args:
        pool: of pages.
        slots: how many requests run at once.
        tokens_per_call: most ids that one decode call draws per request.
        prefill_rows: rows of the prefill calls that there are, rising.
        prefill_width: ids in one row of them.
    """

    pool: PagePool
    slots: int
    tokens_per_call: int
    prefill_rows: tuple[int, ...]
    prefill_width: int
    metrics: Metrics = field(default_factory=Metrics)
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    _in_a_row: int = 0
    _arrived: int = 0

    @property
    def requests(self) -> list[Request]:
        """Everybody who waits or runs."""
        return [*self.running, *self.waiting]

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self._arrived += 1
        request.number = self._arrived
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take a request out, finished or not; its pages become available."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def restart(self) -> None:
        """Forget all pages: the weights changed. Who is drawing keeps its own; who has not drawn yet starts again."""
        self.pool.forget()
        for request in [one for one in self.running if one.pending > 1 or not one.drawn]:
            self._put_back(request)

    def computed(self, request: Request, ids: Sequence[int]) -> None:
        """Note that keys and values of a running request's next ids are in its pages now."""
        assert request.lease is not None, "it runs"
        self.pool.filled(request.lease, ids)

    def plan(self) -> Plan:
        """Admit who fits and say what to do next; None as work when there is nothing to do."""
        work = self._next()
        return Plan(self.pool.moves(), work)

    def _next(self) -> Prefill | Decode | None:
        self._admit()
        prefilling = [request for request in self.running if request.pending > 1]
        decoding = len(prefilling) < len(self.running)
        if prefilling and not (decoding and self._in_a_row >= PREFILLS_IN_A_ROW):
            self._in_a_row += 1
            return self._prefill(prefilling)
        drawing = self._with_room()
        prefilling = [request for request in prefilling if request in self.running]
        self._in_a_row = 0
        if not drawing and prefilling:  # those who draw had to make room
            return self._prefill(prefilling)
        return Decode(tuple(drawing)) if drawing else None

    def ahead(self, work: Prefill | Decode) -> Plan | None:
        """Say what can follow this work before it is known what it draws; None when that must be known."""
        match work:
            case Prefill():
                if self._in_a_row >= PREFILLS_IN_A_ROW and any(request.pending == 1 for request in self.running):
                    return None
                self._admit()
                prefilling = [request for request in self.running if request.pending > 1]
                if prefilling:
                    self._in_a_row += 1
                    return Plan(self.pool.moves(), self._prefill(prefilling))
                return Plan(self.pool.moves(), None)
            case Decode(requests):
                if requests != tuple(self.running) or (self.waiting and len(self.running) < self.slots):
                    return None
                goes_on = [request.left > self.tokens_per_call for request in requests]
                if not any(goes_on) or (self.waiting and not all(goes_on)):
                    return None
                room = all(self.pool.reserve(one.lease, self._room(one, 2)) for one in requests if one.lease is not None)
                return Plan(self.pool.moves(), Decode(requests, unread=self.tokens_per_call)) if room else None

    def _admit(self) -> None:
        for request in list(self.waiting):
            if len(self.running) >= self.slots:
                break
            if self._sibling_is_computing(request):
                continue
            request.lease = self.pool.open(request.ids, self._room(request))
            if request.lease is None:
                break  # whoever comes later waits too: passing it would leave it waiting for ever
            self.metrics.add("engine/prefix_hit_tokens", request.cached)
            if request.lease.fetched:
                self.metrics.add("engine/parked_hit_tokens", request.lease.fetched)
            self.waiting.remove(request)
            self.running.append(request)
            self.running.sort(key=lambda one: one.number)

    def _sibling_is_computing(self, request: Request) -> bool:
        """Whether a running request is about to compute more of this one's ids than are known already."""
        computing = [one for one in self.running if one.pending > 1 and one.lease and self.pool.current(one.lease)]
        if not computing:
            return False
        known, ids = self.pool.known(request.ids), np.asarray(request.ids)
        return any(min(_common(np.asarray(one.ids), ids), len(ids) - 1) > known for one in computing)

    def _prefill(self, prefilling: list[Request]) -> Prefill:
        width = self.prefill_width
        stretches: list[Stretch] = []
        for request in prefilling:
            for start in range(request.cached, len(request.ids), width):
                stretches.append(Stretch(request, start, min(start + width, len(request.ids))))
        # Empty rows cost as much as full ones: a call is taken when it is nearly full, or else the next smaller one.
        rows = next((rows for rows in reversed(self.prefill_rows) if len(stretches) >= 0.75 * rows), self.prefill_rows[0])
        return Prefill(tuple(stretches[:rows]), rows)

    def _with_room(self) -> list[Request]:
        """Give everybody who draws, oldest first, pages for one call; take them from the youngest when they run out."""
        drawing: list[Request] = []
        for request in list(self.running):
            if request.lease is None or request.pending > 1:
                continue
            while not self.pool.reserve(request.lease, self._room(request)):
                youngest = self.running[-1]
                self.metrics.add("engine/preempted")
                self._put_back(youngest)
                if youngest is request:
                    break
            if request.lease is not None:
                drawing.append(request)
        return drawing

    def _room(self, request: Request, calls: int = 1) -> int:
        # The last id drawn in a call is not computed in it.
        return len(request.ids) - 1 + min(calls * self.tokens_per_call, request.left)

    def _put_back(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        self._queue_again(request)

    def _queue_again(self, request: Request) -> None:
        # It came before those who have not run yet, and keeps its place among the others.
        place = len(self.waiting)
        while place and self.waiting[place - 1].number > request.number:
            place -= 1
        self.waiting.insert(place, request)

    def _release(self, request: Request) -> None:
        if request.lease is not None:
            self.pool.release(request.lease)
            request.lease = None


def _common(left: np.ndarray, right: np.ndarray) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
