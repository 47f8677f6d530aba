"""One table: which mesh axis each logical axis of an array is split over.

In:    the logical names of an array's axes, as the model declares them
Out:   its `PartitionSpec`, or its `NamedSharding` on a mesh
Fails: CapacityError where an axis does not divide and the table does not allow copies instead
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from dr_jax.base.errors import CapacityError


@dataclass(frozen=True, slots=True)
class Rule:
    """Where one logical axis goes.

    Args:
        over: mesh axes that it is split over; none means that every device holds all of it.
        or_copy: whether every device holds all of it when it does not divide.
    """

    over: tuple[str, ...] = ()
    or_copy: bool = False


RULES: dict[str, Rule] = {
    "row": Rule(("data", "fsdp")),
    "layer": Rule(),
    "width": Rule(("fsdp",)),
    "vocab": Rule(("tensor",), or_copy=True),  # tokenizers have odd sizes
    "heads": Rule(("tensor",)),
    "kv_heads": Rule(("tensor",), or_copy=True),  # there are few; their queries' heads are still split
    "channels": Rule(),
    "ff": Rule(("tensor",)),
    "gain": Rule(),  # of norms: too small to be worth a gather
}


class Described(Protocol):
    """An array's shape and the logical name of each of its axes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def axes(self) -> tuple[str, ...]:
        """Names, found in `RULES`."""
        ...


def spec(axes: Sequence[str]) -> PartitionSpec:
    """Return how an array with these logical axes is split when every axis divides."""
    return PartitionSpec(*(RULES[axis].over or None for axis in axes))


def sharding(name: str, described: Described, mesh: Mesh) -> NamedSharding:
    """Return where an array lies on the mesh.

    Raises:
        CapacityError: an axis does not divide, with the array's name, the axis and the sizes.
    """
    parts: list[tuple[str, ...] | None] = []
    for size, axis in zip(described.shape, described.axes, strict=True):
        rule = RULES[axis]
        ways = _ways(rule, mesh)
        if size % ways and not rule.or_copy:
            raise CapacityError(
                f"{name} {described.shape} cannot be split: its axis {axis!r} of {size} does not divide by {ways}",
                needed=f"a mesh whose {' x '.join(rule.over)} divides {size}",
                fix=f"change {' or '.join(f'mesh.{part}' for part in rule.over)}",
            )
        parts.append(rule.over or None if size % ways == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*parts))


def shardings(described: Mapping[str, Described], mesh: Mesh) -> dict[str, NamedSharding]:
    """Return where each of many named arrays lies on the mesh."""
    return {name: sharding(name, one, mesh) for name, one in described.items()}


def split_rows(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """Tell the compiler that the first axis is rows, split as batches are; nothing else is said about the others.

    Inside `jax.set_mesh` this keeps activations with their rows, so that weights move and not activations. Without a mesh,
    or with rows that do not divide, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    over = RULES["row"].over
    if mesh.empty or not set(over) <= set(mesh.axis_names) or x.shape[0] % _ways(RULES["row"], mesh):
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(over, *rest))


def _ways(rule: Rule, mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    ways = 1
    for axis in rule.over:
        ways *= mesh.shape[axis]
    return ways
