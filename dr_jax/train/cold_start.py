"""Teach a fresh model the form of research from scripted researchers, so that reinforcement has something to work on.

In:    settings; lessons
Out:   a run directory: checkpoints, metrics, and `model/` in Hugging Face format with weights and tokenizer
Holds: stopped anywhere and resumed, it sees every lesson once and gives the same weights
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from jax.sharding import Mesh

from dr_jax.base.errors import ConfigError
from dr_jax.base.trace import logger
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import make_optimizer
from dr_jax.learn.update import State, Update, begin, make_update, through
from dr_jax.model.decoder import describe
from dr_jax.model.load import fresh
from dr_jax.model.sizes import NAMED, Sizes
from dr_jax.sharding.mesh import make_mesh
from dr_jax.sharding.place import place_rows, row_ways
from dr_jax.tokens import vocabulary
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.train.checkpoint import Checkpoints
from dr_jax.train.lessons import Place, ahead, lessons, make_vocabulary
from dr_jax.train.report import Report
from dr_jax.train.settings import Settings
from dr_jax.train.state import export
from dr_jax.train.trackers import refuse_missing

_log = logger(__name__)

Progress = Callable[[int, dict[str, float]], None]


def cold_start(settings: Settings, directory: Path, *, resume: bool = False, progress: Progress) -> Path:
    """Train a policy on demonstrations and write it. However it ends, what was learned is saved.

    Args:
        settings: `cold_start`, `optimizer`, `batch` and everything that shapes an episode.
        directory: of the run.
        resume: go on from the newest readable checkpoint in it.
        progress: called after every update with its index and the numbers that were written to `metrics.jsonl`.

    Returns:
        The directory of the model.

    Raises:
        ConfigError: there are too few demonstrations for the number of updates, or a tracker is not installed.
        CheckpointError: `resume`, and there are checkpoints but none can be read.
    """
    refuse_missing(settings.report)
    if settings.lora.rank:
        raise ConfigError("lora.rank has no model to stand beside: it begins with fresh weights", needed="lora.rank = 0")
    tokenizer = _tokenizer(settings, directory)
    sizes, mesh = dataclasses.replace(NAMED[settings.cold_start.size], vocab=tokenizer.vocab_size), make_mesh(settings.mesh)
    state, update = _beginner(settings, sizes, mesh)
    place, step, saved, earlier, start = Place(), 0, 0, 0.0, time.perf_counter()
    with closing(_checkpoints(settings, directory, resume)) as checkpoints:

        def save(step: int, state: State, place: Place) -> None:
            wall_s = earlier + time.perf_counter() - start
            checkpoints.save(step, state, {"step": step, "place": dataclasses.asdict(place), "wall_s": wall_s})

        if resume and (found := checkpoints.restore(state)) is not None:
            state, host = found
            place, step, earlier = Place(**host["place"]), host["step"], host["wall_s"]
            saved = step
        try:
            with (
                Report(directory, keep_below=step + 1, also=settings.report) as report,
                _stop_after_update() as stopped,
                closing(ahead(lessons(settings, Chat(tokenizer), row_ways(mesh), place))) as ready,
            ):
                while step < settings.steps and not stopped():
                    batches, after = next(ready, (None, place))
                    if batches is None:
                        raise _ended(settings, step)
                    state, numbers = update(state, [place_rows(batch, mesh) for batch in batches])
                    step, place = step + 1, after
                    wall_s = earlier + time.perf_counter() - start
                    numbers |= {"cold_start/episodes": float(place.episodes), "wall_s": wall_s}
                    report.step(step, numbers)
                    progress(step, numbers)
                    if settings.checkpoint.every and step % settings.checkpoint.every == 0:
                        save(step, state, place)
                        saved = step
                if stopped():
                    raise KeyboardInterrupt
        finally:
            if step > saved:
                save(step, state, place)
    return export(directory, sizes, state.weights, tokenizer)


def _beginner(settings: Settings, sizes: Sizes, mesh: Mesh) -> tuple[State, Update]:
    """Return a model that knows nothing yet, and how it learns from demonstrations."""
    optimizer = make_optimizer(
        settings.optimizer, {name: spec.axes for name, spec in describe(sizes).items()}, steps=settings.steps
    )
    state = begin(fresh(sizes, settings.seed, mesh=mesh), optimizer)
    return state, make_update(through(sizes), LossSettings(objective="supervised"), optimizer, state)


@contextmanager
def _stop_after_update() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait for the update in flight: the weights that it was given are gone, its own must be kept.

    Yields:
        Whether one of them came. Where signals cannot be heard, outside the main thread, none ever does.
    """
    came: list[int] = []
    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {name: signal.signal(name, lambda number, frame: came.append(number)) for name in heard}
    try:
        yield lambda: bool(came)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _tokenizer(settings: Settings, directory: Path) -> Tokenizer:
    """Read the run's tokenizer, or make it: the demonstrations that it was trained on may be other ones tomorrow."""
    kept = directory / "tokenizer"
    if kept.exists():
        return Tokenizer.load(kept)
    _log.info("training a tokenizer of %d ids on demonstrations", settings.cold_start.vocabulary)
    tokenizer = make_vocabulary(settings)
    vocabulary.save(tokenizer, kept)
    return tokenizer


def _checkpoints(settings: Settings, directory: Path, resume: bool) -> Checkpoints:
    where = settings.checkpoint.directory or directory / "checkpoints"
    return Checkpoints(where, keep=settings.checkpoint.keep, resume=resume)


def _ended(settings: Settings, step: int) -> ConfigError:
    return ConfigError(
        f"The demonstrations ended after {step} of {settings.steps} updates",
        needed=f"more than {settings.cold_start.worlds} worlds x {settings.cold_start.questions} questions",
        fix="raise cold_start.worlds, or lower steps",
    )
