"""Count what searching costs, and stop before more is spent than may be.

In:    what a query would cost, before it is sent; that it was not billed, afterwards
Out:   BudgetError when it does not fit any more
Holds: whatever is under way is counted, so that the budget is never passed
"""

from __future__ import annotations

from dr_jax.base.errors import BudgetError
from dr_jax.base.metrics import Metrics
from dr_jax.web.search.settings import BudgetSettings

_ROUNDING = 1e-9


class Budget:
    """What one run may spend on searching; share it among all `Web`s of the run.

    Args:
        settings: the limits.
        metrics: counts `search/queries` and `search/money`, and the same for each provider.
        queries: that were sent before, when a run goes on.
        money: that they cost.
    """

    def __init__(
        self, settings: BudgetSettings, metrics: Metrics | None = None, *, queries: int = 0, money: float = 0.0
    ) -> None:
        self._settings, self._metrics = settings, metrics or Metrics()
        self.queries, self.money = queries, money

    def take(self, provider: str, cost: float) -> None:
        """Count one query, right before it is sent.

        Raises:
            BudgetError: it would pass the budget.
        """
        limits = self._settings
        if limits.queries and self.queries + 1 > limits.queries:
            raise self._used_up(f"{limits.queries:,} queries", "web.budget.queries")
        if limits.money and cost > 0 and self.money + cost > limits.money + _ROUNDING:
            raise self._used_up(f"{limits.money:g}, and a query to {provider} costs {cost:g}", "web.budget.money")
        self._count(provider, 1, cost)

    def give_back(self, provider: str, cost: float) -> None:
        """Undo `take`: the provider did not bill it."""
        self._count(provider, -1, -cost)

    def _count(self, provider: str, queries: int, cost: float) -> None:
        self.queries += queries
        self.money = max(0.0, self.money + cost)
        for prefix in ("search", f"search/{provider}"):
            self._metrics.add(f"{prefix}/queries", queries)
            self._metrics.add(f"{prefix}/money", cost)

    def _used_up(self, limit: str, setting: str) -> BudgetError:
        spent = f"{self.queries:,} queries were sent, for {self.money:.4g} in money"
        return BudgetError(
            f"The budget for searching is used up: {spent}; the limit is {limit}",
            needed="a larger budget, or searches that are on the tape, which cost nothing",
            fix=f"raise {setting} (0 is no limit) and go on from the last checkpoint",
        )
