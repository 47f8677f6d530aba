"""Do each thing once for everyone who asks for it, and remember the last results.

In:    a key and a coroutine function
Out:   its result: shared by all who ask while it runs, remembered afterwards within a number of bytes and seconds
Holds: someone who stops waiting stops nobody else; when the last one stops waiting, the work stops too; errors are raised
       in everyone who waits and are not remembered; `close` leaves no task
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dr_jax.base.errors import WorldDownError

Result = TypeVar("Result")


@dataclass(slots=True)
class _Flight(Generic[Result]):
    task: asyncio.Task[Result]
    waiting: int = 0


class Once(Generic[Result]):
    """Results by key.

    Args:
        size: of a result in bytes; None when it is not to be remembered.
        max_bytes: what is remembered, in all.
        fresh_s: how long a result is remembered; or, from a result to that.
    """

    def __init__(
        self, size: Callable[[Result], int | None], max_bytes: int, fresh_s: float | Callable[[Result], float]
    ) -> None:
        self._size, self._max_bytes, self._fresh_s = size, max_bytes, fresh_s
        self._known: OrderedDict[str, tuple[Result, int, float]] = OrderedDict()
        self._bytes = 0
        self._flights: dict[str, _Flight[Result]] = {}
        self._tasks: set[asyncio.Task[Result]] = set()  # those that nobody waits for any more included

    def known(self, key: str) -> Result | None:
        """Return what is remembered under the key, if it is fresh."""
        entry = self._known.get(key)
        if entry is None:
            return None
        result, _, until = entry
        if time.monotonic() > until:
            self._drop(key)
            return None
        self._known.move_to_end(key)
        return result

    async def get(self, key: str, make: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result for the key; `make` runs only when it is neither known nor under way.

        Raises:
            WorldDownError: everything was closed meanwhile.
            Exception: whatever `make` raises.
        """
        known = self.known(key)
        if known is not None:
            return known
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._fly(key, make), name=f"once {key[:80]}"))
            self._tasks.add(flight.task)
            flight.task.add_done_callback(self._landed)
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task})
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._leave(key, flight)
        if flight.task.cancelled():
            raise WorldDownError("The way to the web was closed while something was on its way")
        return flight.task.result()

    async def close(self) -> None:
        """Stop what is under way and forget everything."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._known.clear()
        self._bytes = 0

    async def _fly(self, key: str, make: Callable[[], Awaitable[Result]]) -> Result:
        try:
            result = await make()
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is asyncio.current_task():
                del self._flights[key]
        self._remember(key, result)
        return result

    def _landed(self, task: asyncio.Task[Result]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # an error that nobody waited for is nobody's

    def _leave(self, key: str, flight: _Flight[Result]) -> None:
        flight.task.cancel()
        if self._flights.get(key) is flight:  # whoever asks next starts anew
            del self._flights[key]

    def _remember(self, key: str, result: Result) -> None:
        size = self._size(result)
        if size is None or size > self._max_bytes:
            return
        self._drop(key)
        fresh_s = self._fresh_s(result) if callable(self._fresh_s) else self._fresh_s
        self._known[key] = (result, size, time.monotonic() + fresh_s)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._known)))

    def _drop(self, key: str) -> None:
        entry = self._known.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
