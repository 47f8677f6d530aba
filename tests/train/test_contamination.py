"""Asking policies what they know: a scripted one, and a real engine on littleweb's questions."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.data.filters.contamination import ContaminationSettings
from dr_jax.data.filters.decision import Verdict
from dr_jax.data.filters.quality import Quality, QualitySettings
from dr_jax.data.question import Question
from dr_jax.data.recipe import Part, Recipe
from dr_jax.littleweb.questions import draw
from dr_jax.littleweb.world import WorldSettings, build
from dr_jax.tokens.policy import RequestKey
from dr_jax.train.contamination import PolicyEndpoint, PolicySampler, asked, probe
from dr_jax.train.settings import Settings
from tests.fakes import HangingPolicy, ScriptedPolicy, small_chat

QUESTION = Question("q1", "Who founded Velin?", ("Orla",))


def quiet(phase: str, done: int, whole: int) -> None:
    """Nobody watches."""


async def test_samples_are_siblings_of_their_own_and_end_before_the_stop_token() -> None:
    def script(key: RequestKey, seen: str) -> str:
        assert "Who founded Velin?" in seen
        return f"answer {key.sibling}"

    policy = ScriptedPolicy(small_chat(), script)
    texts = await PolicySampler(policy, small_chat(), ContaminationSettings(max_new_tokens=30), seed=7).sample(QUESTION, 3)
    assert texts == ["answer 0", "answer 1", "answer 2"]
    assert {(key.run, key.question, key.purpose) for key in policy.said} == {(7, "q1", "by heart")}


async def test_nothing_stays_under_way_when_nobody_waits_any_more() -> None:
    policy = HangingPolicy()
    sampler = PolicySampler(policy, small_chat(), ContaminationSettings())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await sampler.sample(QUESTION, 4)
    await asyncio.sleep(0.01)  # the cancelled ones take their turn
    assert policy.waiting == 0


async def test_a_judge_that_is_a_policy_may_say_something_else_the_second_time() -> None:
    good = '{"time_sensitive": false, "harmful": false, "subjective": true, "why": "taste"}'
    policy = ScriptedPolicy(small_chat(), lambda key, seen: good if key.sibling else "hm")
    endpoint = PolicyEndpoint(policy, small_chat())
    (said,) = await Quality(endpoint, QualitySettings(tries=2)).decide([QUESTION])
    assert (said.verdict, said.reason) == (Verdict.DROPPED, "subjective: taste")


def longer(settings: Settings) -> Settings:
    """With room for a question and its instructions, letter by letter."""
    return replace(settings, engine=replace(settings.engine, max_context=512))


async def test_an_engine_is_probed_with_littlewebs_questions_and_not_twice(settings: Settings, tmp_path: Path) -> None:
    puzzles = draw(build(WorldSettings(entities=150)), 5, hops=(1,), seed=0)
    questions = [puzzle.question for puzzle in puzzles]
    wanted = ContaminationSettings(samples=3, max_new_tokens=4)
    seen: list[tuple[str, int, int]] = []
    first = await probe(longer(settings), questions, wanted, tmp_path / "journal", told=lambda *event: seen.append(event))
    assert [question.id for question, _ in first] == [question.id for question in questions]
    assert {question.meta["pass_rate"] for question, _ in first} == {"0"}  # fresh weights know no fictional town
    assert {question.meta["search"] for question, _ in first} == {"needed"}
    assert ("sampling", 5, 5) in seen
    seen.clear()
    again = await probe(longer(settings), questions, wanted, tmp_path / "journal", told=lambda *event: seen.append(event))
    assert again == first
    assert not [event for event in seen if event[0] == "sampling"]


async def test_filters_that_ask_need_a_name_to_ask(tmp_path: Path) -> None:
    recipe = Recipe(mixture={"a": Part(("x",))}, contamination=ContaminationSettings(on=True))
    with pytest.raises(ConfigError, match=r"contamination\.policy names nobody"):
        async with asked(recipe, quiet):
            raise AssertionError("nobody was there")


async def test_one_config_is_opened_once_for_both_filters(settings: Settings, policy_directory: Path, tmp_path: Path) -> None:
    config = tmp_path / "policy.toml"
    config.write_text(
        f'[model]\nload = "{policy_directory}"\n[prompt]\nstyle = "brief"\n[episode]\ntokens = 160\n'
        "[engine]\nslots = 8\nmax_context = 512\nprefill_rows = [8]\n[batch]\nrows = 8\nlengths = [160]\n"
    )
    assert read(Settings, config).engine.slots == 8
    recipe = Recipe(
        mixture={"a": Part(("x",))},
        contamination=ContaminationSettings(on=True, policy=str(config), max_new_tokens=4),
        quality=QualitySettings(on=True, policy=str(config), max_new_tokens=4),
    )
    async with asked(recipe, quiet) as whom:
        assert whom.sampler is not None
        assert whom.judge is not None
        assert len(await whom.sampler.sample(QUESTION, 2)) == 2
        assert isinstance(await whom.judge.ask("?"), str)
        assert whom.normal("The Tower!") == "the tower"
    assert whom.sampler._policy is whom.judge._policy  # type: ignore[attr-defined]
