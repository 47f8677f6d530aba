"""The loop: questions become groups, groups a batch, the batch new weights. Start reading here.

In:    Settings
Out:   a run directory: settings, metrics, episodes, checkpoints, model, curve, summary
Holds: no trained token is older than the staleness bound; a run whose engine and trainer disagree stops; what is
       interrupted is saved and goes on where it was
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from dr_jax.base.config import to_tree
from dr_jax.base.errors import MismatchError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.learn.advantage import informative, named
from dr_jax.learn.batch import pack
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.sharding.place import place_rows
from dr_jax.tokens.trajectory import Group
from dr_jax.train import state as states
from dr_jax.train.evaluate import figures, score
from dr_jax.train.report import Report, write_json
from dr_jax.train.run import Run, opened
from dr_jax.train.settings import Settings
from dr_jax.train.state import Progress
from dr_jax.train.trackers import refuse_missing

_log = logger(__name__)

Told = Callable[[str, int, Mapping[str, Any]], None]


async def train(settings: Settings, *, resume: bool = False, told: Told) -> dict[str, Any]:
    """Run a whole experiment and return its summary.

    Args:
        settings: of the run.
        resume: continue the run of this name from its newest readable checkpoint.
        told: called with a phase ("warm_up", "eval", "step", "saved"), an index, and numbers worth showing.

    Raises:
        UserError: something that a person can change, before anything long starts.
        MismatchError: engine and trainer disagree; the weights are left and saved as they were before that update.
    """
    _end_on_termination()
    settings = states.dated(settings, resume=resume)
    states.refuse_nothing(settings, resume=resume)
    refuse_missing(settings.report)
    async with opened(settings, Metrics(), told) as run:
        directory = states.run_directory(settings, resume=resume)
        run.write_to(directory, resume=resume)
        done = states.restore(run) if resume else Progress()
        write_json(directory / "config.json", to_tree(settings))
        decode, below = run.actor.chat.tokenizer.decode, done.step + 1
        with (
            Report(directory, keep_below=below, also=settings.report) as report,
            EpisodeWriter(directory / "episodes.jsonl", decode, keep_below=below if resume else None) as episodes,
        ):
            run.warm_up(lambda name, done, count: told("warm_up", done, {"program": name, "count": count}))
            await _loop(run, done, report, episodes, told)
            summary = {**_summary(settings, done), "metrics": run.metrics.drain()}  # of the last evaluation
            report.summary(summary)
        states.export(directory, run.actor.sizes, run.policy, run.actor.chat.tokenizer)
        run.trained.write_adapter(directory / "adapter", run.state.weights)
    return summary


async def _loop(run: Run, done: Progress, report: Report, episodes: EpisodeWriter, told: Told) -> None:
    """Measure, update until the last step, measure again. However it ends, what was done is saved."""
    clock = time.perf_counter() - done.wall_s
    try:
        if done.before is None:
            done.before = await _measure(run, done.step, told)
        report.measured(0, done.before)
        async with aclosing(run.groups()) as collected:
            while done.step < run.settings.steps:
                groups = await anext(collected)  # host: words
                numbers = await _whole(asyncio.to_thread(learn, run, groups, done))  # device: numbers
                run.settle(groups)  # here, not in that thread: others draw from the stream meanwhile
                for group in groups:
                    for episode in group.episodes:
                        episodes.write(episode, run.questions[group.question_id], step=done.step)
                episodes.flush()
                numbers["wall_s"] = done.wall_s = time.perf_counter() - clock
                try:
                    # After the books: if the engine has died, the update was made all the same, and is not made again.
                    await _whole(asyncio.to_thread(run.adopt))
                    if run.settings.eval.every and done.step % run.settings.eval.every == 0 and done.step < run.settings.steps:
                        numbers |= figures(await _measure(run, done.step, told))
                finally:  # a row stands for every update that was made
                    report.step(done.step, numbers)
                told("step", done.step, numbers)
                if run.settings.checkpoint.every and done.step % run.settings.checkpoint.every == 0:
                    states.save(run, done)
                states.note(run, done)
        done.after = await _measure(run, done.step, told)
        report.measured(done.step, done.after)
    finally:
        done.wall_s = time.perf_counter() - clock
        states.note(run, done)
        if done.step:
            states.save(run, done)
            told("saved", done.step, {"directory": str(run.directory)})


def learn(run: Run, groups: Sequence[Group], done: Progress) -> dict[str, float]:
    """One update: rewards minus siblings', rectangles, gradient, new weights."""
    settings, stats = run.settings, dict[str, float]()
    kept = informative(groups, run.metrics)
    advantage = named(settings.advantage)
    batches = pack(kept, settings.batch, advantage=advantage, rows_multiple=run.rows_multiple, metrics=run.metrics)
    if batches:
        placed = [place_rows(batch, run.actor.mesh) for batch in batches]
        temperature = settings.episode.temperature
        with run.alone(), timed(run.metrics, "update/s"):
            run.state, stats = run.update(
                run.state,
                placed,
                temperature=temperature,
                reference_weights=run.reference,
                check=lambda found: refuse_mismatch(settings, done.step + 1, found),
            )
    else:
        _log.warning("update %d: every group was flat, so there is nothing to learn and the weights stay", done.step + 1)
    done.step += 1
    done.mismatch_max = max(done.mismatch_max, stats.get("update/mismatch_max", 0.0))
    return {**states.summed(groups), **run.metrics.drain(), **stats}


async def _measure(run: Run, step: int, told: Told) -> dict[str, Any]:
    """Attempt every held-out question with the newest weights."""
    episodes = await run.evaluate(run.held_out, lambda n: told("evaluating", n, {"count": len(run.held_out)}))
    found = score(run.held_out, episodes).tree()
    told("eval", step, found)
    return found


def refuse_mismatch(settings: Settings, step: int, found: float) -> None:
    """Stop a run whose engine and trainer disagree about a token that both drew from the same weights.

    Raises:
        MismatchError: by more than `mismatch_gate`, or the difference is not a number.
    """
    if settings.mismatch_gate and not found <= settings.mismatch_gate:
        raise MismatchError(
            f"At update {step} engine and trainer differ by {found:.2e} in the log-probability of an on-policy token",
            needed=f"at most mismatch_gate = {settings.mismatch_gate}",
            fix="in float32 this is a bug; in bfloat16 set the gate to what `update/mismatch_max` usually is",
        )


async def _whole(work: Any) -> Any:
    """Await a thread to its end, also when cancelled: the state that it was given is gone, the new one must be kept.

    The cancellation comes back at the next await, after what the thread did has been written down.
    """
    task, own = asyncio.ensure_future(work), asyncio.current_task()
    assert own is not None
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        found = await task
        own.uncancel()
        own.cancel()
        return found


def _end_on_termination() -> None:
    """Let SIGTERM, which announces a preemption, end the run as Ctrl-C does: saved."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _summary(settings: Settings, done: Progress) -> dict[str, Any]:
    return {
        "name": settings.name,
        "eval": {"before": done.before, "after": done.after},
        "steps": done.step,
        "wall_s": round(done.wall_s, 1),
        "mismatch_max": done.mismatch_max,
        "seed": settings.seed,
    }
