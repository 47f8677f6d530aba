"""A small web server on loopback, and ways to reach it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import Fetcher, FetchSettings
from dr_jax.web.guard import AllowedHost, Guard, Lookup
from dr_jax.web.pace import Pace, PaceSettings

MakeFetcher = Callable[..., Awaitable[Fetcher]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """Answers what a test gave it, under every host name, and remembers what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Handler] = {}
        self.asked: Counter[str] = Counter()
        self.requests: list[web.Request] = []
        self.port = 0

    def page(self, path: str, body: str | bytes = "", status: int = 200, **headers: str) -> None:
        """Serve a body at a path; header names are written with underscores."""
        content = body.encode() if isinstance(body, str) else body
        sent = {"Content-Type": "text/html; charset=utf-8"} | {name.replace("_", "-"): value for name, value in headers.items()}

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(body=content, status=status, headers=sent)

        self.pages[path] = answer

    def hang(self, path: str) -> None:
        """Accept requests for a path and never answer."""

        async def answer(_: web.Request) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        self.pages[path] = answer

    def cut(self, path: str, body: bytes, **headers: str) -> None:
        """Promise more than the body and close the connection after it."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/html", **headers})
            response.content_length = len(body) + 1000
            await response.prepare(request)
            await response.write(body)
            assert request.transport is not None
            request.transport.close()
            return response

        self.pages[path] = answer

    def in_turn(self, path: str, *answers: web.Response | Callable[[], web.Response]) -> None:
        """Serve one answer after the other, the last one for ever."""

        async def answer(_: web.Request) -> web.StreamResponse:
            found = answers[min(self.asked[path], len(answers)) - 1]
            return web.Response(body=found.body, status=found.status, headers=found.headers)

        self.pages[path] = answer

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        self.requests.append(request)
        handler = self.pages.get(request.path)
        return await handler(request) if handler else web.Response(status=404, text="no such page")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


@pytest.fixture
def allowed(site: Site) -> AllowedHost:
    """`*.here` is the site."""
    return AllowedHost("here", "127.0.0.1", site.port)


@pytest.fixture
async def make_fetcher(allowed: AllowedHost) -> AsyncIterator[MakeFetcher]:
    opened: list[Fetcher] = []

    async def make(lookup: Lookup | None = None, metrics: Metrics | None = None, **settings: Any) -> Fetcher:
        quick = FetchSettings(**{"wait_s": 0.01, "first_byte_s": 1.0, "total_s": 2.0, "deadline_s": 5.0} | settings)
        fetcher = Fetcher(quick, Guard([allowed]), Pace(PaceSettings(queue_s=5.0)), metrics or Metrics(), lookup)
        opened.append(await fetcher.__aenter__())
        return fetcher

    yield make
    for fetcher in opened:
        await fetcher.__aexit__(None, None, None)
