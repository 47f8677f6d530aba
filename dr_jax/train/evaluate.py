"""Measure a policy on held-out questions.

In:    questions, a way to run one episode
Out:   Score: mean F1 and EM with intervals, by source; outcomes, tool calls; the episodes themselves
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
    pairs = list(zip(questions, episodes, strict=True))
    by_source, by_hops = defaultdict(list), defaultdict(list)
    for question, episode in pairs:
        by_source[question.source or "?"].append((question, episode))
        if question.hops:
            by_hops[f"{question.hops} hop{'s' if question.hops > 1 else ''}"].append((question, episode))
    return Score(
        _row("all", pairs),
        tuple(_row(name, rows) for name, rows in sorted(by_source.items())),
        tuple(_row(name, rows) for name, rows in sorted(by_hops.items())),
    )


def figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Return what is plotted of a score's tree, under `eval/`."""
    names = ("f1", "em", "tool_calls", "world_failed")
    groups = {**found["by_source"], **found["by_hops"]}
    parts = {f"eval/f1_{name.replace(' ', '_')}": float(row["f1"]) for name, row in groups.items()} if len(groups) > 1 else {}
    return {**{f"eval/{name}": float(found[name]) for name in names}, **parts}


def _row(name: str, pairs: Sequence[tuple[Question, Episode]]) -> Row:
    counted = [(question, episode) for question, episode in pairs if episode.outcome is not Outcome.WORLD_FAILED]
    f1s = [f1(episode.answer or "", question.answers) for question, episode in counted]
    ems = [exact_match(episode.answer or "", question.answers) for question, episode in counted]
    calls = [len(episode.tools) for _, episode in counted]
    n = max(len(counted), 1)
    return Row(
        source=name,
        n=len(counted),
        f1=sum(f1s) / n,
        em=sum(ems) / n,
        ci95=bootstrap_interval(f1s) if f1s else (0.0, 1.0),
        world_failed=len(pairs) - len(counted),
        tool_calls=sum(calls) / n,
        outcomes=dict(sorted(Counter(episode.outcome.value for _, episode in pairs).items())),
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
