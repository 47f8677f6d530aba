"""dr_jax's update: episodes are packed into rows without padding, and their gradients added up."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side import serve
from benchmarks.sides.decode_ours import sizes_of
from benchmarks.workload import LEARNING_RATE, MODELS, Row, update_work
from dr_jax.base.metrics import Metrics
from dr_jax.learn.batch import BatchSettings, pack
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import begin, make_update, through
from dr_jax.model.decoder import describe, initial
from dr_jax.tokens.trajectory import Author, Episode, Group, Outcome, Segment, Trajectory, Turn, world


def episode(number: int, row: Row, logprob: float) -> Episode:
    """Make a rewarded episode of one turn."""
    said = row.ids[row.prompt :]
    turns = (world(row.ids[: row.prompt]), Segment(Author.POLICY, said, (logprob,) * len(said), (0,) * len(said)))
    rewards = {"f1": row.advantage}
    return Episode(str(number), "q", (Trajectory(turns),), Outcome.OUT_OF_TURNS, turns=(Turn(""),), rewards=rewards)


def matmul_peak(size: int = 1024, times: int = 3) -> float:
    """Measure the best rate of a square float32 product, in operations a second."""
    square = jnp.ones((size, size))
    product = jax.jit(lambda left, right: left @ right)
    product(square, square).block_until_ready()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        product(square, square).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Build the model and compile."""
    model = MODELS[options["model"]]
    rows = update_work(options["work"], model.vocab)
    sizes = sizes_of(model, 1024)
    episodes = [episode(number, row, -float(np.log(model.vocab))) for number, row in enumerate(rows)]
    # One long row at a time: attention leaves out what segments cannot see, so it costs what short rows cost.
    shapes = BatchSettings(**{"rows": 1, "lengths": (256, 512, 1024, 2048), **options.get("batch", {})})
    optimizer = make_optimizer(
        OptimizerSettings(learning_rate=LEARNING_RATE), {name: spec.axes for name, spec in describe(sizes).items()}, steps=1000
    )
    weights = jax.jit(lambda: initial(sizes, jax.random.key(1)))()
    state = begin(weights, optimizer)
    loss = LossSettings(kl="none", entropy_coefficient=0.0)
    update = make_update(through(sizes), loss, optimizer, state)
    del weights
    metrics = Metrics()

    def once() -> dict[str, Any]:
        nonlocal state
        peak = matmul_peak()
        start = time.perf_counter()
        batches = pack([Group("q", tuple(episodes))], shapes, metrics=metrics)
        state, _ = update(state, batches)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        told = metrics.drain()
        return {"seconds": seconds, "peak": max(peak, matmul_peak()), "occupancy": told["batch/occupancy"]}

    once()
    return {"jax": jax.__version__}, once


if __name__ == "__main__":
    serve(prepare)
