"""Build every part of a run from its settings, and take all of them down again.

In:    Settings
Out:   Stage: a policy in an engine, and the worlds that it can act in; Run: a stage that also learns
Fails: before anything long starts, with what to change
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream
from dr_jax.learn.optimizer import make_optimizer
from dr_jax.learn.update import State, begin, make_update
from dr_jax.model.decoder import Remat, Weights
from dr_jax.rewards.total import Total
from dr_jax.rollout.collect import finished, in_order
from dr_jax.rollout.flight import Flights
from dr_jax.rollout.group import run_group, weathered
from dr_jax.rollout.harvest import Harvest
from dr_jax.rollout.underway import Flight, UnderWay
from dr_jax.sharding.place import row_ways
from dr_jax.tokens.trajectory import Episode, Group, Outcome
from dr_jax.train.actor import Actor, ReadingModel, load_actor, load_reading_model
from dr_jax.train.checkpoint import Checkpoints
from dr_jax.train.elastic.open import refuse_missing, shared, web_crew
from dr_jax.train.lesson import Purse
from dr_jax.train.memory import Learner, fitted
from dr_jax.train.mirror import Mirror, Shelf
from dr_jax.train.places import Place, Places, Speaker
from dr_jax.train.questions import eval_questions, refuse_overlap, training_questions
from dr_jax.train.settings import Settings
from dr_jax.train.share import own_share
from dr_jax.train.tape_mirror import TapeMirror, copies, identity, recorded
from dr_jax.train.together import HurriedError, Together
from dr_jax.train.trained import trained

if TYPE_CHECKING:
    from dr_jax.train.elastic.crew import Crew

Told = Callable[[str, int, dict[str, Any]], None]
_TRIES = 3  # at a question of an evaluation
_COPIED_S = 10.0  # longest that a checkpoint waits for a bucket to have what belongs to it
_WAITED_S = 0.5  # who waits longer for the world has waited for an outage to end


class Stage(Places):
    """A policy in an engine, and worlds that are opened when they are first needed.

    Args:
        settings: of the run.
        actor: the policy.
        metrics: shared by every part.
        stack: closes what is opened.
        reading: the model that reads, when it is not the policy itself.
    """

    def __init__(
        self,
        settings: Settings,
        actor: Actor,
        metrics: Metrics,
        stack: AsyncExitStack,
        reading: ReadingModel | None = None,
    ) -> None:
        engine = actor.engine
        super().__init__(settings, Speaker(engine, actor.chat, lambda: f"version {engine.version}"), metrics, stack, reading)
        self.actor = actor
        self.elsewhere: Crew | None = None

    async def share(self) -> None:
        """Have workers elsewhere draw, and do the web's work, where the settings want that; before a place is opened."""
        if self.settings.rollout.ray.web.workers:
            self.web_crew = await self._stack.enter_async_context(web_crew(self.settings, self.metrics))
        if self.settings.rollout.ray.workers:
            pool, self.elsewhere = await self._stack.enter_async_context(shared(self.settings, self.actor, self.metrics))
            self.speaker = replace(self.speaker, policy=pool, measured=pool.exact())

    def warm_up(self, told: Callable[[str, int, int], None]) -> None:
        """Compile every program of the policy's engine, and of the reading model's."""
        self.actor.engine.warm_up(told)
        if self.reading is not None:
            self.reading.engine.warm_up(told)

    async def evaluate(
        self,
        questions: Sequence[Question],
        told: Callable[[int], None],
        ended: Callable[[Question, Episode], None] = lambda question, episode: None,
    ) -> list[Episode]:
        """Attempt every question in the held-out world: once, or again when the world failed it.

        Args:
            questions: what is asked.
            told: how many have ended.
            ended: told each question with its episode as it ends.

        Returns:
            Episodes in the questions' order.
        """
        place = await self.place("eval")
        settings = replace(self.settings.episode, temperature=self.settings.eval.temperature)

        async def once(question: Question) -> Episode:
            for _ in range(_TRIES):  # those that an outage ends would be missing, and not by chance: they searched the longest
                await place.healthy()
                episode = await self.attempt(question, place, settings)
                if episode.outcome is not Outcome.WORLD_FAILED:
                    break
            ended(question, episode)
            return episode

        return await in_order(list(questions), once, at_once=self.settings.eval.in_flight, done=told)


class Run(Stage):
    """A stage that learns.

    Args:
        train: the world that is trained in.
        together: this process and the others.
        questions: to train on.
        held_out: to measure with.
        before: which `remat` and `batch.rows` were chosen when the run began, if it is resumed.
        see `Stage` for the rest.
    """

    def __init__(
        self,
        stage: Stage,
        stack: AsyncExitStack,
        train: Place,
        together: Together,
        questions: Sequence[Question],
        held_out: Sequence[Question],
        before: tuple[Remat, int] | None = None,
    ) -> None:
        super().__init__(stage.settings, stage.actor, stage.metrics, stack, stage.reading)
        self.budget, self.spending, self._places, self._endpoint = stage.budget, stage.spending, stage._places, stage._endpoint
        self.speaker, self.elsewhere, self.web_crew = stage.speaker, stage.elsewhere, stage.web_crew
        actor, self.together = self.actor, together
        self.purse = Purse((self.budget, ("queries", "money")), (self.spending, ("calls", "tokens", "money")))
        self.held_out = list(held_out)
        self.questions = {question.id: question for question in questions}
        self.trained = trained(stage.settings, actor)
        optimizer = make_optimizer(stage.settings.optimizer, self.trained.axes, steps=stage.settings.steps)
        self.state: State = begin(self.trained.first, optimizer)
        self.reference: Weights | None = actor.weights if stage.settings.loss.needs_reference else None
        if self.trained.first is not self.reference:  # the state has copies, and the first ones would lie there to the end
            for weight in self.trained.first.values():
                weight.delete()
        learner = Learner(stage.settings, self.trained, self.state, optimizer, actor.mesh)
        self.choice = fitted(learner, actor, stage.reading, together, before)
        self.agreed = self.choice.applied(stage.settings) if self.choice else stage.settings
        assert self.agreed.remat != "auto"
        self.settings = settings = own_share(self.agreed, self.together)
        forward = self.trained.forward(settings, self.agreed.remat)
        self.update = make_update(forward, settings.loss, optimizer, self.state, self.trained.frozen)
        self.train, self.total = train, Total(settings.reward)
        self.rows_multiple = row_ways(actor.mesh) // self.together.count
        self.stream = Stream(list(questions), settings.seed, share=(self.together.index, self.together.count))
        self.under_way = UnderWay(self.stream, self.metrics, settings.terms)
        self.harvest = Harvest(settings.rollout.groups, self.metrics, at_once=settings.rollout.at_once)
        self._mirror: Mirror | None = None

    def write_to(self, directory: Path, *, resume: bool, shelf: Shelf | None = None) -> None:
        """Name the directory of the run and open its checkpoints, and the copy of its files in a bucket.

        Raises:
            ConfigError: there are checkpoints of another run.
        """
        kept = self.settings.checkpoint
        self.directory = directory
        where, index = kept.directory or directory / "checkpoints", self.together.index
        tape = recorded(self.settings) if shelf is not None else None
        if tape is not None and not copies(self.together.exchange(identity(tape)), index):
            tape = None
        self.checkpoints = Checkpoints(where, keep=kept.keep, resume=resume, base=self.trained.base)
        if shelf is not None and tape is not None:  # closed last: what is left of the grace period belongs to the run first
            self._stack.enter_context(TapeMirror(shelf, tape, self.metrics, index=index))
        self._stack.callback(self.checkpoints.close)
        if shelf is not None:
            self._mirror = self._stack.enter_context(Mirror(shelf, directory, self.metrics, index=index))

    def copied(self) -> bool:
        """Copy what was written so far to the bucket, if there is one and it is quick; otherwise that is done later."""
        return self._mirror is None or self._mirror.flush(_COPIED_S)

    @property
    def version(self) -> int:
        """The policy's version: how many updates made its weights."""
        return int(jax.device_get(self.state.step))

    @property
    def policy(self) -> Weights:
        """The newest weights of the whole model."""
        return self.trained.whole(self.state.weights)

    def alone(self) -> AbstractContextManager[None]:
        """Keep the engine still where an update would share a processor with it; episodes go on with the web meanwhile.

        Two programs on one CPU get into each other's threads and take longer than one after the other; accelerators queue them.
        """
        shared = not self.actor.placement.apart and self.actor.mesh.devices.flat[0].platform == "cpu"
        return self.actor.engine.paused() if shared else nullcontext()

    def adopt(self) -> None:
        """Hand the newest weights to the engine, unless it has them: an update without a lesson leaves them as they are."""
        if self.actor.engine.version != self.version:
            with self.together.bound(), nullcontext() if self.together.alone else self.alone():
                lent = self.actor.lent(self.policy, self.settings.model.dtype)
                if not self.together.alone:
                    jax.block_until_ready(lent)
            self.actor.engine.adopt(lent, version=self.version)
            if self.elsewhere is not None:
                self.elsewhere.publish(lent, self.version)

    async def groups(self) -> AsyncGenerator[list[Group], None]:
        """Yield the groups of one update after another, for ever; those that the world failed come along, beyond the number.

        Where the settings drain, each update's groups are started with the newest weights and all of them are awaited, in the
        order of the stream; in the place of those that the world failed, others are started. Otherwise groups stay in flight
        across updates and go on while one is computed; see `rollout.flight`. Where other processes have waited long enough for
        this one's, there are fewer.

        Raises:
            WorldDownError: the world fails one group after another, or has been down for too long.
        """
        settings, harvest = self.settings.rollout, self.harvest
        if settings.drains:
            while True:
                for group in harvest.retire(self.version - settings.staleness):  # of a run that was stopped with another bound
                    self.stream.give_back(group.question_id, group.epoch, failed=False)
                    self.metrics.add("rollout/stale_groups")
                try:
                    async with self.together.hurried():
                        await self._drained()
                except HurriedError:
                    self.metrics.add("rollout/hurried_groups", self.under_way.give_up_all())
                harvest.waiting.sort(key=lambda group: self.stream.place(group.question_id, group.epoch))
                yield harvest.take()
        flights = Flights(
            self.stream,
            self.under_way,
            harvest,
            self._group,
            at_once=settings.at_once,
            staleness=settings.staleness,
            most=settings.most,
            metrics=self.metrics,
        )
        async with flights:
            while True:
                try:
                    async with self.together.hurried():
                        taken = await flights.take(self.version)
                except HurriedError:
                    taken = flights.take_at_once(self.version)
                yield taken

    async def _drained(self) -> None:
        """Run as many groups as are missing."""
        while missing := self.harvest.missing:
            flights = [self.under_way.next(self.version - self.settings.rollout.staleness) for _ in range(missing)]
            async with aclosing(finished(flights, self._group, at_once=self.settings.rollout.at_once)) as ended:
                async for flight, group in ended:
                    self.under_way.land(flight)
                    self.harvest.add(group)

    def settle(self, groups: Sequence[Group]) -> None:
        """Tell the stream what became of these groups' questions: trained on, or to be drawn again."""
        for group in groups:
            if group.trainable:
                self.stream.mark_trained(group.question_id, group.epoch)
            else:
                self.stream.give_back(group.question_id, group.epoch)

    async def _group(self, flight: Flight) -> Group:
        start = time.monotonic()
        await self.train.healthy()
        if time.monotonic() - start > _WAITED_S:
            self.harvest.world_is_back()
        settings = self.settings.rollout
        group = await run_group(
            flight.draw.question,
            self.train.actors,
            self.settings.episode,
            self.total,
            size=settings.group_size,
            spare=settings.spare,
            run=self.settings.seed,
            purpose=f"train:{flight.draw.epoch}",
            metrics=self.metrics,
            flight=flight,
        )
        return weathered(group, settings.failed_share, self.metrics)


@asynccontextmanager
async def opened_stage(settings: Settings, metrics: Metrics, told: Told) -> AsyncIterator[tuple[Stage, AsyncExitStack]]:
    """Load the policy, start its engine and compile its programs."""
    async with AsyncExitStack() as stack:
        actor = load_actor(settings, metrics)
        reading = load_reading_model(settings, actor, metrics)
        stack.enter_context(actor.engine)
        if reading is not None:
            stack.enter_context(reading.engine)
        yield Stage(settings, actor, metrics, stack, reading), stack


@asynccontextmanager
async def opened(
    settings: Settings,
    metrics: Metrics,
    told: Told,
    together: Together | None = None,
    before: tuple[Remat, int] | None = None,
) -> AsyncIterator[Run]:
    """Open a run with all its parts; nothing is written yet, and compiled only what has to be known of its memory."""
    if settings.rollout.ray.workers or settings.rollout.ray.web.workers:
        refuse_missing()
    async with opened_stage(settings, metrics, told) as (stage, stack):
        await stage.share()
        train, held_out_place = await stage.place("train"), await stage.place("eval")
        questions = training_questions(settings, train.drawn)
        held_out = eval_questions(settings, held_out_place.drawn, alone=False)
        refuse_overlap(questions, held_out)
        yield Run(stage, stack, train, together or Together(settings.processes), questions, held_out, before)
