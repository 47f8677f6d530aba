"""What an evaluation has spent, so that it can stand beside its answers, and stays spent when it is gone on with.

In:    the budgets of searching, reading, the policy's server and the judge's
Out:   what was spent since the last look, by what it was spent on
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dr_jax.agent.endpoint import Spending
from dr_jax.web.search.budget import Budget

_FIELDS = ("queries", "calls", "tokens", "money")


class Ledger:
    """Reads budgets.

    Args:
        sources: by what is paid for, such as `searching`.
    """

    def __init__(self, sources: Mapping[str, Budget | Spending]) -> None:
        self._sources = dict(sources)
        self._told = self._now()

    def _now(self) -> dict[str, float]:
        return {
            f"{name}/{field}": getattr(source, field)
            for name, source in self._sources.items()
            for field in _FIELDS
            if hasattr(source, field)
        }

    def taken(self) -> dict[str, float]:
        """Return what was spent since the last call."""
        now = self._now()
        new = {name: amount - self._told[name] for name, amount in now.items() if amount != self._told[name]}
        self._told = now
        return new

    def go_on(self, before: Iterable[Mapping[str, float]]) -> None:
        """Count what was spent before, so that budgets hold for all of it."""
        for spent in before:
            for name, amount in spent.items():
                source, _, field = name.partition("/")
                if source in self._sources:
                    budget = self._sources[source]
                    setattr(budget, field, type(getattr(budget, field))(getattr(budget, field) + amount))
        self._told = self._now()
