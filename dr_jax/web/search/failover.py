"""Ask providers in order, until one answers: of search results, or of a reading model's replies.

In:    a vetted query
Out:   what was found; WebError when the query is not taken
Fails: WorldDownError when no provider answers, at once when all are left alone; BudgetError
Holds: one search ends within its time, shared among the providers that are left to ask; a provider is asked again only where
       that can help; waiting for the world to come back costs one query a time
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Generic

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.web.page import WebError
from dr_jax.web.recovery import Recovery
from dr_jax.web.search.source import Found, ProviderError, Source

_LOG = logger(__name__)
_EARLIER = 0.95  # of a search's time: it is over before those who wait for it lose patience, so that its failure is counted
_PROBE = "news"  # asked when nothing was asked before


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often.

    Args:
        search_s: for one search, waiting for its turn excepted.
        queue_s: for all of that waiting.
        attempts: at one provider; a time-out is tried at most twice.
        wait_s: before the second attempt, doubled before every further one.
        wait_max_s: of those waits.
        down_s: how long all providers may be down before waiting for them is given up.
    """

    search_s: float
    queue_s: float
    attempts: int
    wait_s: float
    wait_max_s: float
    down_s: float


class Failover(Generic[Found]):
    """Providers in the order in which they are asked.

    Args:
        sources: the first is asked first; at least one.
        patience: how long and how often.
        metrics: counts `search/failovers` and `search/retries`; `search/down` is 1 while no provider may be asked.
        under: in place of `search`.
        what: a provider is called in messages.
    """

    def __init__(
        self,
        sources: Sequence[Source[Found]],
        patience: Patience,
        metrics: Metrics,
        *,
        under: str = "search",
        what: str = "search provider",
    ) -> None:
        self._sources, self._patience, self._metrics = tuple(sources), patience, metrics
        self._under, self._what = under, what
        self._last = _PROBE
        self._recovery = Recovery(what, self, self._probe, patience.down_s, metrics, f"{under}/down")

    async def search(self, query: str) -> Found | WebError:
        """Ask.

        Raises:
            WorldDownError: no provider answered.
            BudgetError: the budget is used up.
        """
        watch = _Watch(_EARLIER * self._patience.search_s, _EARLIER * self._patience.queue_s)
        ready = [source for source in self._sources if source.breaker.state != "open"]
        failures: list[str] = []
        for place, source in enumerate(ready):
            try:
                found = await self._insist(source, query, watch, 1 / (len(ready) - place))
            except ProviderError as error:
                failures.append(str(error))
                if place + 1 < len(ready):
                    self._metrics.add(f"{self._under}/failovers")
                continue
            self._metrics.gauge(f"{self._under}/down", 0.0)
            if not isinstance(found, WebError):
                self._last = query
            return found
        self._metrics.gauge(f"{self._under}/down", float(self.down))
        late = f"It took more than {self._patience.search_s:g} s. " if watch.left_s <= 0 else ""
        alone = [f"{one.name} is left alone: {one.breaker.why}" for one in self._sources if one not in ready]
        raise WorldDownError(f"{late}No {self._what} answered. {'; '.join([*failures, *alone])}")

    async def healthy(self) -> None:
        """Wait until a provider may be asked; return at once when one may.

        While all of them are left alone, one task for everybody who waits asks them as their time comes.

        Raises:
            WorldDownError: they have been down for too long.
            BudgetError: the budget is used up.
        """
        await self._recovery.healthy()

    async def close(self) -> None:
        """Stop waiting for better times."""
        await self._recovery.close()

    @property
    def down(self) -> bool:
        """Whether no provider may be asked."""
        return all(source.breaker.state != "closed" for source in self._sources)

    @property
    def why(self) -> str:
        """Why they are left alone."""
        return "; ".join(source.breaker.why for source in self._sources)

    @property
    def due_s(self) -> float:
        """Seconds until one may be tried."""
        return min(source.breaker.due_s for source in self._sources)

    async def _insist(self, source: Source[Found], query: str, watch: _Watch, share: float) -> Found | WebError:
        """Ask one provider, again where that can help.

        Args:
            source: the provider.
            query: vetted.
            watch: of this search.
            share: of the time that is left.

        Raises:
            ProviderError: of the last attempt.
        """
        patience, reserved, timeouts = self._patience, (1 - share) * watch.left_s, 0
        for number in range(1, patience.attempts + 1):
            try:
                async with watch.stopped(source.turn()):
                    return await source.once(query, max(0.001, watch.left_s - reserved))
            except ProviderError as error:
                timeouts += error.kind == "timeout"
                wait = min(patience.wait_max_s, patience.wait_s * 2 ** (number - 1)) + random.uniform(0, patience.wait_s)
                late = wait + (error.after_s or 0.0) >= watch.left_s - reserved
                closed = source.breaker.state == "closed"
                if not error.again or timeouts > 1 or late or not closed or number == patience.attempts:
                    raise
                self._metrics.add(f"{self._under}/retries")
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _probe(self) -> None:
        for source in self._sources:
            if source.breaker.state == "half_open":
                try:
                    async with source.turn():
                        await source.once(self._last, self._patience.search_s)
                except ProviderError as error:
                    _LOG.info("still down: %s", error)


class _Watch:
    """The time of one search; it stands still while a turn is waited for, for as long as that may take.

    Args:
        search_s: that it may take.
        queue_s: that it may stand still.
    """

    def __init__(self, search_s: float, queue_s: float) -> None:
        self._ends, self._still_s = time.monotonic() + search_s, queue_s

    @property
    def left_s(self) -> float:
        """Seconds until it is over."""
        return self._ends - time.monotonic()

    @asynccontextmanager
    async def stopped(self, turn: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Enter and leave a turn; waiting for it does not count."""
        start = time.monotonic()
        async with turn:
            waited = min(time.monotonic() - start, self._still_s)
            self._ends, self._still_s = self._ends + waited, self._still_s - waited
            yield
