"""Packed rows attend on a CPU, with the custom calls in `packed.cc`.

In:    queries [B, T, H, C], keys and values [B, T, K, C], segment ids [B, T] that lie in runs; float32, on one device
Out:   what each query gathered [B, T, H, C], as `attention.segment_attention` would but for rounding; zeros for padding
Fails: NoKernelError: see `native`
Why:   of a block of scores XLA's own code for a CPU makes ten operations, each of which waits for all threads
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dr_jax.model import native

_FORWARD, _BACKWARD = "dr_jax_packed_attention", "dr_jax_packed_attention_gradient"


def load() -> None:
    """Make the kernel, if that was not done before, and tell XLA of it.

    Raises:
        NoKernelError: it cannot be made or loaded.
    """
    native.load(Path(__file__).with_name("packed.cc"), _FORWARD, _BACKWARD)


@jax.custom_vjp  # type: ignore[untyped-decorator]
def attend(
    q_BTHC: Float[Array, "B T H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    segments_BT: Int[Array, "B T"],
) -> Float[Array, "B T H C"]:
    """Return what each query gathered from its own segment, up to itself."""
    return _forward(q_BTHC, k_BTKC, v_BTKC, segments_BT)[0]


def _forward(q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, tuple[Array, ...]]:
    load()  # `packed.chosen` has, but not everybody asks it
    rows, length, heads, _ = q.shape
    shapes = (jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct((rows, heads, length), jnp.float32))
    segments = segments.astype(jnp.int32)
    out, sums_BHT = jax.ffi.ffi_call(_FORWARD, shapes)(q, k, v, segments)
    return out, (q, k, v, segments, out, sums_BHT)


def _backward(kept: tuple[Array, ...], above: Array) -> tuple[Array, Array, Array, None]:
    q, k = kept[:2]
    dq, dk_BTHC, dv_BTHC = jax.ffi.ffi_call(_BACKWARD, (jax.ShapeDtypeStruct(q.shape, jnp.float32),) * 3)(*kept, above)
    shared = (*k.shape[:3], -1, k.shape[3])  # several heads of queries have a head of keys in common
    return dq, dk_BTHC.reshape(shared).sum(axis=3), dv_BTHC.reshape(shared).sum(axis=3), None


attend.defvjp(_forward, _backward)
