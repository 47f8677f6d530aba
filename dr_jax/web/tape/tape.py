"""Remember what the web answered, so that it is asked once, by whichever process, and can be played back.

In:    (kind, key), and how to ask
Out:   the answer: remembered, made here, or made by another process meanwhile; in `replay` a miss is an error that names it
Modes: live (no file), record (reads what is fresh, writes what is new), replay (reads only; whoever misses must not go on)
Holds: SQLite is used by one thread and never by the event loop; a file that fails stops nobody who may ask the web; waiting
       for another process has a deadline; leaving the block leaves no task
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from dr_jax.base.errors import UserError, WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.web.tape import lease
from dr_jax.web.tape.entry import Entry, EntryKind, ReplayMiss, TapeSettings
from dr_jax.web.tape.file import TapeFile

_LOG = logger(__name__)
_CHECKED = 64  # entries between two looks at how large the file is
_LEFT = 0.95  # of the bound, after something was forgotten
_PASSED = 0.0  # when what may pass is said to have been written: never fresh
_PAUSE_S, _PAUSE_MAX_S = 0.01, 0.25  # between two looks at whether another process is done
Value = TypeVar("Value")


class Tape:
    """A tape of the web. An async context manager.

    Args:
        settings: mode, file, freshness.
        metrics: counts `web/tape_hits` (what was not asked for), `web/tape_waits` (for another process),
            `web/tape_orphans/<kind>` (what a process was asking that is gone, and is asked again: no other search is paid for
            twice while the file works), `web/tape_evicted`, `web/tape_errors`.
    """

    def __init__(self, settings: TapeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._file = TapeFile(Path(settings.path), writable=settings.mode == "record", busy_s=settings.busy_s)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tape")
        self._owner = lease.owner_name()
        self._mine: set[tuple[EntryKind, str]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._inserts = 0
        self._told = False
        self.identity = ""  # of the file: two tapes of the same identity are one

    @property
    def replays(self) -> bool:
        """Whether the network is out of bounds."""
        return self._settings.mode == "replay"

    @property
    def lives(self) -> bool:
        """Whether nothing is remembered."""
        return self._settings.mode == "live"

    async def __aenter__(self) -> Tape:
        if not self.lives:
            try:
                await self._in_thread(self._begin)
            except BaseException:
                self._thread.shutdown()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._in_thread(self._file.close)
        self._thread.shutdown()

    async def recall(self, kind: EntryKind, key: str) -> Entry | None:
        """Return what is remembered and fresh, or None; in `replay` however old it is."""
        if self.lives:
            return None
        entry = await self._in_thread(lambda: self._guarded(lambda: self._look(kind, key)))
        return self._hit(kind, entry)

    async def stale(self, kind: EntryKind, key: str) -> Entry | None:
        """Return what is remembered however old it is, to ask whether it still holds."""
        if self.lives:
            return None
        return await self._in_thread(lambda: self._guarded(lambda: self._file.select(kind, key)))

    async def keep(self, kind: EntryKind, key: str, entry: Entry) -> None:
        """Remember an answer, in `record`."""
        if self._settings.mode == "record":
            await self._in_thread(lambda: self._guarded(lambda: self._insert(kind, key, entry)))

    async def once(
        self,
        kind: EntryKind,
        key: str,
        make: Callable[[], Awaitable[tuple[Value, Entry | None]]],
        read: Callable[[Entry], Value],
    ) -> Value:
        """Return what is remembered, or make it: in one process at a time, whoever else wants it waits for that.

        Args:
            kind, key: what it is remembered under.
            make: returns the answer, and what is to be remembered of it; None for nothing.
            read: from what is remembered to the answer.

        Raises:
            ReplayMiss: a tape is replayed and does not hold it.
            WorldDownError: another process took too long over it.
            Exception: whatever `make` raises.
        """
        entry = await self.recall(kind, key)
        if entry is not None and (found := self._read(kind, key, entry, read)) is not None:
            return found
        if self.replays:
            raise self.missed(kind, key)
        if self.lives:
            return (await make())[0]
        entry = self._hit(kind, await self._claimed(kind, key))
        if entry is not None and (found := self._read(kind, key, entry, read)) is not None:
            return found
        try:
            value, entry = await make()
        except BaseException:
            self._let_go(kind, key)
            raise
        if entry is None:
            self._let_go(kind, key)
        else:
            self._mine.discard((kind, key))
            await self.keep(kind, key, entry)
        return value

    def missed(self, kind: EntryKind, key: str) -> ReplayMiss:
        """Return the error for something that a replayed tape does not hold."""
        return ReplayMiss(
            f"The tape {self._file.path} holds no {kind} {key!r}",
            needed="a tape that recorded everything that is asked for",
            fix='record it first, with web.tape.mode = "record", or ask the web itself, with "live"',
        )

    def _read(self, kind: EntryKind, key: str, entry: Entry, read: Callable[[Entry], Value]) -> Value | None:
        """Return what an entry says; None when it says nothing that can be read: another version's, or another program's."""
        try:
            return read(entry)
        except (KeyError, TypeError, ValueError) as error:
            self._metrics.add("web/tape_errors")
            _LOG.warning("the tape %s holds a %s %r that cannot be read: %r", self._file.path, kind, key[:200], error)
            return None

    async def _claimed(self, kind: EntryKind, key: str) -> Entry | None:
        """Wait until nobody else is asking; return what they found, or None when it is ours to ask.

        Raises:
            WorldDownError: they took too long.
        """
        ends, pause = time.monotonic() + self._settings.wait_s, _PAUSE_S
        while True:
            try:
                found = await self._in_thread(lambda: self._guarded(lambda: self._claim(kind, key)))
            except asyncio.CancelledError:  # the claim may have been made all the same
                self._release(kind, key)
                raise
            if found != "theirs":
                if found in ("mine", "orphaned"):
                    self._hold(kind, key)
                if found == "orphaned":
                    self._metrics.add(f"web/tape_orphans/{kind}")
                return found if isinstance(found, Entry) else None  # without a file, everybody asks
            if pause == _PAUSE_S:
                self._metrics.add("web/tape_waits")
            if time.monotonic() > ends:
                raise WorldDownError(f"Another process has been busy with {kind} {key!r} for {self._settings.wait_s:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX_S)

    def _hold(self, kind: EntryKind, key: str) -> None:
        self._mine.add((kind, key))
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(), name="tape leases")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            if self._mine:
                await self._in_thread(
                    lambda: self._guarded(lambda: lease.renew(self._file, self._owner, self._settings.lease_s))
                )

    def _let_go(self, kind: EntryKind, key: str) -> None:
        """End a claim, without waiting: whoever is cancelled cannot."""
        if (kind, key) in self._mine:
            self._mine.discard((kind, key))
            self._release(kind, key)

    def _release(self, kind: EntryKind, key: str) -> None:
        if (kind, key) not in self._mine:
            self._thread.submit(self._guarded, lambda: lease.release(self._file, kind, key, self._owner))

    def _claim(self, kind: EntryKind, key: str) -> Entry | Literal["mine", "orphaned", "theirs"]:
        return lease.claim(self._file, kind, key, self._owner, self._settings.lease_s, lambda: self._look(kind, key))

    def _hit(self, kind: EntryKind, entry: Entry | None) -> Entry | None:
        if entry is not None and kind != "page":
            self._metrics.add("web/tape_hits")
        return entry

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        # Shielded: what was paid for is written down although nobody waits for it any more.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _guarded(self, work: Callable[[], Value]) -> Value | None:
        """Do something with the file; when it proves corrupt, set it aside and begin a new one."""
        try:
            return work()
        except sqlite3.OperationalError as error:  # locked, full, read-only: the web is still there
            if self.replays:
                raise UserError(f"The tape {self._file.path} cannot be read: {error}", fix="free or repair the disk") from error
            self._metrics.add("web/tape_errors")
            _LOG.warning("the tape %s was not used: %s", self._file.path, error)
            return None
        except sqlite3.DatabaseError as error:
            self._metrics.add("web/tape_errors")
            self._file.set_aside(error)
            self._begin()
            return None

    def _begin(self) -> None:
        self._file.open()
        self.identity = self._file.identity

    def _look(self, kind: EntryKind, key: str) -> Entry | None:
        if self.replays:
            return self._file.select(kind, key)
        now, fresh_s = time.time(), self._settings.fresh_s(kind)
        oldest = _PASSED + 1.0 if fresh_s is None else now - fresh_s
        return self._file.select(kind, key, oldest, now - self._settings.error_s)

    def _insert(self, kind: EntryKind, key: str, entry: Entry) -> None:
        if entry.passing:  # somebody else may be asking still, and find more
            if self._file.select(kind, key) is None:
                self._file.insert(kind, key, entry, at=_PASSED, settles=False)
            if (kind, key) not in self._mine:
                lease.release(self._file, kind, key, self._owner)
            return
        self._file.insert(kind, key, entry)
        self._inserts += 1
        most = self._settings.max_mb << 20
        if not most or self._inserts % _CHECKED or self._file.bytes_used <= most:
            return
        forgotten = self._file.forget_longest_unused(int(_LEFT * most))
        self._metrics.add("web/tape_evicted", forgotten)
        if not self._told:
            self._told = True
            _LOG.warning(
                "the tape %s passes %d MB: what was used longest ago is forgotten from now on, and a replay of this run will "
                "miss it (web.tape.max_mb)",
                self._file.path,
                self._settings.max_mb,
            )
