import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dr_jax.agent.context import STUB, ContextSettings
from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.tools import ToolSettings
from dr_jax.agent.world import World
from dr_jax.base.errors import WorldDownError
from dr_jax.data.question import Question
from dr_jax.rollout.episode import LAST_TURN, Actors, Attempt, EpisodeSettings, run_episode
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.trajectory import Author, Episode, Outcome
from dr_jax.web.page import WebError
from tests.fakes import ScriptedPolicy, ScriptedWeb, answer, browse, search

QUESTION = Question("q17", "Who founded Velin?", ("Oren Vash",))
URL = "http://x.littleweb/velin"
PAGES = {URL: "Velin is a town. It was founded by Oren Vash in 1871. It has a market."}
SETTINGS = EpisodeSettings(turns=3, tokens=4000, max_new_tokens=400, policy_s=5, world_s=5, all_s=10)
ASIDE = '<tool_call>{"name": "web_search", "arguments": {"query": ["%s"]}}</tool_call>'


def actors(
    chat: Chat, script: list[str], web: ScriptedWeb | None = None, *, tools: ToolSettings | None = None, **policy: float
) -> Actors:
    world = World(web or ScriptedWeb(PAGES), ExtractiveReader(ReaderSettings()), tools)
    return Actors(ScriptedPolicy(chat, script, **policy), chat, world, "research")


async def run(
    chat: Chat, script: list[str], web: ScriptedWeb | None = None, settings: EpisodeSettings = SETTINGS, **more: object
) -> Episode:
    return await run_episode(QUESTION, actors(chat, script, web, **more), settings, Attempt(7, 3, "act"))


def world_text(chat: Chat, episode: Episode) -> str:
    return "".join(chat.tokenizer.decode(one.ids) for trajectory in episode.trajectories for one in trajectory.by(Author.WORLD))


async def test_search_browse_answer(chat: Chat) -> None:
    episode = await run(chat, [search("velin founder"), browse(URL), answer("Oren Vash")])
    assert (episode.id, episode.outcome, episode.answer) == ("q17.3", Outcome.ANSWERED, "Oren Vash")
    assert [event.name for event in episode.tools] == ["web_search", "browse_webpage"]
    assert json.loads(episode.tools[0].observation)[0]["web_page_info_list"][0]["url"] == URL
    assert "founded by Oren Vash" in json.loads(episode.tools[1].observation)[0]["information"][0]["page_summary"]
    assert len(episode.turns) == 3
    assert episode.turns[-1].text == answer("Oren Vash")
    assert set(episode.seconds) == {"policy", "world", "all"}
    (trajectory,) = episode.trajectories
    assert [segment.author for segment in trajectory.segments] == [Author.WORLD, Author.POLICY] * 3


async def test_the_last_turn_is_told_to_answer_and_then_only_an_answer_counts(chat: Chat) -> None:
    episode = await run(chat, [search("a")])
    assert (episode.outcome, len(episode.turns), len(episode.tools)) == (Outcome.OUT_OF_TURNS, 4, 3)
    assert world_text(chat, episode).count(LAST_TURN) == 1
    late = await run(chat, [search("a"), search("a"), search("a"), answer("x")])
    assert late.outcome is Outcome.ANSWERED


async def test_malformed_text_ends_or_is_told(chat: Chat) -> None:
    script = ["<think>hm</think>no form", answer("x")]
    ended = await run(chat, script)
    assert (ended.outcome, len(ended.turns)) == (Outcome.MALFORMED, 1)
    told = await run(chat, script, settings=replace(SETTINGS, malformed="retry"))
    assert (told.outcome, told.tools[0].name) == (Outcome.ANSWERED, "")
    assert "neither a tool call nor an answer" in told.tools[0].observation
    stubborn = await run(chat, script[:1], settings=replace(SETTINGS, malformed="retry"))
    assert (stubborn.outcome, len(stubborn.turns)) == (Outcome.OUT_OF_TURNS, 4)


async def test_running_out_of_tokens_is_an_ending(chat: Chat) -> None:
    cut_off = await run(chat, [answer("x" * 500)])
    assert cut_off.outcome is Outcome.OUT_OF_TOKENS
    prompt_too_long = await run(chat, [answer("x")], settings=replace(SETTINGS, tokens=10))
    assert (prompt_too_long.outcome, prompt_too_long.turns) == (Outcome.OUT_OF_TOKENS, ())
    refused = await run(chat, [answer("x")], context=20)
    assert refused.outcome is Outcome.OUT_OF_TOKENS


@pytest.mark.parametrize("tokens", range(250, 900, 50))
async def test_no_trajectory_is_longer_than_its_budget(chat: Chat, tokens: int) -> None:
    """An observation that leaves no room is not appended: the policy never saw it."""
    episode = await run(chat, [search("a"), browse(URL)], settings=replace(SETTINGS, tokens=tokens))
    assert len(episode.trajectories[0]) <= tokens
    assert episode.outcome is Outcome.OUT_OF_TOKENS
    assert episode.trajectories[0].segments[-1].author is Author.POLICY


async def test_a_failed_page_is_an_observation_and_a_world_that_is_down_is_not(chat: Chat) -> None:
    web = ScriptedWeb(PAGES, failures={URL: WebError("timeout", "too slow"), "down": WorldDownError("no provider")})
    episode = await run(chat, [search("a"), browse(URL), answer("x")], web)
    assert (episode.outcome, episode.tools[1].error) == (Outcome.ANSWERED, f"{URL}: too slow")
    assert json.loads(episode.tools[1].observation) == [{"url": URL, "error": "too slow"}]
    failed = await run(chat, [search("down")], web)
    assert (failed.outcome, failed.failure, failed.rewards) == (Outcome.WORLD_FAILED, "no provider", {})


@pytest.mark.parametrize(
    ("settings", "waited"),
    [
        (replace(SETTINGS, world_s=0.05), "web_search"),
        (replace(SETTINGS, all_s=0.05), "web_search"),
    ],
)
async def test_a_world_that_never_answers_fails_the_episode(chat: Chat, settings: EpisodeSettings, waited: str) -> None:
    episode = await run(chat, [search("slow")], ScriptedWeb(PAGES, seconds={"slow": 60}), settings)
    assert episode.outcome is Outcome.WORLD_FAILED
    assert episode.failure.endswith(f"waiting for {waited}")


async def test_a_policy_that_never_answers_fails_the_episode(chat: Chat) -> None:
    episode = await run(chat, [answer("x")], settings=replace(SETTINGS, policy_s=0.05), seconds=60)
    assert (episode.outcome, episode.turns) == (Outcome.WORLD_FAILED, ())
    assert "waiting for the policy" in episode.failure


async def test_cancelling_cancels_the_request(chat: Chat) -> None:
    who = actors(chat, [answer("x")], seconds=60)
    task = asyncio.create_task(run_episode(QUESTION, who, SETTINGS, Attempt()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert who.policy.cancelled == 1


async def test_prefilled_markup_is_the_worlds(chat: Chat) -> None:
    settings = replace(SETTINGS, prefill="<think>")
    episode = await run(chat, [search("a").removeprefix("<think>"), answer("x").removeprefix("<think>")], settings=settings)
    assert (episode.outcome, episode.turns[0].prefilled) == (Outcome.ANSWERED, "<think>")
    (think,) = chat.tokenizer.markup("<think>")
    for segment in episode.trajectories[0].segments:
        assert (segment.ids[-1] == think) is (segment.author is Author.WORLD)


async def test_only_so_many_calls_of_one_generation_are_carried_out(chat: Chat) -> None:
    web = ScriptedWeb(PAGES)
    both = "<think>x</think>" + ASIDE % "a" + ASIDE % "b"
    episode = await run(chat, [both, answer("x")], web)
    assert web.searched == ["a"]
    assert "2 calls at once; only the first 1 were carried out" in world_text(chat, episode)
    web = ScriptedWeb(PAGES)
    await run(chat, [both, answer("x")], web, tools=ToolSettings(calls=2))
    assert web.searched == ["a", "b"]


async def test_half_characters_stop_no_episode(chat: Chat) -> None:
    web = ScriptedWeb({})
    script = [ASIDE % r"\ud800 x", ASIDE.replace("web_search", r"\udfff") % "y", answer("x")]
    episode = await run(chat, script, web)
    assert (episode.outcome, web.searched) == (Outcome.ANSWERED, ["? x"])


@pytest.mark.parametrize("value", ["[" * 900 + "]" * 900, "NaN", "-Infinity", "1e999", "9" * 300, "9" * 6000, '{"a": {}}'])
async def test_arguments_that_no_tool_expects_stop_no_episode(chat: Chat, value: str, tmp_path: Path) -> None:
    text = '<tool_call>{"name": "web_search", "arguments": {"query": ' + value + "}}</tool_call>"
    episode = await run(
        chat, [text, answer("x")], settings=replace(SETTINGS, malformed="retry", tokens=30000, max_new_tokens=9999)
    )
    assert (episode.outcome, len(episode.tools)) == (Outcome.ANSWERED, 1)
    with EpisodeWriter(tmp_path / "e.jsonl", chat.tokenizer.decode) as writer:
        writer.write(episode, QUESTION)
    json.loads((tmp_path / "e.jsonl").read_text(), parse_constant=pytest.fail)


async def test_keys_differ_by_turn_only_within_an_episode(chat: Chat) -> None:
    who = actors(chat, [search("a"), answer("x")])
    await run_episode(QUESTION, who, SETTINGS, Attempt(7, 3, "train:2"))
    keys = list(who.policy.prompts)
    assert [(key.run, key.question, key.sibling, key.turn, key.purpose) for key in keys] == [
        (7, "q17", 3, 0, "train:2"),
        (7, "q17", 3, 1, "train:2"),
    ]


async def test_keep_last_k_opens_a_fresh_trajectory_in_which_the_past_is_the_worlds(chat: Chat) -> None:
    settings = replace(SETTINGS, turns=4, context=ContextSettings("keep_last_k", keep=1, slack=1))
    who = actors(chat, [search("first"), search("second"), search("third"), answer("x")])
    episode = await run_episode(QUESTION, who, settings, Attempt())
    assert len(episode.trajectories) == 3
    second = episode.trajectories[1]
    assert [segment.author for segment in second.segments] == [Author.WORLD, Author.POLICY]
    text = chat.tokenizer.decode(second.segments[0].ids)
    assert text.count(STUB) == 1
    assert '"search_query": "first"' not in text.replace(search("first"), "")
    assert search("first") in text
    assert '"search_query": "second"' in text
    # Every id that the policy drew is trained once, in the context that it was drawn in.
    drawn = [one.ids for trajectory in episode.trajectories for one in trajectory.by(Author.POLICY)]
    assert [chat.tokenizer.decode(ids[:-1]) for ids in drawn] == [turn.text for turn in episode.turns]


async def test_a_watcher_sees_it_happen(chat: Chat) -> None:
    seen: list[tuple[str, str]] = []
    await run_episode(QUESTION, actors(chat, [search("a"), answer("x")]), SETTINGS, Attempt(), watch=seen.append)
    assert [kind for kind, _ in seen] == ["prompt", "said", "observed", "said", "ended"]
    assert (seen[0][1], seen[-1][1]) == (QUESTION.text, "answered")
