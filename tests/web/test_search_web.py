"""Searching through the whole web: over a real server, the tape, the memory, a corpus, and the command."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dr_jax.base.config import read
from dr_jax.base.errors import BudgetError, ConfigError, UserError, WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.cli.main import app
from dr_jax.web.fetch import FetchSettings
from dr_jax.web.guard import AllowedHost
from dr_jax.web.page import Hit, Page, WebError
from dr_jax.web.search.budget import Budget
from dr_jax.web.search.settings import (
    BreakerSettings,
    BudgetSettings,
    LocalSettings,
    ProviderSettings,
    ProvidersSettings,
)
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import ReplayMiss, TapeSettings
from dr_jax.web.web import Web
from tests.web.conftest import Site

KEY = "k3y-0123456789abcdef"
MakeWeb = Callable[..., AbstractAsyncContextManager[Web]]
QUICK = FetchSettings(first_byte_s=1.0, total_s=2.0, deadline_s=4.0, wait_s=0.01)
TWO = ("serper", "brave")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "BRAVE_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def make_web(site: Site) -> MakeWeb:
    """Serper at /serper, Brave at /brave, on this machine's own address; all of littleweb."""

    def make(metrics: Metrics | None = None, budget: Budget | None = None, **settings: Any) -> Web:
        at = f"http://127.0.0.1:{site.port}"
        provider = ProvidersSettings(serper=ProviderSettings(f"{at}/serper"), brave=ProviderSettings(f"{at}/brave"))
        known = {"fetch": QUICK, "search": TWO, "provider": provider, "breaker": BreakerSettings(failures=3, open_s=0.1)}
        return Web(
            WebSettings(**known | settings),
            allow=[AllowedHost("littleweb", "127.0.0.1", site.port)],
            metrics=metrics,
            budget=budget,
        )

    return make


def serve(site: Site, serper: int = 200, brave: int = 200) -> None:
    result = {"title": "T", "link": "http://a.littleweb/s", "url": "http://a.littleweb/b"}
    site.page("/serper", json.dumps({"organic": [result]}), serper, Content_Type="application/json")
    site.page("/brave", json.dumps({"type": "search", "web": {"results": [result]}}), brave, Content_Type="application/json")


async def test_fail_over_and_what_it_costs(site: Site, make_web: MakeWeb) -> None:
    serve(site, serper=503)
    metrics = Metrics()
    async with make_web(metrics) as web:
        assert await web.search("x") == (Hit("T", "http://a.littleweb/b", ""),)
        assert await web.search(" x ") == (Hit("T", "http://a.littleweb/b", ""),)  # remembered
    assert site.asked == {"/serper": 3, "/brave": 1}
    counted = metrics.drain()
    expected = {"search/queries": 1, "search/money": 0.005, "search/brave/money": 0.005, "search/serper/money": 0.0}
    expected |= {"search/serper/errors/server": 3, "search/failovers": 1, "web/search_n": 2, "web/query_n": 4}
    assert {name: counted[name] for name in expected} == pytest.approx(expected)


async def test_a_server_that_the_settings_name_is_reached_by_searches_only(site: Site, make_web: MakeWeb) -> None:
    serve(site)
    async with make_web() as web:
        assert await web.search("x")
        for url in (f"http://127.0.0.1:{site.port}/serper", "http://127.0.0.1/serper"):
            found = await web.open(url)
            assert isinstance(found, WebError)
            assert found.kind == "refused"
    assert site.asked == {"/serper": 1}


async def test_a_private_name_is_looked_up_once_and_kept(site: Site) -> None:
    serve(site)
    looked: list[str] = []

    async def lookup(host: str) -> list[str]:
        looked.append(host)
        return ["127.0.0.1"]

    provider = ProvidersSettings(serper=ProviderSettings(f"http://searching.lan:{site.port}/serper"))
    async with Web(WebSettings(search="serper", fetch=QUICK, provider=provider), lookup=lookup) as web:
        assert await web.search("x")
        assert isinstance(await web.open(f"http://searching.lan:{site.port}/serper"), WebError)
    assert looked == ["searching.lan"]


async def test_sixteen_siblings_buy_one_query(site: Site, make_web: MakeWeb) -> None:
    serve(site)
    async with make_web(budget=Budget(BudgetSettings(queries=1))) as web:
        found = await asyncio.gather(*(web.search("x") for _ in range(16)))
    assert len(set(found)) == 1
    assert site.asked == {"/serper": 1}


async def test_the_tape_and_the_memory_cost_nothing_and_the_rest_ends_the_run(
    site: Site, make_web: MakeWeb, tmp_path: Path
) -> None:
    serve(site)
    tape = TapeSettings("record", str(tmp_path / "tape"))
    async with make_web(tape=tape) as web:
        for query in ("a", "b"):
            await web.search(query)
    budget = Budget(BudgetSettings(queries=1))
    async with make_web(tape=tape, budget=budget) as web, make_web(budget=budget) as other:
        for query in ("a", "b", "c", "a", "c"):
            await web.search(query)
        for one in (web, other):  # the run's budget, not each one's
            with pytest.raises(BudgetError, match="1 queries were sent"):
                await one.search("d")
    assert budget.queries == 1
    assert site.asked == {"/serper": 3}
    async with make_web(tape=TapeSettings("replay", str(tmp_path / "tape")), budget=budget) as web:
        assert await web.search("c")
        await web.healthy()
        with pytest.raises(ReplayMiss, match="serper,brave 10 d"):
            await web.search("d")


async def test_an_outage_of_all(site: Site, make_web: MakeWeb) -> None:
    serve(site, 500, 500)
    metrics = Metrics()
    async with make_web(metrics) as web:
        await web.healthy()
        with pytest.raises(WorldDownError, match="serper answered with status 500; brave answered with status 500"):
            await web.search("x")
        asked = site.asked.total()
        with pytest.raises(WorldDownError, match="left alone"):
            await web.search("y")
        assert site.asked.total() == asked
        waiting = asyncio.create_task(web.healthy())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        serve(site)
        await asyncio.wait_for(waiting, 3.0)
        assert await web.search("x")
    counted = metrics.drain()
    assert counted["web/errors/world_down"] == 2
    assert counted["search/serper/breaker_opened"] >= 1  # more often on a machine so slow that a probe met the outage too
    assert not [task for task in asyncio.all_tasks() if "recovery" in task.get_name()]


async def test_a_wrong_key_is_told_once_and_not_sent_for_ever(site: Site, make_web: MakeWeb) -> None:
    serve(site, serper=403)
    async with make_web() as web:
        for query in "abc":
            assert await web.search(query)
    assert site.asked == {"/serper": 1, "/brave": 3}


# A corpus.


ROWS = ({"id": 1, "text": "Velmora\nFounded in 1423."}, {"url": "http://a.littleweb/page", "text": "Kept here."})


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", *ROWS)


async def test_a_corpus_is_searched_and_opened_without_the_network(
    site: Site, make_web: MakeWeb, corpus: Path, tmp_path: Path
) -> None:
    home = "http://corpus.local/corpus/1"
    tape = str(tmp_path / "tape")

    async def run(web: Web) -> list[Any]:
        return [await web.search("velmora"), await web.open(home), await web.open("http://a.littleweb/page#x")]

    settings: dict[str, Any] = {"search": "local", "local": LocalSettings(str(corpus))}
    metrics = Metrics()
    async with make_web(metrics, tape=TapeSettings("record", tape), **settings) as web:
        recorded = await run(web)
        missing = await web.open("http://corpus.local/corpus/2")
        await web.healthy()
    assert recorded[0] == (Hit("Velmora", home, "Velmora Founded in 1423."),)
    assert recorded[1] == Page(home, "Velmora", "Velmora\nFounded in 1423.", (), "text/plain")
    assert isinstance(recorded[2], Page)
    assert recorded[2].text == "Kept here."
    assert missing == WebError("not_found", "http://corpus.local/corpus/2 is not in the corpus")
    assert not site.asked
    counted = metrics.drain()
    assert (counted["search/queries"], counted["search/money"], counted["web/open_n"]) == (1, 0, 3)
    write(corpus, {"id": 1, "text": "Velmora is no more."})
    async with make_web(tape=TapeSettings("record", tape), **settings) as web:
        (hit,) = await web.search("velmora")
        assert hit.snippet == "Velmora is no more."  # what changed is not hidden by the tape
    gone = LocalSettings(str(tmp_path / "gone.jsonl"))
    async with make_web(tape=TapeSettings("replay", tape), search="local", local=gone) as web:
        assert (await run(web))[1:] == recorded[1:]
        with pytest.raises(ReplayMiss, match="corpus http://corpus"):
            await web.open("http://corpus.local/never/asked")


async def test_a_corpus_after_the_web(site: Site, make_web: MakeWeb, corpus: Path) -> None:
    serve(site, serper=500)
    async with make_web(search=("serper", "local"), local=LocalSettings(str(corpus))) as web:
        (hit,) = await web.search("velmora")
        assert hit.url == "http://corpus.local/corpus/1"
        site.page("/other", "<p>from the web")
        page = await web.open("http://a.littleweb/other")
        assert isinstance(page, Page)


async def test_an_empty_corpus_ends_before_anything_begins(make_web: MakeWeb, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="nothing in the corpus"):
        async with make_web(search="local", local=LocalSettings(str(tmp_path / "empty.jsonl"))):
            pass


# Settings.


def test_one_name_or_several_in_a_config() -> None:
    assert read(WebSettings, None, ["search=brave"]).order == ("brave",)
    found = read(WebSettings, None, ['search=["brave", "local"]', "provider.brave.per_s=1.0", "budget.queries=1000"])
    assert (found.order, found.provider.brave.per_s, found.budget.queries) == (("brave", "local"), 1.0, 1000)
    found = read(WebSettings, None, ['provider.google.parameters={cx = "engine", num = 5}'])
    assert found.provider.google.parameters == {"cx": "engine", "num": 5}


@pytest.mark.parametrize("wrong", ["search=bing", "search=[]", 'search=["brave", "brave"]', 'search=["brave", "bing"]'])
def test_other_names_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="littleweb, serper, brave, tavily, searxng, google, local"):
        read(WebSettings, None, [wrong])


# The command.


@pytest.mark.usefixtures("plain_log")
def test_the_command_prints_hits(corpus: Path) -> None:
    arguments = ["search", "velmora", "--provider", "local", "--set", f"web.local.path={corpus}"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0
    assert found.stdout.split() == ["1", "Velmora", "http://corpus.local/corpus/1", "Velmora", "Founded", "in", "1423."]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    hit = {"title": "Velmora", "url": "http://corpus.local/corpus/1", "snippet": "Velmora Founded in 1423."}
    assert json.loads(found.stdout) == {"query": "velmora", "search": ["local"], "hits": [hit]}
    found = CliRunner().invoke(app, ["search", "zzz", *arguments[2:]])
    assert (found.exit_code, found.stdout) == (0, "Nothing was found.\n")
    found = CliRunner().invoke(app, ["search", " ", *arguments[2:]])
    assert found.exit_code == 1


@pytest.mark.usefixtures("plain_log")
def test_the_command_serves_littleweb(tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text('[web]\nsearch = "littleweb"\nresults = 2\n[littleweb]\nentities = 200\n')
    found = CliRunner().invoke(app, ["search", "city", "--config", str(config), "--json"])
    assert found.exit_code == 0
    assert len(json.loads(found.stdout)["hits"]) == 2


@pytest.mark.usefixtures("plain_log")
def test_the_command_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAVILY_API_KEY", raising=False)
    found = CliRunner().invoke(app, ["search", "x", "--provider", "tavily"])
    assert isinstance(found.exception, UserError)
    assert "TAVILY_API_KEY" in str(found.exception)
