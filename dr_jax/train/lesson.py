"""What all processes learn from together in one update, and find out together in one evaluation.

In:    this process's part: trajectories dealt into rows, groups, marks, numbers, what was spent
Out:   micro-batches whose shapes are everybody's and whose weights are normalised by the tokens of all; on process 0 the
       episodes and numbers of all; the marks of all
Holds: the loss is that of one process with all groups, and a budget that of one process; with one process nothing is sent
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dr_jax.learn.batch import Batch, Dealt
from dr_jax.tokens.trajectory import Group
from dr_jax.train.evaluate import Mark
from dr_jax.train.state import brief

if TYPE_CHECKING:
    from dr_jax.train.run import Run


def joined(run: Run, own: Dealt, groups: Sequence[Group]) -> tuple[tuple[Batch, ...], list[dict[str, Any]]]:
    """Lay out this process's rows of the next update; it is made when all have brought theirs.

    Returns:
        This process's rows of each micro-batch, none when nobody has anything to learn; and every episode in brief, which
        other processes than the first know of their own only.

    Raises:
        LeftError: a process has ended the run; there is no update.
        LostError: a process is gone.
    """
    episodes = [brief(episode) for group in groups for episode in group.episodes]
    if run.together.alone:
        return own.laid(), episodes
    parcel = None if run.together.first else {"episodes": episodes, "metrics": run.metrics.sent()}
    spent = run.purse.spent()
    brought = run.together.exchange([own.lengths, own.total, spent], parcel)
    for sent in run.together.parcels():
        episodes += sent["episodes"]
        run.metrics.absorb(sent["metrics"])
    run.purse.settle(spent, [theirs for _, _, theirs in brought])
    lengths = [max(one) for one in itertools.zip_longest(*(lengths for lengths, _, _ in brought), fillvalue=0)]
    return own.laid(lengths, sum(total for _, total, _ in brought)), episodes


def measured(run: Run, own: Sequence[Mark]) -> list[Mark]:
    """Return the marks of all processes, in the order of the questions.

    Raises:
        LeftError, LostError: as `joined`.
    """
    if run.together.alone:
        return list(own)
    parcel = None if run.together.first else run.metrics.sent()
    shares = run.together.exchange([asdict(one) for one in own], parcel)
    for sent in run.together.parcels():
        run.metrics.absorb(sent)
    return [Mark(**one) for one in run.together.woven(shares)]


class Purse:
    """What all processes have spent, so that each knows when a budget of the run is used up: one round later at the most.

    Args:
        budgets: each with the names of its attributes that count.
    """

    def __init__(self, *budgets: tuple[Any, Sequence[str]]) -> None:
        self._counts = [(budget, name) for budget, names in budgets for name in names]
        self.start()

    def start(self) -> None:
        """Begin with what the budgets say, which all processes agree on."""
        self._known = self._now()

    def spent(self) -> list[float]:
        """Return what this process has spent since the last round."""
        return [now - known for now, known in zip(self._now(), self._known, strict=True)]

    def settle(self, own: Sequence[float], all_: Sequence[Sequence[float]]) -> None:
        """Add what the others have spent, each as `spent` told it; `own` is what this process told."""
        for place, (budget, name) in enumerate(self._counts):
            together = sum(spent[place] for spent in all_)
            setattr(budget, name, getattr(budget, name) - own[place] + together)
            self._known[place] += together

    def _now(self) -> list[float]:
        return [getattr(budget, name) for budget, name in self._counts]
