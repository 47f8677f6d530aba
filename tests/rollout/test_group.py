import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.world import World
from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.rewards.total import Total
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode
from tests.fakes import ScriptedPolicy, ScriptedWeb, answer

QUESTION = Question("q", "Who founded Velin?", ("gold",), "littleweb")
SETTINGS = EpisodeSettings(turns=2, tokens=2000, max_new_tokens=200)


def said(key: RequestKey, seen: str) -> str:
    return answer("gold" if key.sibling == 1 else "tin")


def actors(chat: Chat) -> Actors:
    return Actors(ScriptedPolicy(chat, said), chat, World(ScriptedWeb(), ExtractiveReader(ReaderSettings())), "research")


async def test_siblings_differ_only_by_key_and_are_rewarded(chat: Chat) -> None:
    who = actors(chat)
    group = await run_group(QUESTION, who, SETTINGS, Total(), size=3, run=5, purpose="train:1")
    assert (group.question_id, group.source) == ("q", "littleweb")
    assert [episode.id for episode in group.episodes] == ["q.0", "q.1", "q.2"]
    assert [episode.reward for episode in group.episodes] == [0.0, 1.0, 0.0]
    assert who.policy.prompts == {
        RequestKey(5, "q", sibling, 0, "train:1"): tuple(chat.open("research", QUESTION.text)) for sibling in range(3)
    }


async def test_rewarding_may_wait(chat: Chat) -> None:
    async def judged(episode: Episode, question: Question) -> Episode:
        await asyncio.sleep(0)
        return episode.rewarded({"judge": float(episode.answer in question.answers)})

    group = await run_group(QUESTION, actors(chat), SETTINGS, judged, size=2)
    assert [episode.rewards for episode in group.episodes] == [{"judge": 0.0}, {"judge": 1.0}]


class Paced:
    """A policy whose siblings take their own time to answer, or fail with the world."""

    def __init__(self, chat: Chat, seconds: Sequence[float], down: Collection[int] = ()) -> None:
        self._policy, self._seconds, self._down = ScriptedPolicy(chat, said), seconds, down
        self.cancelled: list[int] = []

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        try:
            await asyncio.sleep(self._seconds[key.sibling])
        except asyncio.CancelledError:
            self.cancelled.append(key.sibling)
            raise
        if key.sibling in self._down:
            raise WorldDownError("the server is down")
        return await self._policy.sample(prompt_ids, sampling, key)


async def test_of_more_siblings_the_first_count_and_the_slowest_are_cancelled(chat: Chat) -> None:
    before, metrics = asyncio.all_tasks(), Metrics()
    policy = Paced(chat, [60.0, 0.02, 60.0, 0.0, 0.01])
    who = replace(actors(chat), policy=policy)
    group = await run_group(QUESTION, who, SETTINGS, Total(), size=3, spare=2, metrics=metrics)
    assert [episode.id for episode in group.episodes] == ["q.1", "q.3", "q.4"]
    assert sorted(policy.cancelled) == [0, 2]
    assert metrics.drain()["rollout/cancelled_siblings"] == 2
    assert asyncio.all_tasks() == before


async def test_a_sibling_that_the_world_failed_does_not_count(chat: Chat) -> None:
    metrics = Metrics()
    who = replace(actors(chat), policy=Paced(chat, [0.0, 0.01, 0.02, 0.03, 60.0], down=[0]))
    group = await run_group(QUESTION, who, SETTINGS, Total(), size=3, spare=2, metrics=metrics)
    assert [episode.id for episode in group.episodes] == ["q.0", "q.1", "q.2", "q.3"]
    assert len(group.trainable) == 3
    assert metrics.drain()["rollout/cancelled_siblings"] == 1


async def test_with_none_to_spare_everybody_is_awaited(chat: Chat) -> None:
    metrics = Metrics()
    who = replace(actors(chat), policy=Paced(chat, [0.1, 0.0, 0.05], down=[1]))
    group = await run_group(QUESTION, who, SETTINGS, Total(), size=3, metrics=metrics)
    assert [episode.id for episode in group.episodes] == ["q.0", "q.1", "q.2"]
    assert not metrics.drain()
