"""What the processes of one run do together: agree, wait for each other no longer than they must, and end as one.

In:    small JSON values of this process, one round after another, and parcels for process 0
Out:   everybody's values; on process 0 everybody's parcels
Holds: all go through the same rounds, so that what one does after a round (an update, a checkpoint) all do; who has to end says
       so in place of its value, and all end before the same update; who is not heard of any more is named, and the others
       end within a bounded time; a process that is alone sends nothing and waits for nothing
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from dr_jax.base.errors import DrJaxError, LostError
from dr_jax.base.trace import logger
from dr_jax.sharding import hosts

_log = logger(__name__)

_BEAT_S = 1.0  # between two signs of life
_LOOK_S = 0.5  # between two looks at whether others wait
_START_S = 300.0  # until the first sign of life: as long as they may take to come together
_GRACE_S = 20.0  # for what is under way to end by itself when somebody is lost
INTERRUPTED = "interrupted"
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How long the processes of a run wait for each other. With a single one nothing of it matters.

    Args:
        deadline_s: how long after the first process has the groups of its share for an update the others are waited for. Then
            each brings the groups that it has, which may be none; its episodes under way go on where `rollout.staleness`
            lets them, and are given up otherwise. 0 waits for everybody.
        lost_s: a process that was not heard of for so long is taken for dead, which ends the run.
    """

    deadline_s: float = 300.0
    lost_s: float = 30.0

    def __post_init__(self) -> None:
        if self.deadline_s < 0 or self.lost_s < 5:
            raise ValueError(f"deadline_s = {self.deadline_s}, lost_s = {self.lost_s}; 0 or more and at least 5 are needed")


class LeftError(DrJaxError):
    """A process has ended the run, for all of them.

    Args:
        process: which.
        why: `INTERRUPTED`, or its error.
    """

    def __init__(self, process: int, why: str) -> None:
        self.why = why
        super().__init__(f"Process {process} has ended the run: {why}")


class HurriedError(Exception):
    """Others have waited long enough."""


class Together:
    """The processes of one run, seen by one of them.

    Args:
        settings: how long they wait.
    """

    def __init__(self, settings: ProcessSettings) -> None:
        self.index, self.count = hosts.index(), hosts.count()
        self._settings = settings
        self._round = 0
        self._lost = ""
        self._broken = self._leaving = False
        self._left: dict[int, str] = {}
        self._over = threading.Event()
        self._cancel: Callable[[], object] = lambda: None

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what a run has only one of."""
        return self.index == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return every so manieth item, another one on each process."""
        return list(items)[self.index :: self.count]

    def woven(self, shares: Sequence[Sequence[Item]]) -> list[Item]:
        """Put the shares of all processes back in the order of the whole."""
        return [share[place] for place in range(max(map(len, shares), default=0)) for share in shares if place < len(share)]

    def exchange(self, value: Any, parcel: Any = None) -> list[Any]:
        """Return the values of all processes, by index, when each has called this as often. It blocks.

        Args:
            value: JSON; small, because everybody reads it.
            parcel: JSON for process 0, which gets it by `parcels`.

        Raises:
            LeftError: a process has ended the run in place of this round.
            LostError: a process is gone.
        """
        if self.alone:
            return [value]
        said = self._all({"value": value}, parcel)
        self._left |= {process: one["left"] for process, one in enumerate(said) if "left" in one}
        self.refuse_left()
        return [one["value"] for one in said]

    def parcels(self) -> list[Any]:
        """Return what the other processes sent in the last round, by index from 1; nothing except on process 0.

        Raises:
            LostError: one is not there.
        """
        return [json.loads(self._awaited("parcel", process)) for process in range(1, self.count)] if self.first else []

    def leave(self, why: str, parcel: Any = None) -> bool:
        """End the run with all others, also in place of the round that they wait in; return whether all are here.

        Args:
            why: empty when the run is done.
            parcel: as for `exchange`.

        Raises:
            LostError: a process is gone.
        """
        if self.alone:
            return True
        self._leaving = True
        if self._broken or self._lost:
            self._await_culprit(why)
            return False
        if why:
            self.call_off(why)
        while True:
            said = self._all({"left": why}, parcel)
            self._left |= {process: one["left"] for process, one in enumerate(said) if one.get("left")}
            if all("left" in one for one in said):
                return True

    def _await_culprit(self, why: str) -> None:
        """After a failure in what all do at once: find out whether another process is gone, or else tell the others."""
        end = time.monotonic() + self._settings.lost_s + 5 * _BEAT_S
        while not self._lost:
            if time.monotonic() > end:
                with suppress(ConnectionError):
                    hosts.write(f"failed/{self.index}", why)
                raise LostError(f"This process failed in what all do at once: {why}")
            time.sleep(_BEAT_S)
        raise LostError(self._lost)

    def call_off(self, why: str) -> None:
        """Tell the others to end what they are waiting for."""
        if not self.alone:
            with suppress(ConnectionError):
                hosts.write(f"off/{self.index}", why)

    def refuse_left(self) -> None:
        """Do nothing while everybody goes on.

        Raises:
            LeftError: somebody has ended the run.
        """
        if ended := self._ended_by():
            raise LeftError(*ended)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Do what all do at once: who fails in it cannot end with the others. What they refuse, all refuse alike."""
        try:
            yield
        except DrJaxError:
            raise
        except BaseException:
            self._broken = not self.alone
            raise

    @asynccontextmanager
    async def hurried(self) -> AsyncIterator[None]:
        """End what is inside when others have waited for this process as long as they may.

        Raises:
            HurriedError: they have.
        """
        if self.alone or not self._settings.deadline_s:
            yield
            return
        limit = asyncio.timeout(None)
        try:
            async with limit:
                looking = asyncio.create_task(self._look(limit, self._round))
                try:
                    yield
                finally:
                    looking.cancel()
        except TimeoutError as error:
            if limit.expired():
                raise HurriedError from error
            raise

    def ready(self) -> None:
        """Say that this process has its groups: the others are waited for from now on."""
        if not self.alone:
            hosts.write(f"ready/{self._round}/{self.index}", "")

    async def _look(self, limit: asyncio.Timeout, number: int) -> None:
        with suppress(ConnectionError):  # who is lost is noticed elsewhere
            while True:
                if await asyncio.to_thread(hosts.written, f"ready/{number}"):
                    break
                await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(self._settings.deadline_s)
        limit.reschedule(0.0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Give signs of life and look for those of the others; the task that enters is cancelled when the run has to end.

        Raises:
            LostError: a process is gone.
            LeftError: one has ended the run, by an error of its own.
            asyncio.CancelledError: one was interrupted.
        """
        if self.alone:
            yield
            return
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        threading.Thread(target=self._watch, name="dr_jax watch", daemon=True).start()
        try:
            yield
        except BaseException as error:
            if not self._leaving:  # it ends before the loop or outside of it
                self.leave(reason(error))
            if self._lost:
                raise LostError(self._lost) from error
            if not isinstance(error, LeftError | asyncio.CancelledError):
                raise
            process, why = self._ended_by() or (self.index, INTERRUPTED)
            if why != INTERRUPTED:
                raise LeftError(process, why) from error
            raise asyncio.CancelledError from error
        finally:
            self._over.set()
            if not (self._lost or self._broken):
                with suppress(ConnectionError):
                    hosts.write(f"beat/{self.index}", "over")

    def _ended_by(self) -> tuple[int, str] | None:
        """Return who has ended the run and why: an error comes before an interruption, which may follow from it."""
        return min(self._left.items(), key=lambda one: (one[1] == INTERRUPTED, one[0]), default=None)

    def _all(self, said: dict[str, Any], parcel: Any) -> list[dict[str, Any]]:
        number = self._round
        try:
            if not self.first:
                hosts.write(f"parcel/{number}/{self.index}", json.dumps(parcel))
            hosts.write(f"round/{number}/{self.index}", json.dumps(said))
            self._round += 1
            found = [json.loads(self._awaited("round", process)) for process in range(self.count)]
            for what in ("ready", "parcel", "round") if number else ():  # all are here: nobody reads the round before any more
                hosts.erase(f"{what}/{number - 1}/{self.index}")
        except ConnectionError as error:
            raise LostError(self._unanswered(str(error))) from error
        return found

    def _awaited(self, what: str, process: int) -> str:
        while (text := hosts.read(f"{what}/{self._round - 1}/{process}", wait_s=1.0)) is None:
            if self._lost:
                raise LostError(self._lost)
        return text

    def _watch(self) -> None:
        """Run in a thread of its own until the run is over."""
        start = answered = time.monotonic()
        seen = dict.fromkeys(range(self.count), ("", start + _START_S - self._settings.lost_s))
        beat, called = 0, False
        while not self._over.wait(_BEAT_S):
            beat, now = beat + 1, time.monotonic()
            try:
                hosts.write(f"beat/{self.index}", str(beat))
                beats, off, failed = (hosts.written(folder) for folder in ("beat", "off", "failed"))
                answered = now
            except ConnectionError as error:
                if now - answered > self._settings.lost_s:
                    return self._end(self._unanswered(str(error)))
                _log.warning("process 0 of %d does not answer: %.80s", self.count, error)  # JAX may end this process for it
                continue
            seen |= {
                process: (text, now)
                for process, (before, _) in seen.items()
                if (text := beats.get(str(process), "")) != before or text == "over"
            }
            if failed:
                return self._end("; ".join(f"process {process} failed: {why}" for process, why in failed.items()))
            silent = [process for process, (_, last) in seen.items() if now - last > self._settings.lost_s]
            if silent:
                names = ", ".join(map(str, silent))
                return self._end(
                    f"Process {names} of {self.count} has not been heard of for {self._settings.lost_s:g} s: it died, or its "
                    "host did; its own log says more. Start all again with --resume to go on from the last checkpoint"
                )
            if any(process != str(self.index) for process in off) and not called:
                called = True
                if not self._leaving:
                    self._left |= {int(process): why for process, why in off.items() if int(process) != self.index}
                    self._cancel()
        return None

    def _end(self, why: str) -> None:
        """End this process although another cannot take part in it: by an error if it hears of it, or else at once."""
        self._lost = why
        self._cancel()
        if not self._over.wait(_GRACE_S):  # it is inside of something that waits for the lost one for ever
            sys.stderr.write(f"dr-jax: {why}\n")
            sys.stderr.flush()
            os._exit(1)

    def _unanswered(self, error: str) -> str:
        return (
            f"Process 0 of {self.count}, through which all agree, does not answer: it died, or its host did ({error[:120]}). "
            "Start all again with --resume to go on from the last checkpoint"
        )


def reason(error: BaseException | None) -> str:
    """Return in words why a process ends; empty when nothing went wrong."""
    if error is None:
        return ""
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return INTERRUPTED
    return error.why if isinstance(error, LeftError) else f"{type(error).__name__}: {error}"[:500]
