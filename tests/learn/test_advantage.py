"""Rewards of siblings to advantages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.learn import advantage
from tests.learn.episodes import episode, group


def halved(rewards_NG):
    return [rewards / 2 for rewards in rewards_NG]


def test_standardized_divides_by_the_sample_deviation():
    # mean 1; deviations -1, 0, 1; sample variance (1 + 0 + 1) / 2 = 1
    (found,) = advantage.standardized([np.array([0.0, 1.0, 2.0])])
    np.testing.assert_allclose(found, [-1, 0, 1], atol=2e-6)


def test_standardized_golden_of_one_success_in_four():
    # mean 1/4; sample variance (3/16 + 9/16) / 3 = 1/4, deviation 1/2
    (found,) = advantage.standardized([np.array([1.0, 0.0, 0.0, 0.0])])
    np.testing.assert_allclose(found, [1.5, -0.5, -0.5, -0.5], atol=4e-6)


def test_centered_keeps_the_scale():
    first, second = advantage.centered([np.array([0.0, 4.0]), np.array([0.1, 0.2, 0.3])])
    np.testing.assert_allclose(first, [-2, 2])
    np.testing.assert_allclose(second, [-0.1, 0, 0.1], atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.sampled_from(sorted(advantage.RECIPES)))
def test_siblings_sum_to_zero_and_a_shift_changes_nothing(rewards, name):
    recipe = advantage.named(name)
    (found,), (shifted,) = recipe([np.array(rewards)]), recipe([np.array(rewards) + 1.0])
    np.testing.assert_allclose(found.sum(), 0, atol=1e-6)
    np.testing.assert_allclose(found, shifted, atol=1e-6)


def test_a_recipe_is_named_or_imported():
    assert advantage.named("centered") is advantage.centered
    (found,) = advantage.named("tests.learn.test_advantage:halved")([np.array([2.0, 4.0])])
    assert list(found) == [1, 2]


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ConfigError, match="centered, standardized"):
        advantage.named("standardised")
    with pytest.raises(ConfigError, match="no_such_module"):
        advantage.named("no_such_module:recipe")


def test_flat_groups_are_dropped_and_counted():
    lively = group(episode("wp", reward=0), episode("wp", reward=1))
    flat = group(episode("wp", reward=1), episode("wp", reward=1), episode("wp", reward=None))
    thin = group(episode("wp", reward=1), episode("wp", reward=None))
    stepped = group(episode("wp|p", reward=1, steps=(0, 1)), episode("wp|p", reward=1, steps=(0, 1)))
    metrics = Metrics()
    assert advantage.informative([lively, flat, thin, stepped], metrics) == [lively, stepped]
    assert metrics.drain() == {"batch/groups": 4, "batch/flat_groups": 1, "batch/thin_groups": 1}


def test_a_group_that_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="fewer than two"):
        advantage.episode_advantages([group(episode("wp", reward=1))], advantage.centered)
    with pytest.raises(ValueError, match="one value per trainable"):
        advantage.episode_advantages([group(episode("wp"), episode("wp"))], lambda rewards_NG: [])


def test_the_worlds_failures_have_no_advantage():
    groups = [group(episode("wp", reward=0), episode("wp", reward=None), episode("wp", reward=1))]
    (found,) = advantage.episode_advantages(groups, advantage.centered)
    assert list(found) == [-0.5, 0.5]


def test_step_rewards_are_centred_over_all_turns_of_the_group():
    # mean of 1, 0, 0, 3 is 1
    siblings = [episode("wp|p|p", steps=(1, 0, 0)), episode("wp", steps=(3,)), episode("wp")]
    assert advantage.step_advantages(siblings) == [(0, -1, -1), (2,), ()]
    assert advantage.step_advantages([episode("wp|p", steps=(5, 5))]) == [(0, 0)]
