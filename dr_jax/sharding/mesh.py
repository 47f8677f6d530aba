"""Arrange devices in a mesh of four axes.

In:    `MeshSettings`, and the devices to use
Out:   a `jax.sharding.Mesh` with axes data, fsdp, tensor and sequence
Fails: ConfigError that lists the meshes which these devices would make
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dr_jax.base.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence")


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """How many devices lie along each axis; at most one may be -1, which takes all that are left.

    Args:
        data: copies of the weights; rows of a batch are split over them.
        fsdp: weights are split over it, and so are the rows; each layer's weights are gathered when they are used.
        tensor: heads, feed-forward channels and the vocabulary are split over it.
        sequence: each row of a batch is cut into as many stretches, which lie on different devices: for rows that are too long
            for one. Each layer's keys and values are gathered; weights are copied over it.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        if any(size < 1 and size != -1 for size in self.shape):
            raise ValueError(f"the mesh {self.shape} has an empty axis; each is at least 1, or -1 for what is left")
        if self.shape.count(-1) > 1:
            raise ValueError(f"the mesh {self.shape} leaves more than one axis open; at most one can be -1")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes in the order of `AXES`."""
        return (self.data, self.fsdp, self.tensor, self.sequence)


def make_mesh(settings: MeshSettings | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh.

    Args:
        settings: sizes of the axes; None is the default.
        devices: None means all of them, of every process; an engine passes its own process's.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    settings = settings or MeshSettings()
    devices = jax.devices() if devices is None else devices
    fixed = math.prod(size for size in settings.shape if size != -1)
    shape = tuple(len(devices) // fixed if size == -1 else size for size in settings.shape)
    if math.prod(shape) != len(devices):
        told = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, settings.shape, strict=True))
        raise ConfigError(
            f"The mesh {told} does not divide {len(devices)} {devices[0].platform} device(s)",
            needed=f"sizes whose product is {len(devices)}, e.g. {_meshes_of(len(devices), settings)}",
            fix="change mesh.data, mesh.fsdp, mesh.tensor or mesh.sequence",
        )
    arranged = _by_process(shape, devices)
    if arranged is None:  # a wire's axis is split only where no axes multiply to one of the mesh, such as 8 of 4 x 4 x 4 chips
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_process(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray | None:
    """Lay the axes within a row inside of processes, where they fit: each process brings rows of its own to a batch.

    JAX would choose by the wires between chips alone; on 8 x 8 chips, whose hosts have 2 x 2 each, it lays four in a line.
    """
    by_process: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    sizes = {len(own) for own in by_process.values()}
    if len(by_process) == 1 or len(sizes) > 1 or sizes.pop() % (shape[2] * shape[3]):
        return None
    return np.array([device for process in sorted(by_process) for device in by_process[process]]).reshape(shape)


def _meshes_of(count: int, near: MeshSettings) -> str:
    """List meshes of so many devices: those whose tensor and sequence are nearest to what was wanted, few copies first."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    found = [
        (data, count // data // tensor // sequence, tensor, sequence)
        for tensor, sequence, data in itertools.product(divisors, repeat=3)
        if count % (data * tensor * sequence) == 0
    ]
    found.sort(key=lambda mesh: (abs(mesh[2] - near.tensor) + abs(mesh[3] - near.sequence), mesh[0]))
    told = (", ".join(f"{axis} {size}" for axis, size in zip(AXES, mesh, strict=True)) for mesh in found[:4])
    return "; ".join(told)
