"""What a trainer and a worker elsewhere say to each other: plain values, in four calls.

In:    requests, each with what was drawn of it before; numbers of those that nobody wants any more; newer weights
Out:   what was drawn since it was said last, by number
Holds: a request has ended when what was said of it says so (a stop id, or its budget); nothing else announces its end, so
       nothing can be lost between the last id and the end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dr_jax.base.errors import DrJaxError, UserError
from dr_jax.tokens.policy import Begun, RequestKey, Sampling


class LostError(DrJaxError):
    """A worker is gone, or can no longer be relied on; what it was asked for goes on elsewhere."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Args:
        number: among those of this worker.
        prompt: ids.
        sampling: how to draw.
        key: what its random numbers depend on.
        begun: what was drawn elsewhere.
    """

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    key: RequestKey
    begun: Begun


@dataclass(frozen=True, slots=True)
class News:
    """What a worker says.

    Args:
        version: of the weights that it draws with.
        drawn: since it said so last, by the request's number.
        refused: requests that can never be fulfilled, and why.
    """

    version: int
    drawn: Mapping[int, Begun] = field(default_factory=dict)
    refused: Mapping[int, UserError] = field(default_factory=dict)


class Wire(Protocol):
    """A worker, as it is reached. Every call may raise LostError; the caller sets the deadline."""

    async def take(self, asks: Sequence[Ask]) -> None:
        """Begin to draw."""
        ...

    async def drop(self, numbers: Sequence[int]) -> None:
        """Draw no more for these; numbers that it does not know are no mistake."""
        ...

    async def news(self, wait_s: float) -> News:
        """Return what was drawn, as soon as a request has ended, at the latest after `wait_s`."""
        ...

    async def adopt(self, weights: Mapping[str, Any], version: int) -> None:
        """Draw with these weights, or with newer ones that came meanwhile; return when it does."""
        ...
