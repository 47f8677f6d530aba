"""What a fresh model is shown: demonstrations by scripted researchers, in an order that can be taken up anywhere.

In:    settings; littleweb's training worlds, one after another, none twice
Out:   full micro-batches, each with the place in the order that comes after it
Drops: demonstrations of diligence that did not find what they were sent for; of each world, what does not fill a micro-batch
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Full, Queue

from dr_jax.agent.prompt import system_prompt
from dr_jax.agent.reader import make_reader
from dr_jax.agent.world import World
from dr_jax.base.metrics import Metrics
from dr_jax.learn.batch import Batch, pack_supervised
from dr_jax.littleweb import questions
from dr_jax.littleweb.pages import main_url
from dr_jax.littleweb.shelf import Shelf
from dr_jax.littleweb.world import RELATIONS, WorldSettings, build
from dr_jax.rewards.match import exact_match
from dr_jax.rollout.collect import in_order
from dr_jax.rollout.episode import Actors, Attempt, run_episode
from dr_jax.tokens import vocabulary
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.trajectory import Author, Episode, Outcome, Segment, Trajectory, world
from dr_jax.train.demonstrate import NOT_FOUND, Manners, Researchers, ShelfWeb
from dr_jax.train.settings import Settings
from dr_jax.web.page import WebError

_WAITING = 4  # demonstrations that did not fit into a micro-batch any more before it is taken as full
_FIRST_WORLD = 1000  # seeds from here on; those that runs are trained on lie below
_VOCABULARY_WORLDS = 2
_SHORT = 600  # characters of a page that is read as a whole


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the order of lessons a model is.

    Args:
        world: number of the world that the next lesson comes from.
        taken: how many lessons were taken from it.
        before: how many came from the worlds before it.
        episodes: shown so far.
    """

    world: int = 0
    taken: int = 0
    before: int = 0
    episodes: int = 0


Lesson = tuple[tuple[Batch, ...], Place]


def make_vocabulary(settings: Settings) -> Tokenizer:
    """Train the tokenizer on diligent demonstrations, which a tokenizer of bytes is enough to run."""
    letters = Chat(vocabulary.train((), 300))
    roomy = dataclasses.replace(settings.episode, tokens=1 << 20, max_new_tokens=1 << 16)
    texts: list[str] = []
    for number in range(_VOCABULARY_WORLDS):
        for episode in demonstrations(dataclasses.replace(settings, episode=roomy), letters, number, Manners()):
            texts += vocabulary.parts(letters.tokenizer.decode(episode.trajectories[-1].ids))
    return vocabulary.train(texts, settings.cold_start.vocabulary)


def demonstrations(settings: Settings, chat: Chat, number: int, manners: Manners) -> Iterator[Episode]:
    """Run one scripted episode per question of one fresh training world; yield those worth showing."""
    here = build(WorldSettings(seed=_FIRST_WORLD + number, entities=settings.littleweb.entities))
    puzzles = questions.draw(here, settings.cold_start.questions, hops=settings.data.hops, seed=number)
    researchers = Researchers(chat, {one.question.id: one for one in puzzles}, manners)
    with closing(Shelf(here)) as shelf:
        reader = make_reader(settings.reader, chat=chat, policy=None, metrics=Metrics())
        acting = World(ShelfWeb(shelf, results=settings.web.results), reader, settings.tools)
        actors = Actors(researchers, chat, acting, system_prompt(settings.prompt))
        attempt = Attempt(run=settings.seed, purpose=f"demonstration:{number}")

        async def shown(puzzle: questions.Puzzle) -> Episode:
            return await run_episode(puzzle.question, actors, settings.episode, attempt)

        for puzzle, episode in zip(puzzles, asyncio.run(in_order(puzzles, shown, at_once=16)), strict=True):
            right = exact_match(episode.answer or "", puzzle.question.answers) == 1.0
            if episode.answer not in (None, NOT_FOUND) and (right or researchers.manner_of(episode, attempt) != "diligent"):
                yield episode


def readings(settings: Settings, chat: Chat, number: int) -> Iterator[Episode]:
    """Show short pages of one fresh training world, each with notes of what it says: many lookups in few tokens."""
    here = build(WorldSettings(seed=_FIRST_WORLD + number, entities=settings.littleweb.entities))
    rng = random.Random(f"readings/{settings.seed}/{number}")
    with closing(Shelf(here)) as shelf:
        web = ShelfWeb(shelf)
        for entity in rng.sample(here.entities, len(here.entities)):
            page = web.read(main_url(entity))
            if isinstance(page, WebError) or len(page.text) > _SHORT:
                continue
            relations = rng.sample(RELATIONS[entity.kind], len(RELATIONS[entity.kind]))
            notes = "".join(f"<think>{one.words}: {here.said(entity, one)}</think>" for one in relations)
            ids = (*chat.tokenizer.text(page.text), *chat.tokenizer.markup(notes))
            trajectory = Trajectory((world(ids),))
            yield _as_text(Episode(f"reading.{number}.{entity.id}", "reading", (trajectory,), Outcome.OUT_OF_TURNS))


def _alternating(short: Iterator[Episode], long: Iterator[Episode]) -> Iterator[Episode]:
    """Take about as many tokens from either, until one ends."""
    balance = 0
    for episode in long:
        yield episode
        balance += len(episode.trajectories[0])
        while balance > 0 and (one := next(short, None)) is not None:
            yield one
            balance -= len(one.trajectories[0])


def lessons(settings: Settings, chat: Chat, rows_multiple: int, place: Place) -> Iterator[Lesson]:
    """Fill one micro-batch after another: reading first, then diligence, then all manners mixed.

    Args:
        settings: of the cold start.
        chat: encodes.
        rows_multiple: how many devices rows are spread over.
        place: where to begin; nothing that comes before it is shown again.
    """
    share = settings.cold_start
    reading, careful = round(share.reading * settings.steps), round(share.careful * settings.steps)
    shape = dataclasses.replace(settings.batch, lengths=settings.batch.lengths[-1:])
    while place.world < share.worlds:
        made = place.before + place.taken
        shown = demonstrations(settings, chat, place.world, Manners() if made < careful else share.manners)
        if made < reading:
            shown = _alternating(readings(settings, chat, place.world), map(_as_text, shown))
        for number, episodes in enumerate(_fillings(shown, shape.rows, shape.lengths[0])):
            if number < place.taken:
                continue
            place = dataclasses.replace(place, taken=place.taken + 1, episodes=place.episodes + len(episodes))
            yield pack_supervised(episodes, shape, rows_multiple=rows_multiple), place
        place = Place(place.world + 1, 0, place.before + place.taken, place.episodes)


def _fillings(episodes: Iterator[Episode], rows: int, length: int) -> Iterator[list[Episode]]:
    """Collect what fits together into so many rows."""
    fitting, waiting, space = list[Episode](), list[Episode](), [length] * rows
    for episode in episodes:
        (fitting if _fits(episode, space) else waiting).append(episode)
        if len(waiting) < _WAITING:
            continue
        yield fitting
        before, fitting, waiting, space = waiting, [], [], [length] * rows
        for one in before:
            (fitting if _fits(one, space) else waiting).append(one)


def _fits(episode: Episode, space: list[int]) -> bool:
    """Take the room of an episode from the fullest row that still holds it."""
    tokens = len(episode.trajectories[0])
    row = min((row for row, room in enumerate(space) if room >= tokens), key=lambda row: space[row], default=None)
    if row is not None:
        space[row] -= tokens
    return row is not None


def _as_text(episode: Episode) -> Episode:
    """Make every token but the first one to be learned, whoever wrote it: plain language modelling."""
    texts = []
    for trajectory in episode.trajectories:
        first, *rest = trajectory.ids
        zeros = (0.0,) * len(rest)
        texts.append(Trajectory((world((first,)), Segment(Author.POLICY, tuple(rest), zeros, (0,) * len(rest)))))
    return dataclasses.replace(episode, trajectories=tuple(texts))


def ahead(made: Iterator[Lesson]) -> Generator[Lesson, None, None]:
    """Make the next lessons in a thread while this one is learned; closing it ends the thread."""
    ready: Queue[Lesson | BaseException | None] = Queue(maxsize=4)
    over = threading.Event()

    def put(item: Lesson | BaseException | None) -> None:
        while not over.is_set():
            try:
                ready.put(item, timeout=0.2)
            except Full:
                continue
            return

    def produce() -> None:
        try:
            for lesson in made:
                put(lesson)
                if over.is_set():
                    return
            put(None)
        # Whatever it is, it belongs to whoever waits for the next lesson.
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
