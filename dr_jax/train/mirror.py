"""Copy what a run writes to a bucket while it goes on, and bring it back on a machine that has none of it.

In:    a run's directory; `gs://bucket/path`
Out:   there, under the same names: small files whole, files that only grow in parts named by their bytes, `START-END`
Holds: a part is at most 8 MiB, one at a time is in memory, and what was copied is not copied again, also after a resume;
       a copy that fails is counted, told once and tried again, and never ends a run
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.rollout.record import numbered

_log = logger(__name__)

WHOLE = ("config.json", "progress.json", "summary.json", "curve.png")
GROWING = ("metrics.jsonl", "episodes.jsonl")
_PART = 8 << 20  # bytes
_JOINED = 32  # parts; as many as the store joins at once
_REQUEST_S = 10.0
_TRIED_S = 20.0  # seconds for which a request is tried again


class Shelf:
    """A folder of a bucket.

    Args:
        address: `gs://bucket/path`.

    Raises:
        ConfigError: it is none, the client is not installed, or there are no credentials.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        name, _, self._prefix = self.address.removeprefix("gs://").partition("/")
        if not self.address.startswith("gs://") or not name or not self._prefix:
            raise ConfigError(f"{address!r} is no place in a bucket", needed="gs://BUCKET/PATH")
        try:
            from google.auth.exceptions import DefaultCredentialsError
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY
        except ImportError as error:
            raise ConfigError(
                f"{address} needs google-cloud-storage, which is not installed", fix="pip install 'dr-jax[gcs]'"
            ) from error
        try:
            self._bucket = storage.Client().bucket(name)
        except (DefaultCredentialsError, OSError) as error:  # OSError: no project can be found
            raise ConfigError(
                f"{address} cannot be opened: {said(error)}",
                needed="credentials of Google Cloud",
                fix="run `gcloud auth application-default login`, or give this machine a service account",
            ) from error
        self._how: dict[str, Any] = {"timeout": _REQUEST_S, "retry": DEFAULT_RETRY.with_timeout(_TRIED_S)}

    def refuse_closed(self) -> None:
        """Write, read and remove a few bytes.

        Raises:
            CheckpointError: there is no such bucket, or this may not be done in it.
        """
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized

        bucket = f"gs://{self._bucket.name}"
        try:
            self.put("probe", b"dr-jax")
            self.get("probe")
            self.remove("probe")
        except NotFound as error:
            raise CheckpointError(
                f"There is no bucket {bucket}", needed="one that exists", fix=f"gcloud storage buckets create {bucket}"
            ) from error
        except (Forbidden, Unauthorized) as error:
            raise CheckpointError(
                f"{self.address} refuses to be read or written: {said(error)}",
                needed="a service account that may create, read, list and delete objects there",
                fix=f"gcloud storage buckets add-iam-policy-binding {bucket} --member=serviceAccount:… "
                "--role=roles/storage.objectAdmin",
            ) from error
        except (GoogleAPIError, OSError) as error:  # OSError: what the connection itself raises
            raise CheckpointError(
                f"{self.address} did not answer within {_TRIED_S:.0f} s: {said(error)}",
                needed="a bucket that can be reached",
                fix="try again, or save elsewhere with checkpoint.directory",
            ) from error

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all."""
        blob = self._bucket.blob(f"{self._prefix}/{name}")
        blob.upload_from_string(content, content_type="application/octet-stream", **self._how)

    def get(self, name: str) -> bytes:
        """Read an object."""
        content: bytes = self._bucket.blob(f"{self._prefix}/{name}").download_as_bytes(**self._how)
        return content

    def remove(self, name: str) -> None:
        """Remove an object, if it is there: the answer to a removal may have been lost before it was asked for again."""
        from google.api_core.exceptions import NotFound

        with suppress(NotFound):
            self._bucket.blob(f"{self._prefix}/{name}").delete(**self._how)

    def names(self, below: str = "") -> dict[str, str]:
        """Return every object below a name, in order, with its CRC32C in base64."""
        start = f"{self._prefix}/"
        found = self._bucket.client.list_blobs(self._bucket, prefix=start + below, **self._how)
        return dict(sorted((blob.name.removeprefix(start), blob.crc32c) for blob in found))

    def join(self, names: list[str], into: str) -> None:
        """Make one object of several and remove those."""
        blobs = [self._bucket.blob(f"{self._prefix}/{name}") for name in names]
        self._bucket.blob(f"{self._prefix}/{into}").compose(blobs, **self._how)
        for name in names:
            self.remove(name)


def address(kept: str, mirror: str = "") -> str:
    """Return where a run is copied to: as it is told, or beside checkpoints in a bucket; "" is nowhere."""
    return mirror or (f"{kept.rstrip('/')}.files" if kept.startswith("gs://") else "")


def files(index: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a process of a run writes: files that are replaced (the first comes last on a new disk), and growing ones.

    Args:
        index: of the process; all but the first have only what is theirs.
    """
    return (WHOLE, GROWING) if not index else ((numbered(WHOLE[1], index),), (numbered(GROWING[1], index),))


def bring_back(shelf: Shelf, directory: Path, index: int = 0) -> bool:
    """Write a process's files of a run into a directory that has none; return whether there are any in the bucket.

    `config.json` comes last: whoever finds it finds the others too.
    """
    whole, growing = files(index)
    if (directory / whole[0]).exists() or whole[0] not in shelf.names(whole[0]):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    for name in growing:
        with (directory / name).open("wb") as file:
            for part, _ in _parts(shelf, name):
                file.write(shelf.get(part))
    there = shelf.names()
    for name in reversed(whole):
        if name in there:
            partial = directory / f"{name}.partial"
            partial.write_bytes(shelf.get(name))
            partial.replace(directory / name)
    _log.info("brought %s back from %s", directory, shelf.address)
    return True


def _parts(shelf: Shelf, name: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a file that follow each other from its first byte on, and their sums.

    Where a crash left parts beside the one that they were joined to, the longest is taken.
    """
    at, below = 0, f"{name}.parts/"
    spans = sorted(((*_span(part), part, crc) for part, crc in shelf.names(below).items()), key=lambda one: (one[0], -one[1]))
    for start, end, part, crc in spans:
        if start == at:
            yield part, crc
            at = end


def _span(part: str) -> tuple[int, int]:
    start, _, end = part.rpartition("/")[2].partition("-")
    return int(start), int(end)


class Mirror:
    """Copies a run's files as they change, from a thread of its own; a context manager.

    Args:
        shelf: where to.
        directory: of the run.
        metrics: counts `mirror/failed` and `mirror/bytes`.
        index: of the process whose files they are.
        every_s: between two looks.
    """

    def __init__(self, shelf: Shelf, directory: Path, metrics: Metrics, *, index: int = 0, every_s: float = 30.0) -> None:
        self._replaced, self._growing = files(index)
        self._shelf, self._directory, self._metrics, self._every_s = shelf, directory, metrics, every_s
        self._copied: dict[str, tuple[int, int]] = {}
        self._kept: dict[str, list[str]] = {}  # parts that are there, by file
        self._wake, self._lock, self._closing, self._told = threading.Event(), threading.Condition(), False, False
        self._asked = self._looked = 0
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Copy what there is now; return whether that was done in time."""
        with self._lock:
            self._asked += 1
            asked = self._asked
            self._wake.set()
            return self._lock.wait_for(lambda: self._looked >= asked, timeout_s)

    def close(self, timeout_s: float = 8.0) -> None:
        """Copy what is left, if it can be done in time, and end."""
        whole = self.flush(timeout_s)
        self._closing = True
        self._wake.set()
        self._thread.join(1.0)  # nobody looks at the directory any more, unless a request hangs
        if not whole:
            _log.warning("not everything was copied to %s; a resume here copies the rest", self._shelf.address)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._closing:
                return
            with self._lock:
                asked = self._asked
            whole = [self._tried(self._whole, name) for name in self._replaced]
            done = all(whole + [self._tried(self._grown, name) for name in self._growing])
            with self._lock:
                if done:
                    self._looked, self._told = asked, False
                    self._lock.notify_all()
            if not done and not self._closing and self._looked < asked:
                self._wake.wait(1.0)
                self._wake.set()  # somebody waits: again at once

    def _tried(self, copy: Callable[[str], None], name: str) -> bool:
        try:
            if (self._directory / name).exists():
                copy(name)
        # The client raises its own types, those of requests and of the file system; a copy is not worth a run.
        except Exception as error:  # noqa: BLE001
            self._metrics.add("mirror/failed")
            self._kept.pop(name, None)  # what is there by now is looked at again: some of it may have been joined, or removed
            if not self._told:
                _log.warning("%s cannot be copied to %s, which is tried again: %s", name, self._shelf.address, said(error))
            self._told = True
            return False
        return True

    def _whole(self, name: str) -> None:
        path = self._directory / name
        stat = path.stat()
        if self._copied.get(name) != (stat.st_mtime_ns, stat.st_size):
            self._put(name, path.read_bytes())
            self._copied[name] = (stat.st_mtime_ns, stat.st_size)

    def _grown(self, name: str) -> None:
        path = self._directory / name
        size = path.stat().st_size
        if name not in self._kept or _end(self._kept[name]) > size:
            self._kept[name] = self._compared(name, path, size)
        kept = self._kept[name]
        with path.open("rb") as file:
            while (start := _end(kept)) < size:
                file.seek(start)
                content = file.read(min(_PART, size - start))
                part = _named(name, start, start + len(content))
                self._put(part, content)
                kept.append(part)
        small = [part for part in kept if _span(part)[1] - _span(part)[0] < _PART]
        if len(small) >= _JOINED and kept[-_JOINED:] == small[-_JOINED:]:
            joined = _named(name, _span(kept[-_JOINED])[0], _end(kept))
            self._shelf.join(kept[-_JOINED:], joined)
            kept[-_JOINED:] = [joined]

    def _compared(self, name: str, path: Path, size: int) -> list[str]:
        """Return the parts that hold what the file begins with; others, of steps that are done again, are removed."""
        kept: list[str] = []
        with path.open("rb") as file:
            for part, crc in _parts(self._shelf, name):
                start, end = _span(part)
                if end > size or _crc(file, end - start) != crc:
                    break
                kept.append(part)
        for part in self._shelf.names(f"{name}.parts/"):
            if part not in kept:
                self._shelf.remove(part)
        return kept

    def _put(self, name: str, content: bytes) -> None:
        self._shelf.put(name, content)
        self._metrics.add("mirror/bytes", len(content))


def _named(name: str, start: int, end: int) -> str:
    return f"{name}.parts/{start:015d}-{end:015d}"


def _end(parts: list[str]) -> int:
    return _span(parts[-1])[1] if parts else 0


def _crc(file: Any, size: int) -> str:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    while size and (read := file.read(min(size, 1 << 20))):
        checksum.update(read)
        size -= len(read)
    return base64.b64encode(checksum.digest()).decode()


def said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
