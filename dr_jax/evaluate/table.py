"""One row per cell: every metric with its interval, and the same by source, by hops and by outcome.

In:    a cell of an evaluation
Out:   Row: numbers as JSON values
Holds: intervals are over questions, however many samples each has; what the world failed, and what a judge left open, are
       counted apart
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dr_jax.base.metrics import bootstrap_interval
from dr_jax.evaluate.attempt import Attempt
from dr_jax.evaluate.journal import Cell
from dr_jax.evaluate.metrics import Verdicts, of_question

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Number:
    """A mean over questions, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def tree(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"mean": round(self.mean, _DIGITS), "ci95": [round(self.low, _DIGITS), round(self.high, _DIGITS)]}


@dataclass(frozen=True, slots=True)
class Row:
    """Some attempts in numbers.

    Args:
        questions: that at least one attempt counts of.
        attempts: that count.
        world_failed: attempts that say nothing about the policy.
        unreadable: answers that the judge gave no verdict about.
        outcomes: how many attempts ended how.
        spent: on all of them, by what it was spent on.
        numbers: by metric.
    """

    questions: int
    attempts: int
    world_failed: int
    unreadable: int
    outcomes: dict[str, int]
    spent: dict[str, float]
    numbers: dict[str, Number]

    def tree(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "questions": self.questions,
            "attempts": self.attempts,
            "world_failed": self.world_failed,
            "unreadable": self.unreadable,
            "outcomes": self.outcomes,
            "spent": {name: round(amount, 6) for name, amount in self.spent.items()},
            **{name: number.tree() for name, number in self.numbers.items()},
        }


def by_question(attempts: Iterable[Attempt], verdicts: Verdicts | None = None) -> dict[str, dict[str, float]]:
    """Return the metrics of each question; those of which no attempt counts are left out."""
    together: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        together[attempt.question].append(attempt)
    found = {name: of_question(ones, verdicts) for name, ones in sorted(together.items())}
    return {name: numbers for name, numbers in found.items() if numbers}


def row(attempts: Sequence[Attempt], verdicts: Verdicts | None = None, rest: Mapping[str, float] | None = None) -> Row:
    """Put attempts into numbers.

    Args:
        attempts: any.
        verdicts: of a judge.
        rest: what was spent beside them.
    """
    questions = by_question(attempts, verdicts)
    names = dict.fromkeys(name for numbers in questions.values() for name in numbers)
    counted = [one for one in attempts if one.counted]
    spent: Counter[str] = Counter(rest or {})
    for one in attempts:
        spent.update(one.spent)
    return Row(
        questions=len(questions),
        attempts=len(counted),
        world_failed=len(attempts) - len(counted),
        unreadable=sum(verdicts.get(one.key) == "unreadable" for one in counted) if verdicts is not None else 0,
        outcomes=dict(sorted(Counter(one.outcome.value for one in attempts).items())),
        spent=dict(sorted(spent.items())),
        numbers={name: _number([one[name] for one in questions.values() if name in one]) for name in names},
    )


def table(cell: Cell, judge: str = "") -> dict[str, Any]:
    """Return a cell as JSON values: all of it, and by source, hops and outcome.

    Args:
        cell: as read from its journal.
        judge: whose verdicts count; "" is none's.
    """
    attempts = sorted(cell.attempts.values(), key=lambda one: one.key)
    verdicts = cell.verdicts.get(judge, {}) if judge else None

    def split(name: Callable[[Attempt], str]) -> dict[str, Any]:
        groups: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            groups[name(attempt)].append(attempt)
        return {key: row(ones, verdicts).tree() for key, ones in sorted(groups.items()) if key}

    return {
        "model": cell.model,
        "set": cell.questions,
        "way": cell.way,
        **row(attempts, verdicts, cell.rest).tree(),
        "by_source": split(lambda one: one.source or "?"),
        "by_hops": split(lambda one: f"{one.hops} hop{'s' if one.hops > 1 else ''}" if one.hops else ""),
        "by_outcome": split(lambda one: one.outcome.value),
        **({"judging": dict(sorted(cell.judging.get(judge, {}).items()))} if judge else {}),
    }


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table in the shape of a run's `summary.json`, so that whatever shows runs shows it."""

    def one(row: Mapping[str, Any]) -> dict[str, Any]:
        f1, em, calls = (row.get(name, {"mean": 0.0, "ci95": [0.0, 1.0]}) for name in ("f1", "em", "calls"))
        counts = {name: row[name] for name in ("world_failed", "outcomes")}
        return {
            "n": row["attempts"],
            "f1": f1["mean"],
            "em": em["mean"],
            "ci95": f1["ci95"],
            "tool_calls": calls["mean"],
            **counts,
        }

    groups = {name: {key: one(row) for key, row in found[name].items()} for name in ("by_source", "by_hops")}
    return {**one(found), **groups}


def money(row: Mapping[str, Any]) -> float:
    """Return what a row cost in all."""
    return sum(amount for name, amount in row["spent"].items() if name.endswith("money"))


def _number(values: Sequence[float]) -> Number:
    low, high = bootstrap_interval(values)
    return Number(sum(values) / len(values), low, high)
