"""Attention inside packed rows with the kernels that JAX ships, and our own for CPUs, one function each, all of one shape.

In:    queries [B, T, H, C], keys and values [B, T, K, C], segment ids [B, T]; whatever lies on one device
Out:   what each query gathered [B, T, H, C]
Holds: the same as `attention.segment_attention`, gradients included, but for rounding; rows are padded here to whole blocks
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dr_jax.model import cpu

Kernel = Callable[..., Array]
_LANES = 128  # no kernel has smaller blocks of keys


def splash(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segments_BT: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T H C"]:
    """Attend with TPU's sparse flash attention; blocks of keys after a block of queries are skipped."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q_BTHC.shape[1:3]
    q, k, v, segments = _padded(_scaled(q_BTHC), k_BTKC, v_BTKC, segments_BT)
    padded = segments.shape[1]
    block = next(size for size in (512, 256, 128) if padded % size == 0)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((padded, padded))] * heads),
        block_sizes=kernel.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(q_THC: Array, k_TKC: Array, v_TKC: Array, segments_T: Array) -> Array:
        heads_first = (x.swapaxes(0, 1) for x in (q_THC, k_TKC, v_TKC))
        with jax.numpy_dtype_promotion("standard"):  # the kernel's own arithmetic mixes dtypes
            return attend(*heads_first, kernel.SegmentIds(segments_T, segments_T)).swapaxes(0, 1)

    return jax.vmap(row)(q, k, v, segments)[:, :length].astype(q_BTHC.dtype)


def triton(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segments_BT: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T H C"]:
    """Attend with Pallas' GPU flash attention, which wants keys and values repeated for every head."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    (length, heads, channels), groups = q_BTHC.shape[1:], q_BTHC.shape[2] // k_BTKC.shape[2]
    q, k, v, segments = _padded(q_BTHC, k_BTKC, v_BTKC, segments_BT)
    assert q.shape[2] == heads
    with jax.numpy_dtype_promotion("standard"):
        k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
        out = mha(q, k, v, segments, sm_scale=channels**-0.5, causal=True, interpret=interpret)
    return out[:, :length]


def cudnn(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segments_BT: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T H C"]:
    """Attend with cuDNN's flash attention; segments are told as a mask [B, 1, T, T], which is all that JAX hands to it.

    Args:
        interpret: compute the same with XLA, to test what is handed over.
    """
    mask_B1TT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.nn.dot_product_attention(
            q_BTHC, k_BTKC, v_BTKC, mask=mask_B1TT, is_causal=True, implementation="xla" if interpret else "cudnn"
        )


KERNELS: dict[str, Kernel] = {"splash": splash, "triton": triton, "cudnn": cudnn, "native": cpu.attend}


def _scaled(q: Array) -> Array:
    return (q.astype(jnp.float32) * jnp.float32(q.shape[-1] ** -0.5)).astype(q.dtype)


def _padded(q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, ...]:
    """Pad rows with segment 0, which sees only itself."""
    more = -segments.shape[1] % _LANES
    wide = tuple(jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v))
    return (*wide, jnp.pad(segments, ((0, 0), (0, more))))
