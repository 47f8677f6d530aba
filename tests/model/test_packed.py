"""Which way packed rows attend."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model import packed, trial
from dr_jax.model.attention import segment_attention
from dr_jax.model.packed import Form, packed_attention

FORM = Form((3, 32, 4, 8), 2, "float32")


def plain(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return segment_attention(segments)(None, jnp.int32(0), q, k, v)[0]


def across_segments(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return plain(q, k, v, jnp.ones_like(segments))


def without_gradient(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return plain(q, k, jax.lax.stop_gradient(v), segments)


def test_the_trial_tells_wrong_masks_and_wrong_gradients() -> None:
    functions = {one.__name__: partial(packed._with_gradients, one) for one in (plain, across_segments, without_gradient)}
    q, k, _, segments, _ = arguments = packed.arguments(FORM)
    assert (q.shape, k.shape) == ((1, 32, 4, 8), (1, 32, 2, 8))
    assert segments.tolist() == [[1] * 8 + [2] * 8 + [3] * 8 + [0] * 8]
    assert set(trial.timed(functions, arguments, "a test")) == {"plain"}


@pytest.mark.usefixtures("plain_log")
def test_a_kernel_of_another_platform_is_plain_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v, segments, _ = map(jnp.asarray, packed.arguments(FORM))
    trial.say.cache_clear()
    packed.chosen.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        for _ in range(2):
            found, _ = packed_attention(segments, "splash")(None, jnp.int32(0), q, k, v)
    np.testing.assert_array_equal(found, plain(q, k, v, segments))
    assert [record.getMessage() for record in caplog.records] == [
        "attention 'splash' is not for cpu; plain JAX is there instead"
    ]


def test_what_wins_the_trial_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packed.OF_PLATFORM, "cpu", ("doubled",))
    monkeypatch.setitem(packed.KERNELS, "doubled", lambda *given: 2 * plain(*given))
    monkeypatch.setattr(trial, "timed", lambda functions, *rest: {name: 1.0 / (1 + n) for n, name in enumerate(functions)})
    packed.chosen.cache_clear()
    q, k, v, segments, _ = map(jnp.asarray, packed.arguments(FORM))
    found, _ = packed_attention(segments)(None, jnp.int32(0), q, k, v)
    np.testing.assert_allclose(found, 2 * plain(q, k, v, segments), rtol=1e-6)
    packed.chosen.cache_clear()


@pytest.mark.parametrize(("platform", "lowering", "call"), [("tpu", "tpu", "tpu_custom_call"), ("gpu", "cuda", "triton")])
def test_what_is_compiled_for_an_accelerator_has_its_kernel(platform: str, lowering: str, call: str) -> None:
    def gradient(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
        attend = packed_attention(segments, platform=platform)
        total = lambda q, k, v: attend(None, jnp.int32(0), q, k, v)[0].astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    shapes = [jax.ShapeDtypeStruct((1, 256, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    segments = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    lowered = jax.jit(gradient).trace(*shapes, segments).lower(lowering_platforms=(lowering,))
    assert lowered.as_text().count(call) >= 3  # forward, and two backward
