"""The web's work on other hosts: gateways as actors of Ray, started where there is room, replaced when they are lost.

In:    settings of the web and of littleweb; worlds to be reached
Out:   a `RemoteWeb` for each world, which all workers that are there serve
Fails: ConfigError when none is there in time at the start; later what they were asked for is asked of those that are left, or
       of who comes next, until `web.gateway.answer_s` have passed: then the world is down
Holds: no search key is sent: each worker finds them in the environment of its own host; workers take the run's token, made for
       this run alone and sent in a call, not in a setting; JAX is not imported here, and the workers do without
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import ray

from dr_jax.base.errors import ConfigError, UserError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.littleweb.world import WorldSettings
from dr_jax.train.elastic.cluster import answered, arrived, connected, staffed, taking
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.elastic.wire import LostError
from dr_jax.train.worlds import LittlewebSettings, ways_out, world_name
from dr_jax.web.gateway.client import RemoteWeb
from dr_jax.web.gateway.peer import PeerError
from dr_jax.web.gateway.server import serve_gateway
from dr_jax.web.settings import WebSettings

_log = logger(__name__)
_GRACE_S = 10.0  # for a worker to close its ways out, when the run ends


@dataclass(frozen=True, slots=True)
class Errand:
    """What a worker serves.

    Args:
        web: the way out.
        littleweb: the worlds, where that is searched.
    """

    web: WebSettings
    littleweb: LittlewebSettings


class WebWorker:
    """The actor: a gateway of its own."""

    async def address(self) -> str:
        """Say at which address of its host it will listen: the one by which the cluster knows that."""
        return ray.util.get_node_ip_address()

    async def open(self, errand: Errand, token: str, host: str) -> str:
        """Open the ways out and serve them; return where."""
        self._stack, self._left, metrics = AsyncExitStack(), asyncio.Event(), Metrics()
        webs = await ways_out(errand.web, errand.littleweb, metrics, self._stack)
        serving = serve_gateway(webs, errand.web.gateway, metrics, host=host, token=token)
        return (await self._stack.enter_async_context(serving)).url

    async def stay(self) -> None:
        """Return when it has been told to close: whoever waits for this hears when it dies."""
        await self._left.wait()

    async def close(self) -> None:
        """Finish what is under way and close the ways out."""
        await self._stack.aclose()
        self._left.set()


class WebCrew:
    """All web workers of a run; an asynchronous context manager.

    Args:
        settings: how many, and deadlines.
        errand: what they serve.
        metrics: counts `web/workers_lost`.

    Raises:
        ConfigError: on entering: the settings cannot be kept by workers that come and go; none came to be.
    """

    def __init__(self, settings: RaySettings, errand: Errand, metrics: Metrics) -> None:
        refuse(errand.web)
        self._settings, self._metrics = settings, metrics
        self._errand = replace(errand, web=replace(errand.web, gateway=replace(errand.web.gateway, grace_s=_GRACE_S / 2)))
        self._token = secrets.token_hex(32)
        self._stack = AsyncExitStack()
        self._webs: list[RemoteWeb] = []
        self._last = "no host has room"
        self._wrong: ConfigError | None = None
        self.actors: dict[str, tuple[str, Any]] = {}  # those in use: place and handle, by url
        self._there = asyncio.Event()

    async def __aenter__(self) -> WebCrew:
        far = self._settings.web
        await self._stack.enter_async_context(connected(self._settings))
        self._actor = ray.remote(WebWorker).options(**taking(far.cpus, 0, far.resource))
        self._tasks = [asyncio.create_task(self._staff(number)) for number in range(far.workers)]
        try:
            async with asyncio.timeout(far.start_s):
                await self._there.wait()
            if self._wrong is not None:
                raise self._wrong
        except BaseException as error:
            await self.__aexit__(None, None, None)
            if isinstance(error, TimeoutError):
                raise self._nobody() from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(LostError, TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await asyncio.gather(*(answered(actor.close.remote(), url) for url, (_, actor) in self.actors.items()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    @asynccontextmanager
    async def way(self, little: WorldSettings, metrics: Metrics) -> AsyncIterator[RemoteWeb]:
        """Open a world, as `worlds.way_out` does.

        Args:
            little: which littleweb, where that is searched.
            metrics: as for `RemoteWeb`.
        """
        settings = self._errand.web
        remote = RemoteWeb(settings, world_name(settings, little), metrics=metrics, token=self._token, apart=True)
        async with remote as web:
            self._webs.append(web)  # first: who joins from now on joins this one, too
            try:
                for url, (place, _) in list(self.actors.items()):
                    with suppress(PeerError):  # it has died just now, and is about to be noticed
                        await web.join(url, place)
                yield web
            finally:
                self._webs.remove(web)

    async def _staff(self, number: int) -> None:
        """Keep one worker, for ever."""
        place = f"web worker {number}"

        async def use(actor: Any, well: Callable[[], None]) -> None:
            name = f"{place}.{time.time():.0f}"
            try:
                url = await self._open(actor, name)
                self.actors[url] = (place, actor)
                try:
                    for web in self._webs:
                        await web.join(url, place)
                    well()
                    self._there.set()
                    _log.info("%s has joined at %s", name, url)
                    await self._stays(actor, name)
                finally:
                    del self.actors[url]
                    for web in self._webs:
                        web.leave(url)
            except (PeerError, UserError) as error:
                raise LostError(f"{name} cannot be used: {error}") from error

        await staffed(self._actor.remote, use, self._settings.rest_s)

    async def _open(self, actor: Any, name: str) -> str:
        host = await arrived(actor.address.remote(), name, str(self._settings.web))
        try:
            async with asyncio.timeout(self._settings.web.start_s):
                return await answered(actor.open.remote(self._errand, self._token, host), name)
        except LostError as error:
            self._last, cause = str(error), getattr(error.__cause__, "cause", None)
            if isinstance(cause, UserError) and not self._there.is_set():  # time does not cure it
                self._wrong = ConfigError(
                    f"The web worker at {host} cannot begin: {cause.found}",
                    needed=cause.needed,
                    fix=f"correct that there, before `ray start` (its environment is the workers'): {cause.fix}",
                )
                self._there.set()
            raise
        except TimeoutError:
            self._last = f"{name} was not ready"
            raise LostError(f"{name} was not ready after rollout.ray.web.start_s = {self._settings.web.start_s:g} s") from None

    async def _stays(self, actor: Any, name: str) -> None:
        try:
            await answered(actor.stay.remote(), name)
        except LostError as error:
            self._metrics.add("web/workers_lost")
            raise LostError(f"{error}; what it was asked for is asked elsewhere") from error
        await asyncio.Event().wait()  # it was told to close: there will be no other

    def _nobody(self) -> ConfigError:
        far = self._settings.web
        return ConfigError(
            f"No web worker was there after rollout.ray.web.start_s = {far.start_s:g} s: {self._last}",
            needed=f"a host with {far.cpus:g} CPUs and 1 of {far.resource!r}" if far.resource else f"{far.cpus:g} CPUs",
            fix="start one there (see rollout.ray.web), or set rollout.ray.web.workers=0",
        )


def refuse(web: WebSettings) -> None:
    """Check that workers that come and go can keep what is asked of them.

    Raises:
        ConfigError: they cannot.
    """
    if web.gateways:
        raise ConfigError(
            "web.gateways names gateways, and rollout.ray.web.workers asks for others", fix="leave one of the two out"
        )
    if web.budget.queries or web.budget.money:
        raise ConfigError(
            "web.budget cannot be kept by web workers that come and go: each that replaces another would begin anew",
            fix="use web.gateways, or no rollout.ray.web.workers; most providers bound a key's costs themselves",
        )
