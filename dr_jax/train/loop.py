"""The loop: questions become groups, groups a batch, the batch new weights. Start reading here.

In:    Settings
Out:   a run directory: settings, metrics, episodes, checkpoints, curve, summary
Holds: no trained token is older than the staleness bound; a run whose engine and trainer disagree stops; what is
       interrupted is saved and goes on where it was
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dr_jax.base.config import to_tree
from dr_jax.base.errors import MismatchError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.learn.advantage import informative, named
from dr_jax.learn.batch import pack
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.sharding.place import place_rows
from dr_jax.train import state as states
from dr_jax.train.report import Report, write_json
from dr_jax.train.run import Run, in_dtype, opened, run_directory
from dr_jax.train.settings import Settings

_log = logger(__name__)

Progress = Callable[[str, int, Mapping[str, Any]], None]


async def train(settings: Settings, *, resume: bool = False, progress: Progress) -> dict[str, Any]:
    """Run a whole experiment and return its summary.

    Args:
        settings: of the run.
        resume: continue the run of this name from its newest readable checkpoint.
        progress: called with a phase ("warm_up", "eval", "step", "saved"), an index, and numbers worth showing.

    Raises:
        UserError: something that a person can change, before anything long starts.
        MismatchError: engine and trainer disagree; the last good checkpoint is kept.
    """
    directory = run_directory(settings, resume=resume)
    metrics = Metrics()
    async with opened(settings, directory, metrics, progress) as run:
        start = states.restore(run) if resume else states.Progress()
        write_json(directory / "config.json", to_tree(settings))
        report = Report(directory, keep_below=start.step + 1)
        with EpisodeWriter(directory / "episodes.jsonl", append=resume) as writer:
            done = await _steps(run, start, report, writer, progress)
        summary = _summary(settings, done)
        report.summary(summary)
    return summary


async def _steps(
    run: Run, done: states.Progress, report: Report, writer: EpisodeWriter, progress: Progress
) -> states.Progress:
    """Evaluate, update until the last step, evaluate again; whatever ends it, what was done is saved."""
    settings, metrics = run.settings, run.metrics
    clock = time.perf_counter() - done.wall_s
    try:
        if done.before is None:
            done.before = (await run.evaluate(0)).tree()
            progress("eval", 0, done.before)
        async for groups in run.groups(done):
            with timed(metrics, "time/update_s"):
                stats = await asyncio.to_thread(_learn, run, groups)
            done.step += 1
            done.mismatch_max = max(done.mismatch_max, stats.get("update/mismatch_max", 0.0))
            _refuse_mismatch(settings, done.step, stats)
            run.settle(groups)
            writer.write(groups, step=done.step)
            done.wall_s = time.perf_counter() - clock
            numbers = {**states.told(groups), **metrics.drain(), **stats, "wall_s": done.wall_s}
            if settings.eval.every and done.step % settings.eval.every == 0 and done.step < settings.steps:
                found = (await run.evaluate(done.step)).tree()
                numbers |= {"eval/f1": found["f1"], "eval/em": found["em"]}
                progress("eval", done.step, found)
            report.step(done.step, numbers)
            progress("step", done.step, numbers)
            if settings.checkpoint.every and done.step % settings.checkpoint.every == 0:
                states.save(run, done)
            if done.step >= settings.steps:
                break
        done.after = (await run.evaluate(done.step)).tree()
        progress("eval", done.step, done.after)
    finally:
        done.wall_s = time.perf_counter() - clock
        if done.step:
            states.save(run, done)
            progress("saved", done.step, {"directory": str(run.directory)})
    return done


def _learn(run: Run, groups: list[Any]) -> dict[str, float]:
    """One update: rewards minus siblings', rectangles, gradient, new weights for the engine."""
    settings = run.settings
    kept = informative(groups, run.metrics)
    batches = pack(kept, settings.batch, advantage=named(settings.advantage), rows_multiple=run.rows_multiple, metrics=run.metrics)
    if not batches:
        _log.warning("every group of this step was flat: there is nothing to learn from it, the weights stay")
        return {"update/empty": 1.0}
    placed = [place_rows(batch, run.actor.mesh) for batch in batches]
    run.state, stats = run.update(run.state, placed, temperature=settings.episode.temperature, reference_weights=run.reference)
    run.actor.engine.adopt(in_dtype(run.state.weights, settings.model.dtype), version=int(jax.device_get(run.state.step)))
    return stats


def _refuse_mismatch(settings: Settings, step: int, stats: Mapping[str, float]) -> None:
    found = stats.get("update/mismatch_max", 0.0)
    if settings.mismatch_gate and not found <= settings.mismatch_gate:
        raise MismatchError(
            f"At update {step} engine and trainer differ by {found:.2e} in the log-probability of a token that both drew from "
            "the same weights",
            needed=f"at most mismatch_gate = {settings.mismatch_gate}",
            fix="look at the episode with `dr-jax show`; with bfloat16 set the gate to what `update/mismatch_max` usually is",
        )


def _summary(settings: Settings, done: states.Progress) -> dict[str, Any]:
    return {
        "name": settings.name,
        "eval": {"before": done.before, "after": done.after},
        "steps": done.step,
        "wall_s": round(done.wall_s, 1),
        "mismatch_max": done.mismatch_max,
        "seed": settings.seed,
    }


def directory_of(settings: Settings) -> Path:
    """Return where a run of these settings lies."""
    return Path(settings.out) / settings.name
