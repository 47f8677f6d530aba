"""A reward part of a test's own, as a user would write one."""

from dr_jax.data.question import Question
from dr_jax.tokens.trajectory import Author, Episode


def monotony(episode: Episode, question: Question) -> float:
    """Reward small token ids: something that any policy can learn."""
    ids = [token for one in episode.trajectories for segment in one.by(Author.POLICY) for token in segment.ids]
    return -sum(ids) / len(ids) / 100
