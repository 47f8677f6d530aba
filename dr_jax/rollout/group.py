"""G siblings of one question at once; each is rewarded as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dr_jax.data.question import Question
from dr_jax.rollout.episode import Actors, Attempt, EpisodeSettings, run_episode
from dr_jax.tokens.trajectory import Episode, Group

Rewarding = Callable[[Episode, Question], Episode]


async def run_group(
    question: Question,
    actors: Actors,
    settings: EpisodeSettings,
    rewarding: Rewarding,
    *,
    size: int,
    run: int = 0,
    purpose: str = "act",
) -> Group:
    """Run the siblings; they differ only by key. Cancelling this cancels all of them.

    Args:
        question: asked of every sibling.
        actors: who takes part.
        settings: budgets.
        rewarding: episode and question to the episode with its rewards.
        size: G.
        run: the run's seed.
        purpose: keeps epochs and evaluations apart.
    """

    async def sibling(index: int) -> Episode:
        return rewarding(await run_episode(question, actors, settings, Attempt(run, index, purpose)), question)

    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(sibling(index)) for index in range(size)]
    return Group(question.id, tuple(task.result() for task in started), question.source)
