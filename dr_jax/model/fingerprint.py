"""Tell one set of weights from another.

In:    weights by name, wherever they lie
Out:   a short text: the same for the same numbers, on any mesh; another one when any of them differs in a bit
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp

from dr_jax.model.decoder import Weights

_PLACE = 2654435761  # Knuth's multiplier
_ROUNDS = (
    (16, 0x85EBCA6B),
    (13, 0xC2B2AE35),
)  # MurmurHash3's finalizer: every bit changes half of the result


def fingerprint(weights: Weights) -> str:
    """Return 16 hexadecimal digits.

    Each number's bits are mixed with their place and added up modulo 2^32, in which order does not matter.
    """
    mix = jax.jit(_mixed)
    sums = jax.device_get({name: mix(weight) for name, weight in weights.items()})
    said = [f"{name} {weights[name].shape} {weights[name].dtype} {int(sums[name])}" for name in sorted(weights)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def _mixed(weight: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[weight.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(weight, width).astype(jnp.uint32)
    place = jnp.zeros(weight.shape, jnp.uint32)
    for axis, size in enumerate(weight.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, weight.shape, axis)
    mixed = bits ^ (place * jnp.uint32(_PLACE))
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> jnp.uint32(shift))) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> jnp.uint32(16)), dtype=jnp.uint32)
