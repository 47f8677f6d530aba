"""Build every part of a run from its settings, and take all of them down again.

In:    Settings
Out:   Stage: a policy in an engine, and the worlds that it can act in; Run: a stage that also learns
Fails: before anything long starts, with what to change
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dr_jax.agent.prompt import system_prompt
from dr_jax.agent.reader import make_reader
from dr_jax.agent.world import World
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Draw, Stream
from dr_jax.learn.optimizer import make_optimizer
from dr_jax.learn.update import State, begin, make_update, through
from dr_jax.littleweb import questions as puzzles
from dr_jax.littleweb.names import Split
from dr_jax.model.decoder import Weights, describe
from dr_jax.rewards.total import Total
from dr_jax.rollout.collect import finished, in_order
from dr_jax.rollout.episode import Actors, Attempt, EpisodeSettings, Watch, run_episode
from dr_jax.rollout.group import run_group
from dr_jax.sharding.place import row_ways
from dr_jax.tokens.trajectory import Episode, Group
from dr_jax.train.actor import Actor, in_dtype, load_actor
from dr_jax.train.checkpoint import Checkpoints
from dr_jax.train.questions import eval_questions, refuse_overlap, training_questions
from dr_jax.train.settings import Settings
from dr_jax.train.worlds import AnyWeb, built, way_out
from dr_jax.web.search.budget import Budget

Told = Callable[[str, int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Place:
    """A world to act in, its web, and the questions that littleweb has about it (none for the open web)."""

    web: AnyWeb
    actors: Actors
    drawn: tuple[puzzles.Puzzle, ...]


class Stage:
    """A policy, an engine around it, and worlds that are opened when they are first needed.

    Args:
        settings: of the run.
        actor: the policy.
        metrics: shared by every part.
        stack: closes what is opened.
    """

    def __init__(self, settings: Settings, actor: Actor, metrics: Metrics, stack: AsyncExitStack) -> None:
        self.settings, self.actor, self.metrics = settings, actor, metrics
        self.budget = Budget(settings.web.budget, metrics)
        self._stack = stack
        self._places: dict[Split, Place] = {}

    async def place(self, split: Split) -> Place:
        """Open the world of a split: littleweb's, served on loopback, or the open web; directly or by gateways."""
        if split not in self._places:
            settings, metrics, here = self.settings, self.metrics, self.settings.littleweb
            drawn = self._drawn(split) if "littleweb" in settings.web.order else ()
            way = way_out(settings.web, here.world(split), faults=here.faults, metrics=metrics, budget=self.budget)
            web = await self._stack.enter_async_context(way)
            reader = make_reader(settings.reader, chat=self.actor.chat, policy=self.actor.engine, metrics=metrics)
            world = World(web, reader, settings.tools, metrics=metrics)
            actors = Actors(self.actor.engine, self.actor.chat, world, system_prompt(settings.prompt, world.schemas))
            self._places[split] = Place(web, actors, drawn)
        return self._places[split]

    def _drawn(self, split: Split) -> tuple[puzzles.Puzzle, ...]:
        count, seed = (self.settings.data.questions, self.settings.seed) if split == "train" else (self._asked, 0)
        world = built(self.settings.littleweb.world(split))
        return tuple(puzzles.draw(world, count, hops=self.settings.data.hops, seed=seed))

    @property
    def _asked(self) -> int:
        return max(1, self.settings.data.limit or self.settings.eval.questions)

    async def attempt(self, question: Question, place: Place, settings: EpisodeSettings, watch: Watch | None = None) -> Episode:
        """Run one episode of an evaluation; its random numbers depend on the question alone."""
        attempt = Attempt(self.settings.seed, 0, "eval")
        return await run_episode(question, place.actors, settings, attempt, watch=watch)

    async def evaluate(self, questions: Sequence[Question], told: Callable[[int], None]) -> list[Episode]:
        """Attempt every question once in the held-out world, in the questions' order."""
        place = await self.place("eval")
        settings = replace(self.settings.episode, temperature=self.settings.eval.temperature)

        async def once(question: Question) -> Episode:
            await place.web.healthy()
            return await self.attempt(question, place, settings)

        return await in_order(list(questions), once, at_once=self.settings.eval.in_flight, done=told)


class Run(Stage):
    """A stage that learns.

    Args:
        directory: where the run writes.
        train: the world that is trained in.
        questions: to train on.
        held_out: to measure with.
        see `Stage` for the rest.
    """

    def __init__(
        self,
        stage: Stage,
        stack: AsyncExitStack,
        directory: Path,
        train: Place,
        questions: Sequence[Question],
        held_out: Sequence[Question],
    ) -> None:
        super().__init__(stage.settings, stage.actor, stage.metrics, stack)
        self.budget, self._places = stage.budget, stage._places
        settings, actor = self.settings, self.actor
        self.directory, self.held_out = directory, list(held_out)
        self.questions = {question.id: question for question in questions}
        self._train, self._total = train, Total(settings.reward)
        axes = {name: spec.axes for name, spec in describe(actor.sizes).items()}
        optimizer = make_optimizer(settings.optimizer, axes, steps=settings.steps)
        self.state: State = begin(actor.weights, optimizer)
        forward = through(actor.sizes, remat=settings.remat, compute_dtype=jnp.dtype(settings.model.dtype))
        self.update = make_update(forward, settings.loss, optimizer, self.state)
        self.reference: Weights | None = actor.weights if settings.loss.needs_reference else None
        self.rows_multiple = row_ways(actor.mesh)
        self.stream = Stream(list(questions), settings.seed)
        self.waiting: list[Group] = []
        where = settings.checkpoint.directory or directory / "checkpoints"
        self.checkpoints = Checkpoints(where, keep=settings.checkpoint.keep)

    @property
    def version(self) -> int:
        """The policy's version: how many updates made its weights."""
        return int(jax.device_get(self.state.step))

    def adopt(self) -> None:
        """Hand the newest weights to the engine."""
        self.actor.engine.adopt(in_dtype(self.state.weights, self.settings.model.dtype), version=self.version)

    async def groups(self) -> AsyncGenerator[list[Group], None]:
        """Yield the groups of one update after another, for ever.

        With a staleness of 0 each update's groups are started with the newest weights and all of them are awaited, in the
        order of the stream. Otherwise episodes stay in flight across updates, and groups with too old tokens are given back.
        """
        settings = self.settings.rollout
        at_once = max(1, (settings.in_flight or settings.groups * settings.group_size) // settings.group_size)
        if not settings.staleness:
            while True:
                draws = [self.stream.next() for _ in range(settings.groups)]
                yield await in_order(draws, self._group, at_once=at_once)
        async with aclosing(finished(self._draws(), self._group, at_once=at_once)) as ended:
            async for _, group in ended:
                self.waiting.append(group)
                self._give_back_stale()
                if len(self.waiting) >= settings.groups:
                    taken, self.waiting[:] = self.waiting[: settings.groups], self.waiting[settings.groups :]
                    yield taken

    def settle(self, groups: Sequence[Group]) -> None:
        """Tell the stream what became of these groups' questions: trained on, or to be drawn again."""
        for group in groups:
            if group.trainable:
                self.stream.mark_trained(group.question_id)
            else:
                self.stream.give_back(group.question_id)

    async def _group(self, draw: Draw) -> Group:
        await self._train.web.healthy()  # an outage pauses the run; it does not end its episodes
        return await run_group(
            draw.question,
            self._train.actors,
            self.settings.episode,
            self._total,
            size=self.settings.rollout.group_size,
            run=self.settings.seed,
            purpose=f"train:{draw.epoch}",
        )

    def _draws(self) -> Iterator[Draw]:
        while True:
            yield self.stream.next()

    def _give_back_stale(self) -> None:
        oldest = self.version - self.settings.rollout.staleness
        for group in [one for one in self.waiting if (one.oldest_version or 0) < oldest]:
            self.waiting.remove(group)
            self.stream.give_back(group.question_id, failed=False)
            self.metrics.add("rollout/stale_groups")


@asynccontextmanager
async def opened_stage(settings: Settings, metrics: Metrics, told: Told) -> AsyncIterator[tuple[Stage, AsyncExitStack]]:
    """Load the policy, start its engine and compile its programs."""
    async with AsyncExitStack() as stack:
        actor = load_actor(settings, metrics)
        stack.enter_context(actor.engine)
        yield Stage(settings, actor, metrics, stack), stack


@asynccontextmanager
async def opened(settings: Settings, directory: Path, metrics: Metrics, told: Told) -> AsyncIterator[Run]:
    """Open a run with all its parts; questions and batch are checked before anything is compiled."""
    async with opened_stage(settings, metrics, told) as (stage, stack):
        train, held_out_place = await stage.place("train"), await stage.place("eval")
        questions = training_questions(settings, train.drawn)
        held_out = eval_questions(settings, held_out_place.drawn, alone=False)
        refuse_overlap(questions, held_out)
        run = Run(stage, stack, directory, train, questions, held_out)
        stack.callback(run.checkpoints.close)
        stage.actor.engine.warm_up(lambda name, done, count: told("warm_up", done, {"program": name, "count": count}))
        yield run
