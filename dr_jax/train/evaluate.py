"""Measure a policy on held-out questions.

In:    questions with an episode each
Out:   Mark: what one of them came to; Score: mean F1 and EM with intervals, by source; outcomes, tool calls
Counts: episodes that the world failed apart; they are neither right nor wrong
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dr_jax.base.metrics import bootstrap_interval
from dr_jax.data.question import Question
from dr_jax.rewards.match import exact_match, f1
from dr_jax.tokens.trajectory import Episode, Outcome


@dataclass(frozen=True, slots=True)
class Mark:
    """What an episode came to on its question.

    Args:
        source: of the question; "?" where it has none.
        hops: of the question; 0 where that is not known.
        f1: of the answer.
        em: of the answer.
        calls: of tools.
        outcome: of the episode.
    """

    source: str
    hops: int
    f1: float
    em: float
    calls: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Row:
    """One source's line of the table, or the line of all."""

    source: str
    n: int
    f1: float
    em: float
    ci95: tuple[float, float]
    world_failed: int
    tool_calls: float
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Score:
    """What an evaluation found."""

    overall: Row
    by_source: tuple[Row, ...]
    by_hops: tuple[Row, ...]

    def tree(self) -> dict[str, Any]:
        """The score as JSON values, in the shape of `summary.json`."""
        return {
            **_tree(self.overall),
            "by_source": {row.source: _tree(row) for row in self.by_source},
            "by_hops": {row.source: _tree(row) for row in self.by_hops},
        }


def score(questions: Sequence[Question], episodes: Sequence[Episode]) -> Score:
    """Score one episode per question, in the same order.

    Intervals are 95 % bootstrap intervals of the mean F1 over questions.
    """
    return scored([mark(question, episode) for question, episode in zip(questions, episodes, strict=True)])


def mark(question: Question, episode: Episode) -> Mark:
    """Compare an episode's answer with those that are accepted."""
    answer, accepted = episode.answer or "", question.answers
    return Mark(
        source=question.source or "?",
        hops=question.hops or 0,
        f1=f1(answer, accepted),
        em=exact_match(answer, accepted),
        calls=len(episode.tools),
        outcome=episode.outcome.value,
    )


def scored(marks: Sequence[Mark]) -> Score:
    """Put the marks of all questions together, in their order."""
    by_source, by_hops = defaultdict(list), defaultdict(list)
    for one in marks:
        by_source[one.source].append(one)
        if one.hops:
            by_hops[f"{one.hops} hop{'s' if one.hops > 1 else ''}"].append(one)
    return Score(
        _row("all", marks),
        tuple(_row(name, rows) for name, rows in sorted(by_source.items())),
        tuple(_row(name, rows) for name, rows in sorted(by_hops.items())),
    )


def figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Return what is plotted of a score's tree, under `eval/`."""
    names = ("f1", "em", "tool_calls", "world_failed")
    groups = {**found["by_source"], **found["by_hops"]}
    parts = {f"eval/f1_{name.replace(' ', '_')}": float(row["f1"]) for name, row in groups.items()} if len(groups) > 1 else {}
    return {**{f"eval/{name}": float(found[name]) for name in names}, **parts}


def _row(name: str, marks: Sequence[Mark]) -> Row:
    counted = [one for one in marks if one.outcome != Outcome.WORLD_FAILED.value]
    f1s = [one.f1 for one in counted]
    n = max(len(counted), 1)
    return Row(
        source=name,
        n=len(counted),
        f1=sum(f1s) / n,
        em=sum(one.em for one in counted) / n,
        ci95=bootstrap_interval(f1s) if f1s else (0.0, 1.0),
        world_failed=len(marks) - len(counted),
        tool_calls=sum(one.calls for one in counted) / n,
        outcomes=dict(sorted(Counter(one.outcome for one in marks).items())),
    )


def _tree(row: Row) -> dict[str, Any]:
    return {
        "n": row.n,
        "f1": round(row.f1, 4),
        "em": round(row.em, 4),
        "ci95": [round(bound, 4) for bound in row.ci95],
        "world_failed": row.world_failed,
        "tool_calls": round(row.tool_calls, 3),
        "outcomes": row.outcomes,
    }
