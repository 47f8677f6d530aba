"""The whole of it, without an engine: a server that answers as a script does, in littleweb."""

import functools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_jax.agent.endpoint import SpendingSettings
from dr_jax.base.config import read
from dr_jax.base.errors import BudgetError, CheckpointError, ConfigError, DataError, UserError, WorldDownError
from dr_jax.evaluate.harness import evaluate
from dr_jax.evaluate.journal import read as read_cell
from dr_jax.evaluate.settings import EvaluationSettings, Plan, named
from dr_jax.rollout.record import read_episodes
from dr_jax.tokens import vocabulary
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.web.search.settings import BreakerSettings, LocalSettings
from tests.evaluate.made import still
from tests.evaluate.servers import Server, serving
from tests.fakes import answer, search, small_tokenizer

QUESTIONS = 12


@functools.cache
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def says(body: dict[str, Any]) -> str:
    """Search, then answer something that depends on the question alone."""
    if "prompt" in body:
        texts = tokenizer().decode(body["prompt"]).split("<|im_start|>")[1:-1]
        messages = [text.partition("\n")[2].removesuffix("\n").removesuffix("<|im_end|>") for text in texts]
    else:
        messages = [one["content"] for one in body["messages"]]
    question = messages[1]
    if len(messages) < 4:
        return search(question)
    return answer(question.split()[-1].strip("?") if len(question) % 2 else "nobody")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(says) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> EvaluationSettings:
    vocabulary.save(tokenizer(), tmp_path / "tokenizer")
    return read(
        EvaluationSettings,
        None,
        [
            f"out='{tmp_path}'",
            f"model.load='{tmp_path}/tokenizer'",
            "littleweb.entities=150",
            "web.results=3",
            f"eval.questions={QUESTIONS}",
            "eval.in_flight=3",
            "server.endpoint.seconds=5.0",
            "server.endpoint.attempts=1",
            "server.endpoint.input_cost=1000.0",  # 0.1 a request
            "server.endpoint.breaker={failures=2, open_s=0.05, most_s=0.1, down_s=0.2}",
            "judge.endpoint.model='j'",
            "judge.endpoint.attempts=1",
            "judge.endpoint.breaker={failures=2, open_s=0.05, most_s=0.1, down_s=0.2}",
        ],
    )


def plan(server: Server, out: Path, **more: Any) -> Plan:
    return Plan(**{"models": {"m": server.url}, "sets": {"little": ""}, "out": out} | more)


def told(*_: object) -> None:
    pass


async def test_every_cell_has_its_journal_episodes_and_summary(
    server: Server, settings: EvaluationSettings, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Where is Velin?", "answers": ["Velin"], "source": "mine"}\n')
    sets = {"little": "littleweb", "mine": str(file)}
    found = await evaluate(settings, plan(server, tmp_path / "out", sets=sets, ways=("agent", "no_tools")), told=told)
    assert [(row["set"], row["way"], row["questions"]) for row in found["rows"]] == [
        ("little", "agent", QUESTIONS),
        ("little", "no_tools", QUESTIONS),
        ("mine", "agent", 1),
        ("mine", "no_tools", 1),
    ]
    assert found["rows"][0]["calls"]["mean"] == 1.0
    assert found["rows"][0]["spent"]["policy/money"] == pytest.approx(2 * QUESTIONS * 0.1)
    cell = tmp_path / "out" / "m.little.agent"
    assert len(list(read_episodes(cell / "episodes.jsonl"))) == QUESTIONS
    assert json.loads((cell / "summary.json").read_text())["eval"]["n"] == QUESTIONS
    assert (tmp_path / "out" / "table.md").read_text().startswith("| model | set | way |")
    asked = len(server.bodies)
    again = await evaluate(settings, plan(server, tmp_path / "out", sets=sets, ways=("agent", "no_tools")), told=told)
    assert (again, len(server.bodies)) == (found, asked)


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_a_server_that_dies_half_way_is_gone_on_with(
    api: Any, server: Server, settings: EvaluationSettings, tmp_path: Path
) -> None:
    settings = replace(settings, server=replace(settings.server, api=api))
    whole = await evaluate(settings, plan(server, tmp_path / "whole"), told=told)
    assert whole["rows"][0]["outcomes"] == {"answered": QUESTIONS}
    server.lives = 9
    with pytest.raises(WorldDownError, match="server"):
        await evaluate(settings, plan(server, tmp_path / "half"), told=told)
    before = read_cell(tmp_path / "half" / "m.little.agent")
    counted = sum(one.counted for one in before.attempts.values())
    assert 0 < counted < QUESTIONS
    server.lives = 10**9
    server.bodies.clear()
    found = await evaluate(settings, plan(server, tmp_path / "half"), told=told)
    assert len(server.bodies) == 2 * (QUESTIONS - counted)
    assert found["rows"][0]["world_failed"] == 0
    assert still(found) == still(whole)


async def test_what_the_world_failed_is_counted_apart_and_attempted_again(
    server: Server, settings: EvaluationSettings, tmp_path: Path
) -> None:
    patient = replace(settings.server.endpoint, breaker=BreakerSettings(failures=1000))
    settings = replace(settings, server=replace(settings.server, endpoint=patient))
    server.lives = 9
    (row,) = (await evaluate(settings, plan(server, tmp_path / "out"), told=told))["rows"]
    assert 0 < row["world_failed"] < QUESTIONS
    assert row["questions"] == row["attempts"] == QUESTIONS - row["world_failed"]
    server.lives = 10**9
    (again,) = (await evaluate(settings, plan(server, tmp_path / "out"), told=told))["rows"]
    assert (again["world_failed"], again["attempts"]) == (0, QUESTIONS)


async def test_a_judge_is_asked_once_about_each_answer_and_nonsense_is_not_wrong(
    server: Server, settings: EvaluationSettings, tmp_path: Path
) -> None:
    def judges(body: dict[str, Any]) -> str:
        asked = json.loads(body["messages"][1]["content"])
        if asked["answer"] == "nobody":
            return "hm"
        return '{"rationale": "so", "judgement": "correct"}'

    async with serving(judges) as judge:
        judge.lives = 3
        with pytest.raises(WorldDownError, match="judge"):
            await evaluate(settings, plan(server, tmp_path / "out", judge=judge.url), told=told)
        asked = len(server.bodies)
        judge.lives = 10**9
        found = await evaluate(settings, plan(server, tmp_path / "out", judge=judge.url), told=told)
        assert len(server.bodies) == asked
        graded = len(judge.bodies)
        assert await evaluate(settings, plan(server, tmp_path / "out", judge=judge.url), told=told) == found
        assert len(judge.bodies) == graded
    (row,) = found["rows"]
    nobody = sum(len(one.text) % 2 == 0 for one in read_cell(tmp_path / "out" / "m.little.agent").attempts.values())
    assert 0 < nobody < QUESTIONS
    assert (row["unreadable"], row["judge"]["mean"]) == (nobody, 1.0)
    assert row["judging"]["judging/calls"] >= QUESTIONS - nobody + settings.judge.tries * nobody


async def test_a_budget_holds_for_all_of_an_evaluation(server: Server, settings: EvaluationSettings, tmp_path: Path) -> None:
    def limited(calls: int) -> EvaluationSettings:
        endpoint = replace(settings.server.endpoint, budget=SpendingSettings(calls=calls))
        return replace(settings, server=replace(settings.server, endpoint=endpoint))

    for _ in range(3):
        with pytest.raises(BudgetError, match=r"server\.endpoint\.budget\.calls"):
            await evaluate(limited(10), plan(server, tmp_path / "out"), told=told)
    assert len(server.bodies) <= 10
    found = await evaluate(limited(0), plan(server, tmp_path / "out"), told=told)
    assert found["rows"][0]["questions"] == QUESTIONS
    assert found["rows"][0]["spent"]["policy/calls"] == len(server.bodies)


async def test_what_can_be_refused_is_refused_before_anything_is_asked(
    server: Server, settings: EvaluationSettings, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"question": "Where?", "answers": []}\n')
    bad: list[tuple[Any, type[Exception], str]] = [
        ({"samples": 3}, ConfigError, r"eval\.temperature = 0 are all the same"),
        ({"models": {"m": "no/such/model"}}, CheckpointError, "There is no model 'no/such/model'"),
        ({"sets": {"s": str(empty)}}, DataError, "answers"),
        ({"judge": "no/such/judge"}, CheckpointError, "There is no model 'no/such/judge'"),
        ({"models": {"m": "http://me:secret@127.0.0.1/v1"}}, ConfigError, "holds a name, a password"),
    ]
    for more, error, words in bad:
        with pytest.raises(error, match=words):
            await evaluate(settings, plan(server, tmp_path / "out", **more), told=told)
    with pytest.raises(ConfigError, match="no way 'walk'"):
        plan(server, tmp_path, ways=("walk",))
    for option in ("mine", "=x", "a.b=x", "a="):
        with pytest.raises(ConfigError, match="NAME="):
            named([option], "--model", {})
    assert not server.bodies


async def test_who_has_no_tools_needs_no_key_of_a_search_provider(
    server: Server, settings: EvaluationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Where is Velin?", "answers": ["Velin"], "source": "mine"}\n')
    bought = replace(settings, web=replace(settings.web, search="serper"))
    sets = {"mine": str(file)}
    found = await evaluate(bought, plan(server, tmp_path / "out", sets=sets, ways=("no_tools",)), told=told)
    assert found["rows"][0]["questions"] == 1
    with pytest.raises(UserError, match="SERPER_API_KEY"):
        await evaluate(bought, plan(server, tmp_path / "out", sets=sets, ways=("agent",)), told=told)


async def test_texts_of_ones_own_make_a_benchmark_without_a_network(
    server: Server, settings: EvaluationSettings, tmp_path: Path
) -> None:
    corpus, questions = tmp_path / "corpus", tmp_path / "questions.jsonl"
    corpus.mkdir()
    for number in range(20):
        (corpus / f"town{number}.txt").write_text(f"Town{number} lies on the river Run{number}.")
    rows = [{"question": f"On which river lies Town{n}?", "answers": [f"Run{n}"], "source": "towns"} for n in range(4)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reads(body: dict[str, Any]) -> str:
        found = re.search(r"Run\d+", body["messages"][-1]["content"])
        return answer(found.group()) if found else search(body["messages"][1]["content"])

    server.says = reads
    web = replace(settings.web, search="local", local=LocalSettings(path=str(corpus)))
    local = replace(settings, web=web)
    sets = {"towns": str(questions)}
    ways: Any = ("agent", "no_tools", "one_shot", "search_only")
    found = [await evaluate(local, plan(server, tmp_path / name, sets=sets, ways=ways), told=told) for name in ("one", "two")]
    assert still(found[0]) == still(found[1])
    assert [row["em"]["mean"] for row in found[0]["rows"]] == [1.0, 0.0, 1.0, 1.0]
