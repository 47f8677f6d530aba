"""Single queries meet pages of keys and values with the kernels that JAX ships for TPU and GPU.

In:    one query per row, the pools, which layer, the pages and the length of each row
Out:   what each query gathered, as `paged.paged_attention` would but for rounding
Holds: nothing of the pools is copied. Kernels want [key heads, pages, ...] of one layer, which would be cut out of pools
       [L, K, P, W, C]; so they are told of one key head with the pages of all layers and heads, and each key head of a row is
       a row of its own
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

_BLOCK = 512  # tokens that a TPU core meets at a time
_PROGRAMS = 1024  # that keep a GPU busy: about 8 for each of its processors

Meet = Callable[..., Array]


def tpu(
    q_NGC: Float[Array, "N G C"],
    k_1RWC: Float[Array, "1 R W C"],
    v_1RWC: Float[Array, "1 R W C"],
    tables_NX: Int[Array, "N X"],
    lengths_N: Int[Array, " N"],
    *,
    interpret: bool = False,
) -> Float[Array, "N G C"]:
    """Meet pages on a TPU, which are read as bfloat16, whatever they are."""
    from jax.experimental.pallas import tpu as pltpu
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    wide = max(1, min(_BLOCK // k_1RWC.shape[2], tables_NX.shape[1]))
    # In float32, in which the kernel computes anyhow: it adds up in what it is given.
    scaled_NGC = q_NGC.astype(jnp.float32) * jnp.float32(q_NGC.shape[-1] ** -0.5)
    with jax.numpy_dtype_promotion("standard"), pltpu.force_tpu_interpret_mode() if interpret else nullcontext():
        tables_NX = _in_multiples(tables_NX, wide)
        return paged_attention(scaled_NGC, k_1RWC, v_1RWC, lengths_N, tables_NX, pages_per_compute_block=wide)


def gpu(
    q_NGC: Float[Array, "N G C"],
    k_1RWC: Float[Array, "1 R W C"],
    v_1RWC: Float[Array, "1 R W C"],
    tables_NX: Int[Array, "N X"],
    lengths_N: Int[Array, " N"],
    *,
    interpret: bool = False,
) -> Float[Array, "N G C"]:
    """Meet pages on a GPU. A row's pages are split over several programs where there are few rows."""
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    (rows, pages), page_size = tables_NX.shape, k_1RWC.shape[2]
    wide = max(1, 64 // page_size)
    splits = 1
    while splits < 16 and rows * splits < _PROGRAMS and 2 * splits * wide <= pages:
        splits *= 2
    scaled_NGC = (q_NGC.astype(jnp.float32) * jnp.float32(q_NGC.shape[-1] ** -0.5)).astype(q_NGC.dtype)
    tables_NX = _in_multiples(tables_NX, splits * wide)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return paged_attention(
            scaled_NGC, k_1RWC, v_1RWC, tables_NX, lengths_N, pages_per_compute_block=wide, k_splits=splits, interpret=interpret
        )


KERNELS: dict[str, Meet] = {"tpu": tpu, "gpu": gpu}


@dataclass(frozen=True, slots=True, weakref_slot=True)  # `jax.jit` wants weak references to what it compiles
class Decoding:
    """How single queries meet pages, on every device of a mesh for its own heads.

    Args:
        kernel: see `KERNELS`.
        mesh: None is one device.
        interpret: run in Pallas' interpreter.
    """

    kernel: str
    mesh: Mesh | None = None
    interpret: bool = False
    stretches: ClassVar[bool] = False

    def __call__(
        self,
        q_B1HC: Float[Array, "B 1 H C"],
        pools: tuple[Float[Array, "L K P W C"], Float[Array, "L K P W C"]],
        layer: Int[Array, ""],
        tables_BX: Int[Array, "B X"],
        visible_B1: Int[Array, "B 1"],
    ) -> Float[Array, "B 1 H C"]:
        """Return what each query gathered from the first `visible_B1` places of its row; from one, where it has none."""
        lengths_B = jnp.maximum(visible_B1[:, 0], 1)  # without a place, it would gather what lies there
        heads, kv_heads = q_B1HC.shape[2], pools[0].shape[1]
        ways = self.mesh.shape.get("tensor", 1) if self.mesh is not None and not heads % self.mesh.shape.get("tensor", 1) else 1
        meet = partial(self._here, heads // kv_heads, ways)
        if self.mesh is None or self.mesh.size == 1:
            return meet(q_B1HC, pools, layer, tables_BX, lengths_B)
        over = "tensor" if ways > 1 else None
        q_place, pool_place = PartitionSpec(None, None, over), PartitionSpec(None, None if kv_heads % ways else over)
        whole = PartitionSpec()
        places = (q_place, (pool_place, pool_place), whole, whole, whole)
        split = jax.shard_map(meet, mesh=self.mesh, in_specs=places, out_specs=q_place, check_vma=False)
        return split(q_B1HC, tuple(pools), layer, tables_BX, lengths_B)

    def _here(
        self,
        sharing: int,
        ways: int,
        q_B1HC: Array,
        pools: tuple[Array, Array],
        layer: Array,
        tables_BX: Array,
        lengths_B: Array,
    ) -> Array:
        (heads, channels), (layers, kv_heads, pages, size, _) = q_B1HC.shape[2:], pools[0].shape
        # Where every device has all key heads, those of its own queries begin somewhere among them.
        group = gcd(heads, sharing)
        first = jax.lax.axis_index("tensor") * heads if ways > 1 and kv_heads * sharing > heads else jnp.int32(0)
        keys_S = (first + jnp.arange(0, heads, group, dtype=jnp.int32)) // sharing
        firsts_S = (layer * kv_heads + keys_S) * pages
        tables_NX = (firsts_S[None, :, None] + tables_BX[:, None, :]).reshape(-1, tables_BX.shape[1])
        k_1RWC, v_1RWC = (pool.reshape(1, layers * kv_heads * pages, size, channels) for pool in pools)
        q_NGC = q_B1HC.reshape(-1, group, channels).astype(k_1RWC.dtype)
        lengths_N = jnp.repeat(lengths_B, len(keys_S), total_repeat_length=len(tables_NX))
        out_NGC = KERNELS[self.kernel](q_NGC, k_1RWC, v_1RWC, tables_NX, lengths_N, interpret=self.interpret)
        return out_NGC.reshape(q_B1HC.shape).astype(q_B1HC.dtype)


def _in_multiples(tables_NX: Array, of: int) -> Array:
    return jnp.pad(tables_NX, ((0, 0), (0, -tables_NX.shape[1] % of)))
