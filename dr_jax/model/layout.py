"""How our stacked weights correspond to the tensors of one layer each in Hugging Face checkpoints.

In:    a function that returns any rows of any of their tensors
Out:   our weights, assembled where they lie, piece by piece: the host never holds more of them than a few pieces
Holds: `theirs` and `ours` are inverse to each other, for every slice; a process reads each row that it needs once
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, DTypeLike

from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import rules

Slices = tuple[slice, ...]
Fetch = Callable[[str, int, int], np.ndarray]

AT_ONCE = 32 << 20  # bytes of a piece; a bucket's requests are worth their latency from about 10 MB on
_AHEAD = 4  # pieces that are being read while one is placed


@dataclass(frozen=True, slots=True)
class Form:
    """One of their tensors.

    Args:
        name: with `{}` where the number of the layer stands.
        dims: for each of their dimensions, which of our axes (the layer's not counted) it runs over, slowest first.
    """

    name: str
    dims: tuple[tuple[int, ...], ...]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return their shape of what has our shape."""
        return tuple(math.prod(ours[axis] for axis in dim) for dim in self.dims)

    def slices(self, index: Slices, ours: tuple[int, ...]) -> Slices:
        """Return what to read of theirs for a slice of ours; only the slowest axis of each dimension may be cut."""
        cut = []
        for first, *rest in self.dims:
            start, stop, _ = index[first].indices(ours[first])
            inner = math.prod(ours[axis] for axis in rest)
            cut.append(slice(start * inner, stop * inner))
        return tuple(cut)

    @property
    def layered(self) -> bool:
        """Whether there is one of it in every layer."""
        return "{}" in self.name

    @property
    def row(self) -> int:
        """Which of our axes their rows run over first."""
        return self.dims[0][0]

    def rows_in(self, ours: tuple[int, ...]) -> int:
        """Return how many of their rows one step along that axis of ours is."""
        return math.prod(ours[axis] for axis in self.dims[0][1:])

    def ours(self, theirs: Any, shape: tuple[int, ...]) -> Any:
        """Turn (a slice of) theirs, an array of numpy or jax, into ours of this shape."""
        order = [axis for dim in self.dims for axis in dim]
        return theirs.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def theirs(self, ours: Any) -> Any:
        """Turn ours, an array of numpy or jax, into theirs."""
        return ours.transpose([axis for dim in self.dims for axis in dim]).reshape(self.shape(ours.shape))


_GAIN, _MATRIX, _BIAS = ((0,),), ((1,), (0,)), ((0, 1),)  # their matrices are [out, in], ours [in, out]
_INTO_HEADS, _OUT_OF_HEADS = ((1, 2), (0,)), ((2,), (0, 1))

FORMS: dict[str, Form] = {
    "embed": Form("model.embed_tokens.weight", ((0,), (1,))),
    "layers.attention_norm": Form("model.layers.{}.input_layernorm.weight", _GAIN),
    "layers.query": Form("model.layers.{}.self_attn.q_proj.weight", _INTO_HEADS),
    "layers.key": Form("model.layers.{}.self_attn.k_proj.weight", _INTO_HEADS),
    "layers.value": Form("model.layers.{}.self_attn.v_proj.weight", _INTO_HEADS),
    "layers.out": Form("model.layers.{}.self_attn.o_proj.weight", _OUT_OF_HEADS),
    "layers.query_bias": Form("model.layers.{}.self_attn.q_proj.bias", _BIAS),
    "layers.key_bias": Form("model.layers.{}.self_attn.k_proj.bias", _BIAS),
    "layers.value_bias": Form("model.layers.{}.self_attn.v_proj.bias", _BIAS),
    "layers.query_norm": Form("model.layers.{}.self_attn.q_norm.weight", _GAIN),
    "layers.key_norm": Form("model.layers.{}.self_attn.k_norm.weight", _GAIN),
    "layers.ff_norm": Form("model.layers.{}.post_attention_layernorm.weight", _GAIN),
    "layers.gate": Form("model.layers.{}.mlp.gate_proj.weight", _MATRIX),
    "layers.up": Form("model.layers.{}.mlp.up_proj.weight", _MATRIX),
    "layers.down": Form("model.layers.{}.mlp.down_proj.weight", _MATRIX),
    "final_norm": Form("model.norm.weight", _GAIN),
    "head": Form("lm_head.weight", _MATRIX),
}


def their_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a Hugging Face checkpoint of this model, in the order of `each`."""
    return {name: FORMS[ours].shape(shape) for ours, _, name, shape in each(sizes)}


def each(sizes: Sizes) -> list[tuple[str, int | None, str, tuple[int, ...]]]:
    """List all their tensors: our weight's name, the layer (None outside of them), their name, our shape of that layer."""
    listed: list[tuple[str, int | None, str, tuple[int, ...]]] = []
    described = describe(sizes)
    for ours in (name for name in FORMS if name in described and not name.startswith("layers.")):
        listed.append((ours, None, FORMS[ours].name, described[ours].shape))
    for layer in range(sizes.layers):
        for ours in (name for name in FORMS if name in described and name.startswith("layers.")):
            listed.append((ours, layer, FORMS[ours].name.format(layer), described[ours].shape[1:]))
    return listed


def assemble(sizes: Sizes, fetch: Fetch, *, mesh: Mesh | None, dtype: DTypeLike, at_once: int = AT_ONCE) -> Weights:
    """Build our weights where they belong. With several processes each calls this, and reads what its own devices need.

    Args:
        sizes: of the model.
        fetch: returns rows of one of their tensors, by its name, the first row and the one after the last; from any thread.
        mesh: None puts everything on this process's first device.
        dtype: of the weights.
        at_once: bytes of a piece. What a device gets of a weight is put together on the host if it is not more than that, and
            otherwise in the device's own memory.
    """
    described = describe(sizes)
    places: Mapping[str, jax.sharding.Sharding] = (
        {name: SingleDeviceSharding(jax.local_devices()[0]) for name in described}
        if mesh is None
        else rules.shardings(described, mesh)
    )
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="dr_jax weights") as readers:
        return {
            name: _Leaf(FORMS[name], spec.shape, places[name], np.dtype(dtype), at_once).assembled(fetch, readers)
            for name, spec in described.items()
        }


class _Leaf:
    """One weight that is put together.

    Args:
        form: whose tensors it consists of.
        shape: of all of it.
        place: where it lies.
        dtype: of it.
        at_once: bytes of a piece.
    """

    def __init__(
        self, form: Form, shape: tuple[int, ...], place: jax.sharding.Sharding, dtype: np.dtype[Any], at_once: int
    ) -> None:
        self.form, self.shape, self.place, self.dtype = form, shape, place, dtype
        self.layers, inner = (shape[0], shape[1:]) if form.layered else (1, shape)
        self.inner, self.part = inner, place.shard_shape(shape)
        where = place.addressable_devices_indices_map(shape)
        self.cuts = {device: (cut[1:] if form.layered else cut) for device, cut in where.items() if cut is not None}
        self.firsts = {device: cut[form.row].indices(inner[form.row])[0] for device, cut in self.cuts.items()}
        rows = self.part[form.row + form.layered]
        row_bytes = 4 * math.prod(inner) // inner[form.row] * len(set(self.firsts.values()))
        self.rows = min(rows, max(1, at_once // row_bytes))
        # The last piece begins where it is as long as the others, so that one program places all of them.
        self.starts = [min(start, rows - self.rows) for start in range(0, rows, self.rows)]
        self.on_host = math.prod(self.part) * dtype.itemsize <= at_once

    def assembled(self, fetch: Fetch, readers: ThreadPoolExecutor) -> Array:
        pieces = _ahead(product(range(self.layers), self.starts), partial(self._begin, fetch, readers))
        return self._on_host(pieces) if self.on_host else self._on_device(pieces)

    def _begin(self, fetch: Fetch, readers: ThreadPoolExecutor, at: tuple[int, int]) -> dict[int, Future[np.ndarray]]:
        """Begin to read a piece for every device; those whose rows are the same share it."""
        (layer, start), many = at, self.form.rows_in(self.inner)
        begun = {}
        for first in set(self.firsts.values()):
            rows = (first + start) * many, (first + start + self.rows) * many
            begun[first] = readers.submit(fetch, self.form.name.format(layer), *rows)
        return begun

    def _theirs(self, device: jax.Device, piece: Mapping[int, Future[np.ndarray]]) -> np.ndarray:
        """Return what a device needs of a piece that was read."""
        columns = self.form.slices(self.cuts[device], self.inner)[1:]
        return piece[self.firsts[device]].result()[:, *columns]

    def _on_host(self, pieces: Iterable[tuple[tuple[int, int], dict[int, Future[np.ndarray]]]]) -> Array:
        made = {device: np.empty(self.part, self.dtype) for device in self.cuts}
        for (layer, start), piece in pieces:
            for device, whole in made.items():
                part = whole[layer] if self.form.layered else whole
                rows = (slice(None),) * self.form.row + (slice(start, start + self.rows),)
                part[rows] = self.form.ours(self._theirs(device, piece), part[rows].shape)
        parts = [jax.device_put(part, device) for device, part in made.items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.place, parts)

    def _on_device(self, pieces: Iterable[tuple[tuple[int, int], dict[int, Future[np.ndarray]]]]) -> Array:
        made = _zeros(self.shape, self.dtype.name, self.place)
        there = _theirs_of(self.form, self.place)
        ways = [self.inner[dim[0]] // self.part[dim[0] + self.form.layered] for dim in self.form.dims]
        for (layer, start), piece in pieces:
            parts = [jax.device_put(self._theirs(device, piece), device) for device in self.cuts]
            shape = tuple(size * count for size, count in zip(parts[0].shape, ways, strict=True))
            placed = jax.make_array_from_single_device_arrays(shape, there, parts)
            made = _place(made, placed, np.int32(layer), np.int32(start), self.form, self.place)
            made.block_until_ready()  # the piece's memory is free again
        # The compiler leaves out axes of size 1 where it names a place; the weight lies where it was asked for.
        parts = [shard.data for shard in made.addressable_shards]
        return jax.make_array_from_single_device_arrays(self.shape, self.place, parts)


def _ahead(jobs: Iterable[Any], begin: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each job with what beginning it returned; so many are begun ahead of the one that is yielded."""
    begun: deque[tuple[Any, Any]] = deque()
    for job in jobs:
        begun.append((job, begin(job)))
        if len(begun) > _AHEAD:
            yield begun.popleft()
    yield from begun


def _theirs_of(form: Form, place: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Return where a piece of theirs lies whose slowest axes are split as ours are."""
    if not isinstance(place, NamedSharding):
        return place
    axes = [*place.spec, *(None,) * 8][form.layered :]
    return NamedSharding(place.mesh, PartitionSpec(*(axes[dim[0]] for dim in form.dims)))


@partial(jax.jit, static_argnames=("shape", "dtype", "place"))
def _zeros(shape: tuple[int, ...], dtype: str, place: jax.sharding.Sharding) -> Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), place)


@partial(jax.jit, static_argnames=("form", "place"), donate_argnums=0)
def _place(made: Array, piece: Array, layer: Array, start: Array, form: Form, place: jax.sharding.Sharding) -> Array:
    """Write rows of theirs into ours, on every device into its own part of it: nothing is sent between devices."""

    def locally(made: Array, piece: Array, layer: Array, start: Array) -> Array:
        inner = list(made.shape[form.layered :])
        inner[form.row] = piece.shape[0] // form.rows_in(tuple(inner))
        ours = form.ours(piece, tuple(inner)).astype(made.dtype)
        at = [jnp.int32(0)] * made.ndim
        at[form.row + form.layered] = start
        if form.layered:
            at[0], ours = layer, ours[None]
        return jax.lax.dynamic_update_slice(made, ours, at)

    if not isinstance(place, NamedSharding):
        return locally(made, piece, layer, start)
    there, nowhere = _theirs_of(form, place), PartitionSpec()
    assert isinstance(there, NamedSharding)
    specs = (place.spec, there.spec, nowhere, nowhere)
    return jax.shard_map(locally, mesh=place.mesh, in_specs=specs, out_specs=place.spec)(made, piece, layer, start)
