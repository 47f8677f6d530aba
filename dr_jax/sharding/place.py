"""Put arrays onto the mesh; the only places where host memory turns into device memory.

In:    named weights with their logical axes, or a batch of numpy rows
Out:   the same as `jax.Array`s that lie where the rules say
Fails: CapacityError where something does not divide
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dr_jax.base.errors import CapacityError
from dr_jax.sharding import hosts, rules

Rows = TypeVar("Rows")
_ROWS = ("data", "fsdp")  # what whole rows are split over


def place_weights(weights: Mapping[str, Any], described: Mapping[str, rules.Described], mesh: Mesh) -> dict[str, jax.Array]:
    """Place weights, which every process holds whole, by their logical axes.

    Args:
        weights: by name.
        described: shape and axes of each, as the model's `describe` returns them.
        mesh: where to.

    Raises:
        CapacityError: an axis does not divide.
    """
    return jax.device_put(dict(weights), {name: rules.sharding(name, described[name], mesh) for name in weights})


def place_rows(rows: Rows, mesh: Mesh) -> Rows:
    """Place a pytree of numpy arrays [B, ...] with their rows split over the mesh; scalars go to every device.

    With several processes each passes its own rows, and the result is all of them in the order of the processes. Where the mesh
    has an axis `sequence` of S devices, rows [B, T] become stretches [S B, T / S]: the first of every row, then the second …

    Raises:
        CapacityError: the rows do not divide, or not into stretches.
    """
    cut = mesh.shape["sequence"]
    split = NamedSharding(mesh, rules.spec(("row",)))

    def placed(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim == 0:
            return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
        _check_rows(array.shape[0], mesh)
        if cut == 1:
            return _put(array, split)
        if array.ndim != 2 or array.shape[1] % cut:
            raise CapacityError(
                f"Rows of shape {array.shape} cannot be cut into mesh.sequence = {cut} stretches",
                needed=f"rows whose length is a multiple of {cut}",
                fix="change batch.lengths or mesh.sequence",
            )
        apart = np.ascontiguousarray(array.reshape(len(array), cut, -1).swapaxes(0, 1))
        laid = _put(apart, NamedSharding(mesh, PartitionSpec("sequence", _ROWS)))
        return jax.jit(lambda x_SBT: x_SBT.reshape(-1, x_SBT.shape[-1]), out_shardings=split)(laid)

    return jax.tree.map(placed, rows)


def _put(array: np.ndarray, split: NamedSharding) -> jax.Array:
    return jax.device_put(array, split) if hosts.count() == 1 else jax.make_array_from_process_local_data(split, array)


def row_ways(mesh: Mesh) -> int:
    """Return into how many parts the rows of a batch are split: the batch must hold a multiple of it."""
    return int(np.prod([mesh.shape[axis] for axis in _ROWS]))


def bytes_of(tree: Any) -> int:
    """Return the bytes that arrays, or the shapes and places of some, take on one device."""
    parts = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return sum(item * math.prod(shape) for shape, item in parts)


def _check_rows(rows: int, mesh: Mesh) -> None:
    ways = row_ways(mesh)
    if rows * hosts.count() % ways:
        raise CapacityError(
            f"A batch of {rows * hosts.count()} row(s) cannot be split over data x fsdp = {ways}",
            needed=f"a multiple of {ways} rows",
            fix="change the batch's rows, mesh.data or mesh.fsdp",
        )
