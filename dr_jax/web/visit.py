"""One page in a browser: answer what it asks for, wait until it rests, take what it has become.

In:    a page's bytes, a browser without a network
Out:   its document as HTML, within the caps of a fetch
Holds: only what scripts and frames need is fetched, by GET, each through the fetcher; so many requests and bytes in all; a
       page of the public web sees nothing of a host that is not public, although the guard may let us reach it
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import Fetcher
from dr_jax.web.guard import Guard, host_of
from dr_jax.web.page import WebError
from dr_jax.web.reply import Fetched

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route, WebSocketRoute

_AT_ONCE = 4
_LOOK_S = 0.05
_DOCUMENTS = ("text/html", "application/xhtml+xml", "text/plain", "")
_TAKE = "document.documentElement ? document.documentElement.outerHTML.slice(0, {cap}) : ''"


class Visit:
    """One page.

    Args:
        found: the page, as it was fetched.
        fetcher: the way out.
        guard: which hosts are not public.
        metrics: counts `web/render_requests` and `web/render_refused`.
        requests: that it may make.
        max_bytes: that it may have fetched, and that its document may come to.
        rest_s: it rests when it has asked for nothing for this long.
        patience_s: how long its rest is waited for.
    """

    def __init__(
        self,
        found: Fetched,
        fetcher: Fetcher,
        guard: Guard,
        metrics: Metrics,
        *,
        requests: int,
        max_bytes: int,
        rest_s: float,
        patience_s: float,
    ) -> None:
        self._found, self._fetcher, self._guard, self._metrics = found, fetcher, guard, metrics
        self._requests, self._bytes, self._cap = requests, max_bytes, max_bytes
        self._rest_s, self._patience_s = rest_s, patience_s
        self._home = guard.allowed(host_of(found.url))
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._answers: set[asyncio.Task[None]] = set()
        self._opened, self._last = False, time.monotonic()
        self._url = found.url

    async def run(self, browser: Browser) -> Fetched:
        """Open the page and return what it becomes.

        Raises:
            OSError: the browser failed.
        """
        from playwright.async_api import Error

        try:
            context = await browser.new_context(accept_downloads=False, service_workers="block", locale="en")
            context.set_default_timeout(0)  # whoever calls has a deadline
            await context.route("**/*", self._answer)
            await context.route_web_socket("**/*", _hang_up)
            page = await context.new_page()
            await page.goto(self._found.url, wait_until="commit")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await page.wait_for_load_state("domcontentloaded")
                    await self._rest()
            html = await self._taken(page)
            await context.close()
        except Error as error:
            raise OSError(str(error).partition("\n")[0][:200]) from error
        finally:
            for task in self._answers:
                task.cancel()
        body = html.encode("utf-8", "replace")
        cut = len(html) == self._cap or len(body) > self._cap
        return Fetched(self._url, 200, "text/html", "utf-8", body[: self._cap], truncated=cut)

    async def _rest(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._answers and time.monotonic() - self._last >= self._rest_s:
                return

    async def _taken(self, page: Page) -> str:
        """Return the document; asked for in a world of its own, where the page's scripts have no say."""
        session = await page.context.new_cdp_session(page)
        frame = (await session.send("Page.getFrameTree"))["frameTree"]["frame"]["id"]
        world = await session.send("Page.createIsolatedWorld", {"frameId": frame})
        asked = {"expression": _TAKE.format(cap=self._cap), "contextId": world["executionContextId"], "returnByValue": True}
        return str((await session.send("Runtime.evaluate", asked))["result"].get("value", ""))

    async def _answer(self, route: Route) -> None:
        """Give the browser what it asks for, or refuse it."""
        from playwright.async_api import Error

        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)
        try:
            found = await self._asked(route)
            if found is None:
                self._metrics.add("web/render_refused")
                if route.request.is_navigation_request():
                    await route.fulfill(status=204)  # it stays where it is, and shows no page of Chromium's own
                else:
                    await route.abort("blockedbyclient")
            else:
                await route.fulfill(status=200, headers=_headers(found), body=found.body)
        except Error:  # the page is gone; playwright would wait for an answer for ever, but not for one that was cancelled
            raise asyncio.CancelledError from None
        finally:
            self._answers.discard(task)
            self._last = time.monotonic()

    async def _asked(self, route: Route) -> Fetched | None:
        request = route.request
        url, kind = request.url, request.resource_type
        whole = request.is_navigation_request() and request.frame.parent_frame is None
        if whole and not self._opened:
            self._opened = True
            return self._found
        if kind == "stylesheet":  # scripts may wait for it, nobody looks at it
            return Fetched(url, 200, "text/css", "", b"")
        if request.method != "GET" or kind not in ("document", "script", "xhr", "fetch") or self._requests <= 0:
            return None
        self._requests -= 1
        if self._foreign(url):
            return None
        async with self._places:
            if self._bytes <= 0:
                return None
            self._metrics.add("web/render_requests")
            found = await self._fetcher.get(url, takes=_DOCUMENTS.__contains__ if kind == "document" else _any)
        if isinstance(found, WebError) or self._foreign(found.url):
            return None
        self._bytes -= len(found.body)
        if whole:
            self._url, self._home = found.url, self._guard.allowed(host_of(found.url))
        return found

    def _foreign(self, url: str) -> bool:
        """Whether an address is of a host that is not public and not the page's own."""
        allowed = self._guard.allowed(host_of(url))
        return allowed is not None and allowed != self._home


async def _hang_up(socket: WebSocketRoute) -> None:
    await socket.close()


def _any(_: str) -> bool:
    return True


def _headers(found: Fetched) -> dict[str, str]:
    kind = found.content_type or "text/html"
    charset = f"; charset={found.charset}" if found.charset else ""
    # No credentials are ever sent, so whoever may run here may also read.
    return {"Content-Type": kind + charset, "Access-Control-Allow-Origin": "*"}
