"""Who saw everything that was asked of a policy, and how it was answered: to compare two runs of the same episodes.

In:    every request with its answer, every episode as it ends
Out:   what is missing, what is there twice, and what differs from another run
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dr_jax.data.question import Question
from dr_jax.tokens.policy import Policy, RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode

ROUNDING = 1e-5  # of all probability: what float32 sums of other shapes differ by, some ten times over


@dataclass(frozen=True, slots=True)
class Answered:
    """One request, and what came of it."""

    prompt: tuple[int, ...]
    sampled: Sampled


Answers = dict[RequestKey, Answered]
Gap = Callable[[RequestKey, Sequence[int], int, tuple[int, int]], float]


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the requests that two runs have in common.

    Args:
        compared: requests with the same prompt.
        logprob: the largest difference of a log-probability where ids were the same.
        rounded: requests with other ids, where the first other one was drawn from the very boundary between the two.
        gap: how near that was, at the most; see `boundary`.
        after: requests with another prompt, because an earlier one of their episode was rounded; they are not compared.
        other: all others whose ids or prompts were others.
    """

    compared: int
    logprob: float
    rounded: int
    gap: float
    after: int
    other: int


class Witness:
    """A policy and a rewarding that write down what passes through them.

    Args:
        policy: that draws.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.answers: Answers = {}
        self.repeated = 0  # requests that were answered before
        self.asked: list[float] = []  # when each group's first request came, on the clock of `time.perf_counter`
        self._groups: set[str] = set()
        self.ended: list[tuple[float, str]] = []  # when, and the episode's id

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Draw; see `tokens.policy.Policy`."""
        if key.question not in self._groups:
            self._groups.add(key.question)
            self.asked.append(time.perf_counter())
        sampled = await self._policy.sample(prompt_ids, sampling, key)
        self.repeated += key in self.answers
        self.answers[key] = Answered(tuple(prompt_ids), sampled)
        return sampled

    def rewarding(self, rewarding: Callable[[Episode, Question], Episode]) -> Callable[[Episode, Question], Episode]:
        """Return a rewarding that notes who has ended."""

        def ended(episode: Episode, question: Question) -> Episode:
            self.ended.append((time.perf_counter(), episode.id))
            return rewarding(episode, question)

        return ended

    @property
    def drawn(self) -> int:
        """Ids, over all requests."""
        return sum(len(one.sampled.ids) for one in self.answers.values())


def miscounted(wanted: Iterable[str], found: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return what was wanted and is not there, and what is there more often than it was wanted."""
    told, there = Counter(wanted), Counter(found)
    return sorted((told - there).elements()), sorted((there - told).elements())


def difference(one: Answers, other: Answers, gap: Gap) -> Difference:
    """Compare the requests that both have.

    Args:
        one, other: what was answered, by key.
        gap: how far a key's number is from the boundary between two ids; see `boundary.Boundary.gap`.
    """
    both = sorted(one.keys() & other.keys(), key=lambda key: key.turn)
    gaps, logprobs, rounded = list[float](), [0.0], dict[tuple[str, int], int]()
    compared = after = wrong = 0
    for key in both:
        mine, theirs = one[key], other[key]
        if mine.prompt != theirs.prompt:
            excused = rounded.get((key.question, key.sibling), key.turn) < key.turn
            after, wrong = after + excused, wrong + (not excused)
            continue
        compared += 1
        ids = list(zip(mine.sampled.ids, theirs.sampled.ids, strict=False))
        place = next((place for place, pair in enumerate(ids) if pair[0] != pair[1]), len(ids))
        pairs = zip(mine.sampled.logprobs[:place], theirs.sampled.logprobs[:place], strict=True)
        logprobs += [abs(a - b) for a, b in pairs]
        if place < len(ids):
            gaps.append(gap(key, (*mine.prompt, *mine.sampled.ids[:place]), place, ids[place]))
            rounded.setdefault((key.question, key.sibling), key.turn)
            wrong += gaps[-1] > ROUNDING
        else:
            wrong += len(mine.sampled.ids) != len(theirs.sampled.ids)
    return Difference(compared, max(logprobs), sum(one <= ROUNDING for one in gaps), max(gaps, default=0.0), after, wrong)
