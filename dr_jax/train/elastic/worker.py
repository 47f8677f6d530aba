"""A worker: an engine that draws for a trainer elsewhere, and what it has to tell.

In:    requests (`take`), numbers (`drop`), weights (`adopt`)
Out:   `news`: what was drawn since the last
Holds: knows nothing of how it is reached; newest weights win, whatever the order in which they come
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding

from dr_jax.base.errors import DrJaxError, UserError
from dr_jax.base.metrics import Metrics
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import rules
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.tokens.policy import Begun
from dr_jax.train.elastic.wire import Ask, LostError, News

_SWAP_S = 0.01  # between two looks at whether the engine has taken up new weights


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker's engine is made of, beside weights."""

    sizes: Sizes
    settings: EngineSettings


class Worker:
    """Draws; implements `Wire`. Its methods belong to one event loop.

    Args:
        engine: started.
        places: where its weights lie.
    """

    def __init__(self, engine: Engine, places: Mapping[str, NamedSharding]) -> None:
        self.engine, self._places = engine, places
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._drawn: dict[int, Begun] = {}  # the engine's thread writes
        self._lock = threading.Lock()
        self._refused: dict[int, UserError] = {}
        self._ended = asyncio.Event()
        self._failure: DrJaxError | None = None
        self._adopting = asyncio.Lock()
        self._newest = engine.version

    async def take(self, asks: Sequence[Ask]) -> None:
        """Begin to draw; see `Wire`."""
        for ask in asks:
            task = self._tasks[ask.number] = asyncio.create_task(self._draw(ask))
            task.add_done_callback(partial(self._over, ask.number))

    async def drop(self, numbers: Sequence[int]) -> None:
        """Draw no more for these; see `Wire`."""
        for number in numbers:
            task = self._tasks.get(number)
            if task is not None:
                task.cancel()

    async def news(self, wait_s: float) -> News:
        """Return what was drawn; see `Wire`.

        Raises:
            LostError: the engine has stopped.
        """
        try:
            async with asyncio.timeout(wait_s):
                await self._ended.wait()
        except TimeoutError:
            pass
        self._ended.clear()
        if self._failure is not None:
            raise LostError(str(self._failure)) from self._failure
        with self._lock:
            drawn, self._drawn = self._drawn, {}
        refused, self._refused = self._refused, {}
        return News(self.engine.version, drawn, refused)

    async def adopt(self, weights: Mapping[str, Any], version: int) -> None:
        """Draw with these weights, or newer ones; see `Wire`.

        Raises:
            CheckpointError: names, shapes or dtypes differ.
        """
        self._newest = max(self._newest, version)
        async with self._adopting:
            if version < self._newest or version <= self.engine.version:
                return
            placed = await asyncio.to_thread(put, weights, self._places)
            await asyncio.to_thread(self.engine.adopt, placed, version)
            while self.engine.version < version and self._failure is None:  # noqa: ASYNC110 another thread swaps them
                await asyncio.sleep(_SWAP_S)
        self._ended.set()  # this is news, too

    async def close(self) -> None:
        """Cancel everything and stop the engine."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.engine.close)

    async def _draw(self, ask: Ask) -> None:
        try:
            await self.engine.continued(ask.prompt, ask.sampling, ask.key, ask.begun, partial(self._told, ask.number))
        except UserError as error:
            self._refused[ask.number] = error
        except DrJaxError as error:
            self._failure = error

    def _over(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        self._ended.set()

    def _told(self, number: int, more: Begun) -> None:
        with self._lock:
            self._drawn[number] = self._drawn.get(number, Begun()).then(more)


def put(weights: Mapping[str, Any], places: Mapping[str, NamedSharding]) -> Weights:
    """Copy weights to where a worker's engine holds them: nothing of what they were is used later."""
    placed = {name: jax.device_put(weight, places[name], may_alias=False) for name, weight in weights.items()}
    return jax.block_until_ready(placed)


def hired(spec: Spec, weights: Mapping[str, Any], version: int) -> Worker:
    """Put an engine around weights, on the devices of this process, and compile its programs.

    Args:
        spec: of the engine.
        weights: by name, in host memory, of the dtype that the engine computes with.
        version: of them.
    """
    # As many devices as the model can be split over: what cannot be divided is left out, not refused.
    devices = jax.devices()[: math.gcd(len(jax.devices()), spec.sizes.heads, spec.sizes.ff)]
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=len(devices)), devices)
    places = rules.shardings(describe(spec.sizes), mesh)
    engine = Engine(put(weights, places), spec.sizes, spec.settings, mesh=mesh, metrics=Metrics(), version=version)
    engine.warm_up()
    return Worker(engine, places)
