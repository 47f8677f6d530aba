"""Decide what the device does next. Pure Python: no arrays, no clock, no threads.

In:    requests as they arrive, the page pool
Out:   Prefill (stretches of known ids to compute), Decode (requests to draw ids for) or Mixed (both in one call), and moves of
       pages to make first
Holds: first come, first served, except that who waits for a sibling's prompt lets others pass; the oldest running request
       always gets its pages, from the youngest if need be, so something always finishes; who draws gets an id in every call,
       however much is to be prefilled
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dr_jax.base.metrics import Metrics
from dr_jax.engine.moves import Move
from dr_jax.engine.pages import PagePool
from dr_jax.engine.request import Request


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
    """Draw up to `tokens_per_call` ids, or one in a mixed call, for each of these.

    Args:
        requests: who draws.
        unread: most ids of each that were drawn and are not known here yet.
    """

    requests: tuple[Request, ...]
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Mixed:
    """Compute stretches and draw one id of each who draws, in one call: the weights are read once for both."""

    prefill: Prefill
    decode: Decode


Work = Prefill | Decode | Mixed


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves of pages, in order, and then the work."""

    moves: tuple[Move, ...]
    work: Work | None


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

    def _next(self) -> Work | None:
        self._admit()
        drawing = self._with_room(1) if self._prefilling() else []
        prefilling = self._prefilling()  # those who draw may have needed somebody's room
        if not prefilling:
            drawing = self._with_room(self.tokens_per_call)
            return Decode(tuple(drawing)) if drawing else None
        prefill = self._prefill(prefilling)
        return Mixed(prefill, Decode(tuple(drawing))) if drawing else prefill

    def ahead(self, work: Work) -> Plan | None:
        """Say what can follow this work before it is known what it draws; None when that must be known."""
        drawing: tuple[Request, ...] = ()
        count = 1
        match work:
            case Mixed(_, Decode(drawing)):
                pass
            case Decode(drawing):
                count = self.tokens_per_call
        if drawing != tuple(request for request in self.running if request.pending == 1):
            return None  # somebody has come to draw
        goes_on = [request.left > count for request in drawing]
        if self.waiting and not all(goes_on):
            return None
        if isinstance(work, Decode):
            if not any(goes_on) or (self.waiting and len(self.running) < self.slots) or not self._reserved(drawing, 2 * count):
                return None
            return Plan(self.pool.moves(), Decode(drawing, unread=count))
        self._admit()
        prefilling = self._prefilling()
        if not prefilling:
            return Plan(self.pool.moves(), None)
        if not any(goes_on):
            return Plan(self.pool.moves(), self._prefill(prefilling))
        if not self._reserved(drawing, 2 * count):
            return None
        return Plan(self.pool.moves(), Mixed(self._prefill(prefilling), Decode(drawing, unread=count)))

    def _prefilling(self) -> list[Request]:
        return [request for request in self.running if request.pending > 1]

    def _admit(self) -> None:
        computing = [one for one in self.running if self._computes(one)]
        for request in list(self.waiting):
            if len(self.running) >= self.slots:
                break
            if computing and self._known_soon(request, computing):
                continue
            request.lease = self.pool.open(request.ids, self._room(request, self.tokens_per_call))
            if request.lease is None:
                break  # whoever comes later waits too: passing it would leave it waiting for ever
            self.metrics.add("engine/prefix_hit_tokens", request.cached)
            if request.lease.fetched:
                self.metrics.add("engine/parked_hit_tokens", request.lease.fetched)
            self.waiting.remove(request)
            self.running.append(request)
            self.running.sort(key=lambda one: one.number)
            if self._computes(request):
                computing.append(request)

    def _computes(self, request: Request) -> bool:
        """Whether it is about to compute pages that others can share."""
        return request.pending > 1 and request.lease is not None and self.pool.current(request.lease)

    def _known_soon(self, request: Request, computing: Sequence[Request]) -> bool:
        """Whether one of these, a sibling, is about to compute more of the request's ids than are known already."""
        more = self.pool.known(request.ids) + 1
        begins = request.ids[:more]
        return more < len(request.ids) and any(one.ids[:more] == begins for one in computing)

    def _prefill(self, prefilling: list[Request]) -> Prefill:
        width = self.prefill_width
        stretches: list[Stretch] = []
        for request in prefilling:
            for start in range(request.cached, len(request.ids), width):
                stretches.append(Stretch(request, start, min(start + width, len(request.ids))))
        # Empty rows cost as much as full ones: a call is taken when it is nearly full, or else the next smaller one.
        rows = next((rows for rows in reversed(self.prefill_rows) if len(stretches) >= 0.75 * rows), self.prefill_rows[0])
        return Prefill(tuple(stretches[:rows]), rows)

    def _with_room(self, count: int) -> list[Request]:
        """Give everybody who draws, oldest first, pages for so many ids; take them from the youngest when they run out."""
        drawing: list[Request] = []
        for request in list(self.running):
            if request.lease is None or request.pending > 1:
                continue
            while not self.pool.reserve(request.lease, self._room(request, count)):
                youngest = self.running[-1]
                self.metrics.add("engine/preempted")
                self._put_back(youngest)
                if youngest is request:
                    break
            if request.lease is not None:
                drawing.append(request)
        return drawing

    def _reserved(self, drawing: Sequence[Request], count: int) -> bool:
        """Try to give all of these pages for so many ids."""
        return all(self.pool.reserve(one.lease, self._room(one, count)) for one in drawing if one.lease is not None)

    def _room(self, request: Request, count: int) -> int:
        # The last id drawn in a call is not computed in it.
        return len(request.ids) - 1 + min(count, request.left)

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
