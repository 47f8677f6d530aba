"""Put arrays onto the mesh; the only places where host memory turns into device memory.

In:    named weights with their logical axes, or a batch of numpy rows
Out:   the same as `jax.Array`s that lie where the rules say
Fails: CapacityError where something does not divide
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dr_jax.base.errors import CapacityError
from dr_jax.sharding import hosts, rules

Rows = TypeVar("Rows")


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

    With several processes each passes its own rows, and the result is all of them in the order of the processes.

    Raises:
        CapacityError: the rows do not divide.
    """

    def placed(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim == 0:
            return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
        _check_rows(array.shape[0], mesh)
        split = NamedSharding(mesh, rules.spec(("row",)))
        if hosts.count() == 1:
            return jax.device_put(array, split)
        return jax.make_array_from_process_local_data(split, array)

    return jax.tree.map(placed, rows)


def row_ways(mesh: Mesh) -> int:
    """Return into how many parts the rows of a batch are split: the batch must hold a multiple of it."""
    return int(np.prod([mesh.shape[axis] for axis in rules.RULES["row"].over]))


def _check_rows(rows: int, mesh: Mesh) -> None:
    ways = row_ways(mesh)
    if rows * hosts.count() % ways:
        raise CapacityError(
            f"A batch of {rows * hosts.count()} row(s) cannot be split over data x fsdp = {ways}",
            needed=f"a multiple of {ways} rows",
            fix="change the batch's rows, mesh.data or mesh.fsdp",
        )
