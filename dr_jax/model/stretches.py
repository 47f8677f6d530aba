"""Attention over rows that are too long for one device: each holds a stretch of every row, and sees all keys before it.

In:    stretches as rows: of [B, T] cut in S, the first stretch of every row, then the second of every row … [S B, T / S]
Out:   an `Attend` that keeps nothing; the neighbours of tokens, across stretches
Holds: everything but attention takes a stretch for a row; keys and values of a row are gathered once a layer, and their
       gradients scattered back; scores exist for one block of queries at a time, forward and backward
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from dr_jax.model.decoder import Attend
from dr_jax.sharding.rules import RULES

_HIDDEN = -1e30  # as in `model.attention`


def stretches() -> int:
    """Return in how many stretches rows are cut: the size of the axis `sequence` of the mesh around this, 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(mesh.shape.get("sequence", 1))


def rolled(x_BT: Shaped[Array, "B T"], by: int) -> Shaped[Array, "B T"]:
    """Shift the tokens of each whole row, as `jnp.roll` does."""
    count = stretches()
    if count == 1:
        return jnp.roll(x_BT, by, axis=1)
    whole = x_BT.reshape(count, -1, x_BT.shape[1]).swapaxes(0, 1)
    return jnp.roll(whole.reshape(whole.shape[0], -1), by, axis=1).reshape(whole.shape).swapaxes(0, 1).reshape(x_BT.shape)


def stretched_attention(segments_BT: Int[Array, "B T"], *, block: int = 256) -> Attend[Any]:
    """Return causal attention within segments, whose tokens may lie in several stretches.

    Args:
        segments_BT: of stretches as rows; tokens of a row with equal ids see each other; 0 is padding, which sees only padding.
        block: how many queries meet all keys at a time.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def attend(
        cache: Any,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Any]:
        rows = RULES["row"].over
        heads = "tensor" if k_BTKC.shape[2] % mesh.shape["tensor"] == 0 else None
        apart = PartitionSpec(rows, None, heads, None)
        gather = jax.shard_map(
            partial(_own_stretch, block=block),
            in_specs=(apart, apart, apart, PartitionSpec(rows, None)),
            out_specs=apart,
            check_vma=False,  # with key heads that do not divide, devices along `tensor` compute the same
        )
        return gather(q_BTHC, k_BTKC, v_BTKC, segments_BT), cache

    return attend


def _own_stretch(q_BTHC: Array, k_BTKC: Array, v_BTKC: Array, segments_BT: Array, *, block: int) -> Float[Array, "B T H C"]:
    """Compute what the queries on this device gather from the keys of all stretches of their rows; U counts those."""
    k_BUKC, v_BUKC, segments_BU = (jax.lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (k_BTKC, v_BTKC, segments_BT))
    rows, length, heads, channels = q_BTHC.shape
    groups = k_BTKC.shape[2]
    size = next(size for size in range(min(block, length), 0, -1) if length % size == 0)
    first = jax.lax.axis_index("sequence") * length
    q_IBSKRC = q_BTHC.reshape(rows, -1, size, groups, heads // groups, channels).swapaxes(0, 1)
    segments_IBS = segments_BT.reshape(rows, -1, size).swapaxes(0, 1)

    def meet(given: tuple[Array, Array, Array]) -> Array:
        q_BSKRC, segments_BS, at = given
        scores = jnp.einsum("BSKRC,BUKC->BKRSU", q_BSKRC, k_BUKC, preferred_element_type=jnp.float32)
        places_S = first + at * size + jnp.arange(size, dtype=jnp.int32)
        causal_SU = places_S[:, None] >= jnp.arange(k_BUKC.shape[1], dtype=jnp.int32)[None]
        seen_BSU = causal_SU[None] & (segments_BS[:, :, None] == segments_BU[:, None, :])
        scores = jnp.where(seen_BSU[:, None, None], scores * jnp.float32(channels**-0.5), jnp.float32(_HIDDEN))
        shares = jax.nn.softmax(scores, axis=-1).astype(v_BUKC.dtype)
        return jnp.einsum("BKRSU,BUKC->BSKRC", shares, v_BUKC, preferred_element_type=jnp.float32)

    numbers = jnp.arange(q_IBSKRC.shape[0], dtype=jnp.int32)
    out_IBSKRC = jax.lax.map(jax.checkpoint(meet), (q_IBSKRC, segments_IBS, numbers))
    return out_IBSKRC.swapaxes(0, 1).reshape(q_BTHC.shape).astype(q_BTHC.dtype)
