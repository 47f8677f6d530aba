"""One attempt at a question: ask the policy, read what it decided, act, show it what came back, until an Outcome.

In:    a question, a policy, a world, budgets, a key
Out:   Episode, not yet rewarded
Holds: ids are append-only; the prompt of every turn is exactly what will be trained on; every await has a deadline
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from dr_jax.agent.budget import Budget
from dr_jax.agent.context import ContextManager, ContextSettings, Exchange, make_context
from dr_jax.agent.tools import Memory, Observation, mistake
from dr_jax.agent.world import World
from dr_jax.base.errors import CapacityError, WorldDownError
from dr_jax.data.question import Question
from dr_jax.tokens.calls import Answer, Calls, Malformed, parse
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy, RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode, Outcome, ToolEvent, Trajectory, Turn, world

LAST_TURN = "This was the last tool call. Answer now."


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """What one attempt may use. The defaults are DeepResearcher's.

    Args:
        turns: tool calls; after the last of them the policy must answer.
        tokens: ids of a trajectory, prompt included.
        max_new_tokens: of one generation.
        temperature: of the sampling.
        top_p: nucleus; below 1 the trainer could not compute the same log-probabilities, so training refuses it.
        top_k: likewise; 0 is off.
        malformed: `end` the episode at the first text that has neither form, or `retry`: tell the policy; it costs a turn.
        prefill: markup put in the policy's mouth at every turn, such as `<think>`; the world's ids, not trained.
        policy_s: deadline of one generation, queueing included.
        world_s: deadline of one tool call.
    """

    turns: int = 10
    tokens: int = 32768
    max_new_tokens: int = 2000
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    malformed: Literal["end", "retry"] = "end"
    prefill: str = ""
    policy_s: float = 1800.0
    world_s: float = 300.0
    context: ContextSettings = field(default_factory=ContextSettings)

    def __post_init__(self) -> None:
        if min(self.turns, self.tokens, self.max_new_tokens) < 1:
            raise ValueError(
                f"turns, tokens and max_new_tokens are {self.turns}, {self.tokens}, {self.max_new_tokens}; at least 1"
            )
        if min(self.policy_s, self.world_s) <= 0:
            raise ValueError(f"deadlines policy_s = {self.policy_s}, world_s = {self.world_s}; more than 0 is needed")


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which attempt this is: what its random numbers depend on.

    Args:
        run: the run's seed.
        sibling: index in the group.
        purpose: keeps training, evaluation and each epoch apart.
    """

    run: int = 0
    sibling: int = 0
    purpose: str = "act"


Event = tuple[Literal["prompt", "said", "observed", "ended"], str]
Watch = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Actors:
    """Who takes part in an episode."""

    policy: Policy
    chat: Chat
    world: World
    system: str


async def run_episode(
    question: Question, actors: Actors, settings: EpisodeSettings, attempt: Attempt, *, watch: Watch | None = None
) -> Episode:
    """Run one episode to its end.

    Args:
        question: what is asked.
        actors: policy, chat, world, system prompt.
        settings: budgets.
        attempt: which one this is.
        watch: told what happens as it happens.
    """
    return await _Attempt(question, actors, settings, attempt, watch or (lambda event: None)).run()


class _Attempt:
    """The moving parts of one episode."""

    def __init__(self, question: Question, actors: Actors, settings: EpisodeSettings, attempt: Attempt, watch: Watch) -> None:
        self._question, self._actors, self._settings, self._attempt, self._watch = question, actors, settings, attempt, watch
        self._context: ContextManager = make_context(settings.context)
        self._budget = Budget(settings.turns, settings.tokens)
        self._memory = Memory(question.text)
        self._closed: list[Trajectory] = []
        self._trajectory = Trajectory()
        self._exchanges: tuple[Exchange, ...] = ()
        self._turns: list[Turn] = []
        self._tools: list[ToolEvent] = []
        self._seconds = {"policy": 0.0, "world": 0.0}

    async def run(self) -> Episode:
        start = time.perf_counter()
        opening = self._actors.chat.open(self._actors.system, self._question.text, prefill=self._settings.prefill)
        self._trajectory = Trajectory((world(opening),))
        self._watch(("prompt", self._question.text))
        answer, failure = None, ""
        try:
            outcome, answer = await self._converse()
        except WorldDownError as error:
            outcome, failure = Outcome.WORLD_FAILED, str(error)
        except TimeoutError:
            outcome, failure = Outcome.WORLD_FAILED, "a deadline passed while the episode waited"
        self._watch(("ended", outcome.value))
        return Episode(
            id=f"{self._question.id}.{self._attempt.sibling}",
            question_id=self._question.id,
            trajectories=(*self._closed, self._trajectory),
            outcome=outcome,
            turns=tuple(self._turns),
            answer=answer,
            tools=tuple(self._tools),
            seconds={**self._seconds, "all": time.perf_counter() - start},
            failure=failure,
        )

    async def _converse(self) -> tuple[Outcome, str | None]:
        while True:
            sampled = await self._ask()
            if sampled is None:
                return Outcome.OUT_OF_TOKENS, None
            match self._decision(sampled):
                case Answer(text):
                    return Outcome.ANSWERED, text
                case Malformed() if sampled.finish == "length":
                    return Outcome.OUT_OF_TOKENS, None
                case Malformed(reason):
                    if self._settings.malformed == "end":
                        return Outcome.MALFORMED, None
                    if self._budget.turns <= 0:
                        return Outcome.OUT_OF_TURNS, None
                    observation = mistake(reason)
                    self._tools.append(ToolEvent(len(self._turns) - 1, "", {}, observation.text, reason))
                case Calls() as calls:
                    if self._budget.turns <= 0:
                        return Outcome.OUT_OF_TURNS, None
                    observation = await self._act(calls)
                case other:
                    assert_never(other)
            self._budget.turns -= 1
            self._show(sampled, observation)

    async def _ask(self) -> Sampled | None:
        room = self._budget.for_generation(len(self._trajectory), self._settings.max_new_tokens)
        if not room:
            return None
        sampling = Sampling(
            room, self._settings.temperature, self._settings.top_p, self._settings.top_k, self._actors.chat.stop_ids
        )
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.policy_s):
                sampled = await self._actors.policy.sample(self._trajectory.ids, sampling, self._key(len(self._turns)))
        except CapacityError:
            return None
        finally:
            self._seconds["policy"] += time.perf_counter() - start
        self._trajectory = self._trajectory.append(sampled.segment())
        return sampled

    def _decision(self, sampled: Sampled) -> Calls | Answer | Malformed:
        """Read the text of what was drawn, without the id that ended it."""
        ids = sampled.ids[:-1] if sampled.finish == "stop" else sampled.ids
        text = self._actors.chat.tokenizer.decode(ids)
        self._turns.append(Turn(text, self._settings.prefill))
        self._watch(("said", self._settings.prefill + text))
        return parse(self._settings.prefill + text)

    async def _act(self, calls: Calls) -> Observation:
        shown: list[Observation] = []
        for call in calls.calls:
            start = time.perf_counter()
            async with asyncio.timeout(self._settings.world_s):
                found = await self._actors.world.call(call, self._memory, self._key(len(self._turns) - 1))
            seconds = time.perf_counter() - start
            self._seconds["world"] += seconds
            self._tools.append(ToolEvent(len(self._turns) - 1, call.name, call.arguments, found.text, found.error, seconds))
            shown.append(found)
        return shown[0] if len(shown) == 1 else Observation("\n".join(one.text for one in shown))

    def _show(self, sampled: Sampled, observation: Observation) -> None:
        """Append only the new message; or, if the context manager rewrites the past, open the next trajectory."""
        text = f"{observation.text}\n{LAST_TURN}" if self._budget.turns <= 0 else observation.text
        self._watch(("observed", text))
        self._exchanges = (*self._exchanges, Exchange(sampled.ids, sampled.finish == "stop", text))
        rewritten = self._context.rewrite(self._exchanges)
        if rewritten is None:
            self._trajectory = self._trajectory.append(world(self._observed(self._exchanges[-1])))
            return
        self._closed.append(self._trajectory)
        self._exchanges = rewritten
        ids = self._actors.chat.open(self._actors.system, self._question.text, prefill=self._settings.prefill)
        for exchange in rewritten:
            ids += [*exchange.said, *self._observed(exchange)]
        self._trajectory = Trajectory((world(ids),))

    def _observed(self, exchange: Exchange) -> list[int]:
        return self._actors.chat.observe(exchange.observation, closed=exchange.closed, prefill=self._settings.prefill)

    def _key(self, turn: int) -> RequestKey:
        return RequestKey(self._attempt.run, self._question.id, self._attempt.sibling, turn, self._attempt.purpose)


def greedy(settings: EpisodeSettings, temperature: float) -> EpisodeSettings:
    """Return the settings with another temperature, for evaluation."""
    return replace(settings, temperature=temperature)
