"""Read pages in processes of their own, which can be killed.

In:    the bytes of a page and what is known of them
Out:   Page or WebError; a page that takes too long or too much memory costs its worker, and nothing else
Fails: WorldDownError when no worker can be started, or none becomes free in time
Holds: as many processes as asked for; so many pages wait, and whoever brings another waits outside; `close` leaves none
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dr_jax
from dr_jax.base.errors import WorldDownError
from dr_jax.base.trace import logger
from dr_jax.web.page import Page, WebError, decoded
from dr_jax.web.worker import ANSWER, REQUEST

_LOG = logger(__name__)
_TASK = "dr_jax.web.extract:work"
_GRACE_S = 5.0  # after its time the worker is killed by us; this much later the kernel does it, should we be gone
_MOST = 8
_STARTS = 3  # in a row that may fail
_MAX_ANSWER = 64 << 20
_PIECE = 262_144
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT")
_START = "import sys; sys.path.append(sys.argv.pop(1)); from dr_jax.web.worker import run; run(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """The processes that read pages.

    Args:
        workers: how many at most; they are started when they are needed. 0 is one for every core, up to eight.
        timeout_s: for one page.
        memory_mb: address space of a worker.
        pages: after how many a worker is replaced, so that leaks stay small.
        queue: how many pages may wait for each worker.
        queue_s: how long a page may wait.
    """

    workers: int = 0
    timeout_s: float = 10.0
    memory_mb: int = 1024
    pages: int = 5_000
    queue: int = 64
    queue_s: float = 60.0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; a number of processes is needed, or 0 for one for every core")
        for name in ("timeout_s", "pages", "queue", "queue_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if self.memory_mb < 256:
            raise ValueError(f"memory_mb is {self.memory_mb}; the parser alone needs 256")

    @property
    def places(self) -> int:
        """How many processes there may be on this machine."""
        if self.workers:
            return self.workers
        try:
            return min(len(os.sched_getaffinity(0)), _MOST)
        except AttributeError:  # not on macOS or Windows
            return min(os.cpu_count() or 1, _MOST)


class _Worker:
    """One process and its pipes; it does one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._to, self._from = process, process.stdin, process.stdout
        self._ready, self.done = False, 0

    @classmethod
    async def start(cls, task: str, settings: ExtractSettings) -> _Worker:
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        root = str(Path(dr_jax.__file__).parent.parent)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _START, root, task, str(settings.memory_mb), str(settings.timeout_s + _GRACE_S)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=1 << 20,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ready(self) -> None:
        """Wait until it takes tasks.

        Raises:
            EOFError: it ended.
        """
        if not self._ready:
            await self._receive()
            self._ready = True

    async def do(self, request: dict[str, Any], body: bytes) -> dict[str, Any]:
        """Do a task.

        Raises:
            EOFError: the process ended.
        """
        head = json.dumps(request).encode()
        try:
            self._to.write(REQUEST.pack(len(head), len(body)) + head)
            for start in range(0, len(body), _PIECE):  # in one piece it would be copied twice on its way
                self._to.write(body[start : start + _PIECE])
                await self._to.drain()
            answer: dict[str, Any] = json.loads(await self._receive())
        except (ConnectionError, ValueError):
            raise EOFError from None
        self.done += 1
        return answer

    async def _receive(self) -> bytes:
        (size,) = ANSWER.unpack(await self._from.readexactly(ANSWER.size))
        if size > _MAX_ANSWER:
            raise EOFError
        return await self._from.readexactly(size)

    async def kill(self) -> None:
        """End the process now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._to.close()
        with contextlib.suppress(ConnectionError):
            await self._to.wait_closed()


class Extractors:
    """A pool of processes that run `extract`. An async context manager.

    Args:
        settings: how many, and their limits.
        task: `module:function` that a worker runs.
    """

    def __init__(self, settings: ExtractSettings, task: str = _TASK) -> None:
        self._settings, self._task = settings, task
        self._places = asyncio.Semaphore(settings.places * (1 + settings.queue))
        self._free: asyncio.LifoQueue[_Worker | None] = asyncio.LifoQueue()  # None: a place whose process is to be started
        self._workers: set[_Worker] = set()
        self.waiting = 0  # pages that wait for a worker

    async def __aenter__(self) -> Extractors:
        try:
            for _ in range(self._settings.places - 1):
                self._free.put_nowait(None)
            self._free.put_nowait(await self._start())  # it loads its libraries while the first page is fetched
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, OSError):
                raise WorldDownError(f"The process that reads pages could not be started: {error.strerror}") from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(self._end(worker) for worker in list(self._workers)))

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that are alive."""
        return tuple(worker.pid for worker in self._workers if worker.alive)

    async def extract(
        self, body: bytes, url: str, content_type: str, charset: str, *, truncated: bool = False
    ) -> Page | WebError:
        """Read a page in a worker.

        Args:
            body, url, content_type, charset, truncated: as for `extract.extract`.

        Raises:
            WorldDownError: no worker could be started, or none became free in time.
        """
        request = {"url": url, "content_type": content_type, "charset": charset, "truncated": truncated}
        answer = await self.do(request, body)
        try:
            if "done" in answer:
                return decoded(answer["done"])
        except (KeyError, TypeError, ValueError):
            answer = {"failed": "the parser gave no page"}
        return WebError("extract", f"{url} could not be read: {answer['failed']}")

    async def do(self, request: dict[str, Any], body: bytes) -> dict[str, Any]:
        """Have a worker do a task; return `{"done": …}` or `{"failed": why}`.

        Raises:
            WorldDownError: no worker could be started, or none became free in time.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(self._settings.queue_s):
                await self._places.acquire()
                try:
                    worker = await self._take()
                except BaseException:
                    self._places.release()
                    raise
        except TimeoutError:
            raise WorldDownError(f"No page reader became free within {self._settings.queue_s:g} s") from None
        finally:
            self.waiting -= 1
        healthy = False
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer = await worker.do(request, body)
            healthy = worker.done < self._settings.pages
            return answer
        except TimeoutError:
            return {"failed": f"it took more than {self._settings.timeout_s:g} s"}
        except EOFError:
            return {"failed": "the parser broke down"}
        finally:
            self._free.put_nowait(worker if healthy else None)
            self._places.release()
            if not healthy:
                await self._end(worker)

    async def _take(self) -> _Worker:
        """Wait for a worker that takes tasks.

        Raises:
            WorldDownError: it cannot be started.
        """
        worker = await self._free.get()
        taken = False
        try:
            for _ in range(_STARTS):
                if worker is None or not worker.alive:
                    worker = await self._replaced(worker)
                try:
                    await worker.ready()
                except EOFError:
                    worker = await self._replaced(worker)
                else:
                    taken = True
                    return worker
            raise WorldDownError(f"The process that reads pages could not be started {_STARTS} times; stderr says why")
        except OSError as error:
            raise WorldDownError(f"The process that reads pages could not be started: {error.strerror}") from error
        finally:
            if not taken:
                self._free.put_nowait(None)
                if worker is not None:
                    await self._end(worker)

    async def _replaced(self, worker: _Worker | None) -> _Worker:
        if worker is not None:
            await self._end(worker)
        return await self._start()

    async def _start(self) -> _Worker:
        worker = await _Worker.start(self._task, self._settings)
        self._workers.add(worker)
        return worker

    async def _end(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        await worker.kill()
