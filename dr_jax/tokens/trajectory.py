"""What was seen and said, in order: the second seam, from the host's words to the device's numbers.

In:    segments appended by `rollout`, one author each
Out:   Group, the finished episodes of one question with their rewards; `learn` reads nothing else
Holds: a POLICY segment without one log-probability and one version per id cannot be built; nothing is ever rewritten
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any


class Author(enum.Enum):
    """Who wrote a segment. The loss mask is authorship; it is never computed."""

    WORLD = "world"
    POLICY = "policy"


class Outcome(enum.Enum):
    """How an episode ended. Matched exhaustively wherever it decides anything."""

    ANSWERED = "answered"
    OUT_OF_TURNS = "out_of_turns"
    OUT_OF_TOKENS = "out_of_tokens"
    MALFORMED = "malformed"
    WORLD_FAILED = "world_failed"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of token ids with one author.

    Args:
        author: WORLD (prompt, observations, pre-filled text) or POLICY (sampled).
        ids: token ids, never empty.
        logprobs: POLICY only: log-probability of each id under the distribution that it was drawn from.
        versions: POLICY only: version of the weights that drew each id.
    """

    author: Author
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("a segment needs at least one id")
        wanted = len(self.ids) if self.author is Author.POLICY else 0
        if len(self.logprobs) != wanted or len(self.versions) != wanted:
            raise ValueError(
                f"a {self.author.name} segment of {len(self.ids)} ids needs {wanted} log-probabilities and {wanted} versions; "
                f"found {len(self.logprobs)} and {len(self.versions)}"
            )


def world(ids: tuple[int, ...] | list[int]) -> Segment:
    """Build a segment that the world wrote."""
    return Segment(Author.WORLD, tuple(ids))


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An append-only tuple of segments: exactly what the policy saw and said, in order."""

    segments: tuple[Segment, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id in order: the prompt of the next turn and the row that is trained on."""
        return tuple(token for segment in self.segments for token in segment.ids)

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)

    def append(self, segment: Segment) -> Trajectory:
        """Return the trajectory with one more segment; earlier ids are untouched."""
        return Trajectory((*self.segments, segment))

    def by(self, author: Author) -> tuple[Segment, ...]:
        """Return this author's segments in order."""
        return tuple(segment for segment in self.segments if segment.author is author)


@dataclass(frozen=True, slots=True)
class ToolEvent:
    """One tool call as it happened.

    Args:
        turn: index of the generation that asked for it, from 0.
        name: the tool; "" when the text held no readable call.
        arguments: what the policy asked for, as parsed.
        observation: the text that it was shown.
        error: what went wrong, "" when nothing did; an error is shown to the policy as an observation.
        seconds: how long the world took.
    """

    turn: int
    name: str
    arguments: dict[str, Any]
    observation: str
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The text of one generation, derived from its ids for parsers and people; never encoded again."""

    text: str
    prefilled: str = ""


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at a question.

    Args:
        id: unique in its run, e.g. `q17.3` (question, sibling).
        question_id: the question's id.
        trajectories: usually one; more when a context manager rewrote the past.
        outcome: how it ended.
        turns: what the policy wrote, one entry per generation, over all trajectories.
        answer: the text inside the final answer tags; None unless ANSWERED.
        tools: every call in order.
        rewards: named parts that `total` sums, each already weighted; empty for WORLD_FAILED.
        step_rewards: optional extra reward per turn, aligned with `turns`.
        seconds: wall-clock seconds by phase (`policy`, `world`, `all`).
        failure: why the world failed; "" otherwise.
    """

    id: str
    question_id: str
    trajectories: tuple[Trajectory, ...]
    outcome: Outcome
    turns: tuple[Turn, ...] = ()
    answer: str | None = None
    tools: tuple[ToolEvent, ...] = ()
    rewards: dict[str, float] = field(default_factory=dict)
    step_rewards: tuple[float, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def __post_init__(self) -> None:
        if self.outcome is Outcome.WORLD_FAILED and (self.rewards or self.step_rewards):
            raise ValueError("an episode that the world failed is never rewarded")
        if (self.answer is not None) != (self.outcome is Outcome.ANSWERED):
            raise ValueError(f"an {self.outcome.name} episode {'needs' if self.answer is None else 'cannot hold'} an answer")
        if self.step_rewards and len(self.step_rewards) != len(self.turns):
            raise ValueError(f"{len(self.step_rewards)} step rewards for {len(self.turns)} turns")

    @property
    def reward(self) -> float:
        """The sum of the reward parts.

        Raises:
            ValueError: the world failed this episode, or it was not rewarded yet.
        """
        if not self.rewards:
            raise ValueError(f"episode {self.id} ({self.outcome.name}) has no reward")
        return sum(self.rewards.values())

    @property
    def trainable(self) -> bool:
        """Whether it was rewarded: everything but WORLD_FAILED, once the rewards were computed."""
        return bool(self.rewards)

    def rewarded(self, parts: dict[str, float], step_rewards: tuple[float, ...] = ()) -> Episode:
        """Return the episode with its rewards."""
        return replace(self, rewards=parts, step_rewards=step_rewards)


@dataclass(frozen=True, slots=True)
class Group:
    """G episodes of one question; the siblings differ only by key.

    Args:
        question_id: the question's id.
        episodes: every sibling, WORLD_FAILED ones included: they are counted, and left out by `trainable`.
        source: the question's source, for metrics.
        epoch: in which the question was drawn; it may be out in two at once.
    """

    question_id: str
    episodes: tuple[Episode, ...]
    source: str = ""
    epoch: int = 0

    def __post_init__(self) -> None:
        strays = {episode.question_id for episode in self.episodes} - {self.question_id}
        if strays:
            raise ValueError(f"group {self.question_id} was given episodes of {sorted(strays)}")

    @property
    def trainable(self) -> tuple[Episode, ...]:
        """The siblings that carry a reward."""
        return tuple(episode for episode in self.episodes if episode.trainable)

    @property
    def oldest_version(self) -> int | None:
        """The oldest weights that drew any of the group's trainable ids; None when there are none."""
        found = [
            min(segment.versions)
            for episode in self.trainable
            for trajectory in episode.trajectories
            for segment in trajectory.by(Author.POLICY)
        ]
        return min(found, default=None)
