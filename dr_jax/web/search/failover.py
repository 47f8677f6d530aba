"""Ask search providers in order, until one answers.

In:    a vetted query
Out:   hits; WebError when the query is not taken
Fails: WorldDownError when no provider answers, at once when all are left alone; BudgetError
Holds: one search ends within its time, shared among the providers that are left to ask; a provider is asked again only where
       that can help; waiting for the world to come back costs one query a time
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.web.page import WebError
from dr_jax.web.search.provider import Hits
from dr_jax.web.search.source import ProviderError, Source

_LOG = logger(__name__)
_EARLIER = 0.95  # of a search's time: it is over before those who wait for it lose patience, so that its failure is counted
_PROBE = "news"  # asked when nothing was asked before
_LOOK_S = 1.0  # between two looks at whether somebody else's search has brought a provider back


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often.

    Args:
        search_s: for one search.
        attempts: at one provider; a time-out is tried at most twice.
        wait_s: before the second attempt, doubled before every further one.
        wait_max_s: of those waits.
        down_s: how long all providers may be down before waiting for them is given up.
    """

    search_s: float
    attempts: int
    wait_s: float
    wait_max_s: float
    down_s: float


class Failover:
    """Providers in the order in which they are asked.

    Args:
        sources: the first is asked first; at least one.
        patience: how long and how often.
        metrics: counts `search/failovers`; `search/down` is 1 while no provider may be asked.
    """

    def __init__(self, sources: Sequence[Source], patience: Patience, metrics: Metrics) -> None:
        self._sources, self._patience, self._metrics = tuple(sources), patience, metrics
        self._last = _PROBE
        self._recovery: asyncio.Task[None] | None = None

    async def search(self, query: str) -> Hits | WebError:
        """Search.

        Raises:
            WorldDownError: no provider answered.
            BudgetError: the budget is used up.
        """
        self._last = query
        ends = time.monotonic() + _EARLIER * self._patience.search_s
        ready = [source for source in self._sources if source.breaker.state != "open"]
        failures: list[str] = []
        for place, source in enumerate(ready):
            left = (ends - time.monotonic()) / (len(ready) - place)
            try:
                found = await self._insist(source, query, left)
            except ProviderError as error:
                failures.append(str(error))
                if place + 1 < len(ready):
                    self._metrics.add("search/failovers")
                continue
            self._metrics.gauge("search/down", 0.0)
            return found
        self._metrics.gauge("search/down", float(self._down))
        late = f"Searching took more than {self._patience.search_s:g} s. " if time.monotonic() >= ends else ""
        alone = [f"{one.name} is left alone: {one.breaker.why}" for one in self._sources if one not in ready]
        raise WorldDownError(f"{late}No search provider answered. {'; '.join([*failures, *alone])}")

    async def healthy(self) -> None:
        """Wait until a provider may be asked; return at once when one may.

        While all of them are left alone, one task for everybody who waits asks them as their time comes.

        Raises:
            WorldDownError: they have been down for too long.
            BudgetError: the budget is used up.
        """
        while self._down:
            if self._recovery is None or self._recovery.done():
                self._recovery = asyncio.create_task(self._recover(), name="search recovery")
            await asyncio.wait({self._recovery})
            if not self._recovery.cancelled():
                self._recovery.result()

    async def close(self) -> None:
        """Stop waiting for better times."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)

    @property
    def _down(self) -> bool:
        return all(source.breaker.state != "closed" for source in self._sources)

    async def _insist(self, source: Source, query: str, within_s: float) -> Hits | WebError:
        """Ask one provider, again where that can help.

        Raises:
            ProviderError: of the last attempt.
        """
        patience, ends, timeouts = self._patience, time.monotonic() + within_s, 0
        for number in range(1, patience.attempts + 1):
            try:
                return await source.once(query, max(0.001, ends - time.monotonic()))
            except ProviderError as error:
                timeouts += error.kind == "timeout"
                wait = min(patience.wait_max_s, patience.wait_s * 2 ** (number - 1)) + random.uniform(0, patience.wait_s)
                late = time.monotonic() + wait + (error.after_s or 0.0) >= ends
                closed = source.breaker.state == "closed"
                if not error.again or timeouts > 1 or late or not closed or number == patience.attempts:
                    raise
                self._metrics.add("search/retries")
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _recover(self) -> None:
        start = time.monotonic()
        _LOG.warning("no search provider is up; waiting for one: %s", "; ".join(one.breaker.why for one in self._sources))
        self._metrics.gauge("search/down", 1.0)
        while self._down:
            if time.monotonic() - start > self._patience.down_s:
                raise WorldDownError(f"No search provider came back within {self._patience.down_s:g} s")
            due = min(source.breaker.due_s for source in self._sources)
            await asyncio.sleep(min(due, _LOOK_S) if due else _LOOK_S / 10)
            for source in self._sources:
                if source.breaker.state == "half_open":
                    await self._probe(source)
        self._metrics.gauge("search/down", 0.0)
        _LOG.info("searching goes on after %.0f s", time.monotonic() - start)

    async def _probe(self, source: Source) -> None:
        try:
            await source.once(self._last, self._patience.search_s)
        except ProviderError as error:
            _LOG.info("still down: %s", error)
