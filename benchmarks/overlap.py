"""How long the device waits for the web, and how many episodes are learned from: `python -m benchmarks.overlap`.

Work:  the quickstart's policy learns on littleweb, from 256 episodes at a time. Every answer takes a log-normal time (median
       1.2 s, 95th percentile 8 s) and 1 % of them never come, until a deadline of 30 s. The same engine, update, web and
       seeds for all
Sides: `overlapped`: episodes go on across updates. `drained`: every update waits for the last of its episodes, and nothing is
       under way while it is computed. `lock_step`: besides, all episodes take their turns together
Out:   a table; `results/overlap.json` (episodes an hour), `results/overlap_busy.json` (share of the wall clock in which the
       device was at work; engine and update at once count once) and `results/overlap.png`
Reads: what came after the first minute. Episodes an hour are those of whole updates, from one's end to another's, least and
       most those of a single one; where less than two updates end after the first minute, those before count too
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.busy import Busy, Interval, merged, within
from benchmarks.lockstep import LockStep
from benchmarks.result import RESULTS, Spread, write
from dr_jax.base.config import read
from dr_jax.train.loop import learn
from dr_jax.train.run import Run, opened
from dr_jax.train.settings import Settings
from dr_jax.train.state import Progress

ROOT = Path(__file__).parents[1]
SLOW_WEB = (
    "littleweb.faults={seed = 7, latency_median_s = 1.2, latency_sigma = 1.153, hang_rate = 0.01, per_attempt = true}",
    *("web.fetch.first_byte_s=30", "web.fetch.total_s=40", "web.fetch.deadline_s=90", "web.fetch.attempts=2"),
    *("web.search_s=90", "web.pace.own=512", "web.pace.concurrent=512", "web.pace.queue_s=60"),
)
WORK = ("rollout.groups=32", "rollout.group_size=8", "mismatch_gate=1e-3")
OVERLAPPED = ("rollout.staleness=1", "loss.importance=truncated")  # as configs/overlap.toml
SIDES = {"overlapped": OVERLAPPED, "drained": (), "lock_step": ()}


@dataclass(slots=True)
class Measured:
    """One side: when its updates ended and how many episodes each learned from, and when the device was at work."""

    start: float = 0.0
    updates: list[tuple[float, int]] = field(default_factory=list)
    intervals: dict[str, list[Interval]] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)

    def window(self, first_s: float) -> Interval:
        """From the end of the first minute to that of the last update."""
        return self.start + first_s, self.updates[-1][0]

    def busy(self, window: Interval, *kinds: str) -> float:
        """Share of a window in which the device did one of these."""
        intervals = [one for kind in kinds or self.intervals for one in self.intervals[kind]]
        return within(intervals, window) / (window[1] - window[0])

    def per_hour(self, first_s: float) -> Spread:
        """Episodes an hour."""
        ends = [(self.start, 0), *self.updates]
        late = [place for place, (end, _) in enumerate(ends) if end >= self.start + first_s]
        since = late[0] if len(late) >= 3 else 0
        rates = [3600 * ends[k][1] / (ends[k][0] - ends[k - 1][0]) for k in range(since + 1, len(ends))]
        whole = 3600 * sum(count for _, count in ends[since + 1 :]) / (ends[-1][0] - ends[since][0])
        return Spread(round(whole, 1), round(min(rates), 1), round(max(rates), 1), "episodes/hour")


async def ride(name: str, seconds: float, options: Sequence[str]) -> Measured:
    """Learn for so long, and to the end of the update that is under way then."""
    told = [*SLOW_WEB, *WORK, *SIDES[name], *options, "eval.questions=1", "steps=1000"]
    settings, metrics, measured = read(Settings, ROOT / "configs" / "quickstart.toml", told), Busy(), Measured()
    async with opened(settings, metrics, lambda *_: None) as run:
        run.warm_up(lambda *_: None)
        if name == "lock_step":
            _in_lock_step(run)
        done, console = Progress(), Console(stderr=True)
        measured.start = time.perf_counter()
        async with aclosing(run.groups()) as collected:
            while time.perf_counter() < measured.start + seconds:
                groups = await anext(collected)
                numbers = await asyncio.to_thread(learn, run, groups, done)
                run.settle(groups)
                await asyncio.to_thread(run.adopt)
                measured.updates.append((time.perf_counter(), sum(len(group.trainable) for group in groups)))
                for key, value in numbers.items():
                    if key.startswith("rollout/") and not key.endswith(("_max", "_mean", "in_flight")):
                        measured.counted[key] = measured.counted.get(key, 0.0) + value
                measured.counted["slots"] = numbers.get("engine/slots_busy_mean", 0.0)
                console.print(f"{name}: update {done.step} after {time.perf_counter() - measured.start:.0f} s")
    measured.intervals = metrics.intervals
    return measured


def _in_lock_step(run: Run) -> None:
    together = LockStep(run.train.actors.policy, lambda: run.harvest.missing * run.settings.rollout.group_size)
    run.train = replace(run.train, actors=replace(run.train.actors, policy=together))
    run.total = together.rewarding(run.total)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each side, and to the end of an update")
    parser.add_argument("--first", type=float, default=60.0, help="seconds that are not counted")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("options", nargs="*", help="settings of all sides, such as engine.slots=128")
    told = parser.parse_args(arguments)
    found = {name: asyncio.run(ride(name, told.seconds, told.options)) for name in told.sides}
    rates = {name: one.per_hour(told.first) for name, one in found.items()}
    shares = {name: 100 * one.busy(one.window(told.first)) for name, one in found.items()}
    show(found, rates, shares, told.first)
    write("overlap", rates, ("jax",), told.out)
    write(
        "overlap_busy", {name: Spread.of([share], "% of the wall clock") for name, share in shares.items()}, ("jax",), told.out
    )
    draw(found, told.first, told.out / "overlap.png")


def show(found: dict[str, Measured], rates: dict[str, Spread], shares: dict[str, float], first_s: float) -> None:
    """Print a table."""
    table = Table(title="the quickstart's policy on a slow web")
    columns = (
        "side",
        "updates",
        "episodes/hour",
        "least",
        "most",
        "busy %",
        "engine %",
        "update %",
        "slots",
        "cancelled",
        "is",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "side" else "right")
    ours = next(iter(rates.values())).median
    for name, one in found.items():
        rate, window = rates[name], one.window(first_s)
        parts = [f"{100 * one.busy(window, kind):.1f}" for kind in ("engine", "update")]
        cancelled = f"{one.counted.get('rollout/cancelled_episodes', 0) + one.counted.get('rollout/cancelled_siblings', 0):.0f}"
        ratio = "" if rate.median == ours else f"1/{ours / rate.median:.2f}"
        numbers = [f"{value:,.0f}" for value in (rate.median, rate.min, rate.max)]
        slots = f"{one.counted['slots']:.1f}"
        table.add_row(name, str(len(one.updates)), *numbers, f"{shares[name]:.1f}", *parts, slots, cancelled, ratio)
    Console(width=120).print(table)
    for name, one in found.items():
        print(name, {key: round(value, 2) for key, value in sorted(one.counted.items())})


def draw(found: dict[str, Measured], first_s: float, path: Path) -> None:
    """Draw when the device was at work, for as long as the shortest side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (_, one) in enumerate(found.items()):
        for kind, colour, place in (("engine", "tab:blue", 0.0), ("update", "tab:orange", 0.4)):
            bars = [(start - one.start, max(end - start, 0.02)) for start, end in merged(one.intervals[kind])]
            axes.broken_barh(bars, (row + place, 0.38), color=colour, label=kind if not row else None)
    axes.set_yticks([row + 0.4 for row in range(len(found))], list(found))
    axes.set_xlim(first_s, min(one.updates[-1][0] - one.start for one in found.values()))
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the start")
    axes.set_title("when the device was at work")
    axes.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
