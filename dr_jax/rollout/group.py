"""G siblings of one question at once, or some more of whom the first G count; each is rewarded as it ends."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Draw
from dr_jax.rollout.collect import finished
from dr_jax.rollout.episode import Actors, Attempt, EpisodeSettings, opening, run_episode
from dr_jax.rollout.underway import Flight
from dr_jax.tokens.trajectory import Episode, Group, Outcome

Rewarding = Callable[[Episode, Question], Episode | Awaitable[Episode]]


async def run_group(
    question: Question,
    actors: Actors,
    settings: EpisodeSettings,
    rewarding: Rewarding,
    *,
    size: int,
    spare: int = 0,
    run: int = 0,
    purpose: str = "act",
    metrics: Metrics | None = None,
    flight: Flight | None = None,
) -> Group:
    """Run the siblings; they differ only by key. Cancelling this cancels all of them.

    With spare ones, the group is complete when `size` of them are trainable, and the others are cancelled: nobody waits for
    the last. This is not free: who is first is who says little, asks little and meets a quick web, so what is learned
    from leans towards short research. Those that were cancelled are counted as `rollout/cancelled_siblings`.

    Args:
        question: asked of every sibling.
        actors: who takes part.
        settings: budgets.
        rewarding: episode and question to the episode with its rewards; may be asynchronous, with a deadline of its own.
        size: G.
        spare: siblings beyond G that are started.
        run: the run's seed.
        purpose: keeps epochs and evaluations apart.
        metrics: of the run.
        flight: knows what an earlier session left of this group, and is told how far it is.
    """

    flight = flight or Flight(Draw(question, 0))
    shared = opening(question, actors, settings)
    flight.begins_with(shared)
    actors = replace(actors, policy=flight.noting(actors.policy))

    async def sibling(index: int) -> Episode:
        attempt, reached = Attempt(run, index, purpose), partial(flight.reach, index)
        left = flight.left(index)
        ended = await run_episode(question, actors, settings, attempt, opened=shared, left=left, reached=reached)
        rewarded = rewarding(ended, question)
        return await rewarded if inspect.isawaitable(rewarded) else rewarded

    ended = flight.ended
    missing = [index for index in range(size + spare) if index not in ended] if not _complete(ended, size) else []
    async with aclosing(finished(missing, sibling, at_once=size + spare)) as siblings:
        async for index, episode in siblings:
            flight.end(index, episode)
            if _complete(ended, size):
                break
    if metrics is not None and len(ended) < size + spare:
        metrics.add("rollout/cancelled_siblings", size + spare - len(ended))
    episodes = tuple(episode for _, episode in sorted(ended.items()))
    return Group(question.id, episodes, question.source, flight.draw.epoch)


def _complete(ended: Mapping[int, Episode], size: int) -> bool:
    return sum(episode.trainable for episode in ended.values()) >= size


def weathered(group: Group, most: float, metrics: Metrics) -> Group:
    """Take the survivors' rewards away where the world failed more than a share of a group, so that nobody trains on them.

    An outage ends the episodes that still searched and leaves those that were quick: their rewards would be compared with
    each other, and not with what the policy does. Counted as `rollout/outage_groups`.

    Args:
        group: as it ended.
        most: share of its siblings that may have failed.
        metrics: of the run.
    """
    failed = sum(episode.outcome is Outcome.WORLD_FAILED for episode in group.episodes)
    if failed <= most * len(group.episodes):
        return group
    metrics.add("rollout/outage_groups")
    return replace(group, episodes=tuple(replace(episode, rewards={}, step_rewards=()) for episode in group.episodes))
