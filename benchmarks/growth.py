"""How cost grows with context, prompt, slots, siblings, model size and episodes in flight: `python -m benchmarks.growth`.

Work:  a Qwen3-shaped model of 3.5 M random weights in the engine (other sizes where size is what grows), medians of three;
       episodes by scripted researchers over real HTTP (see `benchmarks.crowd`)
Out:   for each curve its slope in words, from a straight line through logarithms; `results/growth.png`, `results/growth.json`
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.crowd import crowd
from benchmarks.result import RESULTS, Spread, write
from benchmarks.sides.decode_ours import sizes_of
from benchmarks.workload import MODELS, SPECIAL, Model
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.decoder import initial
from dr_jax.tokens.policy import RequestKey, Sampling

_ROUNDS = 3
_STEPS = 32  # ids that are drawn beyond the first
_FRESH = itertools.count()


@dataclass(frozen=True, slots=True)
class Curve:
    """What grows with what.

    Args:
        name: of the curve.
        grows: what was changed.
        cost: what was measured, with its unit.
        points: pairs of the two.
    """

    name: str
    grows: str
    cost: str
    points: tuple[tuple[float, float], ...]

    @property
    def slope(self) -> float:
        """Of the straight line through the logarithms."""
        x, y = np.log(np.asarray(self.points)).T
        return float(np.polyfit(x, y, 1)[0])

    @property
    def words(self) -> str:
        """The slope, for people."""
        (first, low), (last, high) = self.points[0], self.points[-1]
        return (
            f"{self.name}: twice the {self.grows} costs {2**self.slope:.2f} times as much (slope {self.slope:+.2f}); "
            f"{self.cost}: {low:.3g} at {first:g}, {high:.3g} at {last:g}"
        )


@contextmanager
def engine(model: Model, slots: int, context: int) -> Iterator[Engine]:
    """Run an engine of a model with random weights."""
    sizes = sizes_of(model, context)
    weights = jax.jit(lambda: initial(sizes, jax.random.key(1)))()
    with Engine(weights, sizes, EngineSettings(slots=slots, max_context=context)) as running:
        running.warm_up()
        yield running


def prompt(length: int, vocab: int) -> tuple[int, ...]:
    """Make ids that nobody has asked with before."""
    return tuple(int(one) for one in np.random.default_rng(next(_FRESH)).integers(SPECIAL, vocab, length))


def seconds(running: Engine, prompts: Sequence[tuple[int, ...]], draw: int) -> float:
    """Return how long it takes to draw so many ids after each prompt, all at once."""

    async def everybody() -> None:
        what = [(ids, RequestKey(0, str(next(_FRESH)), number, 0)) for number, ids in enumerate(prompts)]
        await asyncio.gather(*(running.sample(ids, Sampling(draw), key) for ids, key in what))

    start = time.perf_counter()
    asyncio.run(everybody())
    return time.perf_counter() - start


def step_ms(running: Engine, count: int, length: int) -> float:
    """Return how long one more id takes for `count` siblings after a prompt, in milliseconds."""
    found = []
    for _ in range(_ROUNDS):
        ids = [prompt(length, running.sizes.vocab)] * count
        seconds(running, ids, 1)  # the prompt is known from here on
        found.append((seconds(running, ids, 1 + _STEPS) - seconds(running, ids, 1)) * 1000 / _STEPS)
    return statistics.median(found)


def by_context() -> Iterator[Curve]:
    """Longer contexts, and longer prompts to begin with."""
    lengths, vocab = (64, 128, 256, 512, 1024, 2048, 4000), MODELS["small"].vocab
    with engine(MODELS["small"], 8, 4096) as running:
        steps = tuple((n, step_ms(running, 8, n)) for n in lengths)
        prompts = tuple(
            (n, statistics.median(1000 * seconds(running, [prompt(n, vocab)], 1) for _ in range(_ROUNDS))) for n in lengths
        )
    yield Curve("context", "context", "ms for one id of each of 8 requests", steps)
    yield Curve("prompt", "prompt", "ms until the first id", prompts)


def by_slots() -> Iterator[Curve]:
    """More requests at once."""
    points = []
    for slots in (1, 4, 16, 64, 256):
        with engine(MODELS["small"], slots, 512) as running:
            points.append((slots, step_ms(running, slots, 256)))
    yield Curve("slots", "number of busy slots", "ms for one id of each", tuple(points))


def by_siblings() -> Iterator[Curve]:
    """More siblings of one question."""
    with engine(MODELS["small"], 64, 1024) as running:
        points = []
        for count in (1, 2, 4, 8, 16, 32, 64):
            found = [1000 * seconds(running, [prompt(600, running.sizes.vocab)] * count, 1) for _ in range(_ROUNDS)]
            points.append((count, statistics.median(found)))
    yield Curve("siblings", "number of siblings", "ms until all have their first id after 600 shared ones", tuple(points))


def by_size() -> Iterator[Curve]:
    """Wider models."""
    points = []
    for width in (128, 256, 512, 1024):
        model = replace(MODELS["small"], width=width, ff=3 * width, heads=width // 32, kv_heads=max(1, width // 128))
        with engine(model, 8, 512) as running:
            points.append((model.parameters / 1e6, step_ms(running, 8, 256)))
    yield Curve("model", "parameters (millions)", "ms for one id of each of 8 requests", tuple(points))


def by_in_flight() -> Iterator[Curve]:
    """More episodes at once; each number of them in an event loop of its own."""
    found = [asyncio.run(crowd("scripted", count, seconds=20.0)) for count in (128, 512, 2048)]
    grown = tuple((one.in_flight, one.grown_mb) for one in found)
    late = tuple((one.in_flight, one.computed_ms) for one in found)
    spent = tuple((one.in_flight, 1000 * one.processor_s / max(1, one.ended)) for one in found)
    yield Curve("memory in flight", "number of episodes in flight", "MB more than before the first", grown)
    yield Curve("event loop", "number of episodes in flight", "ms late by its own work (p99)", late)
    yield Curve("episode", "number of episodes in flight", "ms of processor time for an episode", spent)


ALL: tuple[Callable[[], Iterator[Curve]], ...] = (by_context, by_slots, by_siblings, by_size, by_in_flight)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, say, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[one.__name__ for one in ALL], choices=[one.__name__ for one in ALL])
    parser.add_argument("--out", type=Path, default=RESULTS)
    told = parser.parse_args(arguments)
    curves: list[Curve] = []
    for measure in ALL:
        if measure.__name__ in told.only:
            for curve in measure():
                print(curve.words, flush=True)
                curves.append(curve)
    slopes = {curve.name: Spread.of([curve.slope], f"slope of log({curve.cost}) over log({curve.grows})") for curve in curves}
    path = write("growth", slopes, ("jax",), told.out)
    content = json.loads(path.read_text("utf-8")) | {
        "ratios": {},
        "curves": [asdict(one) | {"words": one.words} for one in curves],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    draw(curves, told.out / "growth.png")


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw them on logarithmic axes, each with its straight line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).flat
    for curve, axes in itertools.zip_longest(curves, places):
        if curve is None:
            axes.set_axis_off()
            continue
        x, y = np.asarray(curve.points).T
        line = np.exp(np.polyval(np.polyfit(np.log(x), np.log(y), 1), np.log(x)))
        axes.loglog(x, y, "o-")
        axes.loglog(x, line, "--", alpha=0.5, label=f"slope {curve.slope:+.2f}")
        axes.set_xlabel(curve.grows)
        axes.set_ylabel(curve.cost, fontsize="small")
        axes.set_title(curve.name)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
