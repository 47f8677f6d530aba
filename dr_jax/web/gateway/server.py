"""Serve ways out to the web, and their tape, to workers in other processes and on other hosts.

In:    requests over HTTP, each with the token and the name of the world that is meant
Out:   what `Web` returns or raises, as values of `wire`; `/healthz` for anybody, `/metrics` for Prometheus
Holds: so many requests are under way, more are sent away with 503 before anything was begun; what was begun is finished
       although its asker is gone, because it may be paid for and the asker will ask again, here or elsewhere; nobody is
       listened to from outside without a token, nor a page in a browser on this machine
Needs: a proxy in front where strangers can connect: how many connections are open, and how long the head of a request takes,
       is not bounded here
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web as server

from dr_jax import __version__
from dr_jax.base.errors import DrJaxError, UserError, WorldDownError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.web.gateway import wire
from dr_jax.web.gateway.scrape import CONTENT_TYPE, exposition
from dr_jax.web.gateway.settings import GatewaySettings
from dr_jax.web.gateway.wire import Answer
from dr_jax.web.web import Web

_LOG = logger(__name__)
_MIN_TOKEN = 16
_HEALTHY_S = 1.0  # how long a question after the world's health waits for good news before the answer is no
_RETRY_S = 1
_PORT = re.compile(r":\d*$")
Handler = Callable[[server.Request], Awaitable[server.StreamResponse]]
Work = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class _Refusal(Exception):
    """A request is not taken: its status, a word for counting, a sentence for the asker."""

    def __init__(self, status: int, why: str, message: str) -> None:
        super().__init__(message)
        self.status, self.why = status, why


class Gateway:
    """What is served.

    Args:
        webs: the ways out, by the names of their worlds.
        settings: limits.
        token: that every request must bring; "" for none.
        metrics: counts `gateway/requests`, `gateway/refused/<why>`, `gateway/failed/<kind>`; observes `gateway/<what>_s`;
            gauges `gateway/in_flight`, `gateway/stopping`. The webs' own are best counted in the same.
    """

    def __init__(self, webs: Mapping[str, Web], settings: GatewaySettings, token: str, metrics: Metrics) -> None:
        self._webs, self._settings, self._token, self._metrics = dict(webs), settings, token, metrics
        self._idle = asyncio.Event()
        self._idle.set()
        self._taken = 0
        self._stopping = False

    def app(self) -> server.Application:
        """Return the routes."""
        app = server.Application(client_max_size=self._settings.body_mb << 20, middlewares=[self._vetted])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_get(wire.HELLO, self._hello)
        works: dict[str, tuple[Work, tuple[str, ...]]] = {
            wire.SEARCH: (_search, ("query",)),
            wire.OPEN: (_open, ("url",)),
            wire.HEALTHY: (_healthy, ()),
            wire.KEPT: (_kept, ("kind", "key")),
            wire.KEEP: (_keep, ("kind", "key", "value", "lasts")),
        }
        for path, (work, fields) in works.items():
            app.router.add_post(path, self._handler(path, work, fields))
        self._metrics.gauge("gateway/in_flight", 0.0)
        self._metrics.gauge("gateway/stopping", 0.0)
        return app

    async def finish(self) -> bool:
        """Take nothing new, and wait for what is under way; return whether all of it ended in time."""
        self._stopping = True
        self._metrics.gauge("gateway/stopping", 1.0)
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @server.middleware
    async def _vetted(self, request: server.Request, handler: Handler) -> server.StreamResponse:
        try:
            if request.path != "/healthz":
                self._vet(request)
            return await handler(request)
        except _Refusal as refusal:
            self._metrics.add(f"gateway/refused/{refusal.why}")
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
            if refusal.status == 503:
                headers["Retry-After"] = str(_RETRY_S)
            answer = server.json_response({"refused": str(refusal)}, status=refusal.status, headers=headers)
            if self._stopping:
                answer.force_close()
            return answer

    def _vet(self, request: server.Request) -> None:
        """Let in who has the token; where none is needed, nothing that a browser could have been made to send."""
        if self._token:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(_digest(given), _digest(self._token)):
                raise _Refusal(401, "token", f"the token of this gateway is needed (the client's {self._settings.token_env})")
        elif not _is_loopback(_PORT.sub("", request.host)):  # a name of somebody else's that leads to this machine
            raise _Refusal(403, "host", "without a token this gateway is asked as localhost or by its address only")
        if request.method == "POST" and request.content_type != "application/json":
            raise _Refusal(415, "type", "application/json is needed")

    def _handler(self, path: str, work: Work, fields: tuple[str, ...]) -> Handler:
        timing = f"gateway/{path.rpartition('/')[2]}_s"

        async def handle(request: server.Request) -> server.StreamResponse:
            if self._stopping:
                raise _Refusal(503, "stopping", "this gateway is stopping")
            if self._taken >= self._settings.requests:
                raise _Refusal(503, "full", f"this gateway has {self._taken} requests under way")
            self._count(1)
            try:
                web, arguments = await self._asked(request, fields)
                self._metrics.add("gateway/requests")
                with timed(self._metrics, timing):
                    return server.json_response(await self._ended(work(web, *arguments)))
            finally:
                self._count(-1)

        return handle

    def _count(self, change: int) -> None:
        self._taken += change
        self._metrics.gauge("gateway/in_flight", self._taken)
        if self._taken:
            self._idle.clear()
        else:
            self._idle.set()

    async def _asked(self, request: server.Request, fields: tuple[str, ...]) -> tuple[Web, list[Any]]:
        try:
            async with asyncio.timeout(self._settings.body_s):
                asked = json.loads(await request.read())
            world, *arguments = [asked[name] for name in ("world", *fields)]
        except TimeoutError:
            raise _Refusal(408, "slow", "the request did not arrive in time") from None
        except server.HTTPRequestEntityTooLarge:
            raise _Refusal(413, "size", f"a request has at most {self._settings.body_mb} MB") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            needed = ", ".join(("world", *fields))
            raise _Refusal(400, "shape", f"a JSON object with {needed} is needed") from None
        for name, value in zip(("world", *fields), (world, *arguments), strict=True):
            if name not in ("value", "lasts") and not isinstance(value, str):
                raise _Refusal(400, "shape", f"{name} is not text")
        if world not in self._webs:
            raise _Refusal(404, "world", f"no world {world!r} is served, but {', '.join(map(repr, self._webs))}")
        return self._webs[world], arguments

    async def _ended(self, work: Awaitable[Answer]) -> Answer:
        try:
            return await work
        except _Refusal:
            raise
        except DrJaxError as error:
            answer = wire.failed(error)
            self._metrics.add(f"gateway/failed/{answer['failed']['kind']}")
            return answer
        except Exception:  # noqa: BLE001 - a bug that one request meets must not make every client leave this gateway alone
            _LOG.exception("a request failed")
            self._metrics.add("gateway/failed/fault")
            return wire.failed(WorldDownError("The gateway failed over this request"))

    async def _hello(self, _: server.Request) -> server.Response:
        if self._stopping:
            raise _Refusal(503, "stopping", "this gateway is stopping")
        told: Answer = {"protocol": wire.PROTOCOL, "version": __version__, "worlds": list(self._webs), "tape": "", "terms": {}}
        for web in self._webs.values():  # they are alike in these
            told |= {"tape": web.identity, "terms": web.terms}
        return server.json_response(told)

    async def _healthz(self, _: server.Request) -> server.Response:
        """Tell anybody that this process lives, and no more."""
        told = {"status": "stopping" if self._stopping else "ok", "in_flight": self._taken}
        return server.json_response(told, status=503 if self._stopping else 200)

    async def _scrape(self, _: server.Request) -> server.Response:
        return server.Response(body=exposition(self._metrics).encode(), headers={"Content-Type": CONTENT_TYPE})


@asynccontextmanager
async def serve_gateway(
    webs: Mapping[str, Web],
    settings: GatewaySettings,
    metrics: Metrics,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str = "",
) -> AsyncIterator[Served]:
    """Serve webs until the block ends; then finish what is under way, within `grace_s`.

    Args:
        webs: by the names of their worlds.
        settings: limits.
        metrics: what `/metrics` tells.
        host: the address to listen on.
        port: 0 takes a free one.
        token: that is asked for; "" only where nobody else can reach it.

    Raises:
        UserError: others could reach it and there is no token, or a short one; the port is taken, or the host is none.
    """
    refuse_open_door(host, token, settings.token_env)
    gateway = Gateway(webs, settings, token, metrics)
    # Whoever goes away is not followed: what was begun is finished, and remembered.
    runner = server.AppRunner(gateway.app(), access_log=None, handler_cancellation=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await server.TCPSite(runner, host, port, backlog=1024).start()
        except socket.gaierror as error:
            raise UserError(
                f"--host {host} has no address: {error.strerror}", needed="a name or address of this machine"
            ) from error
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                raise
            raise UserError(
                f"Port {port} on {host} cannot be used: {error.strerror}", needed="a free port", fix="use --port 0, or another"
            ) from error
        yield Served(host, int(runner.addresses[0][1]))
        if not await gateway.finish():
            _LOG.warning("the gateway stops; what took longer than %g s is given up", settings.grace_s)
    finally:
        await runner.cleanup()


def refuse_open_door(host: str, token: str, token_env: str) -> None:
    """Stop before anybody but this machine could use the gateway without a token.

    Raises:
        UserError: there is none, or one that can be guessed.
    """
    fix = f"export {token_env}=$(openssl rand -hex 32), here and where the workers run"
    if token and len(token) < _MIN_TOKEN:
        raise UserError(f"The token in {token_env} has {len(token)} characters", needed=f"at least {_MIN_TOKEN}", fix=fix)
    if not token and not _is_loopback(host):
        raise UserError(f"--host {host} lets others in, and there is no token", needed=f"one in {token_env}", fix=fix)


async def _search(web: Web, query: str) -> Answer:
    return wire.found_hits(await web.search(query))


async def _open(web: Web, url: str) -> Answer:
    return wire.found_page(await web.open(url))


async def _healthy(web: Web) -> Answer:
    try:
        async with asyncio.timeout(_HEALTHY_S):
            await web.healthy()  # begins to look for a provider that is up, which goes on when nobody waits for it
    except TimeoutError:
        raise WorldDownError("Searches or pages cannot be had now") from None
    return {"healthy": True}


async def _kept(web: Web, kind: str, key: str) -> Answer:
    _refuse_kind(kind)
    return {"value": await web.kept(kind, key)}


async def _keep(web: Web, kind: str, key: str, value: Any, lasts: bool) -> Answer:
    _refuse_kind(kind)
    await web.keep(kind, key, value, lasts=bool(lasts))
    return {"kept": True}


def _refuse_kind(kind: str) -> None:
    if kind != "reading":
        raise _Refusal(400, "shape", f"kind is {kind[:80]!r}; 'reading' is what may be kept")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(text: str) -> bytes:
    """Hash what is compared, so that its length does not show either."""
    return hashlib.sha256(text.encode(errors="replace")).digest()
