"""Asking policies what they know: a scripted one, and a real engine on littleweb's questions."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError, WorldDownError
from dr_jax.data.build import build as build_set
from dr_jax.data.filters.contamination import ContaminationSettings
from dr_jax.data.filters.decision import Verdict
from dr_jax.data.filters.quality import Quality, QualitySettings
from dr_jax.data.question import Question
from dr_jax.data.recipe import Part
from dr_jax.littleweb.questions import draw
from dr_jax.littleweb.world import WorldSettings, build
from dr_jax.tokens.policy import RequestKey
from dr_jax.train.contamination import PolicyEndpoint, PolicySampler, asked, probe
from dr_jax.train.recipe import BuildSettings, QuestionJudgeSettings
from dr_jax.train.settings import Settings
from tests.evaluate.servers import serving
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
    recipe = BuildSettings(mixture={"a": Part(("x",))}, contamination=ContaminationSettings(on=True))
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
    recipe = BuildSettings(
        mixture={"a": Part(("x",))},
        contamination=ContaminationSettings(on=True, policy=str(config), max_new_tokens=4),
        quality=QuestionJudgeSettings(on=True, policy=str(config), max_new_tokens=4),
    )
    async with asked(recipe, quiet) as whom:
        assert whom.sampler is not None
        assert whom.judge is not None
        assert len(await whom.sampler.sample(QUESTION, 2)) == 2
        assert isinstance(await whom.judge.ask("?"), str)
        assert whom.normal("The Tower!") == "the tower"
    assert whom.sampler._policy is whom.judge._policy  # type: ignore[attr-defined]


async def test_a_judge_of_questions_may_be_on_a_server_that_dies_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"Who founded the town number {number}?", "answer": f"Orla {number}"} for number in range(24)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("TESTS_API_KEY", "key-of-tests")

    def says(body: dict[str, Any]) -> str:
        reminded = body["messages"][1]["content"].rpartition('{"question"')[2]
        number = int(reminded.partition("?")[0].rpartition(" ")[2])
        if number == 5 and "nothing else" not in reminded:
            return "hm"
        faults = {"time_sensitive": False, "harmful": False, "subjective": number == 7, "why": "taste"}
        return json.dumps(faults)

    async with serving(says) as server:
        written = tmp_path / "recipe.toml"
        written.write_text(
            f"size = 24\nwhen_short = 'fewer'\nout = '{tmp_path}'\n[mixture.towns]\nfiles = ['{tmp_path}/q.jsonl']\n"
            f"[leakage]\nnear = 1\nnearer = 1\n[quality]\non = true\nat_once = 2\n[quality.endpoint]\nurl = '{server.url}'\n"
            "model = 'judge'\nkey = 'TESTS_API_KEY'\nattempts = 1\n"
            "breaker = { failures = 2, open_s = 0.05, most_s = 0.1, down_s = 0.2 }\n"
        )
        recipe = read(BuildSettings, written)

        async def built() -> dict[str, Any]:
            async with asked(recipe, quiet) as whom:
                return await build_set(recipe, whom)

        server.lives = 10
        with pytest.raises(WorldDownError, match="quality"):
            await built()
        server.lives = 10**9
        found = await built()
    assert len(server.bodies) <= 24 + 1 + recipe.quality.at_once  # the nonsense once more, and what was under way
    assert found["parts"]["towns"]["dropped"] == {"quality": {"subjective": 1}}
    assert found["outputs"][0]["rows"] == 23
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer key-of-tests"}
    assert "key-of-tests" not in (tmp_path / "questions" / "manifest.json").read_text()


def test_a_server_needs_the_name_of_its_model_and_no_policy_beside_it() -> None:
    url = "quality.endpoint.url='http://127.0.0.1:1/v1'"
    for more in ([], ["quality.endpoint.model='m'", "quality.policy='x.toml'"]):
        with pytest.raises(ConfigError, match=r"endpoint\.model, and no policy"):
            read(BuildSettings, None, ["mixture.a.files=['x']", url, *more])
