import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model.rope import angles, frequencies, rotate
from dr_jax.model.sizes import Rope


def test_four_channels_turn_by_one_and_by_a_hundredth() -> None:
    radians, scale = frequencies(Rope(theta=10_000.0), 4)
    assert radians.tolist() == [1.0, 0.01]
    assert scale == 1.0


def test_a_quarter_turn_moves_the_first_channel_of_a_pair_into_the_second() -> None:
    quarter = jnp.asarray([[[np.pi / 2]]], jnp.float32)
    out = rotate(jnp.asarray([[[[3.0, 0.0]]]]), jnp.cos(quarter), jnp.sin(quarter))
    np.testing.assert_allclose(out[0, 0, 0], [0.0, 3.0], atol=1e-6)


def test_scores_depend_on_distance_only() -> None:
    q, k = (jax.random.normal(jax.random.key(key), (1, 1, 1, 8)) for key in (0, 1))

    def score(at: int, other: int) -> float:
        turned = [rotate(x, *angles(jnp.full((1, 1), p), Rope(theta=100.0), 8)) for x, p in ((q, at), (k, other))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-4)


def test_linear_scaling_divides_positions() -> None:
    np.testing.assert_allclose(frequencies(Rope(kind="linear", factor=4.0), 8)[0] * 4, frequencies(Rope(), 8)[0])


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    plain, scaled = (frequencies(rope, 64)[0] for rope in (Rope(5e5), Rope(5e5, "llama3", factor=32.0, original_context=8192)))
    ratio = plain / scaled
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(32.0)
    assert (np.diff(ratio) >= -1e-9).all()


def test_yarn_keeps_short_waves_stretches_long_ones_and_warms_attention() -> None:
    radians, scale = frequencies(Rope(1e6, "yarn", factor=4.0, original_context=32_768), 128)
    ratio = frequencies(Rope(1e6), 128)[0] / radians
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(4.0)
    assert scale == pytest.approx(0.1 * np.log(4.0) + 1.0)
