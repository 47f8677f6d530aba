"""A reward part and an advantage of a test's own, as a user would write them."""

import os
import signal
import time
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


ENDED: list[float] = []
MEANWHILE: list[int] = []


def noted(episode: Episode, question: Question) -> float:
    """Note when an episode ended."""
    ENDED.append(time.monotonic())
    return monotony(episode, question)


def slow(rewards_NG: Sequence[Values]) -> list[Values]:
    """Learn until five more episodes have ended, or for half a minute, and note how many did."""
    before, start = len(ENDED), time.monotonic()
    while len(ENDED) < before + 5 and time.monotonic() < start + 30.0:
        time.sleep(0.01)
    MEANWHILE.append(len(ENDED) - before)
    return standardized(rewards_NG)
