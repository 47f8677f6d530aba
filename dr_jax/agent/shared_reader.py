"""Read a page once for everybody who asks the same of it, and remember what it said.

In:    a page, a task, who reads
Out:   Reading: read now, by somebody else meanwhile, or on a tape
Key:   the page's content, the question, the sub-question, what is known, the reader with the version of its weights, its caps
Holds: processes that share a tape read a page once. Only what lasts is kept on a tape: the readings of a model with fixed
       weights, or of a server's. What the policy reads while it is trained stays in memory, under its version: after the next
       update nobody asks for it again, and another run has other weights under that number. The extractive reader is quicker
       than a tape.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from sys import getsizeof
from typing import Any, Protocol

from dr_jax.agent.model_reader import READ, Told
from dr_jax.agent.reading import ReaderSettings, Reading, Task
from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.once import Once
from dr_jax.web.page import Page
from dr_jax.web.tape.entry import ReplayMiss

_FORM = 1  # of what is kept: raise it when prompt or parsing change in a way that the key does not show
_FRESH_S = 86_400.0


class Notes(Protocol):
    """Where readings are kept; `web.Web` is one."""

    async def kept(self, kind: str, key: str) -> Any | None:
        """Return what was kept, or None."""
        ...

    async def keep(self, kind: str, key: str, value: Any, *, lasts: bool = True) -> None:
        """Keep a value that JSON can hold; what does not last, for a replay only."""
        ...

    async def once(self, kind: str, key: str, make: Callable[[], Awaitable[tuple[Any, bool]]]) -> Any:
        """Return what was kept, or make and keep it: a value, and whether it lasts."""
        ...


@dataclass(frozen=True, slots=True)
class Shelf:
    """How a reader's results are kept on a tape.

    Args:
        notes: the tape.
        replays: whether it is played back: then what it holds is taken as it is.
        must: whether what it does not hold is an error then, because the reader is not on this machine.
    """

    notes: Notes
    replays: bool = False
    must: bool = False


class SharedReader:
    """A reader that reads each page once.

    Args:
        read: the reading itself.
        identity: who reads; its version included, when it has one.
        settings: caps, and bytes of memory.
        metrics: counts `reader/asked` (pages that were to be read), `reader/read` (those that were), `reader/tape_hits`.
        shelf: where results are kept on a tape; None when they are not.
    """

    def __init__(
        self,
        read: Callable[[Page, Task, RequestKey], Awaitable[Told]],
        identity: Callable[[], str],
        settings: ReaderSettings,
        metrics: Metrics,
        shelf: Shelf | None = None,
    ) -> None:
        self._read, self._identity, self._metrics, self._shelf = read, identity, metrics, shelf
        caps = (settings.segment_chars, settings.max_segments, settings.sentences, settings.max_new_tokens)
        self._fixed = [_FORM, READ, caps]
        self._once = Once[tuple[Reading, ...]](_size, settings.memory_mb << 20, _FRESH_S)

    async def read(self, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        """Return what the page says that is new; see `reading.Reader`.

        Raises:
            WorldDownError: the reader is down, or was when this was recorded.
            ReplayMiss: a tape is replayed and does not hold this reading, which only a server can make.
        """
        self._metrics.add("reader/asked")
        said = [*self._fixed, self._identity(), page.title, task.question, task.sub_question, task.known]
        name = hashlib.sha256(json.dumps(said).encode() + b"\0" + page.text.encode("utf-8", "replace")).hexdigest()
        return await self._once.get(name, lambda: self._recalled(name, page, task, key))

    async def close(self) -> None:
        """Stop what is being read."""
        await self._once.close()

    async def _recalled(self, name: str, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        shelf = self._shelf
        if shelf is None:
            return (await self._told(page, task, key)).readings
        if shelf.replays:
            if (kept := _readings(await shelf.notes.kept("reading", name))) is not None:
                self._metrics.add("reader/tape_hits")
                return kept
            if shelf.must:
                raise ReplayMiss(
                    f"The tape holds no reading of {page.url} for {task.sub_question!r}",
                    needed="a tape that was recorded with this reader, and with all that is asked of it",
                    fix="record it first, or choose a reader that runs here",
                )
            return (await self._told(page, task, key)).readings
        made = False

        async def make() -> tuple[Any, bool]:
            nonlocal made
            made = True
            told = await self._told(page, task, key)
            # What was told in the model's place is told again next time, so that the model may do better.
            return {"readings": [[one.page_number, one.summary] for one in told.readings]}, told.sure

        try:
            found = _readings(await shelf.notes.once("reading", name, make))
        except WorldDownError as error:
            with contextlib.suppress(WorldDownError):  # the tape may be beyond the same outage
                await shelf.notes.keep("reading", name, {"down": str(error)}, lasts=False)
            raise
        if not made and found is not None:
            self._metrics.add("reader/tape_hits")
        return (await self._told(page, task, key)).readings if found is None else found

    async def _told(self, page: Page, task: Task, key: RequestKey) -> Told:
        self._metrics.add("reader/read")
        return await self._read(page, task, key)


def _readings(kept: Any | None) -> tuple[Reading, ...] | None:
    """Read what was kept; None for nothing, or for what is not a reading.

    Raises:
        WorldDownError: the reader was down.
    """
    try:
        if kept is None or "down" not in kept:
            return None if kept is None else tuple(Reading(int(number), str(said)) for number, said in kept["readings"])
    except (KeyError, TypeError, ValueError):
        return None
    raise WorldDownError(str(kept["down"]))


def _size(readings: tuple[Reading, ...]) -> int:
    return 300 + sum(200 + getsizeof(one.summary) for one in readings)
