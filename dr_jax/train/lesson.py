"""What all processes learn from together in one update: each brings rows of its own, and all bring as many.

In:    what this process has dealt into rows, and its groups
Out:   micro-batches whose shapes are everybody's and whose weights are normalised by the tokens of all; every episode in brief
Holds: the loss is that of one process with all groups; with one process nothing is sent
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from dr_jax.base.metrics import Metrics
from dr_jax.learn.batch import Batch, Dealt
from dr_jax.tokens.trajectory import Group
from dr_jax.train.state import brief
from dr_jax.train.together import Together


def joined(
    together: Together, own: Dealt, groups: Sequence[Group], metrics: Metrics
) -> tuple[tuple[Batch, ...], list[dict[str, Any]]]:
    """Lay out this process's rows of the next update; on process 0 also put the others' numbers to its own.

    Returns:
        This process's rows of each micro-batch, none when nobody has anything to learn; and the episodes of all processes on
        process 0, those of this one elsewhere.

    Raises:
        LeftError: a process has ended the run; there is no update.
        LostError: a process is gone.
    """
    episodes = [brief(episode) for group in groups for episode in group.episodes]
    if together.alone:
        return own.laid(), episodes
    parcel = None if together.first else {"episodes": episodes, "metrics": metrics.sent()}
    brought = together.exchange([own.lengths, own.total], parcel)
    for sent in together.parcels():
        episodes += sent["episodes"]
        metrics.absorb(sent["metrics"])
    lengths = [max(one) for one in itertools.zip_longest(*(lengths for lengths, _ in brought), fillvalue=0)]
    return own.laid(lengths, sum(total for _, total in brought)), episodes
