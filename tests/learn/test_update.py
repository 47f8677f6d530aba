"""Micro-batches to better weights, with a real, tiny decoder."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from dr_jax.learn.advantage import centered
from dr_jax.learn.batch import Batch, BatchSettings, pack, pack_supervised
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import begin, make_score, make_update, through
from dr_jax.model.decoder import describe, initial
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_rows, place_weights
from tests.learn.episodes import episode, group

SIZES = Sizes(vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ff=32, qk_norm=True)
AXES = {name: spec.axes for name, spec in describe(SIZES).items()}
SHAPE = BatchSettings(rows=8, lengths=(16,))
GRPO = LossSettings()
TRUNCATED = LossSettings(kl="none", entropy_coefficient=0.0, importance="truncated", importance_cap=1.5, epochs=8)
FORWARD = through(SIZES)
SCORE = make_score(FORWARD)


@cache
def optimizer(**how):
    # Adam's first step is the gradient's sign, which blows up a rounding error around zero: a large eps keeps it smooth.
    return make_optimizer(OptimizerSettings(**{"learning_rate": 0.01, "eps": 1e-3, **how}), AXES, steps=10)


@cache
def updater(loss, **how):
    """One compiled update for all tests that share its settings."""
    return make_update(FORWARD, loss, optimizer(**how), begin(fresh(), optimizer(**how)))


@cache
def fresh():
    return jax.jit(partial(initial, SIZES))(jax.random.key(0))


@pytest.fixture(scope="module")
def weights():
    return fresh()


@pytest.fixture(scope="module")
def drawn(weights):
    """Two micro-batches whose log-probabilities are the model's own, as if it had just sampled the tokens."""
    groups = [
        group(
            *(episode(pattern, reward=reward, question=str(at), vocabulary=31) for pattern, reward in siblings),
            question=str(at),
        )
        for at, siblings in enumerate(SIBLINGS)
    ]
    return tuple(sampled(weights, batch) for batch in pack(groups, SHAPE, advantage=centered))


SIBLINGS = [
    [("wwwpppwwpp", 1.0), ("wwwpwppwp", 0.0), ("wwwpp", 0.0)],
    [("wpp", 0.3), ("wpppppppppppwwp", 0.9), ("wwpp", 0.1)],
    [(f"{'w' * n}{'p' * (15 - n)}", n / 10) for n in range(1, 12)],
]


def sampled(weights, batch, temperature=1.0):
    logprobs = np.where(batch.trained, SCORE(weights, batch, temperature), 0)
    return dataclasses.replace(batch, sampled_logprobs=logprobs.astype(np.float32))


def once(weights, batches, loss=GRPO, temperature=1.0):
    update, state = updater(loss), begin(weights, optimizer())
    return update(state, batches, temperature=temperature, reference_weights=weights)


def differs(first, second):
    return max(float(jnp.max(jnp.abs(first[name] - second[name]))) for name in first)


def test_on_policy_nothing_is_clipped_and_the_ratio_is_one(weights, drawn):
    state, stats = once(weights, drawn)
    assert stats["update/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert stats["update/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert stats["update/clip_low_mean"] == stats["update/clip_high_mean"] == 0
    assert stats["update/mismatch_max"] < 1e-5
    assert stats["update/on_policy"] == 1
    assert stats["update/skipped"] == 0
    assert stats["update/gradient_norm"] > 0
    assert int(state.step) == 1
    assert differs(state.weights, weights) > 0


def test_the_score_is_the_decoders_log_probability_of_each_token(weights, drawn):
    """Against a trajectory alone in its own row: packing, positions and segments change nothing."""
    batch = drawn[-1]
    packed = SCORE(weights, batch, 1.0)
    row = int(np.argmax(batch.segments.max(axis=1)))
    assert batch.segments[row].max() > 1
    here = np.flatnonzero(batch.segments[row] == 2)
    alone = jax.tree.map(lambda leaf: np.pad(leaf[row : row + 1, here], ((0, 0), (0, 16 - len(here)))), batch)
    np.testing.assert_allclose(SCORE(weights, alone, 1.0)[0, 1 : len(here)], packed[row, here[1:]], atol=1e-5)


def test_temperature_is_data(weights, drawn):
    hot = [sampled(weights, batch, temperature=0.5) for batch in drawn]
    _, stats = once(weights, hot, temperature=0.5)
    assert stats["update/mismatch_max"] < 1e-5
    _, stats = once(weights, hot, temperature=1.0)
    assert stats["update/mismatch_max"] > 1e-2
    _, stats = once(weights, drawn, temperature=0.0)  # greedy: drawn from the untempered distribution
    assert stats["update/mismatch_max"] < 1e-5


def test_only_the_policys_tokens_carry_loss(weights, drawn):
    """What is recorded at the world's tokens is never read; the ids themselves are, as context."""
    rng = np.random.default_rng(0)

    def noisy(batch):
        noise = np.where(batch.trained, 0, rng.normal(size=batch.ids.shape) * 100).astype(np.float32)
        return dataclasses.replace(
            batch,
            sampled_logprobs=batch.sampled_logprobs + noise,
            advantages=batch.advantages + noise,
            versions=batch.versions + noise.astype(np.int32),
        )

    clean, stats = once(weights, drawn)
    dirty, dirty_stats = once(weights, [noisy(batch) for batch in drawn])
    assert differs(clean.weights, dirty.weights) == 0
    assert stats == dirty_stats


def test_words_after_the_policys_last_change_nothing(weights, drawn):
    (long,) = [group(episode("wwpp", reward=1, first_id=3), episode("wp", reward=0, first_id=9))]
    (longer,) = [group(episode("wwppwww", reward=1, first_id=3), episode("wpwwww", reward=0, first_id=9))]
    first, second = (once(weights, pack([found], SHAPE))[0] for found in (long, longer))
    assert differs(first.weights, second.weights) == 0


def split(batches, order, sizes):
    """Deal all rows of the batches into micro-batches of other sizes, padded to eight rows, in another order."""
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *batches)
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        yield jax.tree.map(lambda leaf: np.pad(leaf[start : start + size], ((0, 8 - size), (0, 0))), rows)  # noqa: B023


@pytest.fixture(scope="module")
def whole(weights, drawn):
    """One update over the batches as packed."""
    state, stats = once(weights, drawn)
    return jax.device_get(state.weights), stats


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_accumulation_over_any_split_equals_one_batch(weights, drawn, whole, data):
    expected, stats = whole
    total = sum(len(batch.ids) for batch in drawn)
    order = np.asarray(data.draw(st.permutations(range(total))))
    sizes, left = [], total
    while left:
        sizes.append(data.draw(st.integers(1, min(8, left))))
        left -= sizes[-1]
    state, found = once(weights, list(split(drawn, order, sizes)))
    assert differs(state.weights, expected) < 1e-6
    assert found == pytest.approx(stats, abs=1e-5, nan_ok=False)


def test_no_program_is_added_by_more_micro_batches_or_other_numbers(weights, drawn, whole):
    update, compiled = updater(GRPO), []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    try:
        state = begin(weights, optimizer(), step=5)
        for copies in (1, 3):
            state, _ = update(state, [*drawn] * copies, temperature=0.7, reference_weights=weights)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [name for name in compiled if "backend_compile" in name]


EIGHT = MeshSettings(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("adamw", EIGHT),
        ("adamw", MeshSettings(fsdp=2, tensor=2, sequence=2)),
        pytest.param("adamw", MeshSettings(data=2, fsdp=1, sequence=4), marks=pytest.mark.slow),
        pytest.param("adamw", MeshSettings(fsdp=1, tensor=4, sequence=2), marks=pytest.mark.slow),  # more than key heads
        pytest.param("muon", EIGHT, marks=pytest.mark.slow),
    ],
)
def test_one_and_eight_devices_agree(weights, drawn, name, shape):
    mesh = make_mesh(shape)
    placed = place_weights(weights, describe(SIZES), mesh)
    state = begin(placed, optimizer(name=name))
    update = make_update(FORWARD, GRPO, optimizer(name=name), state)
    many, found = update(state, [place_rows(batch, mesh) for batch in drawn], reference_weights=placed)
    alone, stats = updater(GRPO, name=name)(begin(weights, optimizer(name=name)), drawn, reference_weights=weights)
    assert differs(alone.weights, jax.device_get(many.weights)) < 1e-5
    assert found == pytest.approx(stats, abs=1e-5)
    for key, weight in many.weights.items():
        assert weight.sharding.is_equivalent_to(placed[key].sharding, weight.ndim)
    for moments in optax.tree.get_all_with_path(many.optimizer, "mu"):
        for key, moment in moments[1].items():
            if hasattr(moment, "sharding"):  # muon and Adam leave each other's out
                assert moment.sharding.is_equivalent_to(placed[key].sharding, moment.ndim)


def test_layer_by_layer_and_in_a_scan_the_update_is_the_same(weights, drawn):
    scan = make_update(through(SIZES, remat="full"), GRPO, optimizer(), begin(weights, optimizer()))
    texts = [str(jax.make_jaxpr(forward)(weights, drawn[0], 1.0)) for forward in (FORWARD, through(SIZES, remat="full"))]
    assert ["scan[" in text and f"length={SIZES.layers}" in text for text in texts] == [False, True]
    again, told = scan(begin(weights, optimizer()), drawn, reference_weights=weights)
    state, stats = once(weights, drawn)
    assert differs(state.weights, again.weights) < 1e-6
    assert told == pytest.approx(stats, abs=1e-6)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(weights, drawn):
    broken = dataclasses.replace(drawn[0], advantages=np.where(drawn[0].trained, np.inf, 0).astype(np.float32))
    state, stats = once(weights, [broken])
    assert stats["update/skipped"] == 1
    assert differs(state.weights, weights) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.optimizer)))
    assert int(state.step) == 1


def test_several_epochs_clip_against_the_start_of_the_update(weights, drawn):
    """Tokens drawn e times too rarely weigh e, cut at 1.5, in every pass; the ratio starts at one and moves."""
    stale = [dataclasses.replace(batch, sampled_logprobs=batch.sampled_logprobs - 1) for batch in drawn]
    _, stats = once(weights, stale, TRUNCATED)
    assert stats["update/importance_mean"] == pytest.approx(1.5, rel=1e-5)
    assert stats["update/mismatch_mean"] == pytest.approx(1, abs=1e-5)  # told of the first pass
    assert stats["update/clip_high_mean"] + stats["update/clip_low_mean"] > 0  # told of the last
    assert stats["update/ratio_max"] < np.e


def test_a_reference_that_is_the_policy_diverges_nowhere(weights, drawn):
    _, stats = once(weights, drawn)
    assert stats["update/kl_mean"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="reference"):
        updater(GRPO)(begin(weights, optimizer()), drawn)


def test_an_update_of_nothing_is_refused(weights):
    with pytest.raises(ValueError, match="at least one micro-batch"):
        once(weights, [])


def test_learning_from_demonstrations_lowers_their_loss(weights):
    batches = pack_supervised([episode("wwpppp|pppp", first_id=3), episode("wpppwp", first_id=20)], SHAPE)
    state = begin(weights, optimizer(learning_rate=0.05))
    update = updater(LossSettings(objective="supervised"), learning_rate=0.05)
    told = []
    for _ in range(12):
        state, stats = update(state, batches)
        told.append(stats["update/loss"])
    assert told[0] == pytest.approx(np.log(32), abs=0.5)  # a fresh model knows nothing: log V
    assert told[-1] < told[0] / 3
    assert stats["update/mismatch_max"] == 0  # nothing was sampled


def test_rewarded_tokens_become_likelier(weights, drawn):
    state = begin(weights, optimizer())
    for _ in range(3):
        state, _ = updater(GRPO)(state, drawn, reference_weights=weights)
    gain = [np.where(batch.trained, SCORE(state.weights, batch, 1.0) - batch.sampled_logprobs, 0) for batch in drawn]
    assert sum((one * batch.advantages).sum() for one, batch in zip(gain, drawn, strict=True)) > 0


def test_no_array_of_tokens_by_vocabulary_is_ever_held():
    big = dataclasses.replace(SIZES, vocab=50_000)
    weights = jax.eval_shape(lambda: initial(big, jax.random.key(0)))
    forward = through(big, chunk=128)
    batch = jax.eval_shape(
        lambda: jax.tree.map(jnp.asarray, Batch(*([jnp.zeros((8, 512), jnp.int32)] * 3), *([jnp.zeros((8, 512))] * 5)))
    )
    traced = jax.make_jaxpr(jax.grad(lambda weights, batch: forward(weights, batch, jnp.float32(1))[0].sum()))(weights, batch)
    assert largest(traced.jaxpr) < 8 * 512 * 50_000 / 10  # a tenth of the logits


def largest(jaxpr):
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    inner = [largest(found) for equation in jaxpr.eqns for found in jaxprs_in_params(equation.params)]
    return max([0, *sizes, *inner])
