"""The kernel for packed rows on a CPU, held against softmax in float64, and its gradient against what that implies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model import cpu
from dr_jax.model.packed import packed_attention
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from tests.engine.oracle import COMPILER

pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
attend = jax.jit(cpu.attend)


@jax.jit
def with_gradients(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, above: jax.Array) -> tuple[jax.Array, ...]:
    out, pull = jax.vjp(lambda q, k, v: cpu.attend(q, k, v, segments), q, k, v)
    return (out, *pull(above))


def drawn(rows: int, lengths: tuple[int, ...], heads: int, kv_heads: int, channels: int) -> tuple[np.ndarray, ...]:
    """Rows of segments of these lengths, the last of which is padding; in the second row all is one segment."""
    rng, length = np.random.default_rng(channels), sum(lengths)
    shapes = [(rows, length, count, channels) for count in (heads, kv_heads, kv_heads, heads)]
    q, k, v, above = (rng.standard_normal(shape, np.float32) for shape in shapes)
    ids = np.repeat([*range(1, len(lengths)), 0], lengths)
    segments = np.stack([ids] + [np.full_like(ids, 5)] * (rows - 1)).astype(np.int32)
    return q, k, v, segments, above


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, segments: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, ...]:
    """All scores of a head at once, with the gradient of softmax written out, in float64."""
    out, dq, dk, dv = (np.zeros(x.shape) for x in (q, q, k, v))
    sharing, scale, place = q.shape[2] // k.shape[2], q.shape[3] ** -0.5, np.arange(q.shape[1])
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        ids, group = segments[row], head // sharing
        seen = (ids[:, None] == ids[None]) & (place[:, None] >= place[None])
        mine = [x[row, :, n].astype(np.float64) for x, n in ((q, head), (k, group), (v, group), (above, head))]
        queries, keys, values, rise = (x * (ids > 0)[:, None] for x in mine)
        scores = np.where(seen, queries @ keys.T * scale, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = shares / shares.sum(axis=1, keepdims=True) * (ids > 0)[:, None]
        out[row, :, head] = shares @ values
        slopes = shares * (rise @ values.T - (rise * out[row, :, head]).sum(axis=1, keepdims=True))
        dq[row, :, head] = slopes @ keys * scale
        dk[row, :, group] += slopes.T @ queries * scale
        dv[row, :, group] += shares.T @ rise
    return out, dq, dk, dv


@pytest.mark.parametrize(
    ("rows", "lengths", "heads", "kv_heads", "channels"),
    [
        (1, (64, 1, 63, 0), 4, 2, 16),
        (2, (5, 130, 1, 9), 4, 1, 32),
        (2, (128, 65, 3), 3, 3, 64),
        (1, (200, 20), 7, 1, 128),
    ],
)
def test_output_and_gradients_agree_with_softmax(
    rows: int, lengths: tuple[int, ...], heads: int, kv_heads: int, channels: int
) -> None:
    given = drawn(rows, lengths, heads, kv_heads, channels)
    for found, right in zip(with_gradients(*given), expected(*given), strict=True):
        np.testing.assert_allclose(found, right, atol=2e-5)


def test_a_row_of_nothing_but_padding_is_zero_and_so_is_its_gradient() -> None:
    q, k, v, segments, above = drawn(1, (30, 10), 2, 1, 16)
    for found in with_gradients(q, k, v, np.zeros_like(segments), above):
        assert not np.asarray(found).any()


def test_scores_far_apart_neither_overflow_nor_lose_the_largest() -> None:
    q, k, v, segments, above = drawn(2, (100, 4), 2, 1, 16)
    for found, right in zip(
        with_gradients(q * 300, k, v, segments, above), expected(q * 300, k, v, segments, above), strict=True
    ):
        np.testing.assert_allclose(found, right, atol=2e-3 * max(1.0, np.abs(right).max()))


def test_a_segment_depends_on_no_other_not_even_by_rounding() -> None:
    q, k, v, segments, above = drawn(1, (70, 90, 33, 7), 4, 2, 32)
    together = with_gradients(q, k, v, segments, above)
    alone = with_gradients(*(x[:, 70:160] for x in (q, k, v, segments, above)))
    for whole, part in zip(together, alone, strict=True):
        np.testing.assert_array_equal(whole[:, 70:160], part)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_reaches_its_own_segment_and_nothing_else(broken: float) -> None:
    q, k, v, segments, above = drawn(1, (20, 90, 33, 7), 2, 1, 16)
    q = abs(q)
    before = with_gradients(q, k, v, segments, above)
    k[0, 40] = broken
    after = with_gradients(q, k, v, segments, above)
    inside = np.arange(150) // 20 >= 1
    inside[110:] = False
    for name, was, found in zip(["out", "dq", "dk", "dv"], before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(found)[0, ~inside], np.asarray(was)[0, ~inside], err_msg=name)
        assert np.isnan(np.asarray(found)[0, inside]).any(), name
    np.testing.assert_array_equal(np.asarray(after[0])[0, 20:40], np.asarray(before[0])[0, 20:40])  # they see it not
    assert np.isnan(np.asarray(after[0])[0, 40:110]).all()


def test_several_devices_have_plain_attention() -> None:
    q, k, v, segments, _ = drawn(4, (30, 2), 4, 2, 16)

    def program(how: str) -> str:
        def met(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return packed_attention(jnp.asarray(segments), how)(None, jnp.int32(0), q, k, v)[0]  # type: ignore[arg-type]

        return jax.jit(met).lower(q, k, v).as_text()

    assert "dr_jax_packed_attention" in program("auto")
    assert "dr_jax_packed_attention" not in program("plain")
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=1, tensor=4), jax.devices()[:4])):
        assert "dr_jax_packed_attention" not in program("auto")
