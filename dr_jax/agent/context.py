"""What the policy still sees of an episode that grows long.

In:    the messages of an episode so far
Out:   None while the trajectory simply goes on; else the exchanges that a fresh one opens with
Holds: a manager that rewrites the past closes the trajectory; in the next one the ids that were drawn before stand as the
       world's, and are not trained again: every trained token keeps the context that it was really sampled in
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

STUB = "[an earlier observation was removed to save space]"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of an episode: the ids that the policy drew, whether a stop id ended them, and what it was shown then."""

    said: tuple[int, ...]
    closed: bool
    observation: str


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """Which context manager is used.

    Args:
        kind: `full`, or `keep_last_k`: observations but the last `keep` are replaced by a stub.
        keep: how many observations stay.
        slack: how many more may gather before the past is rewritten; every rewriting is a new trajectory and a new prefill.
    """

    kind: Literal["full", "keep_last_k"] = "full"
    keep: int = 3
    slack: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1 or self.slack < 1:
            raise ValueError(f"keep = {self.keep}, slack = {self.slack}; at least 1 of each is needed")


class ContextManager(Protocol):
    """Decides what the policy still sees."""

    def rewrite(self, exchanges: Sequence[Exchange]) -> tuple[Exchange, ...] | None:
        """Return the exchanges as they shall be shown from now on, or None to leave the trajectory as it is."""
        ...


class Full:
    """Keeps everything."""

    def rewrite(self, exchanges: Sequence[Exchange]) -> tuple[Exchange, ...] | None:
        """Never rewrite."""
        return None


class KeepLastK:
    """Replaces older observations by a stub, a few at a time."""

    def __init__(self, keep: int, slack: int = 2) -> None:
        self._keep, self._slack = keep, slack

    def rewrite(self, exchanges: Sequence[Exchange]) -> tuple[Exchange, ...] | None:
        """Rewrite when more than `keep + slack - 1` observations are whole."""
        whole = [place for place, one in enumerate(exchanges) if one.observation != STUB]
        if len(whole) < self._keep + self._slack:
            return None
        old = set(whole[: -self._keep])
        return tuple(replace(one, observation=STUB) if place in old else one for place, one in enumerate(exchanges))


def make_context(settings: ContextSettings) -> ContextManager:
    """Build the manager that the settings name."""
    return Full() if settings.kind == "full" else KeepLastK(settings.keep, settings.slack)
