"""Ragged trajectories to rectangles."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_jax.base.errors import CapacityError
from dr_jax.base.metrics import Metrics
from dr_jax.learn.advantage import centered
from dr_jax.learn.batch import Batch, BatchSettings, dealt, empty, pack, pack_supervised
from dr_jax.tokens.trajectory import Author, Segment, Trajectory, world
from tests.learn.episodes import episode, group

SMALL = BatchSettings(rows=2, lengths=(4, 8))


def test_two_short_trajectories_share_a_row():
    pair = group(episode("wwpp", reward=1, first_id=10), episode("wp|wp", reward=0, first_id=20, version=3))
    (batch,) = pack([pair], BatchSettings(rows=1, lengths=(8,)), advantage=centered)
    np.testing.assert_array_equal(batch.ids, [[10, 11, 12, 13, 20, 21, 22, 23]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1, 2, 3]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 1, 2, 2, 2, 2]])
    np.testing.assert_array_equal(batch.trained, [[False, False, True, True, False, True, False, True]])
    np.testing.assert_array_equal(batch.weights, [[0, 0, 0.25, 0.25, 0, 0.25, 0, 0.25]])
    np.testing.assert_array_equal(batch.versions, [[-1, -1, 0, 0, -1, 3, -1, 3]])
    np.testing.assert_allclose(batch.sampled_logprobs, [[0, 0, -12e-5, -13e-5, 0, -21e-5, 0, -23e-5]])
    np.testing.assert_array_equal(batch.advantages, [[0, 0, 0.5, 0.5, 0, -0.5, 0, -0.5]])


def test_what_new_weights_drew_from_old_keys_and_values_is_told_apart():
    turns = (world((1, 2)), policy((3, 4, 5), (6, 6, 7)), world((8,)), policy((9, 9), (7, 7)))
    swapped = dataclasses.replace(episode("wp", reward=1), trajectories=(Trajectory(turns),))
    (batch,) = pack_supervised([swapped], BatchSettings(rows=1, lengths=(8,)))
    np.testing.assert_array_equal(batch.versions, [[-1, -1, 6, 6, 7, -1, 7, 7]])
    np.testing.assert_array_equal(batch.pure, [[False, False, True, True, False, False, True, True]])


def policy(ids: tuple[int, ...], versions: tuple[int, ...]) -> Segment:
    return Segment(Author.POLICY, ids, (-1.0,) * len(ids), versions)


def test_step_rewards_land_on_the_tokens_of_their_turn():
    pair = group(episode("wp|wpp", "wwp", reward=1, steps=(3, 0, 0)), episode("wp", reward=1))
    (batch,) = pack([pair], BatchSettings(rows=1, lengths=(16,)), advantage=centered)
    # rows hold the longest first: wpwpp, wwp, wp; the mean step reward is 1
    np.testing.assert_array_equal(batch.advantages[0, :10], [0, 2, 0, -1, -1, 0, 0, -1, 0, 0])


def test_step_rewards_must_match_the_generations():
    odd = episode("wp|p", reward=1, steps=(1, 2))
    odd = type(odd)(**{name: getattr(odd, name) for name in odd.__slots__} | {"turns": odd.turns[:1], "step_rewards": (1.0,)})
    with pytest.raises(ValueError, match="1 step rewards for 2 POLICY segments"):
        pack([group(odd, episode("wp", reward=0))], SMALL)


def test_every_aggregation_shares_one_loss():
    # episodes of 1 and 3 policy tokens
    pair = group(episode("wp", reward=1), episode("wppp", reward=0))

    def shares(**how):
        (batch,) = pack([pair], BatchSettings(rows=1, lengths=(8,), **how))
        return batch.weights[0][[5, 1, 2, 3]]  # the longer one comes first

    np.testing.assert_allclose(shares(aggregation="token_mean"), [1 / 4] * 4)
    np.testing.assert_allclose(shares(aggregation="sequence_mean"), [1 / 2, 1 / 6, 1 / 6, 1 / 6])
    np.testing.assert_allclose(shares(aggregation="constant_length", constant_length=10), [1 / 20] * 4)


def test_an_episode_of_several_trajectories_is_one_sequence():
    pair = group(episode("wpp", "wwp", reward=1), episode("wp", reward=0))
    (batch,) = pack([pair], BatchSettings(rows=1, lengths=(8,), aggregation="sequence_mean"))
    np.testing.assert_allclose(np.sort(batch.weights[batch.trained]), [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_space_in_long_rows_is_filled_before_short_rows_are_opened():
    longest, rest = episode("wwwwwwp", reward=1), [episode("wp", reward=0) for _ in range(4)]
    batches = pack([group(longest, *rest)], SMALL)
    assert [batch.ids.shape for batch in batches] == [(2, 8)]
    batches = pack([group(longest, *rest, *rest)], SMALL)  # 7, then 8 of 2: four fill the second row, four go to short ones
    assert [batch.ids.shape for batch in batches] == [(2, 8), (2, 4)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "lengths"), [(1, (512, 1024, 2048)), (2, (512, 1024)), (4, (128, 256, 512, 1024))])
def test_ragged_episodes_leave_little_padding(rows, lengths, seed):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(64), np.log(1024), 64)).astype(int)
    metrics = Metrics()
    pack(
        [group(*(episode("w" * (size // 4) + "p" * (size - size // 4), reward=at % 2) for at, size in enumerate(sizes)))],
        BatchSettings(rows=rows, lengths=lengths),
        metrics=metrics,
    )
    assert metrics.drain()["batch/occupancy"] >= 0.95


def test_occupancy_is_reported():
    metrics = Metrics()
    pack([group(episode("wwpp", reward=1), episode("wpw", reward=0), episode("wp", reward=None))], SMALL, metrics=metrics)
    assert metrics.drain() == {
        "batch/episodes": 2,
        "batch/trajectories": 2,
        "batch/tokens": 6,  # the world's word after the policy's last is left out
        "batch/trained_tokens": 3,
        "batch/micro_batches": 1,
        "batch/occupancy": 6 / 8,
        "batch/occupancy_max": 6 / 8,
    }


def test_a_trajectory_that_fits_no_row_names_the_setting():
    with pytest.raises(CapacityError, match=r"9 tokens.*batch\.lengths"):
        pack([group(episode("wwwwwwwwp", reward=1), episode("wp"))], SMALL)
    assert pack([group(episode("wwwwwwwp" + "w" * 9, reward=1), episode("wp"))], SMALL)


def test_rows_must_fit_the_devices():
    with pytest.raises(CapacityError, match=r"batch\.rows to 8"):
        pack([group(episode("wp"), episode("wp"))], BatchSettings(rows=6), rows_multiple=4)
    with pytest.raises(CapacityError, match=r"nobody has chosen how many fit.*batch\.rows to 4"):
        pack([group(episode("wp"), episode("wp"))], BatchSettings(rows=0), rows_multiple=4)


def test_a_policy_segment_needs_something_before_it():
    orphan = episode("wp", reward=1)
    orphan = type(orphan)(
        "q.9", "q", (Trajectory((Segment(Author.POLICY, (1,), (0.0,), (0,)),)),), orphan.outcome, rewards={"f1": 0}
    )
    with pytest.raises(ValueError, match="opens with a POLICY segment"):
        pack([group(orphan, episode("wp", reward=1))], SMALL)


def test_nothing_to_train_is_no_batch():
    assert pack([], SMALL) == ()
    assert pack([group(episode("w", reward=1), episode("w", reward=0))], SMALL) == ()


def test_demonstrations_need_no_reward():
    (batch,) = pack_supervised([episode("wwpp", reward=None)], SMALL)
    np.testing.assert_array_equal(batch.advantages[0], [0, 0, 1, 1])
    np.testing.assert_array_equal(batch.weights[0], [0, 0, 0.5, 0.5])


@pytest.mark.parametrize(
    "wrong", [{"rows": -1}, {"lengths": ()}, {"lengths": (8, 4)}, {"lengths": (1,)}, {"constant_length": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatchSettings(**wrong)


def test_a_batch_is_a_pytree():
    doubled = jax.tree.map(lambda leaf: leaf * 2, empty(2, 4))
    assert isinstance(doubled, Batch)
    assert len(jax.tree.leaves(doubled)) == 8
    assert (doubled.versions == -2).all()


def trained_runs(batches):
    """Every piece of every row as (ids, ids of trained tokens, their log-probabilities, advantages, versions)."""
    for batch in batches:
        for row in range(batch.ids.shape[0]):
            for number in range(1, batch.segments[row].max() + 1):
                here = batch.segments[row] == number
                assert (np.diff(np.flatnonzero(here)) == 1).all(), "a trajectory is laid down in one run"
                assert (batch.positions[row][here] == np.arange(here.sum())).all()
                picked = here & batch.trained[row]
                yield (
                    tuple(batch.ids[row][here]),
                    tuple(batch.ids[row][picked]),
                    tuple(batch.sampled_logprobs[row][picked]),
                    tuple(batch.advantages[row][picked]),
                    tuple(batch.versions[row][picked]),
                )


patterns = st.lists(st.text("wp|", max_size=20).map(lambda text: "w" + text), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(patterns, st.floats(-1, 1)), min_size=2, max_size=5), min_size=1, max_size=4),
    st.sampled_from([(8, 32), (24,), (4, 8, 16, 32)]),
    st.integers(1, 5),
)
def test_packing_keeps_every_trained_token_exactly_once_in_order(told, lengths, rows):
    groups = [
        group(*(episode(*found, reward=reward, question=f"q{at}", version=at) for found, reward in siblings), question=f"q{at}")
        for at, siblings in enumerate(told)
    ]
    batches = pack(groups, BatchSettings(rows=rows, lengths=lengths), advantage=centered)
    expected = []
    for one in groups:
        mean = np.mean([sibling.reward for sibling in one.episodes])
        for sibling in one.episodes:
            for path in sibling.trajectories:
                spoken = [segment for segment in path.segments if segment.author is Author.POLICY]
                if spoken:
                    own = [token for segment in spoken for token in segment.ids]
                    until = path.ids.index(own[-1]) + 1  # ids are unique: they count upward
                    logprobs = [np.float32(value) for segment in spoken for value in segment.logprobs]
                    advantage = np.float32(sibling.reward - mean)
                    versions = [value for segment in spoken for value in segment.versions]
                    expected.append((path.ids[:until], tuple(own), tuple(logprobs), (advantage,) * len(own), tuple(versions)))
    assert sorted(trained_runs(batches)) == sorted(expected)
    for batch in batches:
        assert batch.ids.shape in {(rows, length) for length in lengths}
        assert (batch.segments[~batch.trained & (batch.ids == 0)] == 0).all()
    if expected:
        np.testing.assert_allclose(sum(batch.weights.sum() for batch in batches), 1, rtol=1e-5)


def test_processes_deal_their_own_rows_and_lay_them_out_alike():
    """Two processes with a row each make the batch that one with two rows makes, and divide by the tokens of both."""
    near = group(episode("wp", reward=1, first_id=10), episode("wp", reward=0, first_id=20))
    far = group(episode("wwwwwwpp", reward=1, first_id=30), episode("wwp", reward=0, first_id=40))
    own = [dealt([one], BatchSettings(rows=1, lengths=(4, 8)), advantage=centered) for one in (near, far)]
    assert [one.lengths for one in own] == [[4], [8, 4]]
    assert [one.total for one in own] == [2, 3]
    laid = [one.laid([8, 4], 5) for one in own]
    assert [[batch.ids.shape for batch in batches] for batches in laid] == [[(1, 8), (1, 4)]] * 2
    assert not laid[0][1].trained.any()
    np.testing.assert_array_equal(laid[0][0].segments, [[1, 1, 2, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(laid[0][1].segments, [[0, 0, 0, 0]])
    whole = pack([near, far], BatchSettings(rows=2, lengths=(4, 8)), advantage=centered)
    for name in ("weights", "advantages", "sampled_logprobs"):
        values = [np.sort(np.concatenate([getattr(one, name).ravel() for one in some])) for some in (whole, laid[0] + laid[1])]
        np.testing.assert_array_equal(values[0][values[0] != 0], values[1][values[1] != 0])
