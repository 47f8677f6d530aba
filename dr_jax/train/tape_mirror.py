"""Copy the tape of a run to a bucket while it goes on, and bring it back on a machine that has none of it.

In:    the tape that a run records to; `gs://bucket/path`
Out:   there, archives of what was written since the last copy, named by process and by the times that they span
Holds: what was copied is not copied again, also after a resume, but for the last seconds; of processes that share a tape one
       copies it; a copy that fails is counted, told once and tried again, and never ends a run; nothing is removed there
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.train.mirror import Shelf, said
from dr_jax.train.settings import Settings
from dr_jax.web.tape import archive
from dr_jax.web.tape.entry import TapeSettings
from dr_jax.web.tape.file import TapeFile

_log = logger(__name__)
_BELOW = "tape.parts/"
_PART = 8 << 20  # bytes
_JOINED = 32  # parts; as many as the store joins at once
_JOINED_BYTES = 32 << 20


def recorded(settings: Settings) -> TapeSettings | None:
    """Return the tape that this process writes to; None where there is none, or gateways have it."""
    apart = settings.web.gateways or settings.rollout.ray.web.workers
    return settings.web.tape if settings.web.tape.mode == "record" and not apart else None


def bring_back(shelf: Shelf, tape: TapeSettings) -> int:
    """Put into a tape what is in the bucket and was not put there, or copied from it, before; return how many entries are new.

    Args:
        shelf: of the run.
        tape: which is made when there is none, and stays within its bound: the oldest parts come, and go, first.

    Raises:
        ConfigError, UserError: the tape cannot be opened.
        DataError: a part is broken.
    """
    names, added = list(shelf.names(_BELOW)), 0
    with _opened(tape) as file, tempfile.TemporaryDirectory() as place:
        marks = _marks(file, shelf)
        new = sorted((name for name in names if _ends(name) > marks.get(_process(name), _NOTHING).held), key=_ends)
        for number, name in enumerate(new, start=1):
            part = Path(place) / "part"
            part.write_bytes(shelf.get(name))
            added += archive.load(file, part).added
            if tape.max_mb:  # the bucket keeps what the tape forgot while it was recorded
                file.forget_longest_unused(tape.max_mb << 20)
            end = max(_ends(name), marks.get(_process(name), _NOTHING).held)
            marks[_process(name)] = _Mark(end, end)
            if number == len(new) or number % _JOINED == 0:
                _note(file, shelf, marks)
                _log.info("brought %d of %d parts of the tape back from %s: %d entries", number, len(new), shelf.address, added)
    return added


def identity(tape: TapeSettings) -> str:
    """Tell the tape from all others: processes that share it get the same."""
    with _opened(tape) as file:
        return file.identity


def copies(identities: Sequence[str], index: int) -> bool:
    """Whether a process is the one that copies its tape: the first of those that share it."""
    return identities.index(identities[index]) == index


class TapeMirror:
    """Copies what is new on a tape, from a thread of its own; a context manager.

    Args:
        shelf: where to.
        tape: what is copied.
        metrics: counts `mirror/failed` and `mirror/bytes`.
        index: of the process.
        every_s: between two copies.
    """

    def __init__(self, shelf: Shelf, tape: TapeSettings, metrics: Metrics, *, index: int = 0, every_s: float = 60.0) -> None:
        self._shelf, self._tape, self._metrics, self._process, self._every_s = shelf, tape, metrics, f"{index:03d}", every_s
        # Who writes takes the time first and may then wait for others: younger entries can be there before it is.
        self._settling_s = tape.busy_s + 1.0
        self._small: list[tuple[str, int]] = []  # parts that were not joined yet, and their bytes
        self._compared = False  # marks with what is there
        self._closing, self._told, self._whole = threading.Event(), False, True
        self._thread = threading.Thread(target=self._run, name="tape mirror", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 8.0) -> None:
        """Copy what is left, if it can be done in time, and end."""
        self._closing.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive() or not self._whole:
            _log.warning("not all of the tape was copied to %s; a resume here copies the rest", self._shelf.address)

    def __enter__(self) -> TapeMirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self._tried(time.time() - self._settling_s)
        self._tried(time.time())

    def _tried(self, until: float) -> None:
        try:
            self._copy(until)
            self._told, self._whole = False, True
        # The client raises its own types, SQLite and the file system theirs; a copy is not worth a run.
        except Exception as error:  # noqa: BLE001
            self._metrics.add("mirror/failed")
            self._whole = False
            if not self._told:
                _log.warning("the tape cannot be copied to %s, which is tried again: %s", self._shelf.address, said(error))
            self._told = True

    def _copy(self, until: float) -> None:
        settled = time.time() - self._settling_s
        with _opened(self._tape) as file:
            marks = _marks(file, self._shelf)
            since = self._held(marks.get(self._process, _NOTHING)).copied
            for content, end in archive.parts(file, since, until, most=_PART):
                name = f"{_BELOW}{self._process}/{since:017.6f}-{end:017.6f}"
                self._shelf.put(name, content)
                self._metrics.add("mirror/bytes", len(content))
                since, marks[self._process] = end, _Mark(_ends(name), min(end, settled))
                _note(file, self._shelf, marks)
                self._small.append((name, len(content)))
        if len(self._small) >= _JOINED:
            self._join()

    def _held(self, mark: _Mark) -> _Mark:
        """Return a mark, or none where its parts were removed from the bucket: a tape outlives runs and their folders."""
        if not self._compared:
            there = max(map(_ends, self._shelf.names(f"{_BELOW}{self._process}/")), default=0.0)
            if there < mark.held:
                return _NOTHING
            self._compared = True
        return mark

    def _join(self) -> None:
        """Make one of many small parts, which take longer to list and to bring back."""
        parts, self._small = self._small[:_JOINED], self._small[_JOINED:]
        if sum(size for _, size in parts) <= _JOINED_BYTES:
            names = [name for name, _ in parts]
            start, end = names[0].rpartition("-")[0], names[-1].rpartition("-")[2]
            self._shelf.join(names, f"{start}-{end}")


@contextmanager
def _opened(tape: TapeSettings) -> Iterator[TapeFile]:
    file = TapeFile(Path(tape.path), writable=True, busy_s=tape.busy_s)
    file.open()
    try:
        yield file
    finally:
        file.close()


class _Mark(NamedTuple):
    """What of a process's parts is on a tape.

    Args:
        held: all that are of an earlier time.
        copied: up to when nothing is missing in them any more.
    """

    held: float
    copied: float


_NOTHING = _Mark(0.0, 0.0)


def _marks(file: TapeFile, shelf: Shelf) -> dict[str, _Mark]:
    noted = json.loads(file.fact(f"copied to {shelf.address}") or "{}")
    return {process: _Mark(*mark) for process, mark in noted.items()}


def _note(file: TapeFile, shelf: Shelf, marks: dict[str, _Mark]) -> None:
    file.note(f"copied to {shelf.address}", json.dumps(marks))


def _process(part: str) -> str:
    return part.removeprefix(_BELOW).partition("/")[0]


def _ends(part: str) -> float:
    return float(part.rpartition("-")[2])
