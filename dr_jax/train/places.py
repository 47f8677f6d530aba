"""The worlds that a policy acts in, opened when they are first needed.

In:    settings, a policy and how it talks; an exit stack that closes what is opened
Out:   Place: a world, its web, the questions that littleweb has about it; one attempt in it
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dr_jax.agent.endpoint import Endpoint, Spending
from dr_jax.agent.model_reader import READ
from dr_jax.agent.prompt import system_prompt
from dr_jax.agent.reader import make_reader
from dr_jax.agent.shared_reader import SharedReader, Shelf
from dr_jax.agent.world import World
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.littleweb import questions as puzzles
from dr_jax.littleweb.names import Split
from dr_jax.rollout.episode import Actors, Attempt, EpisodeSettings, Watch, run_episode
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy
from dr_jax.tokens.trajectory import Episode
from dr_jax.train.actor import ReadingModel
from dr_jax.train.settings import Settings
from dr_jax.train.worlds import AnyWeb, built, way_out
from dr_jax.web.search.budget import Budget

if TYPE_CHECKING:
    from dr_jax.train.elastic.web_crew import WebCrew


@dataclass(frozen=True, slots=True)
class Speaker:
    """A policy, how it talks, and a name for what its weights are now.

    Args:
        policy: asked in the world that is trained in.
        chat: how it talks.
        version: the name.
        measured: asked in the held-out world, if it is another: one that never draws with weights that are not the newest.
    """

    policy: Policy
    chat: Chat
    version: Callable[[], str]
    measured: Policy | None = None

    def policy_of(self, split: Split) -> Policy:
        """Who is asked in the world of a split."""
        return self.measured if self.measured is not None and split == "eval" else self.policy


@dataclass(frozen=True, slots=True)
class Place:
    """A world to act in, its web, and the questions that littleweb has about it (none for the open web)."""

    web: AnyWeb
    actors: Actors
    drawn: tuple[puzzles.Puzzle, ...]
    endpoint: Endpoint | None = None

    async def healthy(self) -> None:
        """Wait until episodes may be begun: an outage pauses the run instead of ending its episodes.

        Raises:
            WorldDownError: the world, or the server that reads, has been down for too long.
            BudgetError: searching or reading has cost as much as it may.
        """
        await self.web.healthy()
        if self.endpoint is not None:
            await self.endpoint.healthy()


def puzzles_of(settings: Settings, split: Split) -> tuple[puzzles.Puzzle, ...]:
    """Return the questions that littleweb has about the world of a split; none where it is not searched."""
    if "littleweb" not in settings.web.order:
        return ()
    held_out = max(1, settings.eval.questions)  # `dr-jax ask` takes its question from here as well
    count, seed = (settings.data.questions, settings.seed) if split == "train" else (held_out, 0)
    return tuple(puzzles.draw(built(settings.littleweb.world(split)), count, hops=settings.data.hops, seed=seed))


class Places:
    """Worlds that are opened when they are first needed.

    Args:
        settings: of the run.
        speaker: who acts in them.
        metrics: shared by every part.
        stack: closes what is opened.
        reading: the model that reads, when it is not the policy itself.
    """

    def __init__(
        self,
        settings: Settings,
        speaker: Speaker,
        metrics: Metrics,
        stack: AsyncExitStack,
        reading: ReadingModel | None = None,
    ) -> None:
        self.settings, self.speaker, self.metrics, self.reading = settings, speaker, metrics, reading
        self.budget = Budget(settings.web.budget, metrics)
        self.spending = Spending(settings.reader.endpoint, metrics)
        self._stack = stack
        self._places: dict[Split, Place] = {}
        self._endpoint: Endpoint | None = None
        self.web_crew: WebCrew | None = None

    async def place(self, split: Split) -> Place:
        """Open the world of a split: littleweb's, served on loopback, or the open web; directly, or by gateways."""
        if split not in self._places:
            settings, metrics, here = self.settings, self.metrics, self.settings.littleweb
            drawn = puzzles_of(settings, split)
            way: AbstractAsyncContextManager[AnyWeb]
            if self.web_crew is not None:
                way = self.web_crew.way(here.world(split), metrics)
            else:
                way = way_out(settings.web, here.world(split), faults=here.faults, metrics=metrics, budget=self.budget)
            web = await self._stack.enter_async_context(way)
            policy = self.speaker.policy_of(split)
            world = World(web, await self._reader(web, policy), settings.tools, metrics=metrics)
            actors = Actors(policy, self.speaker.chat, world, system_prompt(settings.prompt, world.schemas))
            self._places[split] = Place(web, actors, drawn, self._endpoint)
        return self._places[split]

    async def _reader(self, web: AnyWeb, policy: Policy) -> SharedReader:
        """Build the reader of one world; a server that reads is opened once for all of them."""
        settings, replays = self.settings.reader, self.settings.web.tape.mode == "replay"
        if settings.kind == "openai" and self._endpoint is None:
            opened = Endpoint(
                settings.endpoint,
                READ,
                settings.max_new_tokens,
                metrics=self.metrics,
                spending=self.spending,
                replays=replays,
            )
            self._endpoint = await self._stack.enter_async_context(opened)
        other, speaker = self.reading, self.speaker
        lasts = self._endpoint is not None or other is not None  # what the policy itself reads changes with every update
        reader = make_reader(
            settings,
            chat=other.chat if other else speaker.chat,
            policy=other.engine if other else policy,
            metrics=self.metrics,
            version=(lambda: other.name) if other else speaker.version,
            endpoint=self._endpoint,
            shelf=Shelf(web, replays, must=self._endpoint is not None) if lasts else None,
        )
        self._stack.push_async_callback(reader.close)
        return reader

    async def attempt(self, question: Question, place: Place, settings: EpisodeSettings, watch: Watch | None = None) -> Episode:
        """Run one episode of an evaluation; its random numbers depend on the question alone."""
        attempt = Attempt(self.settings.seed, 0, "eval")
        return await run_episode(question, place.actors, settings, attempt, watch=watch)
