"""Which way packed rows attend: tried, measured, and left where it is wrong or missing."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model import packed
from dr_jax.model.attention import segment_attention
from dr_jax.model.packed import Form, packed_attention, timed

FORM = Form((1, 32, 4, 8), 2, "float32")


def plain(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return segment_attention(segments)(None, jnp.int32(0), q, k, v)[0]


def across_segments(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return plain(q, k, v, jnp.ones_like(segments))


def without_gradient(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return plain(q, k, jax.lax.stop_gradient(v), segments)


def broken(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    raise NotImplementedError("not on this device\nat all")


def test_what_is_wrong_or_fails_is_left_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    kernels = {"right": plain, "across": across_segments, "flat": without_gradient, "broken": broken}
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        found = timed(kernels, FORM)
        timed({"broken": broken}, FORM)
    assert set(found) == {"plain", "right"}
    assert all(seconds > 0 for seconds in found.values())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "'across' is not used for float32[1, 32, 4 / 2, 8]: it is off by" in told[0]
    assert told[2].endswith("NotImplementedError: not on this device")


def test_a_kernel_of_another_platform_is_plain_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 12, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    segments = jnp.asarray([[1] * 8 + [2] * 4], jnp.int32)
    packed._say.cache_clear()
    packed.chosen.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        for _ in range(2):
            found, _ = packed_attention(segments, "splash")(None, jnp.int32(0), q, k, v)
    np.testing.assert_array_equal(found, plain(q, k, v, segments))
    assert [record.getMessage() for record in caplog.records] == [
        "attention 'splash' is not for cpu: plain JAX attends instead"
    ]


def test_the_fastest_of_those_that_agree_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packed.OF_PLATFORM, "cpu", ("splash", "triton"))
    packed.chosen.cache_clear()
    for seconds, best in (({"plain": 3.0, "splash": 2.0, "triton": 1.0}, "triton"), ({"plain": 1.0, "splash": 2.0}, "plain")):
        monkeypatch.setattr(packed, "timed", lambda kernels, form, seconds=seconds: seconds)
        packed.chosen.cache_clear()
        assert packed.chosen("auto", FORM, "cpu") == best
        assert packed.chosen("splash", FORM, "cpu") == "splash"  # asked for by name
    packed.chosen.cache_clear()


@pytest.mark.parametrize(("platform", "lowering", "call"), [("tpu", "tpu", "tpu_custom_call"), ("gpu", "cuda", "triton")])
def test_what_is_compiled_for_an_accelerator_has_its_kernel(platform: str, lowering: str, call: str) -> None:
    def gradient(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
        attend = packed_attention(segments, platform=platform)
        return jax.grad(lambda q, k, v: attend(None, jnp.int32(0), q, k, v)[0].astype(jnp.float32).sum(), argnums=(0, 1, 2))(
            q, k, v
        )

    shapes = [jax.ShapeDtypeStruct((1, 256, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    with jax.numpy_dtype_promotion("standard"):
        lowered = (
            jax.jit(gradient).trace(*shapes, jax.ShapeDtypeStruct((1, 256), jnp.int32)).lower(lowering_platforms=(lowering,))
        )
    assert lowered.as_text().count(call) >= 3  # forward, and two backward
