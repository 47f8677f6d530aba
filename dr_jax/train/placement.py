"""Which devices learn and which sample: all of them both, in turns, or each its own.

In:    settings of the run
Out:   the mesh of the update and that of the engine; weights as the engine holds them
Fails: ConfigError that says how many devices there are
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dr_jax.base.errors import CapacityError, ConfigError
from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import hosts, rules
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.train.settings import Settings


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run's work is done.

    Args:
        learning: the mesh of master weights, optimizer and update.
        sampling: the mesh of the engine; the same one, or of other devices, over which heads are split.
    """

    learning: Mesh
    sampling: Mesh

    @property
    def apart(self) -> bool:
        """Whether the two share no device: weights are then handed over from device to device."""
        return self.learning is not self.sampling


def place(settings: Settings) -> Placement:
    """Divide the devices.

    Raises:
        ConfigError: there are too few for `rollout.devices`, several hosts, or the mesh does not fit what is left.
    """
    own = settings.rollout.devices
    if not own:
        mesh = make_mesh(settings.mesh)
        return Placement(mesh, mesh)
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


def hand_over(weights: Weights, sizes: Sizes, dtype: str, placement: Placement) -> Weights:
    """Return the weights as the engine holds them, on its devices; always a copy, because the update donates its own.

    Raises:
        ConfigError: the model's heads cannot be split over the engine's devices.
    """
    copies = {name: jnp.array(weight, dtype=jnp.dtype(dtype), copy=True) for name, weight in weights.items()}
    if not placement.apart:
        return copies
    try:
        there = rules.shardings(describe(sizes), placement.sampling)
    except CapacityError as error:
        raise ConfigError(
            f"The model cannot be split over rollout.devices = {placement.sampling.size}: {error.found}",
            needed=f"a number that divides its {sizes.heads} heads and {sizes.ff} feed-forward channels",
            fix="change rollout.devices",
        ) from error
    return jax.device_put(copies, there)
