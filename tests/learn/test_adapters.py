"""Updates of low-rank adapters, whose model stays as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.learn.advantage import centered
from dr_jax.learn.batch import BatchSettings, pack
from dr_jax.learn.losses import LossSettings, loss
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import begin, make_score, make_update, through
from dr_jax.model import lora
from dr_jax.model.decoder import initial
from dr_jax.model.lora import LoraSettings
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import make_mesh
from tests.learn.episodes import episode, group

SIZES = Sizes(vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ff=32, qk_norm=True)
SOME = LoraSettings(rank=2, alpha=4.0, targets=("query", "out", "up"))
FORWARD = through(SIZES, lora=SOME)


@pytest.fixture(scope="module")
def base():
    return jax.jit(lambda: initial(SIZES, jax.random.key(0)))()


@pytest.fixture(scope="module")
def fresh():
    return jax.device_get(lora.fresh(SIZES, SOME, 0, mesh=make_mesh(devices=jax.devices()[:1])))


@pytest.fixture(scope="module")
def batch(base):
    """Log-probabilities are the model's own, as if it had just sampled the tokens."""
    siblings = [("wwwpppwwpp", 1.0), ("wwwpwppwp", 0.0), ("wwwpp", 0.0)]
    said = group(*(episode(pattern, reward=reward, vocabulary=31) for pattern, reward in siblings))
    (batch,) = pack([said], BatchSettings(rows=8, lengths=(16,)), advantage=centered)
    sampled = np.where(batch.trained, make_score(through(SIZES))(base, batch, 1.0), 0)
    return dataclasses.replace(batch, sampled_logprobs=sampled.astype(np.float32))


def test_only_adapters_are_learned_and_the_reference_is_their_base(base, fresh, batch):
    axes = {name: spec.axes for name, spec in lora.describe(SIZES, SOME).items()}
    optimizer = make_optimizer(OptimizerSettings(learning_rate=0.01, weight_decay=0.0), axes, steps=4)
    state = begin(jax.device_put(fresh), optimizer)
    update = make_update(FORWARD, LossSettings(kl_coefficient=0.1), optimizer, state, frozen=base)
    before = jax.device_get(base)
    state, stats = update(state, [batch], reference_weights=base)
    assert state.weights.keys() == fresh.keys()
    assert {leaf.shape for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim} == {leaf.shape for leaf in fresh.values()}
    assert stats["update/mismatch_max"] < 1e-5  # adapters that change nothing: what was sampled is what is trained
    assert stats["update/kl_mean"] == pytest.approx(0, abs=1e-6)
    for name, weight in fresh.items():  # lora_a has no gradient as long as lora_b is zero
        assert np.any(np.asarray(state.weights[name]) != weight) == name.endswith("lora_b")
    state, stats = update(state, [batch], reference_weights=base)
    assert stats["update/kl_mean"] > 1e-6
    assert all(np.any(np.asarray(state.weights[name]) != weight) for name, weight in fresh.items())
    for name, weight in before.items():
        np.testing.assert_array_equal(base[name], weight)


@pytest.mark.slow
def test_gradients_are_those_of_the_product(base, fresh, batch):
    """W + s A B: the gradient of B is s A' times that of W, the one of A is s times that of W times B'."""
    rng = np.random.default_rng(0)
    adapters = {name: np.float32(0.1 * rng.normal(size=weight.shape)) for name, weight in fresh.items()}

    def share(forward, weights):
        logprobs_BT, entropy_BT = forward(weights, batch, jnp.float32(1))
        settings = LossSettings(kl="none")
        return loss(logprobs_BT, entropy_BT, batch, settings, version=jnp.int32(0), reference_BT=None, proximal_BT=None)[0]

    found = jax.jit(jax.grad(lambda adapters: share(FORWARD, base | adapters)))(adapters)
    merged = lora.merged(base, jax.device_put(adapters), SOME)
    whole = jax.jit(jax.grad(lambda weights: share(through(SIZES), weights)))(merged)
    for target in SOME.targets:
        a_LIR, b_LRO = (adapters[f"layers.{target}.lora_{half}"] for half in "ab")
        a_LIR, b_LRO = a_LIR.reshape(2, -1, 2), b_LRO.reshape(2, 2, -1)
        w_LIO = np.asarray(whole[f"layers.{target}"]).reshape(2, a_LIR.shape[1], -1)
        of_a, of_b = (np.asarray(found[f"layers.{target}.lora_{half}"]) for half in "ab")
        np.testing.assert_allclose(of_b.reshape(b_LRO.shape), 2 * a_LIR.swapaxes(1, 2) @ w_LIO, atol=1e-5)
        np.testing.assert_allclose(of_a.reshape(a_LIR.shape), 2 * w_LIO @ b_LRO.swapaxes(1, 2), atol=1e-5)
        assert np.abs(of_a).max() > 1e-4
