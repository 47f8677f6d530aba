"""Ask one address over HTTP, within limits, again where asking again can help.

In:    a URL; for `once` also headers and a JSON payload
Out:   Fetched: the bytes, where they were found in the end, what they claim to be; or WebError
Holds: every hop is vetted and every await has a deadline; wire bytes, content bytes, hops and headers are bounded; no
       cookies, no proxies or credentials of the environment; `once` follows no redirect, so its headers stay where they belong
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urljoin

import aiohttp
import stamina
from yarl import URL

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.guard import Guard, GuardedResolver, Lookup
from dr_jax.web.inflate import ACCEPTED, EncodingError, inflate
from dr_jax.web.pace import Pace, Place, QueueError
from dr_jax.web.page import WebError, readable
from dr_jax.web.reply import AgainError, Answer, Fetched, check_again, content_type, explained, kind_of, validator
from dr_jax.web.robots import Robots

_REDIRECTS = (301, 302, 303, 307, 308)
_STEP = 65_536
_THREADS = 2  # that undo encodings; each keeps what memory it once needed
_HEADERS = {
    "Accept": "text/html,application/xhtml+xml;q=0.9,text/plain;q=0.8,application/json;q=0.7,*/*;q=0.1",
    "Accept-Language": "en,*;q=0.5",
    "Accept-Encoding": ACCEPTED,
}

logging.getLogger("stamina").setLevel(
    logging.ERROR
)  # it would log each retry without saying of what; `web/retries` counts them


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Limits of one request.

    Args:
        first_byte_s: for connecting and the head of the answer.
        total_s: for one answer, body included.
        deadline_s: for all attempts and redirects, waiting for our own pace excepted.
        attempts: how often an address is asked when asking again can help; a time-out is tried at most twice.
        wait_s: before the second attempt, doubled before every further one.
        wait_max_s: of those waits; a server's Retry-After may be longer, up to the deadline.
        redirects: hops.
        robots: `obey` asks every site for its robots.txt first, and leaves alone what that asks programs to leave alone.
        wire_bytes: of a body as it is sent; the rest is not read.
        body_bytes: of a body with its encoding undone.
        user_agent: how we introduce ourselves.
    """

    first_byte_s: float = 10.0
    total_s: float = 30.0
    deadline_s: float = 60.0
    attempts: int = 3
    wait_s: float = 0.25
    wait_max_s: float = 5.0
    redirects: int = 5
    robots: Literal["off", "obey"] = "off"
    wire_bytes: int = 4 << 20
    body_bytes: int = 7 << 20
    user_agent: str = "Mozilla/5.0 (compatible; dr-jax)"

    def __post_init__(self) -> None:
        for name in ("first_byte_s", "total_s", "deadline_s", "attempts", "wire_bytes", "body_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if min(self.redirects, self.wait_s, self.wait_max_s) < 0:
            raise ValueError("redirects, wait_s and wait_max_s cannot be negative")
        if not self.user_agent.isprintable():
            raise ValueError(f"user_agent {self.user_agent!r}: printable characters are needed")


@dataclass(frozen=True, slots=True)
class _Ask:
    method: Literal["GET", "POST"]
    url: str
    payload: object = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    service: bool = False  # not a page: chosen by the settings, answers in any status, redirects nowhere
    known: Fetched | None = None
    takes: Callable[[str], bool] = readable
    obeys: bool = False
    place: Place | None = None

    @property
    def counted(self) -> str:
        return "query" if self.service else "fetch"


class Fetcher:
    """An HTTP client that reaches what the guard lets it, at the pace it is given. An async context manager.

    Args:
        settings: limits of one request.
        guard: which addresses may be reached.
        pace: how many requests at a time.
        metrics: counts `web/fetch_n` (pages), `web/query_n` (searches), `web/retries`, `web/bytes`, `web/not_modified`,
            `web/robots_n` (files asked for); observes seconds.
        lookup: from a name to its addresses; the system's by default.
    """

    def __init__(
        self, settings: FetchSettings, guard: Guard, pace: Pace, metrics: Metrics, lookup: Lookup | None = None
    ) -> None:
        self._settings, self._guard, self._pace, self._metrics = settings, guard, pace, metrics
        self._resolver = GuardedResolver(guard, lookup)
        self._robots = Robots(self._robots_txt) if settings.robots == "obey" else None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="inflate")  # started with the first encoded body
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Fetcher:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=self._resolver, ttl_dns_cache=30, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**_HEADERS, "User-Agent": self._settings.user_agent},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.first_byte_s),
            trust_env=False,
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._robots is not None:
            await self._robots.close()
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(
        self, url: str, *, known: Fetched | None = None, takes: Callable[[str], bool] = readable, place: Place | None = None
    ) -> Fetched | WebError:
        """Fetch a page, following redirects.

        Args:
            url: of the page.
            known: what was there before: where the server says that it still holds, it is returned as it is.
            takes: which content types are read; others are not downloaded.
            place: in memory, for what is fetched: taken when it is its host's turn, and held on return.
        """
        return await self._attempts(_Ask("GET", url, known=known, takes=takes, obeys=True, place=place))

    async def _robots_txt(self, url: str) -> Fetched | WebError:
        self._metrics.add("web/robots_n")
        return await self._attempts(_Ask("GET", url, takes=lambda _: True))

    async def once(
        self, method: Literal["GET", "POST"], url: str, headers: Mapping[str, str], payload: object = None
    ) -> Answer | WebError:
        """Ask a service that the settings chose a single time, at a pace that is the caller's; follow no redirect.

        Args:
            method: GET, or POST to send JSON.
            url: of the service, its parameters included.
            headers: in addition to the usual ones; a key belongs here.
            payload: what is posted.

        Returns:
            The answer, whatever its status; WebError when there was none, or it broke off.
        """
        try:
            found = await self._attempt(_Ask(method, url, payload, headers, service=True))
        except AgainError as again:
            return Answer(again.status, b"", again.after_s) if again.status else again.error
        return found if isinstance(found, WebError) else Answer(found.status, found.body)

    async def _attempts(self, ask: _Ask) -> Fetched | WebError:
        settings = self._settings
        ends, timeouts = time.monotonic() + settings.deadline_s, 0

        def again(error: Exception) -> bool | float:
            nonlocal timeouts
            if not isinstance(error, AgainError):
                return False
            timeouts += error.error.kind == "timeout"
            left = ends - time.monotonic()
            if timeouts > 1 or left <= (error.after_s or 0.0):
                return False
            # Everyone who was sent away comes back at a time of their own.
            return True if error.after_s is None else error.after_s + random.uniform(0, min(1.0, 0.1 * error.after_s))

        waits = stamina.retry_context(
            on=again,
            attempts=settings.attempts,
            timeout=settings.deadline_s,
            wait_initial=settings.wait_s,
            wait_max=settings.wait_max_s,
            wait_jitter=settings.wait_s,
        )
        try:
            async with asyncio.timeout(settings.deadline_s + self._pace.settings.queue_s):
                async for attempt in waits:
                    if attempt.num > 1:
                        self._metrics.add("web/retries")
                    with attempt:
                        return await self._attempt(ask)
        except AgainError as error:
            return error.part or error.error
        except TimeoutError:
            pass
        return WebError("timeout", f"{ask.url} gave no answer within {settings.deadline_s:g} s")

    async def _attempt(self, ask: _Ask) -> Fetched | WebError:
        url, seen = ask.url, set[str]()
        for _ in range(self._settings.redirects + 1):
            vetted = self._guard.vet_url(url)
            if isinstance(vetted, WebError):
                return vetted if url == ask.url else WebError(vetted.kind, f"{ask.url} redirects on. {vetted.message}")
            if vetted in seen:
                return WebError("redirects", f"{ask.url} redirects in a circle")
            seen.add(vetted)
            if ask.place is not None:
                await ask.place.free()
            if ask.obeys and self._robots is not None and (refusal := await self._robots.refusal(vetted)) is not None:
                return refusal
            start = time.perf_counter()
            try:
                async with self._slot(ask, vetted):
                    if ask.place is not None:
                        await ask.place.take()
                    start = time.perf_counter()
                    self._metrics.add(f"web/{ask.counted}_n")
                    found = await self._hop(ask, vetted)
            except QueueError:
                raise WorldDownError(f"{vetted} was not asked: too many requests for its host are waiting") from None
            except TimeoutError:
                raise AgainError(WebError("timeout", f"{vetted} did not answer in time")) from None
            except (aiohttp.ClientError, OSError) as error:
                return explained(vetted, error)
            finally:
                self._metrics.observe(f"web/{ask.counted}_s", time.perf_counter() - start)
            if not isinstance(found, str):
                return found
            url = found
        return WebError("redirects", f"{ask.url} redirects more than {self._settings.redirects} times")

    def _slot(self, ask: _Ask, url: str) -> AbstractAsyncContextManager[None]:
        if ask.service:
            return nullcontext()
        host = URL(url).raw_host or ""
        return self._pace.host(host, own=self._guard.allowed(host) is not None)

    async def _hop(self, ask: _Ask, url: str) -> Fetched | WebError | str:
        """Ask once; return what came, or where to ask next."""
        if self._session is None:
            raise RuntimeError("a Fetcher is used inside `async with`")
        headers = {**ask.headers, **(ask.known.conditions(url) if ask.known is not None else {})}
        async with asyncio.timeout(self._settings.total_s):
            async with asyncio.timeout(self._settings.first_byte_s):
                response = await self._session.request(
                    ask.method, URL(url, encoded=True), json=ask.payload, headers=headers, allow_redirects=False
                )
            try:
                return await self._judge(ask, url, response)
            finally:
                response.close()  # after the whole body this does nothing, and the connection stays in the pool

    async def _judge(self, ask: _Ask, url: str, response: aiohttp.ClientResponse) -> Fetched | WebError | str:
        check_again(url, response)
        status = response.status
        if status == 304 and ask.known is not None and ask.known.conditions(url):
            self._metrics.add("web/not_modified")
            return ask.known
        if not ask.service and status in _REDIRECTS and "Location" in response.headers:
            try:
                return urljoin(url, response.headers["Location"].strip())
            except ValueError:
                return WebError("bad_url", f"{url} redirects to something that is not an address")
        if not ask.service and not 200 <= status < 300:
            return WebError(kind_of(status), f"{url} answered with status {status}")
        kind, charset = content_type(response)
        if not ask.service and not ask.takes(kind):
            return WebError("unsupported", f"{url} is {kind}, which is not read; only HTML, text, JSON, feeds and PDF are")
        wire, over, broken = await self._read(response)
        encoding, cap = ", ".join(response.headers.getall("Content-Encoding", ())), self._settings.body_bytes
        try:
            if encoding:  # off the event loop: few bytes can stand for many, or for much work
                unpack = functools.partial(inflate, wire, encoding, cap)
                body, cut = await asyncio.get_running_loop().run_in_executor(self._threads, unpack)
            else:
                body, cut = inflate(wire, encoding, cap)
        except EncodingError as error:
            return WebError("protocol", f"{url} sent {error}")
        stamps = validator(response, "ETag"), validator(response, "Last-Modified")
        found = Fetched(url, status, kind, charset, body, over or cut or broken, broken, *stamps)
        if broken:
            raise AgainError(
                WebError("unreachable", f"The connection broke off while {url} was read"), part=found if body else None
            )
        return found

    async def _read(self, response: aiohttp.ClientResponse) -> tuple[deque[bytes], bool, bool]:
        """Return the body as sent, whether it passes the cap, and whether the connection ended before it did."""
        kept, size, cap = deque[bytes](), 0, self._settings.wire_bytes
        try:
            while size <= cap and (chunk := await response.content.read(_STEP)):
                kept.append(chunk)
                size += len(chunk)
        except aiohttp.ServerTimeoutError:
            raise
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError):
            return kept, False, True
        finally:
            self._metrics.add("web/bytes", size)
        if size > cap:
            kept.append(kept.pop()[: cap - size])
        return kept, size > cap, False
