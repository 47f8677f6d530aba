"""What a gateway answers, whom it refuses, how it stops, and what it counts."""

import asyncio
import io
import json
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web as server

from dr_jax.base.errors import BudgetError, UserError, WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import FetchSettings
from dr_jax.web.gateway import wire
from dr_jax.web.gateway.scrape import exposition
from dr_jax.web.gateway.server import refuse_open_door, serve_gateway
from dr_jax.web.gateway.settings import GatewaySettings, vet_gateway
from dr_jax.web.guard import AllowedHost
from dr_jax.web.page import Hit, Page, WebError
from dr_jax.web.search.settings import ProviderSettings, ProvidersSettings
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import ReplayMiss, TapeSettings
from dr_jax.web.web import Web
from tests.web.conftest import Site
from tests.web.gateways import HIT, WORLD, ToldWeb, gateways, post, quick, remote, until

TOKEN = "t0ken-0123456789abcdef"
LINKS = (("link", "http://b.example/"),)
PAGE = Page("http://a.example/", "Tïtle", "日本 \ud800 text\n" * 50, LINKS, "text/html", True, "2024-02-29")
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
ASKED = {"world": WORLD, "query": "x"}

OUTCOMES = [
    (HIT, Hit("", "http://b.example/", "")),
    (),
    WebError("bad_query", "too long"),
    WorldDownError("no provider answered"),
    BudgetError("the budget is used up", needed="more", fix="raise it"),
    ReplayMiss("the tape holds no search 'x'", needed="another", fix="record it"),
    UserError("something else", needed="a", fix="b"),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda one: type(one).__name__)
async def test_every_outcome_of_a_search_arrives_as_what_it_is(outcome: Any) -> None:
    async with gateways(ToldWeb(outcome)) as (one,), remote(one.url) as web:
        if not isinstance(outcome, Exception):
            assert await web.search("x") == outcome
            return
        with pytest.raises(type(outcome)) as raised:
            await web.search("x")
    assert type(raised.value) is type(outcome)
    assert str(outcome).split(".")[0] in str(raised.value)
    assert one.url in str(raised.value)
    if isinstance(outcome, UserError):
        assert (raised.value.needed, raised.value.fix) == (outcome.needed, outcome.fix)


@pytest.mark.parametrize("outcome", [PAGE, WebError("not_found", "no such page"), WorldDownError("no page reader")])
async def test_every_outcome_of_opening_a_page_arrives_as_what_it_is(outcome: Any) -> None:
    async with gateways(ToldWeb(outcome)) as (one,), remote(one.url) as web:
        if isinstance(outcome, Exception):
            with pytest.raises(WorldDownError, match="no page reader"):
                await web.open("http://a.example/")
        else:
            assert await web.open("http://a.example/") == outcome


async def test_health_and_notes_pass_through() -> None:
    told = ToldWeb()
    async with gateways(told) as (one,), remote(one.url, probe_s=0.01) as web:
        await web.healthy()
        assert await web.kept("reading", "k") is None
        await web.keep("reading", "k", ["says", {"this": 1}])
        assert await web.kept("reading", "k") == ["says", {"this": 1}]
        with pytest.raises(UserError, match="'reading' is what may be kept"):
            await web.keep("search", "k", [])
        told.sick = BudgetError("used up")
        with pytest.raises(BudgetError):
            await web.healthy()
        told.sick = WorldDownError("no provider")
        waiting = asyncio.create_task(web.healthy())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        told.sick = None
        await asyncio.wait_for(waiting, 10)


async def test_a_provider_that_is_down_for_too_long_is_told() -> None:
    told = ToldWeb(sick=WorldDownError("no provider"))
    async with gateways(told) as (one,), remote(one.url, probe_s=0.01, down_s=0.1) as web:
        with pytest.raises(WorldDownError, match="no provider"):
            await web.healthy()


async def test_a_whole_web_behind_a_gateway(site: Site, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search, page and tape are the gateway's; siblings buy one query; money is told."""
    monkeypatch.setenv("SERPER_API_KEY", "k3y-0123456789abcdef")
    hit = {"title": "T", "link": "http://a.here/page", "snippet": "s"}
    site.page("/serper", json.dumps({"organic": [hit]}), Content_Type="application/json")
    site.page("/page", "<title>Velin</title><p>" + "The harbour of Velin has a lighthouse. " * 20)
    settings = WebSettings(
        search="serper",
        provider=ProvidersSettings(serper=ProviderSettings(f"http://127.0.0.1:{site.port}/serper")),
        tape=TapeSettings("record", str(tmp_path / "tape")),
        fetch=FetchSettings(first_byte_s=2.0, total_s=5.0),
    )
    metrics, seen = Metrics(), Metrics()
    async with (
        Web(settings, allow=[AllowedHost("here", "127.0.0.1", site.port)], metrics=metrics) as inner,
        serve_gateway({WORLD: inner}, quick(), metrics) as one,
        remote(one.url, metrics=seen) as web,
    ):
        found = await asyncio.gather(*(web.search(" velin ") for _ in range(16)))
        assert found == [(Hit("T", "http://a.here/page", "s"),)] * 16
        page = await web.open("http://a.here/page")
        assert isinstance(page, Page)
        assert "lighthouse" in page.text
        assert await web.open("http://127.0.0.1/page") == await inner.open("http://127.0.0.1/page")  # refused by its guard
        assert isinstance(await web.search("  "), WebError)
        await web.keep("reading", "k", 1)
        assert await inner.kept("reading", "k") == 1
        async with aiohttp.ClientSession() as session, session.get(f"{one.url}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = await response.text()
    assert site.asked == {"/serper": 1, "/page": 1}
    told = scraped(text)
    assert told["dr_jax_search_queries"] == 1
    assert told["dr_jax_search_money"] == pytest.approx(0.001)
    assert told["dr_jax_gateway_search_s_count"] == 16
    assert 0 < told['dr_jax_gateway_search_s{quantile="0.95"}'] < 60
    assert told["dr_jax_gateway_in_flight"] == told["dr_jax_web_queue"] == told["dr_jax_search_serper_queue"] == 0
    assert told["dr_jax_web_errors_refused_total"] == 2
    counted = seen.drain()
    assert {name: counted[name] for name in ("web/search_n", "web/open_n", "web/errors/bad_query", "web/errors/refused")} == {
        "web/search_n": 17,
        "web/open_n": 2,
        "web/errors/bad_query": 1,
        "web/errors/refused": 1,
    }


def scraped(text: str) -> dict[str, float]:
    """Read Prometheus' text format, and refuse what it would."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            assert re.fullmatch(r"# TYPE [a-zA-Z_:][a-zA-Z0-9_:]* (counter|gauge|summary)", line)
            continue
        matched = re.fullmatch(r'([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{quantile="[0-9.]+"\})?) ([-+0-9.e]+)', line)
        assert matched, line
        assert matched[1] not in found, line
        found[matched[1]] = float(matched[2])
    return found


def test_counts_are_totals_and_quantiles_are_of_the_latest_values() -> None:
    metrics = Metrics()
    for value in range(5000):
        metrics.observe("web/a-b.s", float(value))
        metrics.add("web/n", 2)
    metrics.add("search/money", 0.5)
    metrics.add("search/money", -0.5)
    metrics.gauge("web/queue", 3)
    told = scraped(exposition(metrics))
    assert told["dr_jax_web_n_total"] == 10_000
    assert told["dr_jax_search_money"] == 0
    assert told["dr_jax_web_queue"] == 3
    assert (told["dr_jax_web_a_b_s_count"], told["dr_jax_web_a_b_s_sum"]) == (5000, 4999 * 2500)
    assert told['dr_jax_web_a_b_s{quantile="0.5"}'] == pytest.approx(5000 - 2048, abs=2)
    assert exposition(metrics) == exposition(metrics)


REFUSED = [
    ({"json": ASKED, "headers": {}}, 401, "the token of this gateway is needed (the client's DR_JAX_GATEWAY_TOKEN)"),
    ({"json": ASKED, "headers": {"Authorization": f"Bearer {TOKEN}x"}}, 401, "the token"),
    ({"data": json.dumps(ASKED)}, 415, "application/json is needed"),
    ({"data": {"query": "x"}}, 415, "application/json is needed"),
    ({"data": "{", "headers": AUTHORIZED | {"Content-Type": "application/json"}}, 400, "a JSON object with world, query"),
    ({"json": [1]}, 400, "a JSON object"),
    ({"json": {"query": "x"}}, 400, "a JSON object"),
    ({"json": {"world": WORLD, "query": 1}}, 400, "query is not text"),
    ({"json": {"world": "other", "query": "x"}}, 404, f"no world 'other' is served, but '{WORLD}'"),
    ({"data": io.BytesIO(bytes(1 << 21)), "headers": AUTHORIZED | {"Content-Type": "application/json"}}, 413, "most 1 MB"),
]


@pytest.mark.parametrize(("request_", "status", "words"), REFUSED)
async def test_what_is_not_taken(request_: dict[str, Any], status: int, words: str) -> None:
    told, metrics = ToldWeb(), Metrics()
    options = {"headers": AUTHORIZED} | request_
    async with gateways(told, metrics=metrics, token=TOKEN, body_mb=1) as (one,), aiohttp.ClientSession() as session:
        async with session.post(one.url + wire.SEARCH, **options) as response:
            assert response.status == status
            assert words in (await response.json())["refused"]
        async with session.get(one.url + "/healthz") as response:
            assert await response.json() == {"status": "ok", "in_flight": 0}
        async with session.get(one.url + "/metrics") as response:
            assert response.status == 401
    assert not told.asked
    assert sum(value for name, value in metrics.drain().items() if name.startswith("gateway/refused/")) == 2


async def test_a_browser_on_this_machine_is_no_client() -> None:
    """A page of somebody's whose name leads to 127.0.0.1 could spend our money otherwise."""
    async with gateways(ToldWeb()) as (one,):
        for host in ("evil.example", f"evil.example:{one.port}", "127.0.0.1.evil.example", "10.0.0.7", "[::ffff:8.8.8.8]"):
            assert (await post(one.url + wire.SEARCH, ASKED, headers={"Host": host}))[0] == 403, host
        for host in (f"localhost:{one.port}", f"[::1]:{one.port}", "127.0.0.1"):
            assert (await post(one.url + wire.SEARCH, ASKED, headers={"Host": host}))[0] == 200, host


async def test_a_host_that_does_not_resolve_is_named() -> None:
    with pytest.raises(UserError, match=r"--host no-such-host\.invalid has no address"):
        async with serve_gateway({}, quick(), Metrics(), host="no-such-host.invalid", token=TOKEN):
            raise AssertionError


async def test_who_sends_slowly_is_sent_away() -> None:
    async with gateways(ToldWeb(), body_s=0.1) as (one,):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        head = f"POST {wire.SEARCH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        writer.write(head.encode() + b"{")
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()


async def test_a_full_gateway_begins_nothing_new() -> None:
    told, metrics = ToldWeb(), Metrics()
    told.go.clear()
    async with gateways(told, metrics=metrics, requests=2) as (one,):
        busy = [asyncio.create_task(post(one.url + wire.SEARCH, ASKED | {"query": str(n)})) for n in range(2)]
        await until(lambda: len(told.asked) == 2)
        status, said, headers = await post(one.url + wire.SEARCH, ASKED)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert said == {"refused": "this gateway has 2 requests under way"}
        assert scraped(exposition(metrics))["dr_jax_gateway_in_flight"] == 2
        told.go.set()
        assert [found[0] for found in await asyncio.gather(*busy)] == [200, 200]
        assert (await post(one.url + wire.SEARCH, ASKED))[0] == 200
    assert metrics.drain()["gateway/refused/full"] == 1


async def test_stopping_finishes_what_was_begun_and_takes_nothing_new() -> None:
    told = ToldWeb()
    told.go.clear()
    serving = gateways(told)
    (one,) = await serving.__aenter__()
    begun = asyncio.create_task(post(one.url + wire.SEARCH, ASKED))
    await until(lambda: told.asked)
    ending = asyncio.create_task(serving.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    status, said, headers = await post(one.url + wire.SEARCH, ASKED)
    assert (status, said, headers["Connection"]) == (503, {"refused": "this gateway is stopping"}, "close")
    async with aiohttp.ClientSession() as session:
        for path in ("/healthz", wire.HELLO):
            async with session.get(one.url + path) as response:
                assert response.status == 503
    assert not ending.done()
    told.go.set()
    assert (await begun)[0] == 200
    await asyncio.wait_for(ending, 10)
    assert told.asked == ["x"]


async def test_stopping_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    told = ToldWeb()
    told.go.clear()
    async with gateways(told, grace_s=0.1) as (one,):
        begun = asyncio.create_task(post(one.url + wire.SEARCH, ASKED))
        await until(lambda: told.asked)
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(begun, 10)
    assert "what took longer than 0.1 s is given up" in caplog.text


async def test_what_was_begun_is_finished_although_its_asker_is_gone() -> None:
    told = ToldWeb()
    told.go.clear()
    async with gateways(told) as (one,):
        begun = asyncio.create_task(post(one.url + wire.SEARCH, ASKED))
        await until(lambda: told.asked)
        begun.cancel()
        await asyncio.wait({begun})
        await asyncio.sleep(0.05)
        told.go.set()
        await until(lambda: told.ended == 1)


DOORS = [
    ("127.0.0.1", "", ""),
    ("::1", "", ""),
    ("localhost", "", ""),
    ("0.0.0.0", TOKEN, ""),
    ("0.0.0.0", "", "--host 0.0.0.0 lets others in"),
    ("::", "", "--host :: lets others in"),
    ("10.0.0.7", "", "one in DR_JAX_GATEWAY_TOKEN"),
    ("gateway.example", "", "openssl rand -hex 32"),
    ("127.0.0.1", "short", "has 5 characters. Needed: at least 16"),
]


@pytest.mark.parametrize(("host", "token", "words"), DOORS)
def test_nobody_from_outside_gets_in_without_a_token(host: str, token: str, words: str) -> None:
    if not words:
        return refuse_open_door(host, token, "DR_JAX_GATEWAY_TOKEN")
    with pytest.raises(UserError) as raised:
        refuse_open_door(host, token, "DR_JAX_GATEWAY_TOKEN")
    assert words in str(raised.value)
    assert "short" not in str(raised.value)
    return None


async def test_a_port_in_use_is_named() -> None:
    async with gateways(ToldWeb()) as (one,):
        with pytest.raises(UserError, match=f"Port {one.port} on 127.0.0.1 cannot be used"):
            async with serve_gateway({}, quick(), Metrics(), port=one.port):
                pass


@pytest.mark.parametrize("name", ["requests", "body_mb", "probe_s", "answer_s", "rest_s"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        GatewaySettings(**{name: 0})


def test_addresses_are_checked() -> None:
    assert vet_gateway("http://10.0.0.7:8766/") == "http://10.0.0.7:8766"
    assert vet_gateway("https://gateway.example") == "https://gateway.example"
    for wrong in ("10.0.0.7:8766", "ftp://a:1", "http://", "http://a:1/path", "http://me@a:1", "http://a:1?x", "http://a:b"):
        with pytest.raises(ValueError, match="is no gateway"):
            vet_gateway(wrong)
    with pytest.raises(ValueError, match="names one twice"):
        WebSettings(gateways=("http://a:1", "http://a:1/"))
    with pytest.raises(ValueError, match=r"answer_s is 60\.0; more than"):
        WebSettings(gateways=("http://a:1",), gateway=GatewaySettings(answer_s=60.0))


def test_the_app_is_what_is_asked() -> None:
    """The routes that a client uses are the ones that are served."""
    from dr_jax.web.gateway.server import Gateway

    app: server.Application = Gateway({}, quick(), "", Metrics()).app()
    paths = {resource.canonical for resource in app.router.resources()}
    assert paths == {wire.HELLO, wire.SEARCH, wire.OPEN, wire.HEALTHY, wire.KEPT, wire.KEEP, "/healthz", "/metrics"}


async def test_a_fault_over_one_request_rests_nobody() -> None:
    """Both gateways fail over the same strange request, and go on to serve everybody else."""
    one, other = ToldWeb(ZeroDivisionError("ours")), ToldWeb(ZeroDivisionError("ours"))
    async with gateways(one, other) as served, remote(*(here.url for here in served)) as web:
        with pytest.raises(WorldDownError, match="failed over this request"):
            await asyncio.wait_for(web.search("x"), 5.0)
        for here in served:
            assert (await post(here.url + wire.SEARCH, ASKED))[0] == 200
        one.outcome = other.outcome = (HIT,)
        assert await asyncio.wait_for(web.search("y"), 1.0) == (HIT,)


async def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.invalid has no address"):
        async with serve_gateway({}, GatewaySettings(), Metrics(), host="nowhere.invalid", token=TOKEN):
            pass
