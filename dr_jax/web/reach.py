"""Notice when no page at all can be reached, and say so, instead of calling every page bad.

In:    addresses, and what became of asking them
Out:   what was found; `healthy` returns when pages can be reached
Fails: WorldDownError while they cannot: an episode that meets it ends WORLD_FAILED, and is not told that its pages are no good
Holds: one page, and one host, may fail for ever without being an outage; pages that were seen before are what is tried to find
       out whether it is over
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.guard import host_of
from dr_jax.web.page import WebError
from dr_jax.web.recovery import Recovery
from dr_jax.web.reply import Fetched
from dr_jax.web.search.breaker import Breaker
from dr_jax.web.search.settings import BreakerSettings

_UNANSWERED = frozenset({"unreachable", "timeout", "server"})
# Only a page, or one of these, shows that there is a network; what was refused here, or is known already, shows nothing.
_ANSWERED = frozenset({"not_found", "denied", "http", "unsupported", "redirects", "busy"})
_HOSTS = 3  # that fail in a row, with nothing from any other in between
_TRIED = 4  # pages that are tried at once
_KEPT = 16  # failing hosts
Get = Callable[[str], Awaitable[Fetched | WebError]]


class Reach:
    """The breaker of all pages together.

    Args:
        settings: how many in a row must fail, and for how long nothing is asked then.
        metrics: `web/pages/breaker` is 0 closed, 0.5 half-open, 1 open; `web/pages_down` is 1 while new work waits.
        get: fetches a page, to see whether it can be.
    """

    def __init__(self, settings: BreakerSettings, metrics: Metrics, get: Get) -> None:
        self._settings, self._get = settings, get
        self._breaker = Breaker("pages", settings, metrics, under="web")
        self._seen: OrderedDict[str, str] = OrderedDict()  # the last page that answered, by host
        self._failing: OrderedDict[str, str] = OrderedDict()  # the last page that failed, by host
        self._in_a_row = 0
        self._recovery = Recovery("way to web pages", self, self._probe, settings.down_s, metrics, "web/pages_down")

    async def asked(self, url: str, get: Callable[[], Awaitable[Fetched | WebError]]) -> Fetched | WebError:
        """Fetch a page.

        Args:
            url: of the page.
            get: fetches it.

        Raises:
            WorldDownError: no page can be reached.
        """
        if self._breaker.state == "half_open":
            await self._probe()
        ticket = self._breaker.enter() if self._breaker.state == "closed" else None
        if ticket is None:
            raise self._down()
        found = await get()
        if not isinstance(found, WebError) or found.kind in _ANSWERED:
            self._remember(url)
            return found
        if found.kind not in _UNANSWERED:
            return found
        self._in_a_row += 1
        _put(self._failing, url, _KEPT)
        if self._in_a_row >= self._settings.failures and len(self._failing) >= _HOSTS:
            why = f"the last {self._in_a_row} pages could not be reached, at last because {found.message}"
            self._in_a_row = 0
            self._breaker.failed(ticket, why, for_s=0.0)
        if self.down:  # it may have become so while this page was asked
            raise self._down()
        return found

    async def healthy(self) -> None:
        """Wait until pages can be reached.

        Raises:
            WorldDownError: it has been too long.
        """
        await self._recovery.healthy()

    async def close(self) -> None:
        """Stop waiting for better times."""
        await self._recovery.close()

    @property
    def down(self) -> bool:
        """Whether no page can be reached."""
        return self._breaker.state != "closed"

    @property
    def why(self) -> str:
        """Why that is thought."""
        return self._breaker.why

    @property
    def due_s(self) -> float:
        """Seconds until it may be tried."""
        return self._breaker.due_s

    def _down(self) -> WorldDownError:
        return WorldDownError(f"No web page can be reached: {self._breaker.why or 'it is being tried'}")

    def _remember(self, url: str) -> None:
        self._forget()
        _put(self._seen, url, _TRIED)

    def _forget(self) -> None:
        self._failing.clear()
        self._in_a_row = 0

    async def _probe(self) -> None:
        """Try some pages at once; any answer means that it is over."""
        ticket = self._breaker.enter() if self._breaker.state == "half_open" else None
        if ticket is None:
            return
        try:
            tried = list(self._seen.values()) or list(self._failing.values())[-_TRIED:]
            found = await asyncio.gather(*(self._get(url) for url in tried))
            failed = [one for one in found if isinstance(one, WebError) and one.kind not in _ANSWERED]
            if len(failed) < len(found):
                self._forget()
                self._breaker.went_well(ticket)
            else:
                self._breaker.failed(ticket, failed[0].message)
        finally:
            self._breaker.left(ticket)


def _put(pages: OrderedDict[str, str], url: str, most: int) -> None:
    host = host_of(url)
    pages[host] = url
    pages.move_to_end(host)
    while len(pages) > most:
        pages.popitem(last=False)
