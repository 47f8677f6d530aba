"""The objective, term by term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_jax.learn import losses
from dr_jax.learn.batch import BatchSettings, pack
from dr_jax.learn.losses import LossSettings, clipped_surrogate, kl_estimate, truncated_importance
from tests.learn.episodes import episode, group

PLAIN = LossSettings(kl="none", entropy_coefficient=0.0)


def row(*values):
    return jnp.asarray([values], jnp.float32)


def surrogate(ratio, advantage, **how):
    found = clipped_surrogate(jnp.log(row(ratio)), row(advantage), **{"low": 0.2, "high": 0.2, **how})
    return float(found[0, 0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),  # on-policy: the advantage itself
        (1.1, 1.0, -1.1),  # inside the range: r A
        (1.5, 1.0, -1.2),  # good and already likelier: nothing more to win
        (0.5, 1.0, -0.5),  # good but less likely: full push back
        (0.5, -1.0, 0.8),  # bad and already less likely: nothing more to win
        (1.5, -1.0, 1.5),  # bad but likelier: full push back
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected):
    assert surrogate(ratio, advantage) == pytest.approx(expected, rel=1e-6)


def test_the_upper_bound_can_be_higher():
    assert surrogate(1.5, 1.0, high=0.28) == pytest.approx(-1.28, rel=1e-6)
    assert surrogate(0.5, -1.0, high=0.28) == pytest.approx(0.8, rel=1e-6)


def test_dual_clip_bounds_the_push_on_bad_tokens():
    assert surrogate(10.0, -1.0, dual=3.0) == pytest.approx(3.0, rel=1e-6)
    assert surrogate(2.0, -1.0, dual=3.0) == pytest.approx(2.0, rel=1e-6)
    assert surrogate(10.0, 1.0, dual=3.0) == pytest.approx(-1.2, rel=1e-6)


def test_a_clipped_token_has_no_gradient():
    slope = jax.grad(lambda log_ratio: clipped_surrogate(log_ratio, row(1, 1, -1, -1), low=0.2, high=0.2).sum())
    found = slope(jnp.log(row(1.5, 0.5, 0.5, 1.5)))
    np.testing.assert_allclose(found, row(0, -0.5, 0, 1.5), rtol=1e-6)


def test_kl_estimates_by_hand():
    log_ratio = jnp.log(row(2.0, 1.0))  # the policy finds the first token twice as likely as the reference
    np.testing.assert_allclose(kl_estimate(log_ratio, "k1"), row(np.log(2), 0), rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(log_ratio, "k2"), row(np.log(2) ** 2 / 2, 0), rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(log_ratio, "k3"), row(0.5 - 1 + np.log(2), 0), rtol=1e-6)


def test_k1_and_k3_average_to_the_exact_kl():
    policy, reference = jnp.asarray([[0.5, 0.3, 0.2]]), jnp.asarray([[0.4, 0.4, 0.2]])
    log_ratio = jnp.log(policy) - jnp.log(reference)
    exact = 0.5 * np.log(5 / 4) + 0.3 * np.log(3 / 4)  # 0.0253
    for kind, tolerance in [("k1", 1e-6), ("k3", 1e-6), ("k2", 2e-3)]:
        assert float(jnp.sum(policy * kl_estimate(log_ratio, kind))) == pytest.approx(exact, abs=tolerance)


@settings(deadline=None)
@given(st.floats(-5, 5))
def test_k3_is_never_negative(log_ratio):
    assert float(kl_estimate(row(log_ratio), "k3")[0, 0]) >= -1e-6


def test_importance_is_truncated_and_constant():
    np.testing.assert_allclose(truncated_importance(jnp.log(row(0.5, 1.5, 9.0)), 2.0), row(0.5, 1.5, 2.0), rtol=1e-6)
    assert not jax.grad(lambda log_ratio: truncated_importance(log_ratio, 2.0).sum())(row(0.1, 0.2)).any()


@pytest.fixture
def batch():
    """One row: `wwpp` with advantage 1/2 and `wp|wp` with -1/2, log-probabilities near 0."""
    pair = group(episode("wwpp", reward=1, first_id=10), episode("wp|wp", reward=0, first_id=20))
    (found,) = pack(
        [pair], BatchSettings(rows=1, lengths=(10,)), advantage=lambda rewards_NG: [r - r.mean() for r in rewards_NG]
    )
    return jax.tree.map(jnp.asarray, found)


def test_on_policy_nothing_is_clipped_and_the_ratio_is_one(batch):
    share, tally = losses.loss(batch.sampled_logprobs, jnp.zeros((1, 10)), batch, PLAIN, version=0)
    found = losses.report([tally])
    assert float(share) == pytest.approx(0, abs=1e-7)  # two tokens at -1/2 / 4, two at +1/2 / 4
    assert found["ratio_mean"] == found["ratio_max"] == found["on_policy"] == 1
    assert found["clip_low_mean"] == found["clip_high_mean"] == found["mismatch_max"] == found["mismatch_mean"] == 0
    assert found["trained_tokens"] == 4


def test_the_gradient_on_policy_is_the_policy_gradient(batch):
    slope = jax.grad(lambda logprobs: losses.loss(logprobs, jnp.zeros((1, 10)), batch, PLAIN, version=0)[0])
    # -A / 4 on trained tokens
    np.testing.assert_allclose(slope(batch.sampled_logprobs), row(0, 0, -1 / 8, -1 / 8, 0, 1 / 8, 0, 1 / 8, 0, 0), rtol=1e-6)


def test_what_moved_is_counted(batch):
    moved = batch.sampled_logprobs + jnp.log(row(9, 9, 1.5, 1.1, 9, 0.5, 9, 1.0, 9, 9))
    _, tally = losses.loss(moved, jnp.zeros((1, 10)), batch, PLAIN, version=0)
    found = losses.report([tally])
    assert found["clip_high_mean"] == found["clip_low_mean"] == 0.25
    assert found["ratio_max"] == pytest.approx(1.5, rel=1e-5)
    assert found["ratio_mean"] == pytest.approx((1.5 + 1.1 + 0.5 + 1.0) / 4, rel=1e-5)
    assert found["mismatch_max"] == pytest.approx(np.log(2), rel=1e-5)


def test_mismatch_is_measured_on_the_current_versions_tokens_only(batch):
    moved = batch.sampled_logprobs + 1.0
    _, tally = losses.loss(moved, jnp.zeros((1, 10)), batch, PLAIN, version=7)
    found = losses.report([tally])
    assert float(found["mismatch_max"]) == float(found["on_policy"]) == 0


def test_mismatch_is_not_measured_where_other_weights_computed_the_context(batch):
    last = int(np.flatnonzero(np.asarray(batch.trained)[0])[-1])
    sampled = np.array(batch.sampled_logprobs)
    sampled[0, last] += 1.0
    for pure, expected in ((True, 1.0), (False, 0.0)):
        mixed = np.array(batch.pure)
        mixed[0, last] = pure
        here = dataclasses.replace(batch, sampled_logprobs=sampled, pure=mixed)
        found = losses.report([losses.loss(batch.sampled_logprobs, jnp.zeros((1, 10)), here, PLAIN, version=0)[1]])
        assert found["mismatch_max"] == pytest.approx(expected, abs=1e-5)


EVERYTHING = [
    LossSettings(),
    LossSettings(kl="k1", kl_coefficient=0.5, entropy_coefficient=0.3, dual_clip=3.0),
    LossSettings(kl="k2", kl_coefficient=0.5, importance="truncated"),
    LossSettings(objective="supervised"),
]


@pytest.mark.parametrize("settings", EVERYTHING, ids=["default", "k1", "k2-truncated", "supervised"])
def test_only_the_policys_tokens_carry_loss(batch, settings):
    key = jax.random.key(0)
    inputs = {name: jax.random.normal(jax.random.fold_in(key, at), (1, 10)) - 3 for at, name in enumerate("lerp")}
    noise = jnp.where(batch.trained, 0.0, jax.random.normal(key, (1, 10)) * 100)

    def value(logprobs, entropy, reference, proximal, sampled, advantages):
        changed = dataclasses.replace(batch, sampled_logprobs=sampled, advantages=advantages)
        return losses.loss(logprobs, entropy, changed, settings, version=0, reference_BT=reference, proximal_BT=proximal)[0]

    arguments = (*inputs.values(), batch.sampled_logprobs, batch.advantages)
    for at, argument in enumerate(arguments):
        slope = jax.grad(value, argnums=at)(*arguments)
        assert not jnp.where(batch.trained, 0.0, slope).any()
        perturbed = (*arguments[:at], argument + noise, *arguments[at + 1 :])
        assert float(value(*perturbed)) == float(value(*arguments))
    assert jnp.where(batch.trained, jax.grad(value)(*arguments), 1.0).all()


def test_a_broken_number_at_a_world_token_does_not_leak(batch):
    broken = jnp.where(batch.trained, batch.sampled_logprobs, jnp.inf)
    slope = jax.grad(lambda logprobs: losses.loss(logprobs, logprobs, batch, LossSettings(kl="none"), version=0)[0])(broken)
    assert jnp.isfinite(slope).all()


def test_truncated_importance_weighs_the_proximal_surrogate(batch):
    settings = LossSettings(kl="none", entropy_coefficient=0.0, importance="truncated", importance_cap=2.0)
    start = batch.sampled_logprobs + jnp.log(row(1, 1, 4, 1.5, 1, 1, 1, 1, 1, 1))
    slope = jax.grad(
        lambda logprobs: losses.loss(logprobs, jnp.zeros((1, 10)), batch, settings, version=0, proximal_BT=start)[0]
    )
    np.testing.assert_allclose(slope(start), row(0, 0, -2 / 8, -1.5 / 8, 0, 1 / 8, 0, 1 / 8, 0, 0), rtol=1e-4)


def test_without_a_recomputed_start_the_update_starts_here(batch):
    settings = LossSettings(kl="none", importance="truncated")
    _, tally = losses.loss(batch.sampled_logprobs + 0.5, jnp.zeros((1, 10)), batch, settings, version=0)
    found = losses.report([tally])
    assert found["ratio_mean"] == 1
    assert found["importance_mean"] == pytest.approx(np.exp(0.5), rel=1e-5)


def test_entropy_is_rewarded_and_divergence_costs(batch):
    zero = jnp.zeros((1, 10))
    settings = LossSettings(kl="k2", kl_coefficient=0.5, entropy_coefficient=0.1)
    share, tally = losses.loss(
        batch.sampled_logprobs, zero + 3, batch, settings, version=0, reference_BT=batch.sampled_logprobs - 2
    )
    assert float(share) == pytest.approx(0.5 * 2 - 0.1 * 3, rel=1e-4)  # (2²) / 2 = 2 per token
    assert float(losses.report([tally])["kl_mean"]) == pytest.approx(2, rel=1e-4)


def test_a_divergence_needs_a_reference(batch):
    with pytest.raises(ValueError, match="reference"):
        losses.loss(batch.sampled_logprobs, batch.advantages, batch, LossSettings(), version=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_low": 0.0},
        {"clip_high": 0.0},
        {"dual_clip": 0.5},
        {"kl_coefficient": -1.0},
        {"importance_cap": 0.0},
        {"epochs": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossSettings(**wrong)
