"""A web that ends as it is told, gateways in front of it, and servers that only claim to be one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web as server

from dr_jax.base.metrics import Metrics
from dr_jax.web.gateway import wire
from dr_jax.web.gateway.client import RemoteWeb
from dr_jax.web.gateway.server import Served, serve_gateway
from dr_jax.web.gateway.settings import GatewaySettings
from dr_jax.web.pace import PaceSettings
from dr_jax.web.page import Hit
from dr_jax.web.search.settings import BreakerSettings
from dr_jax.web.settings import WebSettings

WORLD = "serper"
HIT = Hit("T", "http://a.example/", "s")
Handler = Callable[[server.Request], Awaitable[server.StreamResponse]]


class ToldWeb:
    """Ends every call as it is told: returns it, or raises it.

    Args:
        outcome: of `search` and `open`.
        sick: what `healthy` raises.
        identity: of its tape.
    """

    def __init__(self, outcome: Any = (HIT,), *, sick: Exception | None = None, identity: str = "") -> None:
        self.outcome, self.sick, self.identity = outcome, sick, identity
        self.terms = WebSettings().terms
        self.asked: list[str] = []
        self.ended = 0
        self.notes: dict[tuple[str, str], Any] = {}
        self.go = asyncio.Event()  # cleared: calls begin and wait
        self.go.set()

    async def search(self, query: str) -> Any:
        self.asked.append(query)
        await self.go.wait()
        self.ended += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def open(self, url: str) -> Any:
        return await self.search(url)

    async def healthy(self) -> None:
        if self.sick is not None:
            raise self.sick
        await self.go.wait()

    async def kept(self, kind: str, key: str) -> Any:
        return self.notes.get((kind, key))

    async def keep(self, kind: str, key: str, value: Any, *, lasts: bool = True) -> None:
        self.notes[kind, key] = value


def quick(**settings: Any) -> GatewaySettings:
    """Limits for a test: nothing is waited for as long as in earnest."""
    known = {"probe_s": 0.05, "connect_s": 2.0, "rest_s": 0.05, "rest_max_s": 0.4, "answer_s": 20.0}
    return GatewaySettings(**known | settings)


def remote(*urls: str, metrics: Metrics | None = None, world: str = WORLD, down_s: float = 20.0, **settings: Any) -> RemoteWeb:
    """A client of gateways."""
    limits = {"search_s": 1e-3, "open_s": 1e-3, "pace": PaceSettings(queue_s=1e-3), "breaker": BreakerSettings(down_s=down_s)}
    return RemoteWeb(WebSettings(gateways=urls, gateway=quick(**settings), **limits), world, metrics=metrics)


@asynccontextmanager
async def gateways(
    *webs: ToldWeb, metrics: Metrics | None = None, token: str = "", **settings: Any
) -> AsyncIterator[list[Served]]:
    """One gateway for each web."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serve_gateway({WORLD: web}, quick(**settings), metrics or Metrics(), token=token)  # type: ignore[dict-item]
            )
            for web in webs
        ]


@asynccontextmanager
async def impostor(answers: dict[str, Handler]) -> AsyncIterator[str]:
    """A server that answers as it is told, by path; says hello as a gateway does where nothing else is told."""

    async def hello(_: server.Request) -> server.StreamResponse:
        return server.json_response({"protocol": wire.PROTOCOL, "version": "0", "worlds": [WORLD], "tape": ""})

    async def answer(request: server.Request) -> server.StreamResponse:
        handler = answers.get(request.path, hello if request.path == wire.HELLO else None)
        return await handler(request) if handler else server.Response(status=404, text="<html>no such page</html>")

    app = server.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = server.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await server.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def post(url: str, body: Any = None, **options: Any) -> tuple[int, Any, dict[str, str]]:
    """Send one request as any program might; return status, JSON, headers."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body, **options) as response:
        return response.status, await response.json(), dict(response.headers)


async def until(true: Callable[[], Any]) -> None:
    """Wait until something is true."""
    for _ in range(4000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")
