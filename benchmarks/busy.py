"""When was the device at work: intervals of engine calls and updates, read off what the run observes anyway.

In:    the run's observations of seconds, each told when it ends
Out:   the share of a window in which at least one of them was under way: what overlaps counts once
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from dr_jax.base.metrics import Metrics

Interval = tuple[float, float]
KINDS = {"engine/prefill_s": "engine", "engine/decode_s": "engine", "engine/mixed_s": "engine", "update/s": "update"}


class Busy(Metrics):
    """The metrics of a run, which also keep when the device was at work, on the clock of `time.perf_counter`."""

    def __init__(self) -> None:
        super().__init__()
        self.intervals: dict[str, list[Interval]] = {kind: [] for kind in KINDS.values()}

    def observe(self, name: str, value: float) -> None:
        """Record a value; if it is of seconds at the device, and not of the host, that interval too."""
        super().observe(name, value)
        if name in KINDS:
            now = time.perf_counter()
            self.intervals[KINDS[name]].append((now - value, now))


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Join intervals that touch, in order of time."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def within(intervals: Iterable[Interval], window: Interval) -> float:
    """Return how many seconds of a window are covered by at least one interval."""
    low, high = window
    return sum(max(0.0, min(end, high) - max(start, low)) for start, end in merged(intervals))
