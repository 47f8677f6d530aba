"""What an update is made of when the world fails some of it."""

import pytest

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.rollout.group import weathered
from dr_jax.rollout.harvest import Harvest
from dr_jax.tokens.trajectory import Author, Episode, Group, Outcome, Segment, Trajectory, world

SAID = Trajectory((world([1]), Segment(Author.POLICY, (2,), (-0.5,), (0,))))


def group(name: str, *ends: str) -> Group:
    """`w` is an episode that the world failed, a digit one that earned so much."""
    episodes = []
    for number, end in enumerate(ends):
        if end == "w":
            episodes.append(Episode(f"{name}.{number}", name, (SAID,), Outcome.WORLD_FAILED, failure="the search is down"))
        else:
            ended = Episode(f"{name}.{number}", name, (SAID,), Outcome.ANSWERED, answer="x")
            episodes.append(ended.rewarded({"f1": float(end)}))
    return Group(name, tuple(episodes))


@pytest.mark.parametrize(("ends", "left"), [("1010", 4), ("10w1", 3), ("1ww0", 0), ("wwww", 0), ("www1", 0)])
def test_lucky_survivors_are_not_trained(ends: str, left: int) -> None:
    metrics = Metrics()
    found = weathered(group("q", *ends), 0.25, metrics)
    assert len(found.trainable) == left
    assert [one.outcome for one in found.episodes] == [one.outcome for one in group("q", *ends).episodes]
    assert metrics.drain().get("rollout/outage_groups", 0) == (not left)


def test_no_failure_at_all_may_be_asked_for() -> None:
    assert not weathered(group("q", *"1111111w"), 0.0, Metrics()).trainable


def test_an_update_is_full_whatever_was_lost_meanwhile() -> None:
    metrics = Metrics()
    harvest = Harvest(2, metrics)
    harvest.add(group("a", "1", "0"))
    harvest.add(group("b", "w", "w"))
    assert harvest.missing == 1
    harvest.add(group("c", "0", "1"))
    harvest.add(group("d", "0", "1"))
    assert harvest.missing == 0
    assert [one.question_id for one in harvest.take()] == ["a", "c", "b"]
    assert harvest.missing == 1
    assert [one.question_id for one in harvest.waiting] == ["d"]
    assert metrics.drain()["rollout/lost_groups"] == 1


def test_an_outage_that_takes_all_that_is_under_way_ends_nothing() -> None:
    harvest = Harvest(2, Metrics(), at_once=8)
    for number in range(20):
        harvest.add(group(str(number), "w", "w"))
    harvest.world_is_back()
    for number in range(23):
        harvest.add(group(str(number), "w", "w"))
    with pytest.raises(WorldDownError, match="24 groups"):
        harvest.add(group("last", "w", "w"))


def test_a_world_that_fails_everything_ends_the_run() -> None:
    harvest = Harvest(2, Metrics())
    for number in range(5):
        harvest.add(group(str(number), "w", "w"))
    harvest.add(group("good", "1", "0"))
    for number in range(5):
        harvest.add(group(str(number), "w", "w"))
    with pytest.raises(WorldDownError, match=r"6 groups .* in a row, at last because: the search is down.*--resume"):
        harvest.add(group("last", "w", "w"))
