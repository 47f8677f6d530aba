"""Useful arithmetic of a GRPO update, side by side: `python -m benchmarks.update`.

Work:  `equal`: 8 episodes of 512 ids, half of them learned from. `ragged`: 16 of 64 to 1,024, three quarters learned from.
       `few`: 2 of 512, of a model of 135 M parameters
Sides: dr_jax's update, Tunix's train step, a plain torch step; one process each, warmed up, taking turns. The large model is
       dr_jax's alone: it is held against the machine
Out:   a table, `results/update_WORK.json` and `.png`; what padding and recomputation take is not counted as useful. `matmul` is
       the best rate of a square product, measured by dr_jax's process before and after each update
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.result import RESULTS, Spread, bars, write
from benchmarks.side import sides
from benchmarks.workload import MODELS, update_work, useful_flops

SIDES = {"dr_jax": "ours", "tunix": "tunix", "torch": "torch"}
WORKS = {"equal": "small", "ragged": "small", "few": "135m"}
_LARGE = 50_000_000  # parameters from which on peers take too long


@dataclass(slots=True)
class Measured:
    """Seconds of every round by side, matmul operations a second, and the share of the batch that is no padding."""

    seconds: dict[str, list[float]]
    peaks: list[float] = field(default_factory=list)
    occupancy: float = 0.0

    def spreads(self, flops: float) -> dict[str, Spread]:
        """Return the useful rate of every side, and the product's."""
        rates = {name: [flops / one / 1e9 for one in found] for name, found in self.seconds.items()}
        if self.peaks:
            rates["matmul"] = [peak / 1e9 for peak in self.peaks]
        return {name: Spread.of(found, "GFLOP/s") for name, found in rates.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--model", choices=MODELS, help="sizes of a Qwen3-shaped model with random weights")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per side, after one that is not counted")
    parser.add_argument("--sides", nargs="+", choices=SIDES)
    told = parser.parse_args(arguments)
    for work in told.work:
        model = told.model or WORKS[work]
        names = told.sides or (list(SIDES) if MODELS[model].parameters < _LARGE else ["dr_jax"])
        measured = measure(work, model, told.rounds, names)
        spreads = measured.spreads(useful_flops(update_work(work, MODELS[model].vocab), MODELS[model]))
        show(work, model, measured, spreads)
        name = f"update_{work}" if model == WORKS[work] else f"update_{work}_{model}"
        print(f"written to {write(name, spreads, ('jax', 'transformers'), RESULTS)} and {bars(name, spreads)}")


def measure(work: str, model: str, rounds: int, names: Sequence[str]) -> Measured:
    """Let every side that can do the work do it in turn."""
    with sides("update", SIDES, names, {"work": work, "model": model}) as started:
        measured = Measured({side.name: [] for side in started})
        for _ in track(range(rounds), description=work, console=Console(stderr=True)):
            for side in started:
                found = side.go()
                measured.seconds[side.name].append(found["seconds"])
                if "peak" in found:
                    measured.peaks.append(found["peak"])
                    measured.occupancy = found["occupancy"]
    return measured


def show(work: str, model: str, measured: Measured, spreads: Mapping[str, Spread]) -> None:
    """Print a table."""
    tokens = sum(len(row.ids) for row in update_work(work, MODELS[model].vocab))
    table = Table(title=f"{work}, {model} ({MODELS[model].parameters:,} parameters): {tokens:,} ids an update")
    for column in ("side", "s", "ids/s", "useful GFLOP/s", "least", "most", "dr_jax is"):
        table.add_column(column, justify="left" if column == "side" else "right")
    ours = next(iter(spreads))
    for name, spread in spreads.items():
        seconds = measured.seconds.get(name)
        middle = statistics.median(seconds) if seconds else 0.0
        took = (f"{middle:.2f}", f"{tokens / middle:,.0f}") if seconds else ("", "")
        ratio = "" if name == ours else f"{spreads[ours].median / spread.median:.2f} x"
        table.add_row(name, *took, *(f"{rate:,.1f}" for rate in (spread.median, spread.min, spread.max)), ratio)
    if measured.occupancy:
        table.caption = f"{measured.occupancy:.1%} of dr_jax's rectangles are episodes"
    Console().print(table)


if __name__ == "__main__":
    main()
