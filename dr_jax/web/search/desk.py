"""Everything that searches, built from the settings and taken down again.

In:    SearchSettings, what every query has in common, a budget; then queries
Out:   hits or WebError, by the providers in their order; pages of the local corpus
Holds: a server that the settings name may be on loopback or in a private network; only searches can reach it, no page can
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import Fetcher, FetchSettings
from dr_jax.web.guard import AllowedHost, Guard, Lookup, host_of, is_public, system_lookup
from dr_jax.web.pace import Pace, Slots
from dr_jax.web.page import Page, WebError
from dr_jax.web.search.breaker import Breaker
from dr_jax.web.search.budget import Budget
from dr_jax.web.search.catalogue import PROVIDERS, cost
from dr_jax.web.search.failover import Failover, Patience
from dr_jax.web.search.local import Corpus, at_home
from dr_jax.web.search.provider import Hits, Provider, Query
from dr_jax.web.search.settings import SearchSettings
from dr_jax.web.search.source import Ask, HttpAsk, ProviderError, Source
from dr_jax.web.workers import Extractors


class Desk:
    """Searches. An async context manager.

    Args:
        settings: of searching.
        queries: what every query to a provider has in common.
        fetch: limits of one request.
        pace: of everything.
        allow: hosts that are not public and may be reached, by pages too.
        metrics: everything under `search/`; `search/<name>/queue` is how many queries wait for their turn.
        budget: of the run.
        extractors: read the corpus's HTML.
        lookup: from a name to its addresses.
    """

    def __init__(
        self,
        settings: SearchSettings,
        queries: Mapping[str, Query],
        *,
        fetch: FetchSettings,
        pace: Pace,
        allow: Iterable[AllowedHost],
        metrics: Metrics,
        budget: Budget,
        extractors: Extractors,
        lookup: Lookup | None = None,
    ) -> None:
        self._settings, self._queries, self._fetch, self._pace = settings, queries, fetch, pace
        self._allow, self._metrics, self._budget = tuple(allow), metrics, budget
        self._extractors, self._lookup = extractors, lookup
        self._corpus: Corpus | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Desk:
        async with AsyncExitStack() as stack:
            if "local" in self._settings.order:
                corpus = Corpus(self._settings.local, self._extractors, self._metrics)
                self._corpus = await stack.enter_async_context(corpus)
            inner = [one for query in self._queries.values() for one in await leave(query.url, self._allow, self._lookup)]
            guard = Guard([*self._allow, *inner])
            self._fetcher = await stack.enter_async_context(
                Fetcher(self._fetch, guard, self._pace, self._metrics, self._lookup)
            )
            fetch, breaker, queue_s = self._fetch, self._settings.breaker, self._pace.settings.queue_s
            patience = Patience(
                self._settings.search_s, queue_s, fetch.attempts, fetch.wait_s, fetch.wait_max_s, breaker.down_s
            )
            self._failover = Failover([self._source(name) for name in self._settings.order], patience, self._metrics)
            stack.push_async_callback(self._failover.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def search(self, query: str) -> Hits | WebError:
        """Search.

        Raises:
            WorldDownError: no provider answered.
            BudgetError: the budget is used up.
        """
        return await self._failover.search(query)

    async def healthy(self) -> None:
        """Wait until a provider may be asked.

        Raises:
            WorldDownError: they have been down for too long.
            BudgetError: the budget is used up.
        """
        await self._failover.healthy()

    async def page(self, url: str) -> Page | WebError | None:
        """Return the corpus's page at an address, or None when the address is not the corpus's.

        Raises:
            WorldDownError: the index cannot be read.
        """
        if self._corpus is None:
            return None
        try:
            found = await self._corpus.open(url)
        except ProviderError as error:
            raise WorldDownError(str(error)) from error
        if found is None and at_home(url):
            return WebError("not_found", f"{url.strip()[:200]} is not in the corpus")
        return found

    def _source(self, name: str) -> Source[Hits]:
        ask, price, slots = self._asking(name)
        breaker = Breaker(name, self._settings.breaker, self._metrics)
        return Source(
            name,
            ask,
            cost=price,
            slots=slots,
            queue_s=self._pace.settings.queue_s,
            vetted=True,
            breaker=breaker,
            hold_s=self._settings.breaker.hold_s,
            budget=self._budget,
            metrics=self._metrics,
        )

    def _asking(self, name: str) -> tuple[Ask[Hits], float, Slots]:
        """Return how a provider is asked, what that costs, how often it may be."""
        if (corpus := self._corpus) is not None and name == "local":
            return (lambda query: corpus.search(query, self._settings.results)), 0.0, self._pace.own
        provider, settings = PROVIDERS[name], getattr(self._settings.provider, name)
        ask = http_ask(name, provider, self._queries[name], self._fetcher)
        per_s = settings.per_s or (None if provider.own else provider.per_s)
        concurrent = settings.concurrent or provider.concurrent
        queue = partial(self._metrics.gauge, f"search/{name}/queue")
        slots = self._pace.own if per_s is None else Slots(concurrent, per_s, max(1, int(per_s)), queue)
        return ask, cost(name, settings, self._settings.results), slots


def http_ask(name: str, provider: Provider, query: Query, fetcher: Fetcher) -> HttpAsk[Hits]:
    """Return what makes one request to a search provider; `query` is what all of its queries have in common."""
    return HttpAsk(
        name,
        lambda text: provider.ask(replace(query, text=text)),
        lambda content: provider.read(content)[: query.results],
        provider.judge,
        provider.hint or f"the value of {provider.key}",
        fetcher,
    )


async def leave(url: str, allow: Iterable[AllowedHost] = (), lookup: Lookup | None = None) -> list[AllowedHost]:
    """Return leave to reach the server that the settings name, if it needs any: it is not public, and has none already.

    Args:
        url: of the server.
        allow: what may be reached already.
        lookup: from a name to its addresses.
    """
    parts = urlsplit(url)
    host, port = host_of(url), parts.port or (443 if parts.scheme == "https" else 80)
    if not host or ":" in host or Guard(allow).allowed(host) is not None:
        return []
    try:
        found = [str(ipaddress.ip_address(host))]
    except ValueError:
        if host in (host_of(provider.url) for provider in PROVIDERS.values()):
            return []
        try:
            found = await (lookup(host) if lookup else system_lookup(host, family=socket.AF_INET))
        except OSError:  # asking it will say so
            return []
    reached = any(map(is_public, found)) and port in (80, 443)
    return [] if reached or not found else [AllowedHost(host, found[0], port)]
