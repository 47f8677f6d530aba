"""Teach a fresh model the form of research from scripted researchers, so that reinforcement has something to work on.

In:    settings; littleweb's training worlds, one after another, none twice
Out:   a directory in Hugging Face format with weights and tokenizer
Drops: demonstrations of diligence that did not find what they were sent for
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from queue import Empty, Full, Queue

from dr_jax.agent.prompt import system_prompt
from dr_jax.agent.reader import make_reader
from dr_jax.agent.world import World
from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.learn.batch import Batch, pack_supervised
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import make_optimizer
from dr_jax.learn.update import begin, make_update, through
from dr_jax.littleweb import questions
from dr_jax.littleweb.shelf import Shelf
from dr_jax.littleweb.world import WorldSettings, build
from dr_jax.model import hf
from dr_jax.model.decoder import describe
from dr_jax.model.load import fresh
from dr_jax.model.sizes import NAMED
from dr_jax.rewards.match import exact_match
from dr_jax.rollout.collect import in_order
from dr_jax.rollout.episode import Actors, Attempt, run_episode
from dr_jax.sharding.mesh import make_mesh
from dr_jax.sharding.place import place_rows, row_ways
from dr_jax.tokens import vocabulary
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.trajectory import Episode
from dr_jax.train.demonstrate import NOT_FOUND, Manners, Researchers, ShelfWeb
from dr_jax.train.settings import Settings

Progress = Callable[[int, dict[str, float]], None]

_FILL = 0.85  # of a micro-batch; fuller ones often spill a row into a second, nearly empty one
_FIRST_WORLD = 1000  # seeds from here on; those that runs are trained on lie below
_VOCABULARY_WORLDS = 2


def cold_start(settings: Settings, directory: Path, *, progress: Progress) -> Path:
    """Train a policy on demonstrations and write it.

    Args:
        settings: `cold_start`, `optimizer`, `batch` and everything that shapes an episode.
        directory: where `model/` is written.
        progress: called after every update with its index and numbers.

    Returns:
        The directory of the model.

    Raises:
        ConfigError: there are too few demonstrations for the number of updates.
    """
    tokenizer = make_vocabulary(settings)
    sizes = dataclasses.replace(NAMED[settings.cold_start.size], vocab=tokenizer.vocab_size)
    axes = {name: spec.axes for name, spec in describe(sizes).items()}
    optimizer = make_optimizer(settings.optimizer, axes, steps=settings.steps)
    mesh = make_mesh(settings.mesh)
    state = begin(fresh(sizes, settings.seed, mesh=mesh), optimizer)
    update = make_update(through(sizes), LossSettings(objective="supervised"), optimizer, state)
    step = 0
    with closing(_ahead(_batches(settings, Chat(tokenizer), row_ways(mesh)))) as ready:
        for batches, episodes in ready:
            state, numbers = update(state, [place_rows(batch, mesh) for batch in batches])
            step += 1
            progress(step, numbers | {"cold_start/episodes": float(episodes)})
            if step == settings.steps:
                break
    if step < settings.steps:
        raise ConfigError(
            f"The demonstrations ended after {step} of {settings.steps} updates",
            needed=f"more than {settings.cold_start.worlds} worlds x {settings.cold_start.questions} questions",
            fix="raise cold_start.worlds, or lower steps",
        )
    model = directory / "model"
    hf.write(model, sizes, state.weights)
    vocabulary.save(tokenizer, model)
    return model


def make_vocabulary(settings: Settings) -> Tokenizer:
    """Train the tokenizer on diligent demonstrations, which a tokenizer of bytes is enough to run."""
    letters = Chat(vocabulary.train((), 300))
    roomy = dataclasses.replace(settings.episode, tokens=1 << 20, max_new_tokens=1 << 16)
    texts: list[str] = []
    for world in range(_VOCABULARY_WORLDS):
        for episode in demonstrations(dataclasses.replace(settings, episode=roomy), letters, world, Manners()):
            texts += vocabulary.parts(letters.tokenizer.decode(episode.trajectories[-1].ids))
    return vocabulary.train(texts, settings.cold_start.vocabulary)


def demonstrations(settings: Settings, chat: Chat, world: int, manners: Manners) -> Iterator[Episode]:
    """Run one scripted episode per question of one fresh training world; yield those worth showing."""
    here = build(WorldSettings(seed=_FIRST_WORLD + world, entities=settings.littleweb.entities))
    puzzles = questions.draw(here, settings.cold_start.questions, hops=settings.data.hops, seed=world)
    researchers = Researchers(chat, {one.question.id: one for one in puzzles}, manners)
    with closing(Shelf(here)) as shelf:
        reader = make_reader(settings.reader, chat=chat, policy=None, metrics=Metrics())
        acting = World(ShelfWeb(shelf, results=settings.web.results), reader, settings.tools)
        actors = Actors(researchers, chat, acting, system_prompt(settings.prompt))
        attempt = Attempt(run=settings.seed, purpose=f"demonstration:{world}")

        async def shown(puzzle: questions.Puzzle) -> Episode:
            return await run_episode(puzzle.question, actors, settings.episode, attempt)

        for puzzle, episode in zip(puzzles, asyncio.run(in_order(puzzles, shown, at_once=16)), strict=True):
            right = exact_match(episode.answer or "", puzzle.question.answers) == 1.0
            if episode.answer not in (None, NOT_FOUND) and (right or researchers.manner_of(episode, attempt) != "diligent"):
                yield episode


def _batches(settings: Settings, chat: Chat, rows_multiple: int) -> Iterator[tuple[tuple[Batch, ...], int]]:
    """Fill one micro-batch after another: diligence first, then all manners mixed."""
    careful = round(settings.cold_start.careful * settings.steps)
    made = 0
    waiting: list[Episode] = []
    seen = tokens = 0
    room = _FILL * settings.batch.rows * settings.batch.lengths[-1]
    shape = dataclasses.replace(settings.batch, lengths=settings.batch.lengths[-1:])
    for world in range(settings.cold_start.worlds):
        manners = Manners() if made < careful else settings.cold_start.manners
        for episode in demonstrations(settings, chat, world, manners):
            waiting.append(episode)
            seen += 1
            tokens += len(episode.trajectories[0])
            if tokens >= room:
                yield pack_supervised(waiting, shape, rows_multiple=rows_multiple), seen
                made += 1
                waiting, tokens = [], 0


def _ahead(batches: Iterator[tuple[tuple[Batch, ...], int]]) -> Generator[tuple[tuple[Batch, ...], int], None, None]:
    """Make the next batches in a thread while this one is trained on; closing it ends the thread."""
    ready: Queue[tuple[tuple[Batch, ...], int] | BaseException | None] = Queue(maxsize=4)
    over = threading.Event()

    def put(item: tuple[tuple[Batch, ...], int] | BaseException | None) -> None:
        while not over.is_set():
            try:
                ready.put(item, timeout=0.2)
            except Full:
                continue
            return

    def produce() -> None:
        try:
            for batch in batches:
                put(batch)
                if over.is_set():
                    return
            put(None)
        # Whatever it is, it belongs to whoever waits for the next batch.
        except BaseException as error:  # noqa: BLE001
            put(error)

    thread = threading.Thread(target=produce, name="dr_jax demonstrations", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=1.0)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        thread.join()
