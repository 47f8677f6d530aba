"""Compare two cells on the questions that both attempted.

In:    two cells
Out:   for each metric that both have: both means, their difference with its interval, and how likely chance makes one as large
Holds: paired by question; the same attempts always give the same numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dr_jax.base.errors import DataError
from dr_jax.base.metrics import bootstrap_interval
from dr_jax.evaluate.journal import Cell
from dr_jax.evaluate.table import by_question

METRICS = ("f1", "em", "cover_em", "squad_f1", "squad_em", "judge", "calls", "tokens")
_ALL = 14  # with so many questions, all signs are tried instead of some
_DRAWS, _AT_ONCE = 20_000, 500
_ROUNDING = 1e-9


def compared(first: Cell, second: Cell) -> dict[str, Any]:
    """Compare; a positive difference means that the second has more of it.

    Raises:
        DataError: they have no question in common, or accept other answers to the same one.
    """
    accepted = [{one.question: one.accepted for one in cell.attempts.values()} for cell in (first, second)]
    other = next(
        (name for name in sorted(accepted[0].keys() & accepted[1].keys()) if accepted[0][name] != accepted[1][name]), ""
    )
    if other:
        raise DataError(
            f"{first.name} and {second.name} accept other answers to the question {other!r}",
            needed="two evaluations of the same questions",
            fix="evaluate both on the same file",
        )
    judge = next(iter(sorted(first.verdicts.keys() & second.verdicts.keys())), "")
    a, b = (by_question(cell.attempts.values(), cell.verdicts[judge] if judge else None) for cell in (first, second))
    both = sorted(a.keys() & b.keys())
    if not both:
        raise DataError(
            f"{first.name} and {second.name} have no question in common that both attempted",
            needed="two evaluations of the same questions",
            fix="name cells of the same set",
        )
    found: dict[str, Any] = {
        "first": first.name,
        "second": second.name,
        "questions": len(both),
        "only_first": len(a) - len(both),
        "only_second": len(b) - len(both),
    }
    for metric in METRICS:
        pairs = [(a[name][metric], b[name][metric]) for name in both if metric in a[name] and metric in b[name]]
        if pairs:
            found[metric] = _paired([x for x, _ in pairs], [y for _, y in pairs])
    return found


def _paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    differences = [y - x for x, y in zip(first, second, strict=True)]
    low, high = bootstrap_interval(differences)
    return {
        "n": len(differences),
        "first": round(sum(first) / len(first), 4),
        "second": round(sum(second) / len(second), 4),
        "difference": round(sum(differences) / len(differences), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "p": sign_flip_p(differences),
    }


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean difference under random exchanges within pairs.

    Fisher's randomisation test (The Design of Experiments, 1935, §21): exact for few pairs, else from 20,000 draws, counting
    the observed one among them (Phipson and Smyth, 2010), so that it is never 0.
    """
    values = np.asarray([one for one in differences if one], dtype=np.float64)  # a 0 has no sign
    if not len(values):
        return 1.0
    observed = abs(values.sum()) - _ROUNDING
    if len(values) <= _ALL:
        bits = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ values) >= observed))
    rng, as_far = np.random.default_rng(0), 1
    for _ in range(_DRAWS // _AT_ONCE):
        signs = rng.choice(np.array([-1.0, 1.0]), (_AT_ONCE, len(values)))
        as_far += int(np.count_nonzero(np.abs(signs @ values) >= observed))
    return as_far / (1 + _DRAWS)


def pairs(first: Sequence[Cell], second: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Say which cells of two evaluations belong together.

    Two single cells do; of several, those of the same model, set and way, or, where each evaluation has one model, of the same
    set and way.

    Raises:
        DataError: none do.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    single = len({one.model for one in first}) == len({one.model for one in second}) == 1

    def key(cell: Cell) -> tuple[str, ...]:
        return (cell.questions, cell.way) if single else (cell.model, cell.questions, cell.way)

    others = {key(one): one for one in second}
    found = [(one, others[key(one)]) for one in first if key(one) in others]
    if not found:
        raise DataError(
            "The two evaluations have no cell in common",
            needed="the same sets and ways in both",
            fix=f"name two cells, such as {first[0].name} of the first and {second[0].name} of the second",
        )
    return found
