"""The file of a tape: SQLite (WAL), each content stored once by its SHA-256, compressed with zstd.

In:    (kind, key) and an Entry; who wants to ask the web for it
Out:   the Entry again; whether somebody else is asking already
Fails: ConfigError for a file that is no tape or cannot be opened; whatever SQLite raises when the file proves corrupt
Holds: used by one thread at a time; every change is one transaction, so a process that is killed leaves a whole file; an
       older version is brought up to date in place; a corrupt file is set aside, not overwritten
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from dr_jax.base.errors import ConfigError, UserError
from dr_jax.base.trace import logger
from dr_jax.web.tape.entry import Entry, EntryKind
from dr_jax.web.tape.schema import APPLICATION, VERSION, bring_up_to_date, create

_LOG = logger(__name__)
_LEVEL = 3
_CHUNK = 100  # entries that are forgotten in one transaction, so that other processes get their turn
_FLUSH = 512  # entries whose use is noted at once
_FLUSH_S = 30.0
_PAUSE_S = 0.01  # between two attempts at a file that another process is beginning
_SELECT = """select meta, entries.sha256, data, size{bad} from entries left join blobs using (sha256)
             where kind = ? and key = ?"""
_FRESH = " and at >= case when bad then ? else ? end"
_OLDEST = """select kind, key, sha256, length(meta) + length(key) + coalesce(length(data), 0)
             from entries left join blobs using (sha256) order by used limit ?"""
_FORGET_CONTENT = """delete from blobs where sha256 = ?
                     and not exists (select 1 from entries where entries.sha256 = blobs.sha256)"""


class TapeFile:
    """One tape.

    Args:
        path: of the file.
        writable: whether it may be made and changed.
        busy_s: how long another process that writes is waited for.
        aside: whether a corrupt file is set aside when it is opened to be written; otherwise that is an error.
    """

    def __init__(self, path: Path, *, writable: bool, busy_s: float = 10.0, aside: bool = True) -> None:
        self.path, self._writable, self._busy_s, self._aside = path, writable, busy_s, aside
        self._base: sqlite3.Connection | None = None
        self._inode = 0
        self.version = VERSION
        self.identity = ""  # tells this file from every other, copies of it included; the same for all processes of one host
        self._used: Counter[tuple[str, str]] = Counter()
        self._flushed = time.monotonic()

    def open(self) -> None:
        """Open the file, and make it when there is none and it may be written; set it aside when it is corrupt.

        Raises:
            UserError: it is to be read only, and is missing or corrupt.
            ConfigError: it cannot be opened, is something else, or comes from a newer dr_jax.
        """
        if not self._writable and not self.path.is_file():
            raise UserError(f"There is no tape {self.path}", fix='record one with web.tape.mode = "record"')
        try:
            if self._writable:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connect_in_turn()
        except sqlite3.OperationalError as error:
            self.close()
            raise ConfigError(
                f"The tape {self.path} cannot be opened: {error}", fix="choose a web.tape.path that can be used"
            ) from error
        except sqlite3.DatabaseError as error:
            self.set_aside(error)
            self._connect()
        except OSError as error:
            raise ConfigError(
                f"The tape {self.path} cannot be made: {error.strerror}", fix="choose another web.tape.path"
            ) from error

    def _connect_in_turn(self) -> None:
        """Connect; wait while another process begins the same file: SQLite itself does not when the journal's mode changes."""
        ends = time.monotonic() + self._busy_s
        while True:
            try:
                self._connect()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > ends:
                    raise
                self.close()
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Close the file; note first what was used, if that can be done."""
        if self._base is not None:
            try:
                if self._writable and self._used:
                    with self._transaction(self._base):
                        self._note_use(self._base)
            except sqlite3.DatabaseError as error:  # how often something was used is no reason to fail
                _LOG.debug("the use of the tape %s was not noted: %s", self.path, error)
            self._base.close()
            self._base = None

    def set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Rename a corrupt file, so that a new one can be begun; the caller opens it.

        Raises:
            UserError: it may not be written.
        """
        self._used.clear()
        stale = self._inode not in (0, _inode(self.path))
        self.close()
        if not (self._writable and self._aside):
            raise UserError(f"The tape {self.path} is corrupt: {error}", fix="replay another, or record it again") from error
        if stale:  # another process has set it aside already, and what is there now is new
            return
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        _LOG.warning("the tape %s is corrupt (%s); it was set aside as %s and a new one begun", self.path, error, aside)

    @property
    def base(self) -> sqlite3.Connection:
        """The connection."""
        if self._base is None:
            raise RuntimeError("a tape is used while it is open")
        return self._base

    def select(self, kind: EntryKind, key: str, oldest: float | None = None, oldest_error: float | None = None) -> Entry | None:
        """Return an entry.

        Args:
            kind, key: of the entry.
            oldest: Unix time before which it is not wanted; None is any.
            oldest_error: the same for errors.
        """
        bad = ", bad" if self.version > 1 else ", 0"
        if oldest is None and oldest_error is None:
            row = self.base.execute(_SELECT.format(bad=bad), (kind, key)).fetchone()
        else:
            ages = (oldest_error or 0.0, oldest or 0.0)
            row = self.base.execute(_SELECT.format(bad=bad) + _FRESH, (kind, key, *ages)).fetchone()
        if row is None:
            return None
        meta, sha256, data, size, error = row
        body = b"" if sha256 is None else unpacked(data, size, sha256)
        if body is None:
            _LOG.warning("the tape %s holds a damaged %s %r; it is asked for again", self.path, kind, key)
            return None
        if self._writable:
            self._used[kind, key] += 1
            due = len(self._used) >= _FLUSH or time.monotonic() - self._flushed > _FLUSH_S
            if due and not self.base.in_transaction:
                with self._transaction(self.base):
                    self._note_use(self.base)
        return Entry(json.loads(meta), body, bool(error))

    def insert(self, kind: EntryKind, key: str, entry: Entry, *, at: float | None = None, settles: bool = True) -> None:
        """Keep an entry.

        Args:
            kind, key, entry: what is kept, and under what.
            at: Unix time at which it is said to have been written; now by default.
            settles: whether nobody needs to ask any more: then whatever lease is on it ends.
        """
        sha256 = hashlib.sha256(entry.body).digest() if entry.body else None
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(entry.body) if entry.body else b""
        now = time.time()
        with self._transaction(self.base) as base:
            if sha256 is not None:
                base.execute("insert or replace into blobs values (?, ?, ?)", (sha256, len(entry.body), packed))
            row = (kind, key, now if at is None else at, json.dumps(entry.meta), sha256, now, 0, entry.error)
            base.execute("insert or replace into entries values (?, ?, ?, ?, ?, ?, ?, ?)", row)
            if settles:
                base.execute("delete from leases where kind = ? and key = ?", (kind, key))
            self._note_use(base)

    @property
    def bytes_used(self) -> int:
        """Bytes of the file that hold something; what was forgotten is used again before the file grows."""
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self.base.execute(f"pragma {name}").fetchone()[0]) for name in names)
        return (pages - free) * size

    def forget_longest_unused(self, max_bytes: int) -> int:
        """Forget what was used longest ago until no more than so many bytes are used; return how many entries those were."""
        forgotten = 0
        while (surplus := self.bytes_used - max_bytes) > 0:
            with self._transaction(self.base) as base:
                self._note_use(base)
                oldest = base.execute(_OLDEST, (_CHUNK,)).fetchall()
                sizes = itertools.accumulate(row[3] for row in oldest)
                chosen = oldest[
                    : 1 + sum(2 * size < surplus for size in sizes)
                ]  # each takes whole pages, so more than its size
                base.executemany("delete from entries where kind = ? and key = ?", [row[:2] for row in chosen])
                contents = [(row[2],) for row in chosen if row[2] is not None]
                base.executemany(_FORGET_CONTENT, contents)
            forgotten += len(chosen)
            if not chosen:
                break
        return forgotten

    def fact(self, name: str) -> str:
        """Return what was noted of the tape itself under a name, or ""."""
        row = self.base.execute("select value from facts where name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def note(self, name: str, value: str) -> None:
        """Note something of the tape itself."""
        with self._transaction(self.base) as base:
            base.execute("insert or replace into facts values (?, ?)", (name, value))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change the file in one go, or not at all."""
        with self._transaction(self.base) as base:
            yield base

    def _connect(self) -> None:
        self.close()
        self._inode = _inode(self.path)
        base = self._base = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        if not self._writable:
            base.execute("pragma query_only = on")
        else:
            if base.execute("pragma journal_mode").fetchone()[0] != "wal":
                base.execute("pragma journal_mode = wal")
            base.execute("pragma synchronous = normal")
            with self._transaction(base):  # several processes may begin one tape at the same time
                if base.execute("select count(*) from sqlite_master").fetchone()[0] == 0:
                    create(base)
        application, self.version = (
            int(base.execute(f"pragma {name}").fetchone()[0]) for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            self.close()
            raise ConfigError(f"{self.path} is an SQLite file, but not a tape", fix="choose another path")
        if self.version > VERSION:
            self.close()
            raise ConfigError(
                f"The tape {self.path} is of version {self.version}",
                needed=f"version {VERSION} or older",
                fix="use the newer dr_jax that made it, or choose another path",
            )
        if self._writable and self.version < VERSION:
            with self._transaction(base):
                bring_up_to_date(base)
            self.version = VERSION
        self._inode = _inode(self.path)
        self.identity = self._identity(base)

    def _identity(self, base: sqlite3.Connection) -> str:
        if self.version < 2:
            return ""
        (name,) = base.execute("select value from facts where name = 'id'").fetchone()
        found = self.path.stat()
        return hashlib.sha256(f"{name} {machine()} {found.st_dev} {found.st_ino}".encode()).hexdigest()[:32]

    @contextmanager
    def _transaction(self, base: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        base.execute("begin immediate")
        try:
            yield base
            base.execute("commit")
        finally:
            if base.in_transaction:
                base.execute("rollback")

    def _note_use(self, base: sqlite3.Connection) -> None:
        """Write down which entries were used since the last time; inside a transaction."""
        now = time.time()
        rows = [(now, count, kind, key) for (kind, key), count in self._used.items()]
        base.executemany("update entries set used = ?, hits = hits + ? where kind = ? and key = ?", rows)
        self._used.clear()
        self._flushed = time.monotonic()


def unpacked(data: bytes | None, size: int, sha256: bytes) -> bytes | None:
    """Return the content of a blob, or None when it is not what it was."""
    try:
        if data is None or zstandard.frame_content_size(data) != size:
            return None
        body = zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError:
        return None
    return body if hashlib.sha256(body).digest() == sha256 else None


@functools.cache
def machine() -> str:
    """Name this machine, and where that is known the time since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
