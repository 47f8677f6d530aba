"""Serve a world over real HTTP on loopback: its pages, and a search endpoint in Serper's response shape.

In:    a world, a port, faults
Out:   a running aiohttp server; pages by host name (`atlas.littleweb`) and, for a browser, by path (`/atlas/…`)
Fails: UserError when the port is taken
"""

from __future__ import annotations

import asyncio
import errno
import html
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from dr_jax.base.errors import UserError
from dr_jax.littleweb.faults import Faults
from dr_jax.littleweb.pages import HOSTS, Document
from dr_jax.littleweb.questions import draw
from dr_jax.littleweb.shelf import Shelf
from dr_jax.littleweb.world import LittleWorld

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "input{font:inherit;padding:.3rem .5rem;width:70%}li{margin:.2rem 0}small{opacity:.7}"
)


@dataclass(frozen=True, slots=True)
class Site:
    """A running site."""

    port: int
    host: str

    @property
    def base_url(self) -> str:
        """Where a browser finds it."""
        return f"http://{self.host}:{self.port}/"


@asynccontextmanager
async def serve(
    world: LittleWorld, *, port: int = 0, host: str = "127.0.0.1", faults: Faults | None = None
) -> AsyncIterator[Site]:
    """Serve the world until the block ends; requests that hang then are dropped.

    Args:
        world: to serve.
        port: 0 takes a free one.
        host: a loopback address.
        faults: what goes wrong; nothing by default.

    Raises:
        UserError: the port is taken.
    """
    handler = _Handler(world, faults or Faults())
    app = web.Application(client_max_size=1 << 20)
    app.router.add_route("*", "/{path:.*}", handler.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        tcp = web.TCPSite(runner, host, port)
        try:
            await tcp.start()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UserError(
                f"Port {port} on {host} cannot be used: {error.strerror}", needed="a free port", fix="use --port 0, or another"
            ) from error
        yield Site(int(runner.addresses[0][1]), host)
    finally:
        await runner.cleanup()
        handler.close()


class _Handler:
    def __init__(self, world: LittleWorld, faults: Faults) -> None:
        self._world, self._faults, self._shelf = world, faults, Shelf(world)
        self._asked: Counter[str] = Counter()
        self._start = time.monotonic()

    def close(self) -> None:
        self._shelf.close()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        host, path, browser = self._place(request)
        if host == "search":
            return await self._search(request, browser)
        if host == "":
            return web.Response(text=self._home(), content_type="text/html")
        document = self._shelf.document(host, path)
        return await self._troubled(request, document.url, _response(document, browser))

    def _place(self, request: web.Request) -> tuple[str, str, bool]:
        """Return site, path on it, and whether the address is one for a browser."""
        name = (request.host or "").partition(":")[0]
        if name.endswith(".littleweb"):
            return name.removesuffix(".littleweb"), "/" + request.match_info["path"], False
        first, _, rest = request.match_info["path"].partition("/")
        return first, "/" + rest, True

    async def _search(self, request: web.Request, browser: bool) -> web.StreamResponse:
        query, count = request.query.get("q", ""), request.query.get("num", "10")
        if request.method == "POST":
            try:
                asked = json.loads(await request.text())
                query, count = str(asked["q"]), asked.get("num", 10)
            except (ValueError, KeyError, TypeError, AttributeError):
                return web.json_response({"message": 'a JSON object with "q" is needed', "statusCode": 400}, status=400)
        number = min(10, max(1, int(count))) if str(count).isdigit() else 10
        found = self._shelf.search(query, number)
        if browser and request.method == "GET":
            return web.Response(text=self._results(query), content_type="text/html")
        organic = [
            {"title": one.title, "link": one.link, "snippet": one.snippet, "position": place}
            for place, one in enumerate(found, start=1)
        ]
        content = {"searchParameters": {"q": query, "type": "search", "num": number, "engine": "littleweb"}, "organic": organic}
        return await self._troubled(request, f"search:{query}", web.json_response(content))

    async def _troubled(self, request: web.Request, address: str, response: web.Response) -> web.StreamResponse:
        fault = self._faults.decide(address, self._asked[address], time.monotonic() - self._start)
        self._asked[address] += 1
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        match fault.kind:
            case "none":
                return response
            case "error":
                return web.Response(status=503, text="Service unavailable")
            case "garbage":
                noise = random.Random(address).randbytes(2048)
                return web.Response(body=noise, content_type="text/html")
            case "hang":
                await asyncio.Event().wait()
            case "cut":
                body = bytes(response.body or b"") if isinstance(response.body, bytes | bytearray) else b""
                cut = web.StreamResponse(headers={"Content-Length": str(len(body) + 1000), "Content-Type": "text/html"})
                await cut.prepare(request)
                await cut.write(body[: len(body) // 2])
                if request.transport is not None:
                    request.transport.close()
                return cut
        return response

    def _home(self) -> str:
        here = self._world.settings
        puzzles = draw(self._world, 12, seed=1)
        asked = "".join(
            f"<li>{html.escape(one.question.text)} <small>{html.escape(' | '.join(one.question.answers))}</small></li>"
            for one in puzzles
        )
        kinds = "".join(
            f"<li><a href='/directory/{kind}/1'>{kind}</a> <small>{len(members)}</small></li>"
            for kind, members in self._world.by_kind.items()
        )
        return _page(
            "littleweb",
            f"<h1>littleweb</h1><p>World {here.seed}, split {here.split}, {len(self._world.entities)} entities. None of "
            f"it is true.</p>{_FORM}<h2>Directories</h2><ul>{kinds}</ul><h2>Questions, with their answers</h2><ul>{asked}</ul>",
        )

    def _results(self, query: str) -> str:
        items = "".join(
            f"<li><a href='{_local(one.link)}'>{html.escape(one.title)}</a><br><small>{html.escape(one.snippet)}</small></li>"
            for one in self._shelf.search(query, 10)
        )
        return _page(f"search: {query}", f"<h1>{html.escape(query)}</h1>{_FORM}<ol>{items or '<li>nothing</li>'}</ol>")


_FORM = "<form action='/search'><input name='q' placeholder='a name and what you want to know'> <button>search</button></form>"


def _page(title: str, body: str) -> str:
    return f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>{body}"


def _local(url: str) -> str:
    """Turn `http://atlas.littleweb/x` into `/atlas/x`, which a person's browser can follow."""
    for host in HOSTS:
        url = url.replace(f"http://{host}.littleweb", f"/{host}")
    return url


def _response(document: Document, browser: bool) -> web.Response:
    if document.status == 301:
        return web.Response(status=301, headers={"Location": _local(document.location) if browser else document.location})
    body = document.body
    if browser:
        body = _local(body.decode("latin-1")).encode("latin-1")
    return web.Response(status=document.status, body=body, headers={"Content-Type": document.content_type})
