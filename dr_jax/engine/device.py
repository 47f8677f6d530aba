"""Carry plans to the device and results back: the only place of the engine where host memory meets device memory.

In:    a plan of the scheduler, the weights of the moment
Out:   drawn ids and log-probabilities as Python numbers
Holds: one call moves a few small arrays; the pools stay where they are and are updated in place
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dr_jax.base.errors import CheckpointError
from dr_jax.engine.capacity import refuse_too_large, refuse_too_many_parked
from dr_jax.engine.choice import Form, decoding
from dr_jax.engine.items import Tiles, listed
from dr_jax.engine.moves import Copy, Move, Park
from dr_jax.engine.pages import SCRATCH
from dr_jax.engine.parked import HostPages
from dr_jax.engine.request import Request
from dr_jax.engine.runner import MOVES, DecodeRows, Drawn, Left, Pages, PrefillRows, programs
from dr_jax.engine.sample import Draws
from dr_jax.engine.scheduler import Decode, Mixed, Prefill
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.decoder import Laid, Weights, apart, merged
from dr_jax.model.sizes import Sizes

STOPS = 8  # stop ids that one request can have
# On a CPU in plain JAX, with 16 rows of 100 tokens a step takes 4.9 ms by Eigen and 6.4 ms by XLA's fusions; with 64 rows, or
# 1,200 tokens, it is the other way round (a model of 3.5 M parameters, two cores). With the kernel it makes no difference.
FEW_SLOTS, SHORT_CONTEXT = 32, 512


Rows = list[tuple[list[int], list[float]]]  # ids and log-probabilities of each


class Launched(NamedTuple):
    """A call that was queued.

    Args:
        rows: that somebody asked for, in each of its parts.
        drawn: ids, log-probabilities and counts of each part, on the device.
        left: where the call left the rows that draw.
    """

    rows: tuple[int, ...]
    drawn: tuple[Drawn, ...]
    left: Left | None


class Device:
    """Weights, pools and programs.

    Args:
        weights: by name.
        sizes: of the model.
        settings: capacities.
        mesh: None means where the weights lie.
        version: of the weights.

    Raises:
        CapacityError: the pools do not fit, or parked pages do not.
    """

    def __init__(self, weights: Weights, sizes: Sizes, settings: EngineSettings, mesh: Mesh | None, version: int) -> None:
        home = next(iter(weights.values())).sharding
        if mesh is None and isinstance(home, NamedSharding):
            mesh = home.mesh
        everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(min(home.device_set, key=id))
        self.settings, self.version = settings, version
        self._places = {
            name: weight.sharding if mesh and weight.sharding.device_set == everywhere.device_set else everywhere
            for name, weight in weights.items()
        }
        self._forms = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
        platform = next(iter(everywhere.device_set)).platform
        self._apart = platform == "cpu" and len(everywhere.device_set) == 1 and sizes.layers <= settings.unrolled_layers
        self.weights = self.fitted(weights)
        self._tiles = tiles(settings, sizes, platform, mesh)
        self._programs = programs(
            sizes,
            tokens_per_call=settings.tokens_per_call,
            tiles=self._tiles,
            everywhere=everywhere,
            eigen=platform == "cpu" and settings.slots <= FEW_SLOTS and settings.max_context <= SHORT_CONTEXT,
        )
        ways = sizes.kv_heads // self._programs.pools.k_LKPWC.shard_shape((1, sizes.kv_heads, 1, 1, 1))[1]
        refuse_too_large(settings, sizes, everywhere.addressable_devices, ways)
        refuse_too_many_parked(settings, sizes)
        self.pools = self._programs.empty_pools(settings.page_count, settings.page_size, settings.dtype)
        page = (sizes.layers, sizes.kv_heads, settings.page_size, sizes.head_dim)
        self._parked = HostPages(settings.host_pages, page, settings.dtype)

    def fitted(self, weights: Weights) -> Laid:
        """Return weights where and as the programs expect them; no copy where they lie so already.

        Raises:
            CheckpointError: names, shapes or dtypes differ.
        """
        forms = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
        if forms != self._forms:
            name = next(name for name in sorted({*forms, *self._forms}) if forms.get(name) != self._forms.get(name))
            raise CheckpointError(
                f"The engine was given weights whose {name} is {forms.get(name, 'missing')}",
                needed=f"{self._forms.get(name, 'no such weight')}, as at the start",
            )
        placed = jax.device_put(dict(weights), self._places)
        return apart(jax.jit(merged)(placed)) if self._apart else placed

    def move(self, moves: Sequence[Move]) -> None:
        """Queue moves of pages, in order; those of a kind that follow each other are made together."""
        for kind, alike in groupby(moves, key=type):
            these = list(alike)
            for start in range(0, len(these), MOVES):
                self._move(kind, these[start : start + MOVES])

    def _move(self, kind: type[Move], moves: Sequence[Move]) -> None:
        place, pages_N = self._programs.place, np.full(MOVES, SCRATCH, np.int32)
        if kind is Copy:
            pages_N2 = np.full((MOVES, 2), SCRATCH, np.int32)  # scratch to scratch where there is nothing to copy
            pages_N2[: len(moves)] = [(one.page, one.to) for one in moves if isinstance(one, Copy)]
            self.pools = self._programs.copy(self.pools, place(pages_N2))
            return
        pages_N[: len(moves)] = [one.page for one in moves]
        places = [one.place for one in moves if not isinstance(one, Copy)]
        if kind is Park:
            self._parked.put(self._programs.lift(self.pools, place(pages_N)), places)
        else:
            self._put_back(self._parked.get(places, MOVES), pages_N)

    def _put_back(self, pages: Pages, pages_N: np.ndarray) -> None:
        placed = jax.device_put(pages, self._programs.pages)
        self.pools = self._programs.put_back(self.pools, placed, self._programs.place(pages_N))

    def prefill(self, work: Prefill) -> Launched:
        """Queue the stretches; what is drawn after each is meaningful for a request's last stretch only."""
        alike = self.mixed(Mixed(work, Decode(())))  # a program without those who draw would save little but compile as long
        return Launched(alike.rows[:1], alike.drawn[:1], None)

    def decode(self, work: Decode, after: Launched | None = None) -> Launched:
        """Queue a call for these requests.

        Args:
            work: who draws.
            after: the call before, with the same requests, that was not read yet; None when everything is known.
        """
        rows = self._decode_rows(work, self.settings.tokens_per_call, after)
        self.pools, drawn, left = self._programs.decode(self.weights, self.pools, self._programs.place(rows))
        return Launched((len(work.requests),), (drawn,), left)

    def mixed(self, work: Mixed, after: Launched | None = None) -> Launched:
        """Queue stretches and one id of each who draws; see `prefill` and `decode`."""
        rows = self._programs.place((self._prefill_rows(work.prefill), self._decode_rows(work.decode, 1, after)))
        self.pools, *drawn, left = self._programs.mixed(self.weights, self.pools, *rows)
        return Launched((len(work.prefill.stretches), len(work.decode.requests)), tuple(drawn), left)

    def read(self, launched: Launched) -> list[Rows]:
        """Wait for a call; return what each row of each of its parts drew."""
        parts = zip(launched.rows, jax.device_get(launched.drawn), strict=True)
        return [
            [(ids[row, :count].tolist(), logprobs[row, :count].tolist()) for row, count in enumerate(counts[:asked].tolist())]
            for asked, (ids, logprobs, counts) in parts
        ]

    def warm_up(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Run every program once with nothing to do."""
        calls: list[tuple[str, Callable[[], object]]] = [("copy", partial(self.move, [Copy(SCRATCH, SCRATCH)]))]
        if self.settings.host_pages:
            calls.append(("park and fetch", self._move_nothing))
        for rows in self.settings.prefill_rows:
            calls.append((f"prefill {rows}x{self.settings.prefill_width}", partial(self._once, Prefill((), rows))))
        calls.append((f"decode {self.settings.slots}x{self.settings.tokens_per_call}", partial(self._once, Decode(()))))
        for number, (name, call) in enumerate(calls):
            if progress is not None:
                progress(name, number, len(calls))
            call()
        if progress is not None:
            progress("ready", len(calls), len(calls))

    def _move_nothing(self) -> None:
        pages_N = np.full(MOVES, SCRATCH, np.int32)
        self._put_back(jax.device_get(self._programs.lift(self.pools, self._programs.place(pages_N))), pages_N)

    def _once(self, work: Prefill | Decode) -> None:
        self.read(self.prefill(work) if isinstance(work, Prefill) else self.decode(work))

    def _prefill_rows(self, work: Prefill) -> PrefillRows:
        count, width = work.rows, self.settings.prefill_width
        ids, starts, counts = np.zeros((count, width), np.int32), np.zeros(count, np.int32), np.zeros(count, np.int32)
        for row, stretch in enumerate(work.stretches):
            new = stretch.request.ids[stretch.start : stretch.stop]
            ids[row, : len(new)] = new
            starts[row], counts[row] = stretch.start, len(new)
        requests = [stretch.request for stretch in work.stretches]
        return PrefillRows(ids, starts, counts, self._tables(requests, count), _draws(requests, count))

    def _decode_rows(self, work: Decode, most: int, after: Launched | None) -> DecodeRows:
        count = self.settings.slots
        ids, lengths, lefts = np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros(count, np.int32)
        stops = np.full((count, STOPS), -1, np.int32)
        for row, request in enumerate(work.requests):
            ids[row], lengths[row], lefts[row] = request.ids[-1], request.cached, request.left
            stops[row, : len(request.sampling.stop_ids)] = request.sampling.stop_ids
        tables = self._tables(work.requests, count)
        items = listed(tables, lengths + np.minimum(lefts, work.unread + most), self.settings.page_size, self._tiles)
        rows = DecodeRows(ids, lengths, lefts, stops, tables, items, _draws(work.requests, count))
        if after is None or after.left is None:
            return rows
        left = after.left
        rows = rows._replace(ids_B=left.ids_B, lengths_B=left.lengths_B, lefts_B=left.lefts_B)
        return rows._replace(draws=rows.draws._replace(indices_B=left.indices_B))

    def _tables(self, requests: Sequence[Request], count: int) -> np.ndarray:
        tables_BX = np.zeros((count, self.settings.pages_per_request), np.int32)
        for row, request in enumerate(requests):
            assert request.lease is not None
            pages = request.lease.pages
            tables_BX[row, : len(pages)] = pages
        return tables_BX


def _draws(requests: Sequence[Request], count: int) -> Draws:
    keys, indices, ks = np.zeros((count, 2), np.uint32), np.zeros(count, np.int32), np.zeros(count, np.int32)
    temperatures, ps = np.zeros(count, np.float32), np.ones(count, np.float32)
    for row, request in enumerate(requests):
        how = request.sampling
        keys[row], indices[row] = request.key, request.drawn
        temperatures[row], ps[row], ks[row] = how.temperature, how.top_p, how.top_k
    return Draws(keys, indices, temperatures, ps, ks)


def tiles(settings: EngineSettings, sizes: Sizes, platform: str, mesh: Mesh | None) -> Tiles:
    """Choose how attention over pages is cut up, and with which kernel."""
    # On a CPU what is met at once should stay in its cache; elsewhere each step costs kernel launches.
    tokens, at_once = (128, 16) if platform == "cpu" else (512, 128)
    pages = min(max(tokens // settings.page_size, 1), settings.pages_per_request)
    form = Form.of(settings, sizes, mesh.shape.get("tensor", 1) if mesh is not None else 1)
    kernel = decoding(settings.attention, form, platform, mesh)
    return Tiles(settings.block or pages * settings.page_size, at_once, kernel, flat=platform == "cpu")
