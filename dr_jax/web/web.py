"""The web, as the tools see it: search it, open a page of it.

In:    a query, or a URL
Out:   hits, or a page; WebError when the asker was wrong or the page is no good, which the policy is shown
Fails: WorldDownError when the world is at fault (no search provider, no page at all, no page reader): the episode ends
       WORLD_FAILED;
       BudgetError when searching has cost as much as it may;
       ReplayMiss when a tape is replayed and does not hold what was asked for
Holds: siblings who ask the same get one request and one extraction; every await has a deadline; `close` leaves no task,
       socket or process
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.web import entries
from dr_jax.web.blocklist import Blocklist
from dr_jax.web.entries import Hits
from dr_jax.web.fetch import Fetcher
from dr_jax.web.guard import AllowedHost, Guard, Lookup
from dr_jax.web.once import Once
from dr_jax.web.pace import Pace, Place
from dr_jax.web.page import FORM, HTML, Page, WebError, whole
from dr_jax.web.reach import Reach
from dr_jax.web.render import Renderer
from dr_jax.web.reply import Fetched
from dr_jax.web.search.budget import Budget
from dr_jax.web.search.catalogue import remembered_as, templates
from dr_jax.web.search.desk import Desk
from dr_jax.web.search.local import at_home
from dr_jax.web.search.provider import vet_query
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import Entry, TapeSettings
from dr_jax.web.tape.tape import Tape
from dr_jax.web.workers import Extractors

_RECENT_S = 600.0  # for siblings
Found = TypeVar("Found", bound="Hits | Page | WebError")


class Web:
    """Search and pages, shared by every episode of a process. An async context manager.

    Args:
        settings: provider, limits, tape.
        allow: hosts on addresses that are not public and may be reached all the same, such as littleweb's.
        metrics: counts and times everything under `web/`. What was asked for and what the network was asked for differ by
            what memory and tape held: `web/search_n` and `web/query_n`, `web/open_n` and `web/fetch_n`, `web/tape_hits`.
        lookup: from a name to its addresses; the system's by default.
        budget: of the run, where several `Web`s share it; one of the settings' own by default.
        world: tells this web from others that have the same addresses, on a tape that they share.

    Raises:
        UserError: a provider needs a key and the environment has none; the block list cannot be read; on entering: there is no
            local corpus, or it is empty; pages are to be rendered, and there is no Chromium.
    """

    def __init__(
        self,
        settings: WebSettings,
        *,
        allow: Iterable[AllowedHost] = (),
        metrics: Metrics | None = None,
        lookup: Lookup | None = None,
        budget: Budget | None = None,
        world: str = "",
    ) -> None:
        self._settings, self._world = settings, f"{world} " if world else ""
        self._queries = templates(settings.searching) if settings.tape.mode != "replay" else {}
        self._metrics = metrics or Metrics()
        self._allow = tuple(allow)
        self._guard, self._lookup = Guard(self._allow, Blocklist(settings.block)), lookup
        self._budget = budget or Budget(settings.budget, self._metrics)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Web:
        settings, metrics = self._settings, self._metrics
        async with AsyncExitStack() as stack:
            self._pace = Pace(settings.pace, metrics)
            self._tape = await stack.enter_async_context(Tape(settings.tape, metrics))
            self._extractors = await stack.enter_async_context(Extractors(settings.extract))
            self._fetcher = await stack.enter_async_context(
                Fetcher(settings.fetch, self._guard, self._pace, metrics, self._lookup)
            )
            self._reach = Reach(settings.breaker, metrics, self._fetcher.get)
            stack.push_async_callback(self._reach.close)
            self._renderer: Renderer | None = None
            if settings.render.mode != "off" and not self._tape.replays:
                self._renderer = await stack.enter_async_context(Renderer(settings.render, self._fetcher, self._guard, metrics))
            if not self._tape.replays:
                self._desk = await stack.enter_async_context(self._make_desk())
            half, ages = settings.memory_mb << 19, settings.tape
            # A tape knows how old an answer is; memory knows only since when it has it.
            search_s, fetch_s = (age if self._tape.lives else min(age, _RECENT_S) for age in (ages.search_s, ages.fetch_s))
            self._searches = Once[Hits | WebError](entries.size_of_hits, half, lambda found: _fresh_s(found, search_s, ages))
            self._pages = Once[Page | WebError](entries.size_of_page, half, lambda found: _fresh_s(found, fetch_s, ages))
            stack.push_async_callback(self._searches.close)
            stack.push_async_callback(self._pages.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def search(self, query: str) -> Hits | WebError:
        """Search.

        Args:
            query: in words.

        Returns:
            Hits, best first; none when nothing was found; WebError when the query or the answer was no good.

        Raises:
            WorldDownError: the providers failed, whatever the query.
            BudgetError: searching has cost as much as it may.
            ReplayMiss: a tape is replayed and does not hold this search.
        """
        self._metrics.add("web/search_n")
        asked = vet_query(query)
        if isinstance(asked, WebError):
            return self._counted(asked)
        with timed(self._metrics, "web/search_s"):
            async with self._down_noted("search", self._search_key(asked)):
                found = await self._searched(asked)
        return self._counted(found if isinstance(found, WebError) else self._unblocked(found))

    async def open(self, url: str) -> Page | WebError:
        """Open a page.

        Args:
            url: absolute, http or https.

        Returns:
            The page, or why there is none.

        Raises:
            WorldDownError: our own page readers failed, or no page at all can be reached.
            ReplayMiss: a tape is replayed and does not hold this page.
        """
        self._metrics.add("web/open_n")
        url = whole(url)
        if "local" in self._settings.order and (page := await self._of_corpus(url)) is not None:
            return self._counted(page)
        vetted = self._guard.vet_url(url)
        if isinstance(vetted, WebError):
            return self._counted(vetted)
        with timed(self._metrics, "web/open_s"):
            try:
                async with self._down_noted("fetch", self._world + vetted), asyncio.timeout(self._settings.open_s):
                    found = await self._pages.get(vetted, lambda: self._open(vetted))
            except TimeoutError:
                found = WebError("timeout", f"{vetted} could not be opened within {self._settings.open_s:g} s")
                await self._tape.keep("fetch", self._world + vetted, entries.of_fetched(found))
        return self._counted(found)

    async def healthy(self) -> None:
        """Wait until a search provider may be asked and pages can be reached: at once, unless it is known that they cannot.

        Raises:
            WorldDownError: they have been down for longer than `breaker.down_s`.
            BudgetError: searching has cost as much as it may.
        """
        if not self._tape.replays:
            await self._desk.healthy()
            await self._reach.healthy()

    async def kept(self, kind: str, key: str) -> Any | None:
        """Return what was kept on the tape, or None: nothing, or it is not fresh any more, or there is no tape.

        Args:
            kind: `reading`.
            key: names everything that the value depends on.
        """
        entry = await self._tape.recall(_note(kind), key)
        return None if entry is None else json.loads(entry.body)

    async def keep(self, kind: str, key: str, value: Any, *, lasts: bool = True) -> None:
        """Keep a value that JSON can hold on the tape, if there is one and it records.

        Args:
            kind, key: as of `kept`.
            value: replaces what was kept before.
            lasts: whether it is more than what a replay is to find, where nothing better is.
        """
        await self._tape.keep(_note(kind), key, Entry({}, json.dumps(value).encode(), passing=not lasts))

    async def once(self, kind: str, key: str, make: Callable[[], Awaitable[tuple[Any, bool]]]) -> Any:
        """Return what was kept, or make and keep it: in one process at a time, among those that share the tape.

        Args:
            kind, key: as of `kept`.
            make: returns a value that JSON can hold, and whether it lasts.

        Raises:
            WorldDownError: another process took too long over it.
            Exception: whatever `make` raises.
        """

        async def made() -> tuple[Any, Entry]:
            value, lasts = await make()
            return value, Entry({}, json.dumps(value).encode(), passing=not lasts)

        return await self._tape.once(_note(kind), key, made, lambda entry: json.loads(entry.body))

    @property
    def identity(self) -> str:
        """Of the tape: two webs of the same one buy nothing twice. "" where nothing is remembered."""
        return self._tape.identity

    @property
    def terms(self) -> dict[str, int | str | bool]:
        """As those of the settings."""
        return self._settings.terms

    def _make_desk(self) -> Desk:
        return Desk(
            self._settings.searching,
            self._queries,
            fetch=self._settings.fetch,
            pace=self._pace,
            allow=self._allow,
            metrics=self._metrics,
            budget=self._budget,
            extractors=self._extractors,
            lookup=self._lookup,
        )

    @asynccontextmanager
    async def _down_noted(self, kind: Literal["search", "fetch"], key: str) -> AsyncIterator[None]:
        """Count that the world is down, and keep it on the tape: an episode that ends so ends so in a replay."""
        try:
            yield
        except WorldDownError as error:
            self._metrics.add("web/errors/world_down")
            await self._tape.keep(kind, key, entries.of_down(error))
            raise

    def _search_key(self, asked: str) -> str:
        return f"{self._world}{remembered_as(self._settings.searching)} {self._settings.results} {asked}"

    async def _searched(self, asked: str) -> Hits | WebError:
        within_s = self._settings.search_s + self._settings.pace.queue_s
        try:
            async with asyncio.timeout(within_s):
                return await self._searches.get(asked, lambda: self._search(asked))
        except TimeoutError:
            raise WorldDownError(f"Searching took more than {within_s:g} s, waiting for its turn included") from None

    async def _search(self, asked: str) -> Hits | WebError:
        key = self._search_key(asked)
        if self._settings.order != ("local",) or self._tape.replays:
            return await self._tape.once("search", key, lambda: self._asked(asked), entries.hits)
        found, entry = await self._asked(asked)  # what a corpus holds today costs nothing to ask
        if entry is not None:
            await self._tape.keep("search", key, entry)
        return found

    async def _asked(self, asked: str) -> tuple[Hits | WebError, Entry | None]:
        found = await self._desk.search(asked)
        return found, None if isinstance(found, WebError) and not found.lasting else entries.of_hits(found)

    async def _open(self, url: str) -> Page | WebError:
        async with self._pace.place() as place:
            fetched = await self._fetch(url, place)
            if isinstance(fetched, WebError):
                return fetched
            if (refusal := self._guard.blocked(fetched.url)) is not None:  # it was remembered when it was not blocked yet
                return refusal
            await place.take()  # what came from the tape has none
            page = await self._read(fetched)
            if not self._is_to_be_rendered(fetched, page):
                return page
            rendered = await self._rendered(fetched)
            if isinstance(rendered, WebError):
                return page
            if (refusal := self._guard.blocked(rendered.url)) is not None:
                return refusal
            shown = await self._read(rendered)
            return page if isinstance(shown, WebError) else shown

    async def _of_corpus(self, url: str) -> Page | WebError | None:
        """Return the local corpus's page at an address, or None when it has none."""
        key = f"corpus {url.strip()}"
        if not self._tape.replays:
            try:
                async with asyncio.timeout(self._settings.open_s):
                    page = await self._desk.page(url)
            except TimeoutError:
                raise WorldDownError(f"The local corpus gave no page within {self._settings.open_s:g} s") from None
            if page is not None:
                await self._tape.keep("page", key, entries.of_page(page))
            return page
        entry = await self._tape.recall("page", key)
        if entry is None and at_home(url):
            raise self._tape.missed("page", key)
        return None if entry is None else entries.page(entry)

    async def _fetch(self, url: str, place: Place) -> Fetched | WebError:
        return await self._tape.once("fetch", self._world + url, lambda: self._fetched(url, place), entries.fetched)

    async def _fetched(self, url: str, place: Place) -> tuple[Fetched | WebError, Entry | None]:
        stale = await self._tape.stale("fetch", self._world + url)
        kept = None if stale is None or stale.error else entries.fetched(stale)
        known = kept if isinstance(kept, Fetched) and not kept.broken else None
        found = await self._reach.asked(url, lambda: self._fetcher.get(url, known=known, place=place))
        return found, entries.of_fetched(found)

    def _is_to_be_rendered(self, fetched: Fetched, page: Page | WebError) -> bool:
        shown = isinstance(page, Page) or page.kind != "empty"
        match self._settings.render.mode:
            case "off":
                return False
            case "when_empty":
                return not shown and fetched.content_type in HTML
            case "always":
                return fetched.content_type in HTML

    async def _rendered(self, fetched: Fetched) -> Fetched | WebError:
        async def make() -> tuple[Fetched | WebError, Entry | None]:
            assert self._renderer is not None  # a tape that is replayed never comes here
            found = await self._renderer.render(fetched)
            return found, entries.of_fetched(found)

        return await self._tape.once("fetch", f"{self._world}rendered {fetched.url}", make, entries.fetched)

    async def _read(self, found: Fetched) -> Page | WebError:
        said = [FORM, found.url, found.content_type, found.charset, found.truncated]
        key = hashlib.sha256(json.dumps(said).encode() + b"\0")
        key.update(found.body)
        return await self._tape.once("page", key.hexdigest(), lambda: self._extracted(found), entries.page)

    async def _extracted(self, found: Fetched) -> tuple[Page | WebError, Entry | None]:
        self._metrics.gauge("web/extract_queue", self._extractors.waiting)
        with timed(self._metrics, "web/extract_s"):
            page = await self._extractors.extract(
                found.body, found.url, found.content_type, found.charset, truncated=found.truncated
            )
        return page, None if isinstance(page, WebError) and not page.lasting else entries.of_page(page)

    def _unblocked(self, hits: Hits) -> Hits:
        kept = tuple(hit for hit in hits if self._guard.blocked(hit.url) is None)
        if len(kept) < len(hits):
            self._metrics.add("web/blocked_hits", len(hits) - len(kept))
        return kept

    def _counted(self, found: Found) -> Found:
        if isinstance(found, WebError):
            self._metrics.add(f"web/errors/{found.kind}")
        return found


def _note(kind: str) -> Literal["reading"]:
    if kind != "reading":  # searches and pages are what the web says, and nobody else
        raise ValueError(f"kind is {kind!r}; 'reading' is needed")
    return "reading"


def _fresh_s(found: Hits | Page | WebError, fresh_s: float, ages: TapeSettings) -> float:
    return min(fresh_s, ages.error_s) if isinstance(found, WebError) else fresh_s
