"""One attempt at a question: ask the policy, read what it decided, act, show it what came back, until an Outcome.

In:    a question, a policy, a world, budgets, a key
Out:   Episode, not yet rewarded
Holds: ids are append-only; the prompt of every turn is exactly what will be trained on; every await has a deadline
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from dr_jax.agent.budget import Budget
from dr_jax.agent.context import ContextManager, ContextSettings, Exchange, make_context
from dr_jax.agent.tools import Memory, Observation, mistake
from dr_jax.agent.world import World
from dr_jax.base.errors import ContextFullError, WorldDownError
from dr_jax.data.question import Question
from dr_jax.tokens.calls import Answer, Call, Calls, Malformed, parse
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy, RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Author, Episode, Outcome, ToolEvent, Trajectory, Turn, world
from dr_jax.web.page import whole

LAST_TURN = "This was the last tool call. Answer now."
_DEPTH = 16  # levels of a call's arguments that are kept


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
        all_s: deadline of the episode. An episode that a deadline ends says nothing about the policy: WORLD_FAILED.
        context: what the policy still sees of a long episode.
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
    all_s: float = 7200.0
    context: ContextSettings = field(default_factory=ContextSettings)

    def __post_init__(self) -> None:
        if min(self.turns, self.tokens, self.max_new_tokens) < 1:
            raise ValueError(
                f"turns, tokens and max_new_tokens are {self.turns}, {self.tokens}, {self.max_new_tokens}; at least 1"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature, top_p and top_k are {self.temperature}, {self.top_p}, {self.top_k}; "
                "at least 0, above 0 and at most 1, and at least 0 are needed"
            )
        for name in ("policy_s", "world_s", "all_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}; a deadline of more than 0 s is needed")


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


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An episode as it was when it last asked the policy: what it needs to go on from there, later or elsewhere.

    Args:
        trajectories: the closed ones, and last the open one, whose ids are what the policy was asked to continue.
        exchanges: that the open one holds, as they are shown.
        turns, tools, seconds: as in `Episode`.
        urls, query, known: of its `Memory`.
    """

    trajectories: tuple[Trajectory, ...]
    exchanges: tuple[Exchange, ...]
    turns: tuple[Turn, ...]
    tools: tuple[ToolEvent, ...]
    seconds: dict[str, float]
    urls: dict[str, str]
    query: str
    known: tuple[str, ...]

    @property
    def drawn(self) -> int:
        """How many ids the policy has drawn."""
        return sum(len(part.ids) for row in self.trajectories for part in row.by(Author.POLICY))


Reached = Callable[[Unfinished], None]
Event = tuple[Literal["prompt", "said", "observed", "ended"], str]
Watch = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Actors:
    """Who takes part in an episode."""

    policy: Policy
    chat: Chat
    world: World
    system: str


def opening(question: Question, actors: Actors, settings: EpisodeSettings) -> tuple[int, ...]:
    """Render system prompt and question: the ids that every sibling starts from."""
    return tuple(actors.chat.open(actors.system, question.text, prefill=settings.prefill))


async def run_episode(
    question: Question,
    actors: Actors,
    settings: EpisodeSettings,
    attempt: Attempt,
    *,
    watch: Watch | None = None,
    opened: Sequence[int] | None = None,
    left: Unfinished | None = None,
    reached: Reached | None = None,
) -> Episode:
    """Run one episode to its end.

    Args:
        question: what is asked.
        actors: policy, chat, world, system prompt.
        settings: budgets.
        attempt: which one this is.
        watch: told what happens as it happens.
        opened: what `opening` returned, where siblings share it.
        left: where an earlier session left it; it goes on from there. It has to have begun with the same prompt.
        reached: told where it is, each time before the policy is asked.
    """
    ids = opening(question, actors, settings) if opened is None else tuple(opened)
    episode = _Attempt(question, actors, settings, attempt, watch or (lambda event: None), ids, reached)
    if left is not None:
        episode.go_on_from(left)
    return await episode.run()


class _Attempt:
    """The moving parts of one episode."""

    def __init__(
        self,
        question: Question,
        actors: Actors,
        settings: EpisodeSettings,
        attempt: Attempt,
        watch: Watch,
        opened: tuple[int, ...],
        reached: Reached | None,
    ) -> None:
        self._question, self._actors, self._settings, self._attempt, self._watch = question, actors, settings, attempt, watch
        self._reached = reached
        self._context: ContextManager = make_context(settings.context)
        self._budget = Budget(settings.turns, settings.tokens)
        self._memory = Memory(question.text, measure=lambda text: len(actors.chat.tokenizer.text(text)))
        self._opened = opened
        self._closed: list[Trajectory] = []
        self._trajectory = Trajectory((world(opened),))
        self._ids = list(opened)  # of the trajectory; kept beside it, so that a turn costs what it adds
        self._exchanges: tuple[Exchange, ...] = ()
        self._turns: list[Turn] = []
        self._tools: list[ToolEvent] = []
        self._seconds = {"policy": 0.0, "world": 0.0}
        self._start = time.perf_counter()
        self._goes_on = False
        self._waits_for = ""

    def go_on_from(self, left: Unfinished) -> None:
        """Take up an episode where it was left."""
        *closed, last = left.trajectories
        self._closed, self._trajectory, self._ids, self._exchanges = closed, last, list(last.ids), left.exchanges
        self._turns, self._tools = list(left.turns), list(left.tools)
        self._budget.turns -= len(left.turns)
        self._memory.urls, self._memory.query, self._memory.known = dict(left.urls), left.query, list(left.known)
        self._seconds = {name: left.seconds[name] for name in self._seconds}
        self._start -= left.seconds["all"]
        self._goes_on = True

    def _so_far(self) -> Unfinished:
        memory = self._memory
        return Unfinished(
            trajectories=(*self._closed, self._trajectory),
            exchanges=self._exchanges,
            turns=tuple(self._turns),
            tools=tuple(self._tools),
            seconds=self._spent(),
            urls=dict(memory.urls),
            query=memory.query,
            known=tuple(map(whole, memory.known)),
        )

    def _spent(self) -> dict[str, float]:
        return {**self._seconds, "all": time.perf_counter() - self._start}

    async def run(self) -> Episode:
        self._watch(("prompt", self._question.text))
        answer, failure = None, ""
        try:
            async with asyncio.timeout(self._settings.all_s - self._spent()["all"]):
                outcome, answer = await self._converse()
        except WorldDownError as error:
            outcome, failure = Outcome.WORLD_FAILED, whole(str(error))
        except TimeoutError:
            seconds = self._spent()["all"]
            outcome, failure = Outcome.WORLD_FAILED, f"a deadline passed after {seconds:.1f} s, waiting for {self._waits_for}"
        self._watch(("ended", outcome.value))
        return Episode(
            id=f"{self._question.id}.{self._attempt.sibling}",
            question_id=self._question.id,
            trajectories=(*self._closed, *self._last()),
            outcome=outcome,
            turns=tuple(self._turns),
            answer=answer,
            tools=tuple(self._tools),
            seconds=self._spent(),
            failure=failure,
        )

    def _last(self) -> tuple[Trajectory, ...]:
        """The open trajectory, unless it was opened by a rewriting and nothing was said in it."""
        return (self._trajectory,) if self._trajectory.by(Author.POLICY) or not self._closed else ()

    async def _converse(self) -> tuple[Outcome, str | None]:
        while True:
            if self._reached is not None and not self._goes_on:
                self._reached(self._so_far())
            self._goes_on = False
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
                    if self._budget.must_answer:
                        return Outcome.OUT_OF_TURNS, None
                    observation = mistake(reason)
                    self._tools.append(ToolEvent(len(self._turns) - 1, "", {}, observation.text, reason))
                case Calls() as calls:
                    if self._budget.must_answer:
                        return Outcome.OUT_OF_TURNS, None
                    observation = await self._act(calls)
                case other:
                    assert_never(other)
            self._budget.spend_turn()
            if not self._show(sampled, observation):
                return Outcome.OUT_OF_TOKENS, None

    async def _ask(self) -> Sampled | None:
        room = self._budget.for_generation(len(self._ids), self._settings.max_new_tokens)
        if not room:
            return None
        sampling = Sampling(
            room, self._settings.temperature, self._settings.top_p, self._settings.top_k, self._actors.chat.stop_ids
        )
        start = time.perf_counter()
        self._waits_for = "the policy"
        try:
            async with asyncio.timeout(self._settings.policy_s):
                sampled = await self._actors.policy.sample(tuple(self._ids), sampling, self._key(len(self._turns)))
        except ContextFullError:
            return None
        finally:
            self._seconds["policy"] += time.perf_counter() - start
        self._trajectory = self._trajectory.append(sampled.segment())
        self._ids += sampled.ids
        return sampled

    def _decision(self, sampled: Sampled) -> Calls | Answer | Malformed:
        """Read the text of what was drawn, without the id that ended it."""
        ids = sampled.ids[:-1] if sampled.finish == "stop" else sampled.ids
        text = self._actors.chat.tokenizer.decode(ids)
        self._turns.append(Turn(text, self._settings.prefill))
        self._watch(("said", self._settings.prefill + text))
        try:
            return parse(self._settings.prefill + text)
        except ValueError as error:  # JSON with a number of more digits than Python converts
            return Malformed(f"the tool call cannot be read: {error}")

    async def _act(self, calls: Calls) -> Observation:
        most = self._actors.world.settings.calls
        shown: list[Observation] = []
        for call in calls.calls[:most]:
            call = Call(whole(call.name), _recordable(call.arguments))
            self._waits_for = call.name[:80]
            start = time.perf_counter()
            try:
                async with asyncio.timeout(self._settings.world_s):
                    found = await self._actors.world.call(call, self._memory, self._key(len(self._turns) - 1))
            finally:
                seconds = time.perf_counter() - start
                self._seconds["world"] += seconds
            told = whole(found.error)
            self._tools.append(ToolEvent(len(self._turns) - 1, call.name, call.arguments, found.text, told, seconds))
            shown.append(found)
        if len(calls.calls) > most:
            shown.append(mistake(f"{len(calls.calls)} calls at once; only the first {most} were carried out"))
        return shown[0] if len(shown) == 1 else Observation("\n".join(one.text for one in shown))

    def _show(self, sampled: Sampled, observation: Observation) -> bool:
        """Append only the new message; or, if the context manager rewrites the past, open the next trajectory.

        Returns:
            Whether there is room to go on. If not, nothing was appended: the policy never saw it.
        """
        text = f"{observation.text}\n{LAST_TURN}" if self._budget.must_answer else observation.text
        self._watch(("observed", text))
        exchanges = (*self._exchanges, Exchange(sampled.ids, sampled.finish == "stop", text))
        rewritten = self._context.rewrite(exchanges)
        if rewritten is None:
            new = self._observed(exchanges[-1])
            if not self._budget.holds(len(self._ids) + len(new)):
                return False
            self._trajectory, self._exchanges = self._trajectory.append(world(new)), exchanges
            self._ids += new
            return True
        ids = list(self._opened)
        for exchange in rewritten:
            ids += [*exchange.said, *self._observed(exchange)]
        if not self._budget.holds(len(ids)):
            return False
        self._closed.append(self._trajectory)
        self._trajectory, self._exchanges, self._ids = Trajectory((world(ids),)), rewritten, ids
        return True

    def _observed(self, exchange: Exchange) -> list[int]:
        return self._actors.chat.observe(exchange.observation, closed=exchange.closed, prefill=self._settings.prefill)

    def _key(self, turn: int) -> RequestKey:
        return RequestKey(self._attempt.run, self._question.id, self._attempt.sibling, turn, self._attempt.purpose)


def _recordable(value: Any, depth: int = 0) -> Any:
    """Return JSON values that every program can read: texts that UTF-8 can hold, finite numbers, nothing nested for ever."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict | list) and depth == _DEPTH:
        return "…"
    if isinstance(value, dict):
        return {whole(name): _recordable(one, depth + 1) for name, one in value.items()}
    return [_recordable(one, depth + 1) for one in value] if isinstance(value, list) else value
