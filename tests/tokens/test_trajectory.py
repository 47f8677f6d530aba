import pytest

from dr_jax.tokens.trajectory import Author, Episode, Group, Outcome, Segment, Trajectory, world


def test_a_policy_segment_cannot_exist_without_logprobs_and_versions() -> None:
    with pytest.raises(ValueError, match="needs 2 log-probabilities and 2 versions; found 1 and 2"):
        Segment(Author.POLICY, (5, 6), (-0.1,), (0, 0))
    with pytest.raises(ValueError, match="WORLD segment"):
        Segment(Author.WORLD, (5,), (-0.1,), (0,))
    with pytest.raises(ValueError, match="at least one id"):
        Segment(Author.WORLD, ())


def test_append_keeps_what_was_there() -> None:
    first = Trajectory((world([1, 2]),))
    second = first.append(Segment(Author.POLICY, (3,), (-1.0,), (4,)))
    assert (first.ids, second.ids, len(second)) == ((1, 2), (1, 2, 3), 3)


def test_world_failures_are_never_rewarded() -> None:
    failed = Episode("q.0", "q", (), Outcome.WORLD_FAILED, failure="down")
    with pytest.raises(ValueError, match="never rewarded"):
        failed.rewarded({"f1": 0.0})
    with pytest.raises(ValueError, match="has no reward"):
        _ = failed.reward


def test_a_group_holds_one_question_and_knows_its_oldest_version() -> None:
    said = Trajectory((world([1]), Segment(Author.POLICY, (2, 3), (-1.0, -1.0), (7, 8))))
    one = Episode("q.0", "q", (said,), Outcome.ANSWERED, answer="x").rewarded({"f1": 1.0})
    lost = Episode("q.1", "q", (said,), Outcome.WORLD_FAILED)
    group = Group("q", (one, lost))
    assert group.trainable == (one,)
    assert group.oldest_version == 7
    with pytest.raises(ValueError, match="was given episodes of"):
        Group("other", (one,))
