"""What is kept of one finished attempt: facts, from which every number is computed when it is looked at.

In:    an episode and its question
Out:   Attempt; as a JSON object, and back
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from dr_jax.data.question import Question
from dr_jax.tokens.trajectory import Author, Episode, Outcome

Key = tuple[str, int]  # question, sample


@dataclass(frozen=True, slots=True)
class Attempt:
    """One finished attempt at a question.

    Args:
        question: its id.
        sample: which attempt at it, from 0.
        text: of the question.
        accepted: answers that are right.
        source, hops: of the question.
        outcome: how it ended.
        answer: what was said; None unless it was answered.
        calls: of tools.
        tokens: that the policy saw and wrote, prompt included.
        written: of them, by the policy.
        seconds: it took.
        failure: of the world.
        spent: on searches, readings and the policy's server since the attempt that ended before it: exact when it is added up.
    """

    question: str
    sample: int
    text: str
    accepted: tuple[str, ...]
    source: str
    hops: int
    outcome: Outcome
    answer: str | None
    calls: int = 0
    tokens: int = 0
    written: int = 0
    seconds: float = 0.0
    failure: str = ""
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Which attempt it is."""
        return self.question, self.sample

    @property
    def counted(self) -> bool:
        """Whether it says something about the policy: the world's failures do not."""
        return self.outcome is not Outcome.WORLD_FAILED

    def row(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "outcome": self.outcome.value}


_READ = TypeAdapter(Attempt)


def read_attempt(row: Any) -> Attempt:
    """Read what `row` wrote.

    Raises:
        ValueError: it is something else.
    """
    return _READ.validate_python(row)


def attempted(question: Question, sample: int, episode: Episode, spent: dict[str, float]) -> Attempt:
    """Return what is kept of an episode."""
    written = [segment for one in episode.trajectories for segment in one.by(Author.POLICY)]
    return Attempt(
        question.id,
        sample,
        question.text,
        question.answers,
        question.source,
        question.hops,
        episode.outcome,
        episode.answer,
        calls=len(episode.tools),
        tokens=sum(len(one) for one in episode.trajectories),
        written=sum(len(segment.ids) for segment in written),
        seconds=round(episode.seconds.get("all", 0.0), 3),
        failure=episode.failure,
        spent=spent,
    )


def of_row(row: dict[str, Any]) -> Attempt:
    """Return what is kept of an episode as `rollout.record` writes it, which has no samples and no spending."""
    segments = [segment for trajectory in row["trajectories"] for segment in trajectory["segments"]]
    return Attempt(
        row["question_id"],
        0,
        row["question"],
        tuple(row["answers"]),
        row["source"],
        row["hops"],
        Outcome(row["outcome"]),
        row["answer"],
        calls=len(row["tools"]),
        tokens=sum(len(segment["ids"]) for segment in segments),
        written=sum(len(segment["ids"]) for segment in segments if segment["author"] == Author.POLICY.value),
        seconds=row["seconds"].get("all", 0.0),
        failure=row["failure"],
    )
