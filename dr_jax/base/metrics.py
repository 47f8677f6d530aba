"""Count, gauge and time what a run does, as plain numbers under slash-separated names.

In:    `add("web/bytes", n)`, `observe("web/search_s", seconds)`, `with timed(metrics, "engine/prefill_s")`
Out:   `drain()`: one flat dict for one step; sums for counts, mean/p50/p95/max and n for observations
       `snapshot()`: the same as it was collected, for a process that counts without end and is looked at from outside
       `sent()` and `absorb(...)`: the same as JSON values, to be drained with those of another process
Safe:  from any thread
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

_SENT = 64  # observations of a name that another process is sent
_KEPT = 4096  # observations kept per name between two drains: enough for a p95, bounded whatever the run does


@dataclass(frozen=True, slots=True)
class Observed:
    """Values of one name: the latest ones, how many there were in all, and their sum."""

    values: tuple[float, ...]
    count: int
    total: float


class Metrics:
    """Collects numbers between two drains."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = defaultdict(float)
        self._gauges: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._total: dict[str, int] = defaultdict(int)
        self._sum: dict[str, float] = defaultdict(float)
        self._others: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, amount: float = 1.0) -> None:
        """Add to a count that starts at zero after every drain."""
        with self._lock:
            self._counts[name] += amount

    def gauge(self, name: str, value: float) -> None:
        """Set a value; the last one before a drain is reported, and the largest since the one before as `<name>_max`."""
        with self._lock:
            self._gauges[name] = value
            self._peaks[name] = max(value, self._peaks.get(name, value))

    def observe(self, name: str, value: float) -> None:
        """Record one of many values whose distribution matters."""
        with self._lock:
            self._total[name] += 1
            self._sum[name] += value
            kept = self._seen[name]
            if len(kept) < _KEPT:
                kept.append(value)
            else:
                kept[self._total[name] % _KEPT] = value

    def drain(self) -> dict[str, float]:
        """Return everything since the last drain as one flat dict, and start again."""
        with self._lock:
            peaks = {f"{name}_max": value for name, value in self._peaks.items()}
            out: dict[str, float] = {**self._counts, **self._gauges, **peaks}
            for name, others in self._others.items():
                out[name] = float(np.mean([*others, *([self._gauges[name]] if name in self._gauges else [])]))
            self._peaks.clear()
            self._others.clear()
            for name, kept in self._seen.items():
                values = np.asarray(kept)
                out[f"{name}_mean"] = float(values.mean())
                out[f"{name}_p50"] = float(np.quantile(values, 0.5))
                out[f"{name}_p95"] = float(np.quantile(values, 0.95))
                out[f"{name}_max"] = float(max(kept))
                out[f"{name}_n"] = float(self._total[name])
            self._counts.clear()
            self._seen.clear()
            self._total.clear()
            self._sum.clear()
            return out

    def sent(self) -> dict[str, Any]:
        """Return everything since the last drain as JSON values, and start again. Of many observations some are left out."""
        with self._lock:
            seen = {name: [_thinned(kept), self._total[name], self._sum[name]] for name, kept in self._seen.items()}
            out = {"counts": dict(self._counts), "gauges": dict(self._gauges), "peaks": dict(self._peaks), "seen": seen}
            for collected in (self._counts, self._peaks, self._seen, self._total, self._sum):
                collected.clear()
            return out

    def absorb(self, sent: dict[str, Any]) -> None:
        """Add what another process sent: counts are added up, gauges averaged, and the largest of both is the largest."""
        with self._lock:
            for name, amount in sent["counts"].items():
                self._counts[name] += amount
            for name, value in sent["gauges"].items():
                self._others[name].append(value)
            for name, value in sent["peaks"].items():
                self._peaks[name] = max(value, self._peaks.get(name, value))
            for name, (values, count, total) in sent["seen"].items():
                self._seen[name] += values * max(1, round(min(count, _KEPT) / len(values)))
                self._total[name] += count
                self._sum[name] += total

    def snapshot(self) -> tuple[dict[str, float], dict[str, float], dict[str, Observed]]:
        """Return counts, gauges and observations since the last drain, and go on collecting."""
        with self._lock:
            seen = {name: Observed(tuple(kept), self._total[name], self._sum[name]) for name, kept in self._seen.items()}
            return dict(self._counts), dict(self._gauges), seen


def _thinned(values: Sequence[float]) -> list[float]:
    """Return at most `_SENT` of the values, evenly from the smallest to the largest."""
    places = np.linspace(0, len(values) - 1, min(len(values), _SENT)).round().astype(int)
    return np.sort(values)[places].tolist()


class Under(Metrics):
    """The same metrics, for a second part of a kind: what it counts stands below a further name.

    Args:
        metrics: all of them; whoever drains either drains both.
        prefix: such as `reader`.
    """

    _prefix: str

    def __init__(self, metrics: Metrics, prefix: str) -> None:
        self.__dict__ = {**metrics.__dict__, "_prefix": prefix}  # the same numbers, under the same lock

    def add(self, name: str, amount: float = 1.0) -> None:
        """Add to a count."""
        super().add(f"{self._prefix}/{name}", amount)

    def gauge(self, name: str, value: float) -> None:
        """Set a value."""
        super().gauge(f"{self._prefix}/{name}", value)

    def observe(self, name: str, value: float) -> None:
        """Record one of many values."""
        super().observe(f"{self._prefix}/{name}", value)


@contextmanager
def timed(metrics: Metrics, name: str) -> Iterator[None]:
    """Observe how many seconds the block took, also when it raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        metrics.observe(name, time.perf_counter() - start)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of at least one value.

    Efron, "Bootstrap methods: another look at the jackknife" (1979); percentile method, resampling single values.
    """
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), size=(draws, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
