"""One gateway, as a client sees it: whether it may be asked now, and what it answers.

In:    a request of `wire`
Out:   its answer
Fails: PeerError: this gateway does not answer, another may; Misfit: it is none for this run; UserError: no gateway takes it
Holds: one that fails is left alone, for twice as long each time, or until it says hello if it was silent; one that gives no
       sign of life twice in a row is given up with all that is under way there, one that says that it is stopping is not
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import aiohttp

from dr_jax.base.errors import UserError
from dr_jax.base.trace import logger
from dr_jax.web.gateway import wire
from dr_jax.web.gateway.settings import GatewaySettings
from dr_jax.web.gateway.wire import Answer

_LOG = logger(__name__)
_MISSES = 2  # looks at its health in a row that fail, until what it was asked is asked elsewhere
_DOUBLINGS = 16
_CHUNK = 1 << 16
_FAULTS = (400, 405, 413, 415)  # what is wrong with these requests is wrong at every gateway


class PeerError(Exception):
    """A gateway did not answer.

    Args:
        message: one sentence.
        after_s: how long it asks to be left alone.
        silent: it gave no sign of life at all.
    """

    def __init__(self, message: str, after_s: float | None = None, *, silent: bool = False) -> None:
        super().__init__(message)
        self.after_s, self.silent = after_s, silent


class Misfit(UserError):
    """What answers is not a gateway for this run: another token, another world, another dr_jax, another server."""


class Peer:
    """A gateway.

    Args:
        url: where it is.
        world: the one that is meant.
        session: connections to it, with the token.
        settings: how it is asked.
        replays: whether only a gateway will do that asks nothing of the network.
        place: by which it is chosen; another that takes its place is asked for the same. "" is its url.
    """

    def __init__(
        self,
        url: str,
        world: str,
        session: aiohttp.ClientSession,
        settings: GatewaySettings,
        *,
        replays: bool = False,
        place: str = "",
    ) -> None:
        self.url, self.why, self.tape = url, "", ""
        self.place = place or url
        self.terms: dict[str, Any] = {}  # as it says, once it was greeted
        self._replays = replays
        self._world, self._session, self._settings = world, session, settings
        self._failures, self._misses, self._until, self._silent = 0, 0, 0.0, False
        self._limits: set[asyncio.Timeout] = set()

    @property
    def in_flight(self) -> int:
        """Requests of ours that it has not answered."""
        return len(self._limits)

    @property
    def rests_s(self) -> float:
        """Seconds for which it is still left alone."""
        return max(0.0, self._until - time.monotonic())

    async def greet(self) -> None:
        """Find out whether it is there, and the right one.

        Raises:
            PeerError: it does not answer.
            Misfit: it does, and is not one for this run.
        """
        told = await self._sent("GET", wire.HELLO, None, self._settings.connect_s)
        try:
            protocol, worlds, tape = told["protocol"], list(told["worlds"]), str(told["tape"])
            terms = dict(told.get("terms", {}))
        except (KeyError, TypeError, ValueError):
            raise self._misfit("is no gateway of dr_jax", "the address of one, in web.gateways") from None
        if protocol != wire.PROTOCOL:
            found = f"speaks version {protocol} of the protocol (dr_jax {told.get('version')})"
            raise self._misfit(found, f"version {wire.PROTOCOL}: the same dr_jax on both sides")
        if self._world not in worlds:
            served = ", ".join(map(repr, worlds))
            raise self._misfit(f"serves {served}", f"{self._world!r}: start it with the config of this run")
        if self._replays and not terms.get("replays"):
            raise self._misfit(
                "asks the network", 'one that replays a tape (web.tape.mode = "replay"), as this run says it does'
            )
        self.tape, self.terms = tape, terms

    async def ask(self, path: str, asked: dict[str, Any], within_s: float) -> Answer:
        """Ask, and return the answer.

        Raises:
            PeerError: it did not answer.
            Misfit: what answered is not a gateway for this run any more.
            UserError: it does not take such a request; nor will another.
        """
        return await self._sent("POST", path, asked | {"world": self._world}, within_s)

    async def look(self) -> None:
        """Look whether it is there, and let it be asked again if it was not; what fails at its work rests for its time."""
        try:
            await self.greet()
        except (PeerError, UserError) as error:
            self._misses = self._misses + 1 if isinstance(error, PeerError) and error.silent else 0
            self.failed(str(error), silent=True)
            if self._misses >= _MISSES:
                self.give_up()
            return
        self._misses = 0
        if self.rests_s and self._silent:
            _LOG.info("gateway %s is back", self.url)
            self._until = 0.0

    def give_up(self) -> None:
        """Wait no longer for what it was asked: that is asked elsewhere."""
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    def failed(self, why: str, after_s: float | None = None, *, silent: bool = False) -> None:
        """Leave it alone for a while; what was asked before it was left alone says nothing new.

        Args:
            why: it failed.
            after_s: how long it asks to be left alone.
            silent: whether a sign of life is all that is waited for.
        """
        self.why = why
        if self.rests_s:
            self._silent |= silent
            return
        self._silent = silent
        if after_s is None:
            rest = min(self._settings.rest_max_s, self._settings.rest_s * 2 ** min(self._failures, _DOUBLINGS))
            self._failures += 1
            _LOG.warning("gateway %s is left alone for %.3g s: %s", self.url, rest, why)
        else:
            rest = min(after_s, self._settings.rest_max_s)
        self._until = time.monotonic() + rest

    def went_well(self) -> None:
        """Forget earlier failures."""
        self._failures = 0

    async def _sent(self, method: str, path: str, asked: dict[str, Any] | None, within_s: float) -> Answer:
        try:
            async with asyncio.timeout(within_s) as limit:
                if asked is not None:
                    self._limits.add(limit)
                try:
                    async with self._session.request(method, self.url + path, json=asked, allow_redirects=False) as response:
                        return await self._read(response, path)
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            raise PeerError("it did not answer in time", silent=True) from None
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno or 0  # below 0 where a name cannot be resolved
            why = os.strerror(number) if number > 0 else error.os_error.strerror or type(error.os_error).__name__
            raise PeerError(f"no connection: {why}", silent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise PeerError(f"it broke off ({type(error).__name__})", silent=True) from None

    async def _read(self, response: aiohttp.ClientResponse, path: str) -> Answer:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > self._settings.answer_mb << 20:
                raise PeerError(f"its answer is longer than web.gateway.answer_mb = {self._settings.answer_mb}")
        try:
            answer = json.loads(body)
            if not isinstance(answer, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            raise PeerError(f"its answer (status {response.status}) is not a gateway's") from None
        if response.status == 200:
            return answer
        said = str(answer.get("refused", "it gave no reason"))[:500]
        if response.status == 401:
            raise self._misfit(
                f"refuses the token in {self._settings.token_env}" if self._settings.token else "asks for a token",
                f"the gateway's own, in {self._settings.token_env}",
            )
        if response.status == 404:
            raise self._misfit(f"has no {path}: {said}", "a gateway of this dr_jax, started with the config of this run")
        if response.status in _FAULTS:
            raise UserError(f"The gateway {self.url} does not take {path}: {said}", needed="the same dr_jax on both sides")
        after = response.headers.get("Retry-After", "")
        raise PeerError(f"status {response.status}: {said}", float(after) if after.isdecimal() else None)

    def _misfit(self, found: str, needed: str) -> Misfit:
        return Misfit(f"The gateway {self.url} {found}", needed=needed, fix="correct that, or web.gateways")
