"""Search texts of your own, and open them: a corpus on this disk in place of the web.

In:    a query, or the address of a document
Out:   hits; the page
Fails: UserError at the start, when there is no corpus or nothing in it; ProviderError when the index cannot be read
Holds: new and changed files are indexed at the start, HTML in the processes that read pages; what is broken is named, every
       time; several processes share one index
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dr_jax.base.errors import ConfigError, UserError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.web.page import Page, WebError
from dr_jax.web.search.bm25 import Ranking
from dr_jax.web.search.index import Index, Seen
from dr_jax.web.search.provider import Hits
from dr_jax.web.search.settings import LocalSettings
from dr_jax.web.search.source import ProviderError
from dr_jax.web.search.texts import HOST, Broken, Document, documents, files
from dr_jax.web.workers import Extractors

_LOG = logger(__name__)
_STEP = 256  # documents at a time
_AT_ONCE = 8  # pages that wait for a reader
_NAMED = 5  # broken lines that are named
_LOOK_S = 0.2
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    changed_ns: int


class Corpus:
    """A corpus and its index. An async context manager.

    Args:
        settings: where it is, how it is ranked.
        extractors: read its HTML.
        metrics: `search/local/documents` and `search/local/broken` are what it holds and what was left out.

    Raises:
        UserError: on entering: there is no such corpus, or nothing in it.
    """

    def __init__(self, settings: LocalSettings, extractors: Extractors, metrics: Metrics) -> None:
        if not settings.path:
            raise ConfigError(
                "web.search is local, but web.local.path is not set",
                needed="a folder of .txt, .md, .html or .jsonl files, or one .jsonl file",
                fix="set web.local.path",
            )
        self._settings, self._extractors, self._metrics = settings, extractors, metrics
        self._root = Path(settings.path)
        self._path = Path(settings.index or f"{str(self._root).rstrip('/')}.index")
        self._threads = ThreadPoolExecutor(max_workers=settings.threads, thread_name_prefix="corpus")
        self._free: queue.SimpleQueue[Index] = queue.SimpleQueue()
        self._opened: list[Index] = []
        self._ranking: Ranking | None = None

    async def __aenter__(self) -> Corpus:
        try:
            if not self._root.exists():
                raise UserError(
                    f"There is no corpus {self._root}", needed="a folder or a .jsonl file", fix="correct web.local.path"
                )
            async with self._alone():
                await self._update()
            for _ in range(self._settings.threads):
                self._free.put(await self._in_thread(self._index))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)  # a connection is not closed while it is used
        self._close()

    async def search(self, query: str, results: int) -> Hits | WebError:
        """Return the documents that match best.

        Raises:
            ProviderError: the index cannot be read.
        """

        def work(index: Index) -> Hits:
            if self._ranking is None:
                return index.search(query, results)
            return index.told(query, self._ranking.search(query, results))

        return await self._reading(work)

    async def open(self, url: str) -> Page | None:
        """Return the document at an address, or None.

        Raises:
            ProviderError: the index cannot be read.
        """
        address = url.strip().partition("#")[0]
        return await self._reading(lambda index: index.page(address) or index.page(url.strip()))

    async def _reading(self, work: Callable[[Index], Value]) -> Value:
        def guarded() -> Value:
            index = self._free.get()
            try:
                return work(index)
            finally:
                self._free.put(index)

        try:
            return await self._in_thread(guarded)
        except sqlite3.Error as error:
            raise ProviderError("unreachable", f"The index {self._path} cannot be read: {error}") from error

    async def _update(self) -> None:
        """Bring the index up to date; nobody else does so at the same time."""
        index = await self._in_thread(self._whole_index)
        found, known = await self._in_thread(self._scan), await self._in_thread(index.seen)
        names = {file.name for file in found}
        stale = [file for file in found if not _same(file, known.get(file.name))]
        start, changed = time.monotonic(), False
        for name in [*(name for name in known if name not in names), *(file.name for file in stale)]:
            changed |= name in known
            await self._in_thread(partial(index.forget, name))
        for file in stale:
            await self._add(index, file)
        known, count = await self._in_thread(index.seen), await self._in_thread(index.count)
        if stale or changed:
            _LOG.info("indexed %d files of %s in %.1f s", len(stale), self._root, time.monotonic() - start)
        self._report(known, count)
        if self._settings.ranking == "bm25s":
            folder = self._path.with_name(self._path.name + ".bm25s")
            self._ranking = await self._in_thread(lambda: Ranking(index, folder))

    async def _add(self, index: Index, file: _File) -> None:
        broken: list[Broken] = []
        rows = documents(self._root, file.name)
        while step := await self._in_thread(lambda: _next(rows)):
            pages = []
            for some in _batched([one for one in step if isinstance(one, Document)], _AT_ONCE):
                pages += await asyncio.gather(*(self._page(one) for one in some))
            broken += [one for one in step if isinstance(one, Broken)]
            broken += [Broken(0, f"{one.own}: {page.message}") for page, one in pages if isinstance(page, WebError)]
            kept = [(page, one.own) for page, one in pages if isinstance(page, Page)]
            refused = await self._in_thread(partial(index.add, file.name, kept))
            broken += [Broken(0, f"{own}: another document has this address") for own in refused]
        named = tuple((one.place, one.why[:300]) for one in broken[:_NAMED])
        await self._in_thread(lambda: index.finish(file.name, Seen(file.size, file.changed_ns, named, len(broken))))

    async def _page(self, one: Document) -> tuple[Page | WebError, Document]:
        """Read a document; its HTML in a process that can be killed."""
        if one.content_type != "text/html":
            return Page(one.url, one.title, one.text, (), one.content_type, one.truncated), one
        page = await self._extractors.extract(one.text.encode(), one.url, one.content_type, "utf-8", truncated=one.truncated)
        if isinstance(page, Page):
            page = replace(page, title=one.title or page.title)
            if not page.text:
                page = WebError("extract", "there is no text in it")
        return page, one

    def _report(self, known: dict[str, Seen], count: int) -> None:
        broken = sum(seen.broken_n for seen in known.values())
        self._metrics.gauge("search/local/documents", count)
        self._metrics.gauge("search/local/broken", broken)
        told = []
        for name, seen in known.items():
            if seen.broken_n:
                places = "; ".join(f"line {place}: {why}" if place else why for place, why in seen.broken)
                more = f"; and {seen.broken_n - len(seen.broken):,} more" if seen.broken_n > len(seen.broken) else ""
                told.append(f"{seen.broken_n:,} left out of {self._root / name if name else self._root} ({places}{more})")
        if not count:
            raise UserError(
                f"There is nothing in the corpus {self._root}" + (f": {told[0]}" if told else ""),
                needed='.txt, .md or .html files with text, or .jsonl files with {"title": …, "text": …} on each line',
                fix="correct web.local.path, or those files",
            )
        for words in told:
            _LOG.warning("the corpus has broken parts: %s", words)

    def _scan(self) -> list[_File]:
        found = []
        for name in files(self._root):
            status = (self._root / name if name else self._root).stat()
            found.append(_File(name, status.st_size, status.st_mtime_ns))
        return found

    def _whole_index(self) -> Index:
        """Open the index; when it proves corrupt, set it aside and begin a new one."""
        try:
            index = self._index()
            index.seen()
            return index
        except sqlite3.DatabaseError as error:
            self._close()
            number = 1
            while (aside := self._path.with_name(f"{self._path.name}.corrupt-{number}")).exists():
                number += 1
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            _LOG.warning("the index %s is corrupt (%s); it was set aside as %s and is made anew", self._path, error, aside)
            return self._index()

    def _index(self) -> Index:
        index = Index(self._path, self._settings.words)
        self._opened.append(index)
        return index

    def _close(self) -> None:
        for index in self._opened:
            index.close()
        self._opened.clear()

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep other processes from updating the index for as long as the block lasts."""
        path = self._path.with_name(self._path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"The index {self._path} cannot be written: {error.strerror}", fix="set web.local.index to another file"
            ) from error
        try:
            await self._locked(lock)
            yield
        finally:
            os.close(lock)

    async def _locked(self, lock: int) -> None:
        ends = time.monotonic() + self._settings.update_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise UserError(
                        f"Another process has been updating the index {self._path} for more than {self._settings.update_s:g} s",
                        fix="wait for it, or raise web.local.update_s",
                    ) from None
                await asyncio.sleep(_LOOK_S)
            else:
                return

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def at_home(url: str) -> bool:
    """Whether an address is one of the corpus's own, which no network has."""
    return url.strip().lower().startswith((f"http://{HOST}/", f"https://{HOST}/"))


def _same(file: _File, seen: Seen | None) -> bool:
    return seen is not None and (seen.size, seen.changed_ns) == (file.size, file.changed_ns)


def _next(rows: Iterator[Document | Broken]) -> list[Document | Broken]:
    return list(islice(rows, _STEP))


def _batched(items: list[Document], size: int) -> Iterator[list[Document]]:
    return (items[start : start + size] for start in range(0, len(items), size))
