"""Compare two evaluations on the questions that both attempted.

In:    two directories of `dr-jax eval`
Out:   Paired: both means, their difference with its interval, and how likely chance makes one as large; by source and hops
Counts: what only one attempted, or the world failed in either, apart: it is no difference between policies
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_jax.base.errors import DataError
from dr_jax.base.metrics import bootstrap_interval
from dr_jax.rewards.match import exact_match, f1
from dr_jax.rollout.record import read_episodes
from dr_jax.tokens.trajectory import Outcome

_FLIPS, _AT_ONCE = 20_000, 500


@dataclass(frozen=True, slots=True)
class Paired:
    """One line of the comparison; scores are means over `n` questions.

    Args:
        name: of the source, of the number of hops, or `all`.
        n: questions that both attempted.
        left, right: mean F1 of the two.
        difference: right less left.
        ci95: its 95 % bootstrap interval over questions.
        p: of a two-sided sign-flip test: the share of random swaps of the two sides, question by question, that make the
            difference at least as large (Fisher 1935; Phipson and Smyth 2010 for the one that is added).
        left_em, right_em: mean exact match.
    """

    name: str
    n: int
    left: float
    right: float
    difference: float
    ci95: tuple[float, float]
    p: float
    left_em: float
    right_em: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two evaluations say about each other.

    Args:
        rows: `all` first, then sources and hops.
        unpaired: questions that only one of them attempted.
        world_failed: questions that the world failed in either.
    """

    rows: tuple[Paired, ...]
    unpaired: int
    world_failed: int

    def tree(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {"rows": [asdict(row) for row in self.rows], "unpaired": self.unpaired, "world_failed": self.world_failed}


def compare(left: Path, right: Path) -> Comparison:
    """Compare two evaluations.

    Args:
        left, right: directories with the `episodes.jsonl` of an evaluation.

    Raises:
        DataError: there are no episodes in one, or no question in common, or the same question has other answers.
    """
    one, other = _attempts(left), _attempts(right)
    common = sorted(one.keys() & other.keys())
    if not common:
        raise DataError(
            f"{left} and {right} have no question in common",
            needed="two evaluations of the same questions",
            fix="see `dr-jax eval`",
        )
    pairs = [(one[name], other[name]) for name in common]
    differing = next((ours for ours, theirs in pairs if ours["answers"] != theirs["answers"]), None)
    if differing is not None:
        raise DataError(
            f"Question {differing['question_id']!r} has other accepted answers in {left} than in {right}",
            needed="two evaluations of the same questions",
        )
    attempted = [pair for pair in pairs if all(row["outcome"] != Outcome.WORLD_FAILED.value for row in pair)]
    parts = defaultdict[str, list[tuple[dict[str, Any], dict[str, Any]]]](list)
    for pair in attempted:
        parts[pair[0]["source"] or "?"].append(pair)
        if hops := pair[0].get("hops"):
            parts[f"{hops} hop{'s' if hops > 1 else ''}"].append(pair)
    rows = [_paired("all", attempted)] if attempted else []
    rows += [_paired(name, chosen) for name, chosen in sorted(parts.items())]
    return Comparison(tuple(rows), len(one.keys() ^ other.keys()), len(pairs) - len(attempted))


def p_value(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return how likely random signs give a mean at least as far from 0 as that of these differences."""
    values = np.asarray(differences, np.float64)
    rng, seen, as_far = np.random.default_rng(seed), abs(values.sum()) - 1e-9, 1
    for _ in range(_FLIPS // _AT_ONCE):
        signs = rng.choice(np.array([-1.0, 1.0]), (_AT_ONCE, len(values)))
        as_far += int(np.count_nonzero(abs(signs @ values) >= seen))
    return as_far / (1 + _FLIPS)


def _attempts(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / "episodes.jsonl"
    if not path.exists():
        raise DataError(f"There are no episodes in {directory}", needed="a directory of `dr-jax eval`", fix="see `ls runs`")
    found: dict[str, dict[str, Any]] = {}
    for row in read_episodes(path):
        if row.get("step") is not None:
            raise DataError(
                f"{directory} holds the episodes of a training run, several of a question",
                needed="a directory of `dr-jax eval`",
                fix=f"evaluate its model: dr-jax eval CONFIG --checkpoint {directory / 'model'} name=NAME",
            )
        found[row["question_id"]] = row
    return found


def _paired(name: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Paired:
    scores = np.asarray([[f1(row["answer"] or "", row["answers"]) for row in pair] for pair in pairs])
    exact = np.asarray([[exact_match(row["answer"] or "", row["answers"]) for row in pair] for pair in pairs])
    differences = (scores[:, 1] - scores[:, 0]).tolist()
    left, right = scores.mean(axis=0).tolist()
    left_em, right_em = exact.mean(axis=0).tolist()
    interval = bootstrap_interval(differences)
    return Paired(name, len(pairs), left, right, right - left, interval, p_value(differences), left_em, right_em)
