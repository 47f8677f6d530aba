"""What a side of `benchmarks.elastic` did: how fast, by how many workers, and whether each episode is there once and the same.

In:    when episodes ended and workers were there; what was asked and answered
Out:   rates, checks, a table, a picture
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.result import Spread, write_json
from benchmarks.witness import Gap, Witness, difference, miscounted
from dr_jax.base.metrics import Metrics

STRETCH_S = 10.0
TOLERANCE = 1e-4  # of a log-probability: what was drawn elsewhere is computed again in other shapes, which round otherwise
COUNTED = ("workers_lost", "migrated", "carried_tokens", "drawn_elsewhere")


@dataclass(frozen=True, slots=True)
class Seen:
    """What was the case at one time.

    Args:
        when: it was.
        workers: that were there.
        drawn: ids that they had told of since the start.
        spent_s: processor time of all workers since they started, those that are gone included.
    """

    when: float
    workers: int
    drawn: int
    spent_s: float


@dataclass(slots=True)
class Ridden:
    """One side. Times are of `time.perf_counter`.

    Args:
        witness: of its requests and episodes.
        first_s: seconds that are not counted.
    """

    witness: Witness
    first_s: float
    start: float = field(default_factory=time.perf_counter)
    end: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)  # episodes, by id
    given: list[str] = field(default_factory=list)
    own_cores: float = 0.0  # that this process was busy with
    _spent: float = field(default_factory=time.process_time)
    _ticks: dict[int, int] = field(default_factory=dict)  # of each worker, by its process

    def look(self, workers: int, pids: Iterable[int], metrics: Metrics) -> None:
        """Note what is the case now; `pids` are of the workers."""
        counts, _, _ = metrics.snapshot()
        self._ticks |= {pid: ticks for pid in pids if (ticks := _ticks(pid))}
        spent = sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")
        self.seen.append(Seen(time.perf_counter(), workers, int(counts.get("rollout/drawn_elsewhere", 0)), spent))

    def close(self, given: Sequence[str], metrics: Metrics) -> None:
        """Note what the run was given when all had ended, and what it had counted by then."""
        self.end, self.given = time.perf_counter(), list(given)
        self.own_cores = (time.process_time() - self._spent) / (self.end - self.start)
        counts, _, _ = metrics.snapshot()
        self.counted = {name: int(counts.get(f"rollout/{name}", 0)) for name in COUNTED}

    @property
    def window(self) -> tuple[float, float]:
        """From when all are at work to when the last group is begun; all of the time, where that is too short to measure."""
        low, high = self.start + self.first_s, self.witness.asked[-1]
        return (low, high) if high - low >= STRETCH_S else (self.start, self.end)

    def rate(self, low: float, high: float) -> float:
        """Episodes that ended in a stretch of time, an hour."""
        return 3600 * sum(low <= when < high for when, _ in self.witness.ended) / (high - low)

    @property
    def rates(self) -> Spread:
        """Episodes an hour, from the first request to the end of the last episode; those of stretches of the window."""
        whole = self.rate(self.start, self.end)
        each = [self.rate(one, one + STRETCH_S) for one in _starts(*self.window)] or [whole]
        return Spread(*(round(one, 1) for one in (whole, min(each), max(each))), "episodes/hour")

    @property
    def staff(self) -> float:
        """Workers, on average."""
        seen = self._within()
        return sum(one.workers for one in seen) / len(seen)

    @property
    def ids_per_s(self) -> float:
        """Ids that workers told of, a second."""
        first, *_, last = self._within()
        return (last.drawn - first.drawn) / (last.when - first.when)

    @property
    def cores(self) -> float:
        """That the workers were busy with, on average."""
        first, *_, last = self._within()
        return (last.spent_s - first.spent_s) / (last.when - first.when)

    def _within(self) -> list[Seen]:
        low, high = self.window
        return [one for one in self.seen if low <= one.when < high]


def _ticks(pid: int) -> int:
    """Processor time of a process; 0 where it is gone."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(told[11]) + int(told[12])


def _starts(low: float, high: float) -> list[float]:
    return [low + STRETCH_S * place for place in range(int((high - low) / STRETCH_S))]


def checks(found: Mapping[str, Ridden], gap: Gap) -> dict[str, Any]:
    """Say of every side what was lost or doubled, and what differs from the last other side where nobody was killed.

    Args:
        found: the sides.
        gap: see `witness.difference`.
    """
    told = {}
    for name, one in found.items():
        lost, doubled = miscounted(one.wanted, one.given)
        quiet = [other for other in found.values() if other is not one and not other.kills]
        told[name] = {
            "episodes": len(one.given),
            "lost": lost,
            "doubled": doubled,
            "requests": len(one.witness.answers),
            "answered_twice": one.witness.repeated,
            "ids": one.witness.drawn,
            "ids_drawn": one.counted["drawn_elsewhere"],
            "compared": asdict(difference(one.witness.answers, quiet[-1].witness.answers, gap)) if quiet else None,
        }
    return told


def failures(checked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what must not be."""
    wrong = []
    for name, one in checked.items():
        wrong += [f"{name}: {len(one[what])} episodes {what}: {one[what][:3]}" for what in ("lost", "doubled") if one[what]]
        if one["answered_twice"] or one["ids"] != one["ids_drawn"]:
            wrong.append(
                f"{name}: {one['ids_drawn']} ids drawn for {one['ids']}, {one['answered_twice']} requests answered twice"
            )
        other = one["compared"]
        if other and (other["other"] or other["logprob"] > TOLERANCE):
            wrong.append(f"{name}: not as it was without kills: {other}")
    return wrong


def written(found: Mapping[str, Ridden], checked: Mapping[str, Any], think: int, folder: Path) -> Path:
    """Write everything but the picture; the first side is the one that others are compared with."""
    first = next(iter(found.values()))
    content = {
        "name": "elastic",
        "sides": {name: asdict(one.rates) for name, one in found.items()},
        "ratios": {name: round(one.rates.median / first.rates.median, 4) for name, one in found.items() if one is not first},
        "workers": {name: round(one.staff, 3) for name, one in found.items()},
        "ids_per_s": {name: round(one.ids_per_s, 1) for name, one in found.items()},
        "kills": {name: [round(when - one.start, 1) for when in one.kills] for name, one in found.items()},
        "counted": {name: one.counted for name, one in found.items()},
        "worker_cores": {name: round(one.cores, 2) for name, one in found.items()},
        "own_cores": {name: round(one.own_cores, 2) for name, one in found.items()},
        "scripted_ids": think,
        "checks": checked,
    }
    return write_json("elastic", content, ("jax", "ray"), folder)


def show(found: Mapping[str, Ridden]) -> None:
    """Print a table."""
    table = Table(title="rollouts by workers of Ray, each held to one core")
    columns = ("side", "episodes", "killed", "moved", "ids moved", "workers", "cores", "own", "episodes/hour", "least", "most")
    for column in (*columns, "ids/s", "a worker", "a core"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, one in found.items():
        rates, speed = one.rates, one.ids_per_s
        whole = (len(one.given), len(one.kills), one.counted["migrated"], one.counted["carried_tokens"])
        parts = (one.staff, one.cores, one.own_cores)
        speeds = (rates.median, rates.min, rates.max, speed, speed / one.staff, speed / one.cores)
        cells = [f"{value:,}" for value in whole] + [f"{value:.2f}" for value in parts] + [f"{value:,.0f}" for value in speeds]
        table.add_row(name, *cells)
    Console(width=160).print(table)


def draw(found: Mapping[str, Ridden], path: Path) -> None:
    """Draw episodes an hour and workers over time, one side above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.4 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(found), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, one) in zip(rows, found.items(), strict=True):
        times = [one.start + 0.5 * step for step in range(int((one.witness.asked[-1] - one.start) / 0.5))]
        width = STRETCH_S / 2
        rates = [one.rate(max(one.start, when - width), when + width) for when in times]
        axes.plot([when - one.start for when in times], rates, color="tab:blue")
        axes.set_ylabel("episodes/hour", color="tab:blue")
        axes.set_title(name, fontsize="medium")
        there = axes.twinx()
        there.step([each.when - one.start for each in one.seen], [each.workers for each in one.seen], color="tab:orange")
        there.set_ylim(0, 3)
        there.set_yticks([0, 1, 2])
        there.set_ylabel("workers", color="tab:orange")
        for when in one.kills:
            axes.axvline(when - one.start, color="grey", linestyle=":")
    axes.set_ylim(bottom=0)  # last: what it sets holds for all
    axes.set_xlabel("seconds; dotted: a worker was killed")
    figure.savefig(path, dpi=110)
