"""The first seam: prompt ids in; sampled ids, their log-probabilities and the weights' version out.

In:    ids of everything so far, how to sample, a key that belongs to this request alone
Out:   Sampled
Knows: nothing of questions, tools or the web. `engine` implements it; so can a server elsewhere or a script in a test
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

from dr_jax.tokens.trajectory import Author, Segment


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What the random numbers of a request depend on, and nothing else (not the batch, not the time).

    Args:
        run: the run's seed.
        question: the question's id, as text.
        sibling: index in the group.
        turn: index of the generation in the episode.
        purpose: separates streams of one episode ("act", "read", "eval:12"): the reading agent never reuses the actor's.
    """

    run: int
    question: str
    sibling: int
    turn: int
    purpose: str = "act"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw the ids of one request.

    Args:
        max_new_tokens: the most ids to draw, at least 1.
        temperature: 0 is greedy; log-probabilities are then of the untempered distribution.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: how many of the most probable ids may be drawn; 0 is off.
        stop_ids: drawing one of these ends the request; it is kept as the last id.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens}; at least 1 is needed")
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature}; 0 (greedy) or more is needed")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}; it lies in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}; 0 (off) or more is needed")


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn.

    Args:
        ids: at least one id; the last one is a stop id exactly when `finish` is "stop".
        logprobs: of each id under the distribution that was really sampled from (after temperature, top-k and top-p).
        versions: of the weights that drew each id; more than one when weights were adopted on the way.
        finish: "stop" (a stop id) or "length" (the budget).
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish: Literal["stop", "length"]

    def segment(self) -> Segment:
        """The POLICY segment of these ids."""
        return Segment(Author.POLICY, self.ids, self.logprobs, self.versions)


@dataclass(frozen=True, slots=True)
class Begun:
    """What was drawn of a continuation that goes on, here or elsewhere; nothing yet, when it is empty.

    Args:
        ids: in order.
        logprobs: one per id.
        versions: one per id.
    """

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.logprobs) == len(self.versions):
            raise ValueError(f"{len(self.ids)} ids, {len(self.logprobs)} log-probabilities, {len(self.versions)} versions")

    def then(self, more: Begun) -> Begun:
        """What was drawn, and what was drawn after it."""
        return Begun(self.ids + more.ids, self.logprobs + more.logprobs, self.versions + more.versions)

    def ended(self, sampling: Sampling) -> Sampled | None:
        """The whole continuation, if nothing more is to be drawn; else None."""
        if self.ids and self.ids[-1] in sampling.stop_ids:
            return Sampled(self.ids, self.logprobs, self.versions, "stop")
        if len(self.ids) >= sampling.max_new_tokens:
            return Sampled(self.ids, self.logprobs, self.versions, "length")
        return None


class Policy(Protocol):
    """Anything that continues a sequence of ids."""

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Draw a continuation.

        Cancelling the awaiting task cancels the request and frees what it held. The caller sets the deadline.

        Raises:
            ContextFullError: prompt and budget can never fit.
            DrJaxError: the policy stopped; nothing was drawn.
        """
        ...


def joined(drawn: Sequence[Begun]) -> Begun:
    """Return what was drawn in so many pieces as one, in time that grows with its length alone."""
    parts = tuple(drawn)  # another thread may append
    if len(parts) == 1:
        return parts[0]
    names = ("ids", "logprobs", "versions")
    return Begun(*(tuple(chain.from_iterable(getattr(part, name) for part in parts)) for name in names))


Told = Callable[[Begun], None]


@runtime_checkable
class Continuing(Policy, Protocol):
    """A policy that goes on from ids that were drawn before, and tells what it draws on the way."""

    async def continued(
        self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, begun: Begun, told: Told | None = None
    ) -> Sampled:
        """Draw what is left of a continuation; see `Policy.sample`.

        Args:
            prompt_ids, sampling, key: as everywhere.
            begun: what was drawn of this request before, here or elsewhere: its ids are computed, not drawn again, and what
                follows is what would have followed there. It is part of what is returned.
            told: called with what is drawn, as it is, from any thread.
        """
        ...
