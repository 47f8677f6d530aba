"""The loop: questions become groups, groups a batch, the batch new weights. Start reading here.

In:    Settings
Out:   a run directory: settings, metrics, episodes, checkpoints, model, curve, summary
Holds: no trained token is older than the staleness bound; a run whose engine and trainer disagree stops; what is
       interrupted is saved and goes on where it was
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from dr_jax.base.config import to_tree
from dr_jax.base.errors import MismatchError
from dr_jax.base.garbage import short_pauses
from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.learn.advantage import informative, named
from dr_jax.learn.batch import dealt
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.sharding.place import place_rows
from dr_jax.tokens.trajectory import Group
from dr_jax.train import state as states
from dr_jax.train.evaluate import figures, mark, scored
from dr_jax.train.lesson import joined, measured
from dr_jax.train.mirror import Shelf
from dr_jax.train.report import Report, Unwritten, write_json
from dr_jax.train.run import Run, opened
from dr_jax.train.settings import Settings
from dr_jax.train.share import same
from dr_jax.train.state import Progress
from dr_jax.train.together import INTERRUPTED, Together, reason
from dr_jax.train.trackers import refuse_missing

_log = logger(__name__)

Told = Callable[[str, int, Mapping[str, Any]], None]


async def train(
    settings: Settings, *, resume: bool = False, told: Told, terminated: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Run a whole experiment and return its summary.

    Args:
        settings: of the run.
        resume: continue the run of this name from its newest readable checkpoint.
        told: called with a phase ("warm_up", "eval", "step", "saved"), an index, and numbers worth showing.
        terminated: called at SIGTERM, when the run begins to end.

    Raises:
        UserError: something that a person can change, before anything long starts.
        MismatchError: engine and trainer disagree; the weights are left and saved as they were before that update.
    """
    together = Together(settings.processes)
    _end_on_termination(together, terminated)
    with together.watched():
        shelf = await asyncio.to_thread(states.shelf, settings, together.index, resume=resume)
        settings = same(states.dated(settings, resume=resume), together)
        if together.first:
            states.refuse_nothing(settings, resume=resume)
        refuse_missing(settings.report)
        before = together.exchange(states.chosen(settings))[0] if resume else None
        async with opened(settings, Metrics(), told, together, before) as run:
            return await _train(run, run.agreed, resume, shelf, told if together.first else _silent)


async def _train(run: Run, settings: Settings, resume: bool, shelf: Shelf | None, told: Told) -> dict[str, Any]:
    """Open the books, go through the loop, and close them."""
    first = run.together.first
    if first:
        states.run_directory(settings, resume=resume)
    run.together.exchange(None)  # the others may share the disk
    directory = states.run_directory(settings, resume=True)
    run.write_to(directory, resume=resume, shelf=shelf)
    done = states.restore(run) if resume else Progress()
    below = done.step + 1
    if first:
        write_json(directory / "config.json", to_tree(settings))
    with (
        Report(directory, keep_below=below, also=settings.report) if first else Unwritten() as report,
        states.episode_writer(run, keep_below=below if resume else None) as episodes,
    ):
        run.warm_up(lambda name, done, count: told("warm_up", done, {"program": name, "count": count}))
        with short_pauses():
            await _loop(run, done, report, episodes, told)
        chosen = {"memory": run.choice.tree()} if run.choice else {}
        summary = {**_summary(settings, done), **chosen, "metrics": run.metrics.drain()}  # of the last evaluation
        report.summary(summary)
    states.export(directory, run.actor.sizes, run.policy, run.actor.chat.tokenizer, first=first)
    run.trained.write_adapter(directory / "adapter", run.state.weights)
    return summary


async def _loop(run: Run, done: Progress, report: Report | Unwritten, episodes: EpisodeWriter, told: Told) -> None:
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
                    await asyncio.to_thread(run.copied)  # first: a checkpoint's rows and episodes are never behind it
                    own = await _whole(asyncio.to_thread(states.snapshot(run, done)))
                    await _whole(asyncio.to_thread(run.together.exchange, None, own))
                    await _whole(asyncio.to_thread(states.save, run, done, own))  # a bucket may let it wait for the last one
                await _whole(asyncio.to_thread(states.note, run, states.books(run, done)))
        done.after = await _measure(run, done.step, told)
        report.measured(done.step, done.after)
    finally:
        done.wall_s = time.perf_counter() - clock
        why, own = reason(sys.exception()), states.last(run, done)
        states.note(run, own)
        if await _whole(asyncio.to_thread(run.together.leave, why, own)) and done.step:
            states.save(run, done, own)
            told("saved", done.step, {"directory": str(run.directory)})
    run.together.refuse_left()


def learn(run: Run, groups: Sequence[Group], done: Progress) -> dict[str, float]:
    """One update: rewards minus siblings', rectangles, gradient, new weights."""
    settings, stats = run.settings, dict[str, float]()
    run.together.ready()
    kept = informative(groups, run.metrics)
    advantage = named(settings.advantage)
    own = dealt(kept, settings.batch, advantage=advantage, rows_multiple=run.rows_multiple, metrics=run.metrics)
    batches, episodes = joined(run, own, groups)
    if batches:
        with run.together.bound(), run.alone(), timed(run.metrics, "update/s"):
            placed = [place_rows(batch, run.actor.mesh) for batch in batches]
            run.state, stats = run.update(
                run.state,
                placed,
                temperature=settings.episode.temperature,
                reference_weights=run.reference,
                check=lambda found: refuse_mismatch(settings, done.step + 1, found),
            )
    else:
        _log.warning("update %d: every group was flat, so there is nothing to learn and the weights stay", done.step + 1)
    done.step += 1
    done.mismatch_max = max(done.mismatch_max, stats.get("update/mismatch_max", 0.0))
    return {**states.summed(episodes), **run.metrics.drain(), **stats}


async def _measure(run: Run, step: int, told: Told) -> dict[str, Any]:
    """Attempt every held-out question with the newest weights, each process those of its share."""
    own = run.together.share(run.held_out)
    episodes = await run.evaluate(own, lambda n: told("evaluating", n, {"count": len(own)}))
    marks = [mark(question, episode) for question, episode in zip(own, episodes, strict=True)]
    found = scored(await _whole(asyncio.to_thread(measured, run, marks))).tree()
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


def _end_on_termination(together: Together, terminated: Callable[[], None]) -> None:
    """Let SIGTERM, which announces a preemption, end the run as Ctrl-C does: saved, on all processes."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end() -> None:
        terminated()
        task.cancel()
        if not together.alone:
            loop.run_in_executor(None, together.call_off, INTERRUPTED)

    loop.add_signal_handler(signal.SIGTERM, end)


def _silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing: another process does."""


def _summary(settings: Settings, done: Progress) -> dict[str, Any]:
    return {
        "name": settings.name,
        "eval": {"before": done.before, "after": done.after},
        "steps": done.step,
        "wall_s": round(done.wall_s, 1),
        "mismatch_max": done.mismatch_max,
        "seed": settings.seed,
    }
