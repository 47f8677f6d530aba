"""The web through gateways: searched and opened as `Web` is, by whichever of them is well.

In:    a query, or a URL; the addresses of gateways
Out:   hits, or a page, or WebError, as the gateway's own `Web` returned it
Fails: WorldDownError when no gateway answers in time, or the world is down at all of them; BudgetError and ReplayMiss as they
       were raised there
Holds: what a gateway does not answer is asked at another one; which one is asked follows from its health, then from what is
       asked, so that the same question meets the same memory, and from load where they share one tape; the run's own block
       list holds, whatever the gateway's; `close` leaves no task; gateways that no setting names may join and leave
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from dr_jax.base.errors import UserError, WorldDownError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.web.blocklist import Blocklist
from dr_jax.web.gateway import wire
from dr_jax.web.gateway.peer import Misfit, Peer, PeerError
from dr_jax.web.gateway.settings import vet_gateway
from dr_jax.web.gateway.wire import Answer
from dr_jax.web.guard import Guard
from dr_jax.web.page import Hit, Page, WebError
from dr_jax.web.search.provider import vet_query
from dr_jax.web.settings import WebSettings

_LOG = logger(__name__)
_UNEVEN = 32  # requests that one gateway may have under way more than another of the same tape before that one is asked
Found = TypeVar("Found")


class RemoteWeb:
    """Search and pages through gateways. An async context manager; its methods are those of `Web`.

    Args:
        settings: `gateways`, `gateway`, and how long the world may be down.
        world: the name under which the gateways serve what is meant.
        metrics: counts and times `web/search_n`, `web/open_s`, … as `Web` does, and `gateways/failures`; `gateways/ready` is
            how many may be asked, `gateways/down` is 1 while new work waits for one.
        token: that they ask for; what the environment holds, by default.
        apart: whether gateways come and go (`join`, `leave`), each with a pace of its own: then all pages of a host are opened
            by one of them, and everything is searched by one, as long as that one is well, so that what may be asked of a host
            or provider in a second is not asked by each of them.

    Raises:
        UserError: the block list cannot be read; on entering: no gateway can be reached; one refuses the token, or serves
            something else.
    """

    def __init__(
        self, settings: WebSettings, world: str, *, metrics: Metrics | None = None, token: str = "", apart: bool = False
    ) -> None:
        self._settings, self._world, self._apart = settings, world, apart
        self._token = token or settings.gateway.token
        self._metrics = metrics or Metrics()
        self._guard = Guard(block=Blocklist(settings.block))
        self._peers: list[Peer] = []

    async def __aenter__(self) -> RemoteWeb:
        settings = self._settings.gateway
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = aiohttp.ClientTimeout(total=None, connect=settings.connect_s)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=headers, timeout=timeout
        )
        self._peers = [self._peer(url) for url in self._settings.gateways]
        try:
            if not self._apart:
                await self._greet()
        except BaseException:
            await self._session.close()
            raise
        self._watching = asyncio.create_task(self._watch(), name="gateways")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        await self._session.close()

    async def join(self, url: str, place: str) -> None:
        """Ask this gateway too, for what one that had this place before was asked for.

        Raises:
            PeerError: it does not answer.
            UserError: it is none for this run.
        """
        peer = self._peer(url, place)
        await peer.greet()
        if all(other.url != peer.url for other in self._peers):
            self._peers.append(peer)

    def leave(self, url: str) -> None:
        """Ask this gateway nothing more; what it has not answered is asked at another."""
        for peer in [peer for peer in self._peers if peer.url == url]:
            self._peers.remove(peer)
            peer.give_up()

    async def search(self, query: str) -> tuple[Hit, ...] | WebError:
        """Search, as `Web.search` does."""
        self._metrics.add("web/search_n")
        asked = vet_query(query)
        if isinstance(asked, WebError):
            return self._counted(asked)
        with timed(self._metrics, "web/search_s"), self._failures():
            topic = "search" if self._apart else asked
            found = await self._ask(wire.SEARCH, {"query": asked}, topic, wire.read_hits)
        return self._counted(found if isinstance(found, WebError) else self._unblocked(found)[: self._settings.results])

    async def open(self, url: str) -> Page | WebError:
        """Open a page, as `Web.open` does."""
        self._metrics.add("web/open_n")
        if (refusal := self._guard.blocked(url)) is not None:
            return self._counted(refusal)
        with timed(self._metrics, "web/open_s"), self._failures():
            topic = host_of(url) if self._apart else url
            found = await self._ask(wire.OPEN, {"url": url}, topic, wire.read_page)
        refused = self._guard.blocked(found.url) if isinstance(found, Page) else None
        return self._counted(refused or found)

    async def healthy(self) -> None:
        """Wait until a gateway is there at which a search provider may be asked.

        Raises:
            WorldDownError: there has been none for longer than `breaker.down_s`.
            BudgetError: searching has cost as much as it may.
        """
        start, told = time.monotonic(), False
        while True:
            try:
                await self._ask(wire.HEALTHY, {}, "", bool)
            except WorldDownError as error:
                if time.monotonic() >= start + self._settings.breaker.down_s:
                    raise
                if not told:
                    told = True
                    self._metrics.gauge("gateways/down", 1.0)
                    _LOG.warning("nothing new is begun until a gateway has a way to the web: %s", error)
                await asyncio.sleep(self._settings.gateway.probe_s)
            else:
                break
        if told:
            self._metrics.gauge("gateways/down", 0.0)
            _LOG.info("a gateway has a way to the web again after %.0f s; the run goes on", time.monotonic() - start)

    async def kept(self, kind: str, key: str) -> Any | None:
        """Return what was kept on the gateway's tape, as `Web.kept` does."""
        return await self._ask(wire.KEPT, {"kind": kind, "key": key}, key, lambda answer: answer["value"])

    async def keep(self, kind: str, key: str, value: Any, *, lasts: bool = True) -> None:
        """Keep a value on the gateway's tape, as `Web.keep` does."""
        await self._ask(wire.KEEP, {"kind": kind, "key": key, "value": value, "lasts": lasts}, key, bool)

    async def once(self, kind: str, key: str, make: Callable[[], Awaitable[tuple[Any, bool]]]) -> Any:
        """Return what was kept, or make and keep it, as `Web.once` does; two runs that want it at a time both make it."""
        known = await self.kept(kind, key)
        if known is not None:
            return known
        value, lasts = await make()
        try:
            await self.keep(kind, key, value, lasts=lasts)
        except WorldDownError as error:  # it was paid for: it is used, and made again when it is wanted again
            _LOG.warning("what was made was not kept: %s", error)
        return value

    async def _ask(self, path: str, asked: dict[str, Any], topic: str, read: Callable[[Answer], Found]) -> Found:
        """Ask one gateway after another until one answers.

        Raises:
            WorldDownError: none did, or the world is down at every one that did.
            UserError: whatever a gateway raised.
        """
        ends, down = time.monotonic() + self._settings.gateway.answer_s, dict[Peer, WorldDownError]()
        while True:
            peer = await self._chosen(topic, ends, down)
            try:
                answer = await peer.ask(path, asked, ends - time.monotonic())
                failure = wire.read_failure(answer, peer.url)
                if failure is None:
                    found = read(answer)
                    peer.went_well()
                    return found
            except PeerError as error:
                self._gave_up(peer, str(error), error.after_s, silent=error.silent)
            except Misfit as error:
                self._gave_up(peer, str(error))
            except (KeyError, TypeError, ValueError) as error:
                self._gave_up(peer, f"its answer has another shape ({type(error).__name__})")
            else:
                peer.went_well()
                if not isinstance(failure, WorldDownError):
                    raise failure
                down[peer] = failure  # as seen from there; another gateway may have another way out

    async def _chosen(self, topic: str, ends: float, down: dict[Peer, WorldDownError]) -> Peer:
        """Wait for a gateway that may be asked, and return the best one.

        Raises:
            WorldDownError: there is none left, or none in time.
        """
        while True:
            if self._session.closed:
                raise WorldDownError("The way to the web was closed while something was on its way")
            ready = [peer for peer in self._peers if peer not in down and not peer.rests_s]
            left = ends - time.monotonic()
            if ready and left > 0:
                return self._best(topic, ready)
            if down or left <= 0:
                raise next(iter(down.values())) if down else self._all_silent()
            rest = min((peer.rests_s for peer in self._peers), default=self._settings.gateway.probe_s)
            await asyncio.sleep(max(0.0, min(left, rest, self._settings.gateway.probe_s)))

    def _best(self, topic: str, ready: Sequence[Peer]) -> Peer:
        """Choose by load, roughly, among gateways of one tape, then by what is asked (rendezvous hashing)."""
        one_tape = not self._apart and bool(ready[0].tape) and len({peer.tape for peer in ready}) == 1
        least = min(peer.in_flight for peer in ready)
        near = [peer for peer in ready if not one_tape or peer.in_flight <= least + _UNEVEN]
        return max(near, key=lambda peer: hashlib.sha256(f"{peer.place} {topic}".encode(errors="replace")).digest())

    def _all_silent(self) -> WorldDownError:
        told = "; ".join(f"{peer.url}: {peer.why or 'not in time'}" for peer in self._peers) or "none was there"
        return WorldDownError(f"No gateway answered within {self._settings.gateway.answer_s:g} s ({told})")

    def _gave_up(self, peer: Peer, why: str, after_s: float | None = None, *, silent: bool = False) -> None:
        self._metrics.add("gateways/failures")
        peer.failed(why, after_s, silent=silent)

    def _peer(self, url: str, place: str = "") -> Peer:
        replays = self._settings.tape.mode == "replay"
        return Peer(vet_gateway(url), self._world, self._session, self._settings.gateway, replays=replays, place=place)

    async def _greet(self) -> None:
        """Ask every gateway whether it is there.

        Raises:
            UserError: none is; or one is not the right one.
        """
        found = await asyncio.gather(*(peer.greet() for peer in self._peers), return_exceptions=True)
        silent = {peer: error for peer, error in zip(self._peers, found, strict=True) if error is not None}
        for error in silent.values():
            if not isinstance(error, PeerError):
                raise error
        if len(silent) == len(self._peers):
            raise UserError(
                f"No gateway can be reached: {'; '.join(f'{peer.url} ({error})' for peer, error in silent.items())}",
                needed="at least one of web.gateways",
                fix="start one there (`dr-jax web-gateway CONFIG --host ADDRESS --port PORT`), or leave web.gateways out",
            )
        for peer, error in silent.items():
            peer.failed(str(error), silent=True)
        for peer in self._peers:
            theirs = {name: value for name, value in self._settings.terms.items() if peer.terms.get(name, value) != value}
            if theirs:
                told = ", ".join(f"{name} {peer.terms[name]!r} (here {value!r})" for name, value in theirs.items())
                _LOG.warning("gateway %s has settings of its own, which count: %s", peer.url, told)
        self._metrics.gauge("gateways/ready", len(self._peers) - len(silent))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.gateway.probe_s)
            await asyncio.gather(*(peer.look() for peer in self._peers))
            self._metrics.gauge("gateways/ready", sum(not peer.rests_s for peer in self._peers))

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except WorldDownError:
            self._metrics.add("web/errors/world_down")
            raise

    def _unblocked(self, hits: tuple[Hit, ...]) -> tuple[Hit, ...]:
        kept = tuple(hit for hit in hits if self._guard.blocked(hit.url) is None)
        if len(kept) < len(hits):
            self._metrics.add("web/blocked_hits", len(hits) - len(kept))
        return kept

    def _counted(self, found: Found) -> Found:
        if isinstance(found, WebError):
            self._metrics.add(f"web/errors/{found.kind}")
        return found


def host_of(url: str) -> str:
    """Return the name of a URL's host; all of the text, where there is none."""
    try:
        return (URL(url).host or url).lower()
    except ValueError:
        return url
