"""Ask one provider, within its rate, its breaker and the budget.

In:    a vetted query
Out:   what it found; WebError when the provider does not take this query
Fails: ProviderError, which says what failed and whether asking again may help; BudgetError before more is spent than may be
Holds: a request is counted before it is sent, and given back when the provider answered that it failed; a provider that
       refuses every query is at fault itself, not those who ask
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Generic, Literal, TypeVar

from dr_jax.base.metrics import Metrics, timed
from dr_jax.web.fetch import Fetcher
from dr_jax.web.pace import QueueError, Slots
from dr_jax.web.page import WebError
from dr_jax.web.search.breaker import Breaker, Ticket
from dr_jax.web.search.budget import Budget
from dr_jax.web.search.provider import Request, Verdict

Failure = Literal["key", "credits", "busy", "server", "timeout", "unreachable", "shape", "status", "queue", "left_alone"]
Found = TypeVar("Found")
Ask = Callable[[str], Awaitable[Found | WebError]]

BILLED = frozenset({"shape", "timeout", "unreachable"})  # whoever did not say that it failed may have billed it
_FOR_GOOD = frozenset({"key", "credits"})
_JITTER_S = 0.25  # those who waited together do not come back together


class ProviderError(Exception):
    """A provider did not answer, whatever the query.

    Args:
        kind: what failed.
        message: one sentence, without the provider's words, which may hold the key.
        again: whether the next request may end otherwise.
        after_s: how long the provider asks to be left alone.
    """

    def __init__(self, kind: Failure, message: str, *, again: bool = False, after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.again, self.after_s = kind, again, after_s


class Source(Generic[Found]):
    """One provider with everything that guards it.

    Args:
        name: as in the settings.
        ask: makes one request.
        cost: of one query.
        slots: its rate.
        queue_s: how long a query may wait for its turn.
        vetted: whether queries are such that a provider who refuses one after another is at fault: then that counts as failing.
        breaker: leaves it alone when it fails.
        hold_s: how long a pause, asked for by the provider, is waited for; for a longer one it is left alone.
        budget: of the run; None when `ask` counts what it costs.
        metrics: counts `search/<name>/errors/<kind>`, observes `search/<name>/s`.
        under: in place of `search`.
    """

    def __init__(
        self,
        name: str,
        ask: Ask[Found],
        *,
        cost: float,
        slots: Slots,
        queue_s: float,
        vetted: bool,
        breaker: Breaker,
        hold_s: float,
        budget: Budget | None,
        metrics: Metrics,
        under: str = "search",
    ) -> None:
        self.name, self.breaker, self._counted = name, breaker, f"{under}/{name}"
        self._ask, self._cost, self._slots, self._queue_s = ask, cost, slots, queue_s
        self._hold_s, self._held_until = hold_s, 0.0
        self._budget, self._metrics = budget, metrics
        self._vetted = vetted

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one of its places for as long as the block lasts: waiting for it is no fault of the provider's.

        Raises:
            ProviderError: too many are waiting.
        """
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._slots.slot(self._queue_s))
            except QueueError:
                self._metrics.add(f"{self._counted}/errors/queue")
                message = f"{self.name} was not asked: it was not a query's turn within {self._queue_s:g} s, by its rate"
                raise ProviderError("queue", message) from None
            yield

    async def once(self, query: str, within_s: float) -> Found | WebError:
        """Ask one time, in a `turn`.

        Args:
            query: vetted.
            within_s: for the answer.

        Raises:
            ProviderError: it did not answer.
            BudgetError: the budget is used up; nothing was sent.
        """
        await self._held(within_s)
        ticket = self.breaker.enter()  # after the queue: while it was waited for, others may have failed
        if ticket is None:
            self._metrics.add(f"{self._counted}/errors/left_alone")
            raise ProviderError("left_alone", f"{self.name} is left alone: {self.breaker.why or 'it is being probed'}")
        try:
            return await self._sent(query, ticket, within_s)
        finally:
            self.breaker.left(ticket)

    async def _held(self, within_s: float) -> None:
        """Wait for the end of a pause that the provider asked for."""
        left = self._held_until - time.monotonic()
        if left > within_s:
            raise ProviderError("busy", f"{self.name} asked for a pause of another {left:.1f} s")
        if left > 0:
            await asyncio.sleep(left + random.uniform(0, min(_JITTER_S, left)))

    async def _answered(self, query: str, within_s: float) -> Found | WebError:
        try:
            async with asyncio.timeout(within_s):
                with timed(self._metrics, f"{self._counted}/s"):
                    return await self._ask(query)
        except TimeoutError:
            raise ProviderError("timeout", f"{self.name} did not answer within {within_s:.3g} s") from None

    async def _sent(self, query: str, ticket: Ticket, within_s: float) -> Found | WebError:
        if self._budget is not None:
            self._budget.take(self.name, self._cost)
        try:
            found = await self._answered(query, within_s)
        except ProviderError as error:
            self._metrics.add(f"{self._counted}/errors/{error.kind}")
            if error.kind not in BILLED:
                self._refund()
            long = error.after_s is not None and error.after_s > self._hold_s
            if error.after_s is not None and not long:
                self._held_until = max(self._held_until, time.monotonic() + error.after_s)
            for_s = error.after_s if long else None
            self.breaker.failed(ticket, str(error), for_s=for_s, for_good=error.kind in _FOR_GOOD)
            raise
        if isinstance(found, WebError):
            self._refund()
            self._metrics.add(f"{self._counted}/errors/{found.kind}")
        if isinstance(found, WebError) and self._vetted:
            self.breaker.failed(ticket, f"{self.name} refuses one query after another, whatever they are: check its settings")
        else:
            self.breaker.went_well(ticket)
        return found

    def _refund(self) -> None:
        if self._budget is not None:
            self._budget.give_back(self.name, self._cost)


class HttpAsk(Generic[Found]):
    """Makes one request to a provider and reads its answer.

    Args:
        name: as in the settings.
        ask: from a query to the request.
        read: from the JSON of an answer to what was found; raises KeyError, TypeError or ValueError when it has another shape.
        judge: from a status other than 200, and the body, to what it means.
        look: what to check when it refuses us.
        fetcher: the way out, which may reach the provider.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[str], Request],
        read: Callable[[Any], Found],
        judge: Callable[[int, bytes], Verdict],
        look: str,
        fetcher: Fetcher,
    ) -> None:
        self._name, self._ask, self._read, self._judge, self._look, self._fetcher = name, ask, read, judge, look, fetcher

    async def __call__(self, text: str) -> Found | WebError:
        """Ask.

        Raises:
            ProviderError: it did not answer.
        """
        asked = self._ask(text)
        answer = await self._fetcher.once(asked.method, asked.url, asked.headers, asked.payload)
        if isinstance(answer, WebError):
            raise self._unanswered(answer)
        if answer.status != 200:
            return self._refused(answer.status, answer.body, answer.after_s)
        try:
            return self._read(json.loads(answer.body))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            why = f" ({error})" if type(error) is ValueError and not isinstance(error, json.JSONDecodeError) else ""
            raise ProviderError("shape", f"{self._name} answered in another shape than documented{why}", again=True) from None

    def _unanswered(self, error: WebError) -> ProviderError:
        match error.kind:
            case "timeout":
                return ProviderError("timeout", f"{self._name} did not answer in time", again=True)
            case "unreachable":
                return ProviderError("unreachable", f"{self._name} could not be reached, or broke off", again=True)
            case "protocol":
                return ProviderError("shape", f"{self._name} did not answer in HTTP, or in an unknown encoding")
            case _:  # an address that may not be reached, or that is none
                return ProviderError("status", f"{self._name} cannot be asked: {error.message}")

    def _refused(self, status: int, body: bytes, after_s: float | None) -> WebError:
        """Return that the query is not taken.

        Raises:
            ProviderError: another one would not be either.
        """
        name, said = self._name, f"(status {status})"
        match self._judge(status, body):
            case "bad_query":
                return WebError("bad_query", "The search provider does not take this query")
            case "key":
                raise ProviderError("key", f"{name} refuses us {said}: check {self._look}")
            case "credits":
                raise ProviderError("credits", f"{name} says that no credits or quota are left {said}")
            case "again" if status in (429, 403):
                raise ProviderError("busy", f"{name} says that it is asked too often {said}", again=True, after_s=after_s)
            case "again":
                raise ProviderError("server", f"{name} answered with status {status}", again=True, after_s=after_s)
            case _:
                raise ProviderError("status", f"{name} answered with status {status}")
