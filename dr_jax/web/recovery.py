"""Wait, once for everybody, until something that is down is back.

In:    whether it is down, when it may be tried, how to try it
Out:   `healthy` returns when it is up: at once, unless it is down
Fails: WorldDownError when it stays down for too long
Holds: one task tries, however many wait; `close` leaves none
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger

_LOG = logger(__name__)
_LOOK_S = 1.0  # between two looks at whether somebody else has found it up again


class Ill(Protocol):
    """Something that may be down."""

    @property
    def down(self) -> bool:
        """Whether it is."""
        ...

    @property
    def why(self) -> str:
        """Why it is, in one sentence."""
        ...

    @property
    def due_s(self) -> float:
        """Seconds until it may be tried."""
        ...


class Recovery:
    """The waiting for one thing.

    Args:
        what: it is called in messages, such as `search provider`.
        ill: says how it is.
        probe: tries it, when it may be tried; does not raise when it is still down.
        down_s: how long it may be down before waiting for it is given up.
        metrics: see `gauge`.
        gauge: the name of a metric that is 1 while it is down.
    """

    def __init__(
        self, what: str, ill: Ill, probe: Callable[[], Awaitable[None]], down_s: float, metrics: Metrics, gauge: str
    ) -> None:
        self._what, self._ill, self._probe, self._down_s = what, ill, probe, down_s
        self._metrics, self._gauge = metrics, gauge
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def healthy(self) -> None:
        """Wait until it is up.

        Raises:
            WorldDownError: it has been down for too long, or was closed meanwhile.
            Exception: whatever `probe` raises.
        """
        while self._ill.down:
            if self._closed:
                raise WorldDownError(f"The {self._what} was closed while somebody waited for it")
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._recover(), name=f"{self._what} recovery")
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    async def close(self) -> None:
        """Stop waiting for better times."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _recover(self) -> None:
        start = time.monotonic()
        _LOG.warning("no %s is up; nothing new is begun until one is: %s", self._what, self._ill.why)
        self._metrics.gauge(self._gauge, 1.0)
        while self._ill.down:
            if time.monotonic() - start > self._down_s:
                raise WorldDownError(f"No {self._what} came back within {self._down_s:g} s")
            due = self._ill.due_s
            await asyncio.sleep(min(due, _LOOK_S) if due else _LOOK_S / 10)
            await self._probe()
        self._metrics.gauge(self._gauge, 0.0)
        self._metrics.observe(f"{self._gauge}_s", time.monotonic() - start)
        _LOG.info("a %s is up again after %.0f s; the run goes on", self._what, time.monotonic() - start)
