"""The policy that runs here: a thread that batches everybody's requests on the device.

In:    `await engine.sample(prompt_ids, sampling, key)` from any number of tasks; `adopt(weights, version)` at any time
Out:   Sampled; every id with its log-probability and the version of the weights that drew it
Holds: nobody waits for ever: what stops the thread, an error included, is told to everybody who waits
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from jax.sharding import Mesh

from dr_jax.base.errors import CapacityError, ContextFullError, DrJaxError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.engine.calls import Calls
from dr_jax.engine.device import STOPS, Device
from dr_jax.engine.pages import PagePool
from dr_jax.engine.request import Request, key_data
from dr_jax.engine.scheduler import Scheduler
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import Sizes
from dr_jax.tokens.policy import Begun, RequestKey, Sampled, Sampling, Told

_log = logger(__name__)

Progress = Callable[[str, int, int], None]
Action = Callable[[], None]
Fail = Callable[[DrJaxError], object]


class EngineStoppedError(DrJaxError):
    """The engine was closed, or an error stopped it; what it was asked for will not come."""


class Engine:
    """Continuous batching on fixed slots and pages; implements `tokens.policy.Policy`.

    Args:
        weights: by name, placed; they must stay valid (pass a copy of what an update donates).
        sizes: of the model.
        settings: capacities.
        mesh: where the weights lie; None is the default device.
        metrics: counts under `engine/`.
        version: of the weights.

    Raises:
        CapacityError: the context is longer than the model's, or than the pool; pools or parked pages do not fit.
    """

    def __init__(
        self,
        weights: Weights,
        sizes: Sizes,
        settings: EngineSettings | None = None,
        *,
        mesh: Mesh | None = None,
        metrics: Metrics | None = None,
        version: int = 0,
    ) -> None:
        self.settings = settings = settings or EngineSettings()
        self.sizes, self.metrics = sizes, metrics or Metrics()
        if settings.max_context > sizes.max_context:
            raise CapacityError(
                f"engine.max_context = {settings.max_context} is longer than the model's context of {sizes.max_context}",
                needed=f"at most {sizes.max_context}",
                fix="lower engine.max_context",
            )
        self._pool = PagePool(settings.page_count, settings.page_size, settings.host_pages)
        self._scheduler = Scheduler(
            self._pool,
            settings.slots,
            settings.tokens_per_call,
            settings.prefill_rows,
            settings.prefill_width,
            self.metrics,
        )
        self._device = Device(weights, sizes, settings, mesh, version)
        self._calls = Calls(self._scheduler, self._device, self.metrics)
        self._changed = threading.Condition()
        self._inbox: deque[tuple[Action, Fail]] = deque()  # what other threads want done between two device calls
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._closing = self._ended = False
        self._cause: BaseException | None = None

    @property
    def version(self) -> int:
        """Version of the weights that draw now."""
        return self._device.version

    @property
    def held(self) -> tuple[Any, Any]:
        """Weights, and pages of keys and values, as arrays: for whoever counts bytes. Their values may be gone any moment."""
        return self._device.weights, self._device.pools

    def start(self) -> Engine:
        """Start the thread; a second call does nothing.

        Raises:
            EngineStoppedError: it was closed; make another engine.
        """
        with self._changed:
            if self._ended:
                raise self._told()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dr_jax engine", daemon=True)
                self._thread.start()
        return self

    def close(self) -> None:
        """Stop after the device call in flight and tell everybody who waits; return when the thread has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is None:
            self._run()  # tells whoever has asked already
        else:
            thread.join()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile every program; afterwards nothing compiles, whatever is asked for.

        Args:
            progress: called with a program's name, how many are compiled, and how many there are.
        """
        done: Future[None] = Future()

        def warm() -> None:
            try:
                self._device.warm_up(progress)
            except BaseException as error:
                done.set_exception(error)
                raise  # the engine has lost its pools
            done.set_result(None)

        self.start()
        self._tell(warm, done.set_exception)
        done.result()

    def adopt(self, weights: Weights, version: int) -> None:
        """Draw with these weights from the next device call on; requests in flight go on, with both versions recorded.

        A request that has not drawn yet starts again; one that has keeps its pages, so until its turn ends it draws with the
        new weights from what the old ones computed. No other request shares such pages. Returns at once, from any thread.

        Args:
            weights: names, shapes and dtypes as before; they must stay valid.
            version: recorded with every id that they draw.

        Raises:
            CheckpointError: names, shapes or dtypes differ.
            EngineStoppedError: the engine has ended.
        """
        placed = self._device.fitted(weights)

        def swap() -> None:
            self._device.weights, self._device.version = placed, version
            self._scheduler.restart()

        self._tell(swap, _nobody)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the engine off the device for as long as the block lasts; who asks meanwhile waits. From any thread but its own.

        Raises:
            EngineStoppedError: the engine has ended.
        """
        stands: Future[None] = Future()
        goes_on = threading.Event()

        def stand_still() -> None:
            stands.set_result(None)
            goes_on.wait()

        self._tell(stand_still, stands.set_exception)
        stands.result()
        try:
            yield
        finally:
            goes_on.set()

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Draw a continuation; see `continued`, which goes on from nothing here."""
        return await self.continued(prompt_ids, sampling, key, Begun())

    async def continued(
        self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, begun: Begun, told: Told | None = None
    ) -> Sampled:
        """Draw what is left of a continuation; see `tokens.policy`. Cancelling the awaiting task frees slot and pages.

        What each device call draws is told by the engine's thread.

        Raises:
            ContextFullError: prompt and budget exceed the context or the pool.
            CapacityError: there are too many stop ids, or ids that the model does not have.
            EngineStoppedError: the engine was closed or has failed; nothing was drawn.
        """
        prompt = tuple(int(one) for one in prompt_ids)
        if (whole := begun.ended(sampling)) is not None:
            return whole
        self._refuse_what_cannot_fit(prompt, sampling)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sampled] = loop.create_future()

        def settle(found: Sampled | DrJaxError) -> None:
            if answer.done():
                return
            if isinstance(found, Sampled):
                answer.set_result(found)
            else:
                answer.set_exception(found)

        def deliver(found: Sampled | DrJaxError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, found)

        async with self._room_to_wait(loop):
            request = Request(prompt, sampling, key_data(key), deliver, begun, told)
            self._tell(lambda: self._scheduler.add(request), deliver)
            try:
                return await answer
            finally:
                if not answer.done() or answer.cancelled():
                    self._withdraw(request)

    def _withdraw(self, request: Request) -> None:
        with self._changed:
            if not self._ended:
                self._inbox.append((lambda: self._scheduler.remove(request), _nobody))
                self._changed.notify()

    def _room_to_wait(self, loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
        """One gate per event loop: whoever finds the queue full waits before joining it."""
        with self._changed:
            return self._gates.setdefault(loop, asyncio.Semaphore(self.settings.max_waiting))

    def _refuse_what_cannot_fit(self, prompt: tuple[int, ...], sampling: Sampling) -> None:
        settings = self.settings
        tokens, most = len(prompt) + sampling.max_new_tokens, min(settings.max_context, self._pool.tokens)
        if tokens > most:
            raise ContextFullError(
                f"A prompt of {len(prompt)} ids and {sampling.max_new_tokens} new ones make {tokens}",
                needed=f"at most {most} (engine.max_context = {settings.max_context}, pool of {self._pool.tokens} tokens)",
                fix="raise engine.max_context or engine.pages, or lower the episode's budget of tokens",
            )
        if not prompt or not 0 <= min(prompt) <= max(prompt) < self.sizes.vocab:
            raise CapacityError(
                f"A prompt of {len(prompt)} ids" + (f" from {min(prompt)} to {max(prompt)}" if prompt else ""),
                needed=f"at least one id, each from 0 to {self.sizes.vocab - 1}",
                fix="use the tokenizer that the model was made for",
            )
        if len(sampling.stop_ids) > STOPS:
            raise CapacityError(f"{len(sampling.stop_ids)} stop ids", needed=f"at most {STOPS}")

    def _tell(self, action: Action, fail: Fail) -> None:
        """Have the thread do something between two device calls; `fail` hears of it when the engine ends first."""
        with self._changed:
            if self._ended:
                raise self._told()
            self._inbox.append((action, fail))
            self._changed.notify()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._step():
                pass
        except BaseException as found:  # noqa: BLE001 whatever it is, those who wait are told
            error = found
        with self._changed:
            self._ended, self._cause = True, error
            left = [fail for _, fail in self._inbox]
            self._inbox.clear()
        for fail in (*left, *(request.deliver for request in self._scheduler.requests)):
            fail(self._told())

    def _step(self) -> bool:
        """Do what other threads asked for, then one device call; False when it is time to end."""
        with self._changed:
            while not (self._closing or self._inbox or self._scheduler.requests or self._calls.under_way):
                self._changed.wait()
            if self._closing:
                return False
            asked = len(self._inbox)
        if asked:
            self._calls.land()
        for _ in range(asked):
            self._inbox.popleft()[0]()  # one by one: when it raises, those behind it are told by `_run`
        self._calls.step()
        self.metrics.gauge("engine/waiting", len(self._scheduler.waiting))
        self.metrics.gauge("engine/pages_held", self._pool.held)
        if self.settings.host_pages:
            self.metrics.gauge("engine/parked_pages", self._pool.parked)
        return True

    def _told(self) -> EngineStoppedError:
        error = EngineStoppedError(f"The engine stopped: {self._cause!r}" if self._cause else "The engine was closed")
        error.__cause__ = self._cause
        return error


def _nobody(error: DrJaxError) -> None:
    """Hear of an end that concerns nobody."""
