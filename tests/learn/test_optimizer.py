"""Gradient to step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.learn.optimizer import OptimizerSettings, learning_rate, make_optimizer

AXES = {
    "embed": ("vocab", "width"),
    "layers.q": ("layer", "width", "heads", "channels"),
    "layers.o": ("layer", "heads", "channels", "width"),
    "layers.up": ("layer", "width", "ff"),
    "layers.q_bias": ("layer", "heads", "channels"),
    "layers.norm": ("layer", "gain"),
    "norm": ("gain",),
}
SIZES = {"layer": 3, "width": 8, "heads": 2, "channels": 6, "ff": 20, "vocab": 11, "gain": 8}
MATRICES = {"layers.q", "layers.o", "layers.up"}


def randoms(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=[SIZES[axis] for axis in axes]), jnp.float32) for name, axes in AXES.items()}


def stepped(settings, gradients, weights=None, steps=100):
    weights = randoms(0) if weights is None else weights
    optimizer = make_optimizer(settings, AXES, steps=steps)
    moments, update = optimizer.init(weights), jax.jit(optimizer.update)
    for gradient in gradients:
        step, moments = update(gradient, moments, weights)
    return step


def test_adams_first_step_is_the_sign_of_the_gradient():
    found = stepped(OptimizerSettings(learning_rate=0.1, weight_decay=0.0, clip=0.0), [randoms(1)])
    for name, gradient in randoms(1).items():
        np.testing.assert_allclose(found[name], -0.1 * jnp.sign(gradient), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_norms_and_biases_do_not_decay(name):
    nothing = jax.tree.map(jnp.zeros_like, randoms(0))
    found = stepped(OptimizerSettings(name=name, learning_rate=0.1, weight_decay=0.5), [nothing])
    for weight, value in randoms(0).items():
        expected = -0.05 * value if weight in MATRICES | {"embed"} else 0 * value
        np.testing.assert_allclose(found[weight], expected, rtol=1e-5)


def test_the_gradient_is_clipped_to_its_global_norm():
    gradient = jax.tree.map(jnp.ones_like, randoms(0))
    # eps far above the gradient makes Adam linear in it: lr g / eps
    linear = {"learning_rate": 1.0, "weight_decay": 0.0, "eps": 1e6}
    free = stepped(OptimizerSettings(**linear, clip=0.0), [gradient])
    clipped = stepped(OptimizerSettings(**linear, clip=2.0), [gradient])
    norm = sum(leaf.size for leaf in jax.tree.leaves(gradient)) ** 0.5
    np.testing.assert_allclose(clipped["norm"], free["norm"] * 2 / norm, rtol=1e-4)


def orthogonalized(matrix):
    """Newton-Schulz by hand: five times X <- a X + (b A + c A²) X with A = X Xᵀ, on the wide side."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_on_stacked_layers_equals_a_loop_over_layers():
    settings = OptimizerSettings(name="muon", learning_rate=1.0, weight_decay=0.0, clip=0.0, rms=0.2)
    found = stepped(settings, [randoms(1), randoms(2)])
    folded = {"layers.q": (8, 12), "layers.o": (12, 8), "layers.up": (8, 20)}  # rows x columns of one layer
    for name, shape in folded.items():
        for layer in range(3):
            first, second = (np.asarray(randoms(seed)[name][layer], np.float64).reshape(shape) for seed in (1, 2))
            mean = 0.95 * 0.05 * first + 0.05 * second
            ahead = 0.95 * mean / (1 - 0.95**3) + 0.05 * second / (1 - 0.95**2)  # Nesterov, each part without its bias
            expected = -0.2 * max(shape) ** 0.5 * orthogonalized(ahead)
            np.testing.assert_allclose(found[name][layer].reshape(shape), expected, rtol=1e-3, atol=1e-4)


def test_muons_step_has_singular_values_near_one_and_adams_size():
    found = stepped(OptimizerSettings(name="muon", learning_rate=1.0, weight_decay=0.0, clip=0.0), [randoms(1)])
    values = np.linalg.svd(np.asarray(found["layers.up"]), compute_uv=False) / (0.2 * 20**0.5)
    assert 0.5 < values.min() <= values.max() < 1.3
    assert 0.1 < float(jnp.sqrt(jnp.mean(found["layers.up"] ** 2))) < 0.3
    np.testing.assert_allclose(found["embed"], -jnp.sign(randoms(1)["embed"]), rtol=1e-4)  # not a layer's matrix: Adam


def rates(steps=10, **how):
    rate = learning_rate(OptimizerSettings(learning_rate=1.0, **how), steps)
    return [round(float(rate(count)), 4) for count in range(steps + 1)]


def test_schedules_by_hand():
    assert rates(3) == [1, 1, 1, 1]
    assert rates(4, schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(4, schedule="cosine", final=0.5)[::2] == [1, 0.75, 0.5]
    assert rates(4, warmup=3) == [0.25, 0.5, 0.75, 1, 1]
    assert rates(4, warmup=2, schedule="linear") == [0.3333, 0.6667, 1, 0.5, 0]


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"b1": 1.0}, {"b2": -0.1}, {"weight_decay": -1.0}, {"clip": -1.0}, {"newton_schulz": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerSettings(**wrong)
