"""Gather finished groups until there are enough for an update.

In:    groups as they end
Out:   so many that can be trained on, and beside them those that the world failed, to be written down and asked again
Fails: WorldDownError when the world fails one group after another, although nobody has noticed that it is down
"""

from __future__ import annotations

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.base.trace import logger
from dr_jax.tokens.trajectory import Group

_LOG = logger(__name__)
_LOST = 3  # times as many groups may be lost in a row as are under way together, or as an update takes


class Harvest:
    """Groups on their way to an update.

    Args:
        size: of an update, in groups.
        metrics: counts `rollout/lost_groups`.
        at_once: how many groups are under way together: a single outage may take all of them.
    """

    def __init__(self, size: int, metrics: Metrics, *, at_once: int = 0) -> None:
        self._size, self._metrics = size, metrics
        self._most = _LOST * max(size, at_once)
        self.waiting: list[Group] = []
        self._lost: list[Group] = []
        self._in_a_row = 0

    @property
    def missing(self) -> int:
        """How many groups there are still to come."""
        return max(0, self._size - len(self.waiting))

    def add(self, group: Group) -> None:
        """Take one more.

        Raises:
            WorldDownError: too many were lost in a row; going on would only use up the questions.
        """
        if group.trainable:
            self._in_a_row = 0
            self.waiting.append(group)
            return
        self._lost.append(group)
        self._in_a_row += 1
        self._metrics.add("rollout/lost_groups")
        why = next((episode.failure for episode in group.episodes if episode.failure), "unknown")
        _LOG.warning("the world failed the episodes of question %s, which is asked again: %s", group.question_id, why)
        if self._in_a_row >= self._most:
            raise WorldDownError(
                f"The world failed {self._in_a_row} groups of episodes in a row, at last because: {why}. "
                "Nothing was trained on; `--resume` goes on when it is back."
            )

    def world_is_back(self) -> None:
        """Begin to count anew: what was lost, was lost to an outage that was noticed and is over."""
        self._in_a_row = 0

    def retire(self, oldest: int) -> list[Group]:
        """Take out the groups with a token that weights of a version below `oldest` drew; the others are put in order of age.

        Those who have to be taken soonest are taken first, so that few become too old.
        """
        aged = [(group.oldest_version, group) for group in self.waiting]
        aged.sort(key=lambda one: oldest if one[0] is None else one[0])
        retired = [group for age, group in aged if age is not None and age < oldest]
        self.waiting[:] = [group for _, group in aged[len(retired) :]]
        return retired

    def take(self) -> list[Group]:
        """Hand out the groups of one update, and after them all that were lost meanwhile."""
        taken = [*self.waiting[: self._size], *self._lost]
        del self.waiting[: self._size]
        self._lost.clear()
        return taken
