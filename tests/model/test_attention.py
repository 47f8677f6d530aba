from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model.attention import segment_attention
from tests.model.programs import largest

B, T, H, K, C = 2, 20, 4, 2, 8
SEGMENTS = jnp.asarray([[1] * 7 + [2] * 9 + [3] + [0] * 3, [1] * 20], jnp.int32)
REAL = (SEGMENTS > 0)[:, :, None, None].astype(jnp.float32)


def drawn() -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((B, T, H, C), (B, T, K, C), (B, T, K, C))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@partial(jax.jit, static_argnums=3)
def blockwise(q: jax.Array, k: jax.Array, v: jax.Array, block: int) -> jax.Array:
    return segment_attention(SEGMENTS, block=block)(None, jnp.int32(0), q, k, v)[0]


@jax.jit
def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All scores at once, keys and values repeated for every head."""
    k, v = (jnp.repeat(x, H // K, axis=2) for x in (k, v))
    place = jnp.arange(T)
    seen = (place[:, None] >= place[None])[None] & (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])
    scores = jnp.where(seen[:, None], jnp.einsum("bqhc,bkhc->bhqk", q, k) / np.float32(np.sqrt(C)), -jnp.inf)
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores, axis=-1), v)


def test_two_keys_of_equal_score_share_alike() -> None:
    q, k, v = jnp.zeros((1, 2, 1, 2)), jnp.ones((1, 2, 1, 2)), jnp.asarray([[[[1.0, 0.0]], [[0.0, 3.0]]]])
    out = segment_attention(jnp.ones((1, 2), jnp.int32))(None, jnp.int32(0), q, k, v)[0]
    np.testing.assert_allclose(out[0, :, 0], [[1.0, 0.0], [0.5, 1.5]])


@pytest.mark.parametrize("block", [3, 20, 64])
def test_blocks_agree_with_all_scores_at_once(block: int) -> None:
    q, k, v = drawn()
    np.testing.assert_allclose(blockwise(q, k, v, block) * REAL, plain(q, k, v) * REAL, atol=1e-6)


@pytest.mark.parametrize("block", [4, 64])
def test_so_do_their_gradients(block: int) -> None:
    weight = jax.random.normal(jax.random.key(1), (B, T, H, C)) * REAL
    grads = [
        jax.jit(jax.grad(lambda q, k, v, f=f: jnp.sum(f(q, k, v) * weight), argnums=(0, 1, 2)))(*drawn())
        for f in (plain, lambda q, k, v: blockwise(q, k, v, block))
    ]
    for expected, found in zip(*grads, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_crosses_from_one_segment_to_another_nor_back_in_time() -> None:
    q, k, v = drawn()
    before = blockwise(q, k, v, 4)
    after = blockwise(q, k.at[0, 7:16].add(5.0), v.at[0, 7:16].add(5.0), 4)
    changed = np.abs(np.asarray(after - before)).max((2, 3)) > 1e-6
    assert changed[0].tolist() == [False] * 7 + [True] * 9 + [False] * 4
    assert not changed[1].any()
    later = blockwise(q, k, v.at[1, 12].add(5.0), 4)
    assert (np.abs(np.asarray(later - before)).max((2, 3)) > 1e-6)[1].tolist() == [False] * 12 + [True] * 8


def test_blocks_that_no_segment_spans_are_never_computed() -> None:
    segments = jnp.repeat(jnp.asarray([[1, 2, 3, 0]], jnp.int32), 8, axis=1)
    q, k, v = (jax.random.normal(jax.random.key(2), (1, 32, heads, C)) for heads in (H, K, K))
    k, v = (x.at[:, 8:16].set(jnp.nan) for x in (k, v))  # whoever met it, though hidden, would be NaN: 0 x NaN is

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        out, pull = jax.vjp(lambda q, k, v: segment_attention(segments, block=8)(None, jnp.int32(0), q, k, v)[0], q, k, v)
        return out, pull(jnp.ones_like(out))

    out, gradients = run(q, k, v)
    for made in (out, *gradients):
        hurt = np.isnan(np.asarray(made)).any((0, 2, 3))
        assert hurt.tolist() == [False] * 8 + [True] * 8 + [False] * 16


def test_scores_far_from_zero_do_not_overflow() -> None:
    q, k, v = drawn()
    found = blockwise(q * 100.0, k * 100.0, v, 4)
    np.testing.assert_allclose(found * REAL, plain(q * 100.0, k * 100.0, v) * REAL, atol=1e-4)


def test_bfloat16_stays_bfloat16() -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in drawn())
    found = blockwise(q, k, v, 8)
    assert found.dtype == jnp.bfloat16
    expected = plain(*drawn()) * REAL
    assert float(jnp.abs(found.astype(jnp.float32) * REAL - expected).max()) < 0.05
    grad = jax.grad(lambda q, k, v: blockwise(q, k, v, 8).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    assert {made.dtype for made in jax.eval_shape(grad, q, k, v)} == {jnp.dtype(jnp.bfloat16)}


def test_memory_grows_with_the_row_and_not_with_its_square() -> None:
    length = 1024

    def backward(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
        attend = segment_attention(segments, block=128)
        return jax.grad(lambda q, k, v: attend(None, jnp.int32(0), q, k, v)[0].sum(), argnums=(0, 1, 2))(q, k, v)

    shapes = [jax.ShapeDtypeStruct((1, length, heads, C), jnp.float32) for heads in (H, K, K)]
    found = largest(backward, *shapes, jax.ShapeDtypeStruct((1, length), jnp.int32))
    assert found <= 128 * 128 * H
