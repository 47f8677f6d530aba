"""Leave a provider alone that keeps failing, try it once in a while, and come back to it by itself.

In:    whether each request to it went well
Out:   whether the next one may be made
Holds: closed -> open after failures in a row -> half-open when its time is over: one probe -> closed, or open for twice as
       long; what was asked before the last change says nothing about the time after it
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.web.search.settings import BreakerSettings

_LOG = logger(__name__)
_SHOWN = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to make one request; it goes back to the breaker with how that went."""

    change: int
    probe: bool


class Breaker:
    """The breaker of one provider.

    Args:
        name: of the provider.
        settings: when it opens, for how long.
        metrics: `search/<name>/breaker` is 0 closed, 0.5 half-open, 1 open; counts `search/<name>/breaker_opened`.
        clock: seconds.
        under: in place of `search`, for what is no search provider.
    """

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        under: str = "search",
    ) -> None:
        self._name, self._settings, self._metrics, self._clock = f"{under}/{name}", settings, metrics, clock
        self._in_a_row, self._change = 0, 0
        self._open_s, self._until = settings.open_s, 0.0
        self._open, self._probing = False, False
        self.why = ""
        self._show()

    @property
    def state(self) -> Literal["closed", "half_open", "open"]:
        """Closed: ask it. Open: do not. Half-open: its time is over, and one request is to find out."""
        if not self._open:
            return "closed"
        return "half_open" if self._probing or not self.due_s else "open"

    @property
    def due_s(self) -> float:
        """Seconds until it may be probed."""
        return max(0.0, self._until - self._clock()) if self._open else 0.0

    def enter(self) -> Ticket | None:
        """Return leave to make a request, or None: not now."""
        if not self._open:
            return Ticket(self._change, probe=False)
        if self._probing or self.due_s:
            return None
        self._probing = True
        self._show()
        return Ticket(self._change, probe=True)

    def went_well(self, ticket: Ticket) -> None:
        """Count a request that was answered."""
        if ticket.change != self._change:
            return
        self._in_a_row = 0
        if self._open:
            self._open, self._probing, self._open_s, self.why = False, False, self._settings.open_s, ""
            self._change += 1
            self._show()
            _LOG.info("%s is back", self._name)

    def failed(self, ticket: Ticket, why: str, *, for_s: float | None = None, for_good: bool = False) -> None:
        """Count a request that failed.

        Args:
            ticket: its leave.
            why: one sentence.
            for_s: how long the provider asked to be left alone.
            for_good: time alone will not cure it.
        """
        if ticket.change != self._change:
            return
        self._in_a_row += 1
        if not (self._open or for_good or for_s is not None or self._in_a_row >= self._settings.failures):
            return
        wait = self._settings.most_s if for_good else max(self._open_s, for_s or 0.0)
        self._open_s = min(2 * self._open_s, self._settings.most_s)
        self._open, self._probing, self._in_a_row, self.why = True, False, 0, why
        self._until = self._clock() + min(wait, self._settings.most_s)
        self._change += 1
        self._metrics.add(f"{self._name}/breaker_opened")
        self._show()
        _LOG.warning("%s is left alone for %.0f s: %s", self._name, self.due_s, why)

    def left(self, ticket: Ticket) -> None:
        """Take a ticket back that was not used, or whose request was given up by the asker."""
        if ticket.probe and ticket.change == self._change:
            self._probing = False
            self._show()

    def _show(self) -> None:
        self._metrics.gauge(f"{self._name}/breaker", _SHOWN[self.state])
