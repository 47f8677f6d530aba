"""Keep the device busy: the next call is queued before what the last one drew is read.

In:    a scheduler that says what to do, a device that does it
Out:   requests with their ids; those that are finished are delivered
Holds: one call at most is queued behind the one that runs, and its rows go on from what that leaves on the device. A call that
       needs to know what was drawn (somebody new, somebody who ends, pages that run out) waits for it to be read
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from dr_jax.base.metrics import Metrics
from dr_jax.engine.device import Device, Launched, Rows
from dr_jax.engine.request import Request
from dr_jax.engine.scheduler import Decode, Mixed, Prefill, Scheduler, Work


@dataclass(frozen=True, slots=True)
class _Queued:
    """A call that was queued and not read yet."""

    work: Work
    launched: Launched
    version: int
    start: float


class Calls:
    """One device call after the other; used by the engine's thread alone.

    Args:
        scheduler: who is next.
        device: where it is computed.
        metrics: counts under `engine/`.
    """

    def __init__(self, scheduler: Scheduler, device: Device, metrics: Metrics) -> None:
        self.scheduler, self.device, self.metrics = scheduler, device, metrics
        self._queued: _Queued | None = None
        self._landed: float | None = None  # when the device was left without work, while there was some

    @property
    def under_way(self) -> bool:
        """Whether a call was queued and not read."""
        return self._queued is not None

    def step(self) -> None:
        """Queue what comes next, then read what was queued before it.

        Raises:
            RuntimeError: requests wait and nothing can be done for them.
        """
        queued, self._queued = self._queued, None
        plan = self.scheduler.ahead(queued.work) if queued is not None else self.scheduler.plan()
        if plan is not None:
            self.device.move(plan.moves)
            self._queued = self._launch(plan.work, queued) if plan.work is not None else None
        if queued is not None:
            self._read(queued)
        elif self._queued is None and self.scheduler.requests:
            raise RuntimeError("requests wait and nothing can be done for them")

    def land(self) -> None:
        """Read what is queued, so that nothing is under way: requests and weights can be changed now."""
        queued, self._queued = self._queued, None
        if queued is not None:
            self._read(queued)
        self._landed = None  # what others do now, an update among it, is not the engine's time

    def _launch(self, work: Work, after: _Queued | None) -> _Queued:
        start = time.perf_counter()
        if self._landed is not None and after is None:
            self.metrics.observe("engine/host_s", start - self._landed)
        before = after.launched if after is not None else None
        match work:
            case Prefill():
                launched = self.device.prefill(work)
                self._computed(work)
            case Decode():
                launched = self.device.decode(work, before)
            case Mixed(prefill):
                launched = self.device.mixed(work, before)
                self._computed(prefill)
        return _Queued(work, launched, self.device.version, start)

    def _computed(self, work: Prefill) -> None:
        for stretch in work.stretches:
            self.scheduler.computed(stretch.request, stretch.ids)
            self.metrics.add("engine/prefill_tokens", len(stretch.ids))

    def _read(self, call: _Queued) -> None:
        parts = self.device.read(call.launched)
        now = time.perf_counter()
        spent = now - max(call.start, self._landed or 0.0)
        self._landed = now
        match call.work:
            case Prefill() as prefill:
                self.metrics.observe("engine/prefill_s", spent)
                self._prefilled(prefill, parts[0], call.version)
            case Decode() as decode:
                self.metrics.observe("engine/decode_s", spent)
                self._decoded(decode, parts[0], call.version)
            case Mixed(prefill, decode):
                self.metrics.observe("engine/mixed_s", spent)
                self._prefilled(prefill, parts[0], call.version)
                self._decoded(decode, parts[1], call.version)
        if not self.scheduler.requests:
            self._landed = None

    def _prefilled(self, work: Prefill, drawn: Rows, version: int) -> None:
        for stretch, (ids, logprobs) in zip(work.stretches, drawn, strict=True):
            if stretch.last:
                self._drew(stretch.request, ids, logprobs, version)

    def _decoded(self, work: Decode, drawn: Rows, version: int) -> None:
        self.metrics.observe("engine/slots_busy", sum(not request.finished for request in work.requests))
        for request, (ids, logprobs) in zip(work.requests, drawn, strict=True):
            if ids:
                self.scheduler.computed(request, [request.ids[-1], *ids[:-1]])
                self.metrics.add("engine/decode_tokens", len(ids))
                self._drew(request, ids, logprobs, version)

    def _drew(self, request: Request, ids: list[int], logprobs: list[float], version: int) -> None:
        request.append(ids, logprobs, version)
        if request.finished:
            self.scheduler.remove(request)
            request.deliver(request.result())
