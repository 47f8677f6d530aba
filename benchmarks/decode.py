"""Tokens per second of sampling, side by side: `python -m benchmarks.decode`.

Work:  `uniform`: 16 requests, 64 ids after 64. `agent`: 4 questions of 600 ids, 4 siblings each, three turns of 16 to 256 ids
       with 300 ids of observation between them. `group`: the same with 8 questions and 8 siblings (hours, with all sides).
Sides: dr_jax's engine, Tunix's sampler, transformers' generate; one process each, warmed up, taking turns. `memory` is what the
       machine would do if it did nothing but read weights, keys and values, at the rate that dr_jax's process measures before
       and after its rounds; what stays in a processor's caches, or is read once for several siblings, may be quicker
Out:   a table, `results/decode_WORK.json` and `.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.result import RESULTS, Spread, bars, write
from benchmarks.side import sides
from benchmarks.workload import MODELS, decode_bytes, decode_work

SIDES = {"dr_jax": "ours", "tunix": "tunix", "transformers": "torch"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=["uniform", "agent"], choices=["uniform", "agent", "group"])
    parser.add_argument("--model", default="small", choices=MODELS, help="sizes of a Qwen3-shaped model with random weights")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per side, after one that is not counted")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    told = parser.parse_args(arguments)
    for work in told.work:
        measured = measure(work, told.model, told.rounds, told.sides)
        show(work, told.model, measured)
        name = f"decode_{work}" if told.model == "small" else f"decode_{work}_{told.model}"
        print(f"written to {write(name, measured, ('jax', 'transformers'), RESULTS)} and {bars(name, measured)}")


def measure(work: str, model: str, rounds: int, names: Sequence[str]) -> dict[str, Spread]:
    """Return tokens per second of every side that can do the work."""
    requests = decode_work(work, MODELS[model].vocab)
    drawn, needed = sum(request.drawn for request in requests), decode_bytes(requests, MODELS[model])
    with sides("decode", SIDES, names, {"work": work, "model": model}) as started:
        speeds: dict[str, list[float]] = {side.name: [] for side in started}
        bounds: list[float] = []
        for _ in track(range(rounds), description=work, console=Console(stderr=True)):
            for side in started:
                found = side.go()
                speeds[side.name].append(found["tokens"] / found["seconds"])
                if "rate" in found:
                    bounds.append(drawn * found["rate"] / needed)
    return {name: Spread.of(found, "tokens/s") for name, found in (speeds | ({"memory": bounds} if bounds else {})).items()}


def show(work: str, model: str, measured: dict[str, Spread]) -> None:
    """Print a table."""
    drawn = sum(request.drawn for request in decode_work(work, MODELS[model].vocab))
    table = Table(title=f"{work}, {model} ({MODELS[model].parameters:,} parameters): {drawn:,} ids drawn")
    for column in ("side", "tokens/s", "least", "most", "dr_jax is"):
        table.add_column(column, justify="left" if column == "side" else "right")
    ours = next(iter(measured.values())).median
    for name, spread in measured.items():
        ratio = "" if spread.median == ours else f"{ours / spread.median:.2f} x"
        table.add_row(name, f"{spread.median:,.0f}", f"{spread.min:,.0f}", f"{spread.max:,.0f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
