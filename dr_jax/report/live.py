"""Serve the page of a run that goes on, to this machine only.

In:    a run's directory, looked at again whenever a page asks
Out:   `/`: the page; `/run`: what is new since a page last asked; `/episode`: one episode
Holds: answers only who asks for it by a name of this machine, so that no page of somebody else's can read it through a name
       that leads here; nothing can be changed through it
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web as server

from dr_jax.base.errors import DataError, UserError
from dr_jax.report import page
from dr_jax.report.data import RunData, plain
from dr_jax.rollout.record import episode_files

_PORT = re.compile(r":\d+$")
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_STATED = ("metrics.jsonl", "summary.json", "config.json")
Handler = Callable[[server.Request], Awaitable[server.StreamResponse]]


class Live:
    """Answers the pages that watch one run.

    Args:
        run: the run; read on whenever a page asks.
    """

    def __init__(self, run: RunData) -> None:
        self._run = run
        self._one = asyncio.Lock()  # the files are read by one request at a time

    def app(self) -> server.Application:
        """Return the application to serve."""
        app = server.Application(middlewares=[_own_names])
        app.router.add_get("/", self._page)
        app.router.add_get("/run", self._news)
        app.router.add_get("/episode", self._episode)
        return app

    async def _page(self, request: server.Request) -> server.Response:
        return server.Response(text=page.live(), content_type="text/html")

    async def _news(self, request: server.Request) -> server.Response:
        have, generation = _number(request, "have"), _number(request, "generation")
        async with self._one:
            found = await asyncio.to_thread(self._since, request.query.get("state", ""), generation, have)
        return server.Response(status=204) if found is None else _json(found)

    def _since(self, state: str, generation: int, have: int) -> dict[str, Any] | None:
        now = self._state()
        if now == state and generation == self._run.generation:
            return None
        self._run.follow()
        start = have if generation == self._run.generation else 0
        index = [one.row for one in self._run.episodes[start:]]
        return {"state": now, "generation": self._run.generation, "run": self._run.head(), "index": index}

    def _state(self) -> str:
        """Return a word that changes when the run has written something."""
        found = ["at"]
        for name in (*_STATED, *episode_files(self._run.directory)):
            with contextlib.suppress(FileNotFoundError):
                stat = (self._run.directory / name).stat()
                found.append(f"{stat.st_ino:x}.{stat.st_size:x}.{stat.st_mtime_ns:x}")
        return "-".join(found)

    async def _episode(self, request: server.Request) -> server.Response:
        at, generation = _number(request, "at"), _number(request, "generation")
        async with self._one:
            await asyncio.to_thread(self._run.follow)  # the file may have been cut meanwhile
            if generation != self._run.generation or at >= len(self._run.episodes):
                raise server.HTTPNotFound(text="this episode is no longer there")
            return _json(await asyncio.to_thread(lambda: next(self._run.whole([self._run.episodes[at]]))))


@contextlib.asynccontextmanager
async def watching(run: RunData, *, port: int = 0) -> AsyncIterator[str]:
    """Serve the page of a run on 127.0.0.1 until the block ends; the address is given.

    Raises:
        UserError: the port is taken.
    """
    runner = server.AppRunner(Live(run).app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await server.TCPSite(runner, "127.0.0.1", port).start()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UserError(
                f"Port {port} cannot be used: {error.strerror}", needed="a free port", fix="use --port 0, or another"
            ) from error
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@server.middleware
async def _own_names(request: server.Request, handler: Handler) -> server.StreamResponse:
    if not _is_here(_PORT.sub("", request.host)):
        raise server.HTTPForbidden(text="ask for this page as localhost or 127.0.0.1")
    try:
        answer = await handler(request)
    except DataError as error:
        answer = server.Response(status=500, text=str(error))
    answer.headers.update(_HEADERS)
    return answer


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _number(request: server.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise server.HTTPBadRequest(text=f"{name} is {text[:40]!r}; a number is needed")
    return int(text)


def _json(value: Any) -> server.Response:
    answer = server.Response(text=plain(value), content_type="application/json")
    answer.enable_compression()
    return answer
