"""One table: which mesh axis each logical axis of an array is split over.

In:    the logical names of an array's axes, as the model declares them
Out:   its `PartitionSpec`, or its `NamedSharding` on a mesh
Fails: CapacityError where an axis does not divide and the table does not allow copies instead
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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
    "row": Rule(("sequence", "data", "fsdp")),  # stretches of rows, where there are several: see `model.stretches`
    "place": Rule(("tensor",), or_copy=True),  # of a token in its row, between layers only: see `model.decoder`
    "layer": Rule(),
    "width": Rule(("fsdp",)),
    "vocab": Rule(("tensor",), or_copy=True),  # tokenizers have odd sizes
    "heads": Rule(("tensor",)),
    "kv_heads": Rule(("tensor",), or_copy=True),  # there are few; their queries' heads are still split
    "channels": Rule(),
    "ff": Rule(("tensor",)),
    "rank": Rule(),  # of low-rank adapters
    "gain": Rule(),  # of norms: too small to be worth a gather
}


@runtime_checkable
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


def split(x: Shaped[Array, "*dims"], *axes: str | None) -> Shaped[Array, "*dims"]:
    """Tell the compiler how an array inside a jitted function is split; without `jax.set_mesh` around it, do nothing.

    Args:
        x: the array.
        axes: a logical name for each of the first axes, or None for one that every device holds whole. Those that are not
            named, and those that do not divide, are left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {over for axis in axes if axis for over in RULES[axis].over} <= set(mesh.axis_names):
        return x
    parts: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    for place, axis in enumerate(axes):
        rule = RULES[axis] if axis else Rule()
        if x.shape[place] % _ways(rule, mesh) == 0:
            parts[place] = rule.over or None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


def ways(axis: str) -> int:
    """Return into how many parts the mesh around this splits a logical axis; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    over = RULES[axis].over
    return _ways(RULES[axis], mesh) if not mesh.empty and set(over) <= set(mesh.axis_names) else 1


def _ways(rule: Rule, mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    ways = 1
    for axis in rule.over:
        ways *= mesh.shape[axis]
    return ways
