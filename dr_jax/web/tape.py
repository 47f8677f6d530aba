"""Remember on disk what the web answered, so that it is asked once and can be played back.

In:    (kind, key) and an Entry: some JSON and some bytes
Out:   the Entry again, while it is fresh; in `replay` always, and a miss is an error that names what is missing
Form:  SQLite (WAL); bytes are stored once per content, by SHA-256, compressed with zstd
Modes: live (no file), record (reads what is fresh, writes what is new), replay (reads only; whoever misses must not go on)
Holds: SQLite is used by one thread and never by the event loop; a corrupt file is set aside, not overwritten
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import zstandard

from dr_jax.base.errors import ConfigError, UserError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger

EntryKind = Literal["search", "fetch", "page"]

_LOG = logger(__name__)
_APPLICATION = 0x64726A78  # "drjx": tells a tape from any other SQLite file
_VERSION = 1
_LEVEL = 3
_SCHEMA = (
    "create table blobs (sha256 blob primary key, size integer not null, data blob not null) without rowid",
    """create table entries (kind text not null, key text not null, at real not null, meta text not null, sha256 blob,
       primary key (kind, key)) without rowid""",
    f"pragma application_id = {_APPLICATION}",
    f"pragma user_version = {_VERSION}",
)
_SELECT = """select meta, entries.sha256, data, size from entries left join blobs using (sha256)
             where kind = ? and key = ? and at >= ?"""
Value = TypeVar("Value")


class ReplayMiss(UserError):
    """The tape is replayed and does not hold what was asked for."""


@dataclass(frozen=True, slots=True)
class TapeSettings:
    """What is remembered on disk.

    Args:
        mode: `live` keeps nothing, `record` reads and writes, `replay` reads and never asks the network.
        path: of the file; needed unless `live`.
        search_days: how long a search result is fresh in `record`.
        page_days: how long a page is.
        busy_s: how long a file that another process writes to is waited for.
    """

    mode: Literal["live", "record", "replay"] = "live"
    path: str = ""
    search_days: float = 7.0
    page_days: float = 1.0
    busy_s: float = 10.0

    def __post_init__(self) -> None:
        if self.mode != "live" and not self.path:
            raise ValueError(f"mode is {self.mode}, which needs the path of a tape")
        if min(self.search_days, self.page_days, self.busy_s) < 0:
            raise ValueError("search_days, page_days and busy_s cannot be negative")


@dataclass(frozen=True, slots=True)
class Entry:
    """One remembered answer.

    Args:
        meta: what JSON can say of it.
        body: its bytes; may be empty.
    """

    meta: Mapping[str, Any]
    body: bytes = field(default=b"", repr=False)


class Tape:
    """A tape of the web. An async context manager.

    Args:
        settings: mode, file, freshness.
        metrics: counts `web/tape_hits` (searches and fetches that were not made) and `web/tape_errors`.
    """

    def __init__(self, settings: TapeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._path = Path(settings.path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tape")
        self._base: sqlite3.Connection | None = None

    @property
    def replays(self) -> bool:
        """Whether the network is out of bounds."""
        return self._settings.mode == "replay"

    async def __aenter__(self) -> Tape:
        if self._settings.mode != "live":
            try:
                await self._in_thread(self._open)
            except BaseException:
                self._thread.shutdown()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def recall(self, kind: EntryKind, key: str) -> Entry | None:
        """Return what is remembered, or None; in `replay` however old it is."""
        if self._settings.mode == "live":
            return None
        entry = await self._in_thread(lambda: self._guarded(lambda: self._select(kind, key)))
        if entry is not None and kind != "page":
            self._metrics.add("web/tape_hits")
        return entry

    async def keep(self, kind: EntryKind, key: str, entry: Entry) -> None:
        """Remember an answer, in `record`."""
        if self._settings.mode == "record":
            await self._in_thread(lambda: self._guarded(lambda: self._insert(kind, key, entry)))

    def missed(self, kind: EntryKind, key: str) -> ReplayMiss:
        """Return the error for something that a replayed tape does not hold."""
        return ReplayMiss(
            f"The tape {self._path} holds no {kind} {key!r}",
            needed="a tape that recorded everything that is asked for",
            fix='record it first, with web.tape.mode = "record", or ask the web itself, with "live"',
        )

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _guarded(self, work: Callable[[], Value]) -> Value | None:
        """Do something with the file; when it proves corrupt, set it aside and begin a new one."""
        try:
            return work()
        except sqlite3.OperationalError as error:  # locked, full, read-only: the web is still there
            if self.replays:
                raise UserError(f"The tape {self._path} cannot be read: {error}", fix="free or repair the disk") from error
            self._metrics.add("web/tape_errors")
            _LOG.warning("the tape %s was not used: %s", self._path, error)
            return None
        except sqlite3.DatabaseError as error:
            self._metrics.add("web/tape_errors")
            self._close()
            self._set_aside(error)
            self._open()
            return None

    def _open(self) -> None:
        if self.replays and not self._path.is_file():
            raise UserError(f"There is no tape {self._path} to replay", fix='record one with web.tape.mode = "record"')
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connect()
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"The tape {self._path} cannot be opened: {error}", fix="choose a web.tape.path that can be written"
            ) from error
        except sqlite3.DatabaseError as error:
            self._close()
            self._set_aside(error)
            self._connect()
        except OSError as error:
            raise ConfigError(
                f"The tape {self._path} cannot be made: {error.strerror}", fix="choose another web.tape.path"
            ) from error

    def _connect(self) -> None:
        base = self._base = sqlite3.connect(self._path, timeout=self._settings.busy_s, isolation_level=None)
        if not self.replays:
            if base.execute("pragma journal_mode").fetchone()[0] != "wal":
                base.execute("pragma journal_mode = wal")
            base.execute("pragma synchronous = normal")
            with self._transaction(base):  # several processes may begin one tape at the same time
                if base.execute("select count(*) from sqlite_master").fetchone()[0] == 0:
                    for statement in _SCHEMA:
                        base.execute(statement)
        found = tuple(base.execute(f"pragma {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found != (_APPLICATION, _VERSION):
            self._close()
            raise ConfigError(
                f"{self._path} is an SQLite file, but not a tape of this version", fix="choose another web.tape.path"
            )

    @contextmanager
    def _transaction(self, base: sqlite3.Connection) -> Iterator[None]:
        base.execute("begin immediate")
        try:
            yield
            base.execute("commit")
        finally:
            if base.in_transaction:
                base.execute("rollback")

    def _close(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        if self.replays:
            raise UserError(f"The tape {self._path} is corrupt: {error}", fix="replay another, or record it again") from error
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.corrupt-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        _LOG.warning("the tape %s is corrupt (%s); it was set aside as %s and a new one begun", self._path, error, aside)

    def _select(self, kind: EntryKind, key: str) -> Entry | None:
        days = self._settings.search_days if kind == "search" else self._settings.page_days
        # An extraction is kept under its content, which does not age.
        oldest = 0.0 if self.replays or kind == "page" else time.time() - days * 86_400
        row = self._connection.execute(_SELECT, (kind, key, oldest)).fetchone()
        if row is None:
            return None
        meta, sha256, data, size = row
        if sha256 is None:
            return Entry(json.loads(meta))
        body = _unpacked(data, size, sha256)
        if body is None:
            self._metrics.add("web/tape_errors")
            _LOG.warning("the tape %s holds a damaged %s %r; it is asked for again", self._path, kind, key)
            return None
        return Entry(json.loads(meta), body)

    def _insert(self, kind: EntryKind, key: str, entry: Entry) -> None:
        sha256 = hashlib.sha256(entry.body).digest() if entry.body else None
        base = self._connection
        with self._transaction(base):
            if sha256 is not None:
                packed = zstandard.ZstdCompressor(level=_LEVEL).compress(entry.body)
                base.execute("insert or replace into blobs values (?, ?, ?)", (sha256, len(entry.body), packed))
            meta = json.dumps(entry.meta)
            base.execute("insert or replace into entries values (?, ?, ?, ?, ?)", (kind, key, time.time(), meta, sha256))

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._base is None:
            raise RuntimeError("a Tape is used inside `async with`")
        return self._base


def _unpacked(data: bytes | None, size: int, sha256: bytes) -> bytes | None:
    """Return the content of a blob, or None when it is not what it was."""
    try:
        if data is None or zstandard.frame_content_size(data) != size:
            return None
        body = zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError:
        return None
    return body if hashlib.sha256(body).digest() == sha256 else None
