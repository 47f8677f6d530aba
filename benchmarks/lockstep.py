"""How most systems roll out: all episodes of an update take their turns together.

A turn begins when everybody who is still at work has seen what its last call brought, so each turn waits for the slowest
answer of the web. Generations of one turn run at once, as a batch. This exists to be compared with; no run uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dr_jax.data.question import Question
from dr_jax.tokens.policy import Policy, RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode


class LockStep:
    """A policy that begins a turn when everybody is there.

    Args:
        policy: that speaks.
        expected: how many episodes a wave has; asked when the first of them arrives.
    """

    def __init__(self, policy: Policy, expected: Callable[[], int]) -> None:
        self._policy, self._expected = policy, expected
        self._alive = self._here = 0
        self._turn = asyncio.Event()

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Wait for the others, then speak."""
        if not self._alive:
            self._alive = self._expected()
        self._here += 1
        turn = self._turn
        self._begin()
        await turn.wait()
        return await self._policy.sample(prompt_ids, sampling, key)

    def rewarding(self, rewarding: Callable[[Episode, Question], Episode]) -> Callable[[Episode, Question], Episode]:
        """Return a rewarding that notes who has ended: nobody waits for it any more."""

        def ended(episode: Episode, question: Question) -> Episode:
            self._alive -= 1
            self._begin()
            return rewarding(episode, question)

        return ended

    def _begin(self) -> None:
        if self._here and self._here >= self._alive:
            self._turn.set()
            self._turn, self._here = asyncio.Event(), 0
