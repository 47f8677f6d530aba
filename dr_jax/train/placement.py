"""Which devices learn and which sample: all of them both, in turns, or each its own.

In:    settings of the run
Out:   the mesh of the update and that of the engine; weights as the engine holds them
Holds: with several processes the update is on the devices of all, and each has an engine on its own
Fails: ConfigError that says how many devices there are
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from dr_jax.base.errors import CapacityError, ConfigError
from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import hosts, rules
from dr_jax.sharding.mesh import AXES, MeshSettings, make_mesh
from dr_jax.train.settings import Settings


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run's work is done.

    Args:
        learning: the mesh of master weights, optimizer and update.
        sampling: the mesh of the engine; the same one, or of other devices, over which heads are split.
        spread: the meshes of all processes' engines as one, which has every device; None where there is one process.
    """

    learning: Mesh
    sampling: Mesh
    spread: Mesh | None = None

    @property
    def apart(self) -> bool:
        """Whether the two share no device."""
        return set(self.learning.devices.flat).isdisjoint(self.sampling.devices.flat)

    def suited(self, sizes: Sizes) -> Placement:
        """With several processes, split heads over as many devices of each as they divide by; the others of it do the same."""
        if self.spread is None:
            return self
        own = self.sampling.size
        tensor = math.gcd(own, sizes.heads, sizes.ff)
        spread = _arranged(self.spread.devices.flatten(), tensor)
        first = hosts.index() * own
        return replace(self, spread=spread, sampling=_arranged(self.spread.devices.flatten()[first : first + own], tensor))


def place(settings: Settings) -> Placement:
    """Divide the devices.

    Raises:
        ConfigError: there are too few for `rollout.devices`, several hosts, or the mesh does not fit what is left.
    """
    own = settings.rollout.devices
    if not own:
        mesh = make_mesh(settings.mesh)
        return on_each_its_own(mesh)
    if hosts.count() > 1:
        raise ConfigError(
            f"rollout.devices = {own} divides the devices of one host, and this is one of {hosts.count()}",
            needed="a single process",
            fix="set rollout.devices=0: each process then samples on the devices that it learns on",
        )
    devices = jax.devices()
    if own >= len(devices):
        raise ConfigError(
            f"rollout.devices = {own} leaves none of {len(devices)} {devices[0].platform} device(s) to the update",
            needed=f"at most {len(devices) - 1}" if len(devices) > 1 else "two devices at least",
            fix=f"set rollout.devices={len(devices) // 2}" + ("" if len(devices) > 1 else ", which has both take turns"),
        )
    learning = make_mesh(settings.mesh, devices[:-own])
    return Placement(learning, make_mesh(MeshSettings(data=1, fsdp=1, tensor=own), devices[-own:]))


def on_each_its_own(learning: Mesh) -> Placement:
    """Give each process an engine on its own devices; a single one has it where it learns.

    Raises:
        ConfigError: they do not have as many each, or rows of a batch would lie on devices of several processes.
    """
    devices = sorted(learning.devices.flat, key=lambda one: one.id)
    processes = sorted({one.process_index for one in devices})
    by_process = [[one for one in devices if one.process_index == process] for process in processes]
    if len(by_process) == 1:
        return Placement(learning, learning)
    rows = [{place[:2] for place, one in np.ndenumerate(learning.devices) if one in own} for own in by_process]
    counts = sorted({len(own) for own in by_process})
    if len(counts) > 1 or sum(map(len, rows)) > len(set().union(*rows)):
        told = " x ".join(f"{axis} {size}" for axis, size in learning.shape.items())
        raise ConfigError(
            f"The mesh {told} does not fit {len(by_process)} processes with {' or '.join(map(str, counts))} devices each: "
            "each brings rows of its own to a batch",
            needed="as many devices on each, and a mesh whose other axes lie inside of one process",
            fix=f"have mesh.tensor x mesh.sequence divide {counts[0]}",
        )
    spread = np.array([one for own in by_process for one in own])
    return Placement(learning, _arranged(spread[: len(by_process[0])], 1), _arranged(spread, 1))


def _arranged(devices: np.ndarray, tensor: int) -> Mesh:
    return Mesh(devices.reshape(-1, 1, tensor, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def hand_over(weights: Weights, sizes: Sizes, dtype: str, placement: Placement) -> Weights:
    """Return the weights as the engine holds them, on its devices; always a copy, because the update donates its own.

    With several processes all must call it: the weights go to all engines in one program.

    Raises:
        ConfigError: the model's heads cannot be split over the engine's devices.
    """
    copies = {name: jnp.array(weight, dtype=jnp.dtype(dtype), copy=True) for name, weight in weights.items()}
    if placement.learning is placement.sampling:
        return copies
    try:
        there = rules.shardings(describe(sizes), placement.spread or placement.sampling)
    except CapacityError as error:
        raise ConfigError(
            f"The model cannot be split over rollout.devices = {placement.sampling.size}: {error.found}",
            needed=f"a number that divides its {sizes.heads} heads and {sizes.ff} feed-forward channels",
            fix="change rollout.devices",
        ) from error
    laid = jax.device_put(copies, there)
    return laid if placement.spread is None else {name: _here(weight, placement.sampling) for name, weight in laid.items()}


def _here(weight: jax.Array, mesh: Mesh) -> jax.Array:
    """Return an array's parts on this process's devices, which make a whole one, as an array of theirs alone."""
    assert isinstance(weight.sharding, NamedSharding)
    own = NamedSharding(mesh, weight.sharding.spec)
    return jax.make_array_from_single_device_arrays(weight.shape, own, [shard.data for shard in weight.addressable_shards])
