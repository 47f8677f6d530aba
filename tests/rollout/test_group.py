import asyncio

from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.world import World
from dr_jax.data.question import Question
from dr_jax.rewards.total import Total
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey
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
