"""Kernels in Pallas' interpreter, held against plain JAX: the same numbers, and the same gradients."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model.attention import segment_attention
from dr_jax.model.kernels import KERNELS, Kernel
from dr_jax.model.packed import over_devices
from dr_jax.sharding.mesh import MeshSettings, make_mesh

B, T, H, C = 2, 150, 4, 16  # rows are padded to 256, two blocks
SEGMENTS = jnp.asarray([[1] * 70 + [2] * 65 + [0] * 15, [1] * 150], jnp.int32)
REAL = (SEGMENTS > 0)[:, :, None, None].astype(jnp.float32)


def drawn(kv_heads: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, H, C), (B, T, kv_heads, C), (B, T, kv_heads, C), (B, T, H, C))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return segment_attention(segments, block=50)(None, jnp.int32(0), q, k, v)[0]


@lru_cache
def with_gradients(kernel: Kernel, kv_heads: int) -> tuple[jax.Array, ...]:
    q, k, v, above = drawn(kv_heads)

    @jax.jit
    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda q, k, v: kernel(q, k, v, SEGMENTS), q, k, v)
        return (out * REAL, *pull(above * REAL))

    return both(q, k, v)


@pytest.mark.parametrize("kv_heads", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["splash", "triton", pytest.param("cudnn", marks=pytest.mark.slow)])
def test_kernels_agree_with_plain_attention_and_so_do_their_gradients(name: str, kv_heads: int) -> None:
    found = with_gradients(partial(KERNELS[name], interpret=True), kv_heads)
    for one, expected in zip(found, with_gradients(plain, kv_heads), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["splash", "triton"])
def test_bfloat16_stays_bfloat16_and_near(name: str) -> None:
    q, k, v, _ = drawn(2)
    found = KERNELS[name](*(x.astype(jnp.bfloat16) for x in (q, k, v)), SEGMENTS, interpret=True)
    assert found.dtype == jnp.bfloat16
    assert float(jnp.abs(found.astype(jnp.float32) * REAL - plain(q, k, v, SEGMENTS) * REAL).max()) < 0.05


def mixed(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Not attention, but of its shape: every number of the output has one of each input in it, and compiles fast."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return q * k + v * segments[:, :, None, None].astype(v.dtype)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_each_device_attends_for_its_rows_and_heads(kv_heads: int) -> None:
    # One key head for two devices' query heads: both get it.
    mesh = make_mesh(MeshSettings(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    seen: list[tuple[int, ...]] = []

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        seen.append((*q.shape, k.shape[2]))
        return mixed(q, k, v, segments)

    with jax.set_mesh(mesh):
        found = with_gradients(partial(over_devices, kernel), kv_heads)
    assert set(seen) == {(B // 2, T, H // 2, C, 1)}
    for one, expected in zip(found, with_gradients(mixed, kv_heads), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_divide_stay_whole() -> None:
    mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=1), jax.devices()[:4])
    q, k, v, _ = drawn(2)
    with jax.set_mesh(mesh):
        found = jax.jit(partial(over_devices, mixed))(q, k, v, SEGMENTS)
    np.testing.assert_allclose(found, jax.jit(mixed)(q, k, v, SEGMENTS), rtol=1e-6)
