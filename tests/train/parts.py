"""A reward part and an advantage of a test's own, as a user would write them."""

import os
import signal
from collections.abc import Sequence

from dr_jax.data.question import Question
from dr_jax.learn.advantage import Values, standardized
from dr_jax.tokens.trajectory import Author, Episode


def monotony(episode: Episode, question: Question) -> float:
    """Reward small token ids: something that any policy can learn."""
    ids = [token for one in episode.trajectories for segment in one.by(Author.POLICY) for token in segment.ids]
    return -sum(ids) / len(ids) / 100


CALLS: list[int] = []
EPISODES: list[str] = []


def counted(episode: Episode, question: Question) -> float:
    """Count the episodes that are rewarded, and announce a preemption when the seventh is."""
    EPISODES.append(episode.id)
    if len(EPISODES) == 7:
        os.kill(os.getpid(), signal.SIGTERM)
    return monotony(episode, question)


def interrupted(rewards_NG: Sequence[Values]) -> list[Values]:
    """Announce a preemption in the middle of the second update that is computed with this."""
    CALLS.append(len(rewards_NG))
    if len(CALLS) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return standardized(rewards_NG)
