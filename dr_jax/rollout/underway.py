"""Groups under way, and how far each of them is: what must be known to go on with them after a stop.

In:    a stream of questions; what the siblings of a group have seen, said and ended with
Out:   flights, those that an earlier session left before new ones; their state as JSON, unfinished ids included
Holds: a flight is drawn, given up and landed together with its question, so the two never tell different stories; what was
       drawn is not drawn again, nor paid for again; of what is left over, nothing too old is gone on with
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.data.question import Question
from dr_jax.data.stream import Draw, Stream
from dr_jax.rollout.episode import Unfinished
from dr_jax.tokens.policy import Begun, Continuing, Policy, RequestKey, Sampled, Sampling, joined
from dr_jax.tokens.trajectory import Author, Episode, Trajectory

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class UnfinishedSibling:
    """A sibling that has not ended.

    Args:
        sibling: index in the group.
        reached: the episode as it was when it last asked the policy.
        begun: what has been drawn since.
    """

    sibling: int
    reached: Unfinished
    begun: Begun


@dataclass(frozen=True, slots=True)
class UnfinishedGroup:
    """A group that is not complete: what is kept of a flight.

    Args:
        question_id: of its question.
        epoch: in which it was drawn.
        terms: by which its siblings speak and are rewarded; only siblings of the same terms can be compared.
        ended: siblings that have ended, by index; rewarded, or failed by the world.
        left: the others that have begun.
    """

    question_id: str
    epoch: int
    terms: str = ""
    ended: dict[int, Episode] = field(default_factory=dict)
    left: tuple[UnfinishedSibling, ...] = ()

    @property
    def oldest(self) -> int | None:
        """The oldest version that drew any of it; None when nothing is drawn yet."""
        versions = [version for one in self.left for version in one.begun.versions]
        rows = [row for episode in self.ended.values() if episode.trainable for row in episode.trajectories]
        rows += [row for one in self.left for row in one.reached.trajectories]
        return min([*versions, *_versions(rows)], default=None)


_GROUP = TypeAdapter(UnfinishedGroup)


class Flight:
    """A group under way, and how old what it has said is.

    Args:
        draw: its question.
        before: what an earlier session left of it.
    """

    def __init__(self, draw: Draw, before: UnfinishedGroup | None = None) -> None:
        before = before or UnfinishedGroup(draw.question.id, draw.epoch)
        self.draw, self.oldest = draw, before.oldest
        self.ended = dict(before.ended)
        self._spoken = {*before.ended, *(one.sibling for one in before.left)}
        self.aged: Callable[[Flight], None] = lambda flight: None  # told whenever its oldest version becomes known, or older
        self._reached = {one.sibling: one.reached for one in before.left}
        self._drawn = {one.sibling: [one.begun] for one in before.left}

    @property
    def opened(self) -> int:
        """Episodes that have said something."""
        return len(self._spoken)

    def noting(self, policy: Policy) -> Policy:
        """Return the policy as the siblings are to use it: what they draw is noted, what they had drawn is not drawn again."""
        return _Noting(policy, self)

    def begins_with(self, opened: Sequence[int]) -> None:
        """Forget what an earlier session left, if that began with another prompt."""
        rows = [one.trajectories[0] for one in self.ended.values()] + [one.trajectories[0] for one in self._reached.values()]
        if any(row.segments[0].ids != tuple(opened) for row in rows):
            _log.warning("question %s is begun again: it had begun with another prompt", self.draw.question.id)
            for kept in (self.ended, self._spoken, self._reached, self._drawn):
                kept.clear()
            self.oldest = None

    def left(self, sibling: int) -> Unfinished | None:
        """Return how far an earlier session came with a sibling."""
        return self._reached.get(sibling)

    def reach(self, sibling: int, reached: Unfinished) -> None:
        """Take note that a sibling is about to ask the policy; what it has drawn is part of what it has reached."""
        self._reached[sibling], self._drawn[sibling] = reached, []

    def end(self, sibling: int, episode: Episode) -> None:
        """Take note of how a sibling ended, rewards included."""
        self.ended[sibling] = episode
        self._reached.pop(sibling, None)
        self._drawn.pop(sibling, None)

    def so_far(self) -> Callable[[], UnfinishedGroup]:
        """Return what tells how far the group is now, from any thread."""
        ended, left = dict(self.ended), [(one, at, tuple(self._drawn[one])) for one, at in sorted(self._reached.items())]
        draw = self.draw

        def told() -> UnfinishedGroup:
            siblings = tuple(UnfinishedSibling(one, reached, joined(drawn)) for one, reached, drawn in left)
            return UnfinishedGroup(draw.question.id, draw.epoch, ended=ended, left=siblings)

        return told

    def begun(self, sibling: int) -> Begun:
        """Return what was drawn of a sibling's request that is not answered yet."""
        return joined(self._drawn.get(sibling, ()))

    def tell(self, sibling: int, more: Begun) -> None:
        """Take note of what was drawn for a sibling; from any thread."""
        if (drawn := self._drawn.get(sibling)) is not None:
            drawn.append(more)

    def drew(self, key: RequestKey, sampled: Sampled) -> None:
        """Take note of a whole continuation."""
        self._spoken.add(key.sibling)
        if key.sibling in self._drawn:
            self._drawn[key.sibling] = [Begun(sampled.ids, sampled.logprobs, sampled.versions)]
        oldest = min(sampled.versions)
        if self.oldest is None or oldest < self.oldest:
            self.oldest = oldest
            self.aged(self)


class _Noting:
    """A policy that tells a flight what it draws."""

    def __init__(self, policy: Policy, flight: Flight) -> None:
        self._policy, self._flight = policy, flight

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        flight, policy, begun = self._flight, self._policy, self._flight.begun(key.sibling)
        sampled = begun.ended(sampling)
        if sampled is None and isinstance(policy, Continuing):
            sampled = await policy.continued(prompt_ids, sampling, key, begun, partial(flight.tell, key.sibling))
        elif sampled is None:
            sampled = await policy.sample(prompt_ids, sampling, key)
        flight.drew(key, sampled)
        return sampled


class UnderWay:
    """All groups under way of one process.

    Args:
        stream: of questions.
        terms: by which siblings speak and are rewarded in this session; see `UnfinishedGroup`.
        metrics: counts `rollout/resumed_groups`, the tokens that were drawn of them before as `rollout/resumed_tokens`.
    """

    def __init__(self, stream: Stream, metrics: Metrics, terms: str = "") -> None:
        self._stream, self._metrics, self._terms = stream, metrics, terms
        self._flights: dict[Flight, None] = {}  # in the order in which they were begun
        self._left: list[tuple[Question, UnfinishedGroup]] = []

    def next(self, oldest: int) -> Flight:
        """Draw a question, or take up a group that an earlier session has left.

        Args:
            oldest: version; what is left and was drawn by an older one is given up.
        """
        flight = self._taken_up(oldest) or Flight(self._stream.next())
        self._flights[flight] = None
        return flight

    def land(self, flight: Flight) -> None:
        """Let go of a group that is complete; its question stays in flight until it is known what becomes of it."""
        del self._flights[flight]

    def give_up(self, flight: Flight) -> None:
        """Let go of a group that will not be complete; its question is drawn again."""
        del self._flights[flight]
        self._stream.give_back(flight.draw.question.id, flight.draw.epoch, failed=False)

    def give_up_all(self) -> int:
        """Let go of all that have not ended; return how many there were."""
        flights = list(self._flights)
        for flight in flights:
            self.give_up(flight)
        return len(flights)

    def state(self) -> Callable[[], list[str]]:
        """Return what turns the groups under way, as they are now, into a JSON text each; from any thread."""
        left, flying = [group for _, group in self._left], [flight.so_far() for flight in self._flights]
        return lambda: [as_json(_GROUP, replace(group, terms=self._terms)) for group in chain(left, (one() for one in flying))]

    def restore(self, groups: Iterable[UnfinishedGroup], questions: dict[str, Question]) -> None:
        """Go on with these groups before anything new is drawn.

        Args:
            groups: that an earlier session left; the stream holds their questions in flight.
            questions: by id.
        """
        self._left = [(questions[group.question_id], group) for group in groups]

    def read(self, texts: Iterable[str]) -> list[UnfinishedGroup]:
        """Read what `state` has made; without groups that were begun by other terms, which have to begin again.

        Raises:
            ValueError: it is something else.
        """
        groups = [_GROUP.validate_json(text) for text in texts]
        kept = [group for group in groups if group.terms == self._terms]
        if len(kept) < len(groups):
            _log.warning(
                "%d unfinished groups are begun again: episode, reward or the size of a group were set otherwise",
                len(groups) - len(kept),
            )
        return kept

    def _taken_up(self, oldest: int) -> Flight | None:
        while self._left:
            question, group = self._left.pop(0)
            if group.oldest is not None and group.oldest < oldest:
                self._stream.give_back(question.id, group.epoch, failed=False)
                self._metrics.add("rollout/stale_groups")
                continue
            self._metrics.add("rollout/resumed_groups")
            self._metrics.add("rollout/resumed_tokens", sum(one.reached.drawn + len(one.begun.ids) for one in group.left))
            return Flight(Draw(question, group.epoch), group)
        return None


def as_json(adapter: TypeAdapter[Any], value: Any) -> str:
    """Write a value as JSON that reads back as it was: also numbers that are not finite, which a broken model draws with."""
    return to_json(adapter.dump_python(value), inf_nan_mode="constants").decode()


def _versions(rows: Iterable[Trajectory]) -> list[int]:
    return [min(segment.versions) for row in rows for segment in row.by(Author.POLICY)]
