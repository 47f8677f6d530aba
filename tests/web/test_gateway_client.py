"""Which gateway is asked, what happens when one is away, and what ends an episode or a run."""

import asyncio
import itertools
import re
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web as server

from dr_jax.base.errors import UserError, WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.blocklist import BlockSettings
from dr_jax.web.gateway import wire
from dr_jax.web.gateway.client import RemoteWeb
from dr_jax.web.gateway.peer import Peer
from dr_jax.web.pace import PaceSettings
from dr_jax.web.page import Hit, Page, WebError
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import TapeSettings
from tests.web.gateways import HIT, WORLD, Handler, ToldWeb, gateways, impostor, quick, remote, until

TOKEN = "t0ken-0123456789abcdef"
QUERIES = [f"query {number}" for number in range(40)]


def answering(body: Any, status: int = 200, **headers: str) -> Handler:
    async def answer(_: server.Request) -> server.StreamResponse:
        if isinstance(body, str):
            return server.Response(text=body, status=status, headers=headers)
        return server.json_response(body, status=status, headers=headers)

    return answer


async def cut(request: server.Request) -> server.StreamResponse:
    """Promise an answer and break off in the middle of it, as a process does that is killed."""
    response = server.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"hits": [')
    assert request.transport is not None
    request.transport.abort()
    return response


WRONG = {
    "cut": (cut, r"it broke off"),
    "error": (answering({"refused": "a bug"}, 500), "status 500: a bug"),
    "not JSON": (answering("<html>busy</html>", 502), r"status 502\) is not a gateway's"),
    "a list": (answering([]), "is not a gateway's"),
    "another shape": (answering({"hits": [{"title": "T"}]}), r"another shape \(KeyError\)"),
    "a failure of another shape": (answering({"failed": "no"}), r"another shape \(TypeError\)"),
    "a redirect": (answering({"refused": "go there"}, 302, Location="http://127.0.0.1:9/"), "status 302"),
    "stopping": (answering({"refused": "this gateway is stopping"}, 503, **{"Retry-After": "1"}), "stopping"),
    "too large": (answering({"hits": ["x" * (1 << 21)]}), r"longer than web\.gateway\.answer_mb = 1"),
    "another token by now": (answering({"refused": "token"}, 401), "asks for a token"),
    "another world by now": (answering({"refused": "no world 'serper'"}, 404), "no world 'serper'"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_one_does_not_answer_another_is_asked(what: str) -> None:
    handler, why = WRONG[what]
    told, metrics = ToldWeb(), Metrics()
    async with impostor({wire.SEARCH: handler}) as bad, gateways(told) as (good,):
        limits = {"answer_mb": 1, "probe_s": 60.0, "rest_s": 60.0, "rest_max_s": 60.0}
        async with remote(bad, good.url, metrics=metrics, **limits) as web:
            assert [await web.search(query) for query in QUERIES] == [(HIT,)] * len(QUERIES)
            assert re.search(why, web._peers[0].why)
            assert web._peers[0].rests_s > 0
        assert metrics.drain()["gateways/failures"] == 1  # then it was left alone
    assert told.asked == QUERIES


async def test_a_bug_that_one_request_meets_ends_that_request_and_no_gateway() -> None:
    bugs, metrics = [ToldWeb(ValueError("a bug")), ToldWeb(ValueError("a bug"))], Metrics()
    async with gateways(*bugs, metrics=metrics) as served, remote(*(one.url for one in served), rest_s=60.0) as web:
        with pytest.raises(WorldDownError, match="failed over this request"):
            await asyncio.wait_for(web.search("x"), 10)
        assert not any(peer.rests_s for peer in web._peers)
        for bug in bugs:
            bug.outcome = (HIT,)
        assert await web.search("y") == (HIT,)
    assert metrics.drain()["gateway/failed/fault"] == 2  # another gateway may have done without


async def test_the_runs_own_settings_hold_or_are_told(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Hit("T", "http://quiz.example/1", "s"), Hit("T", "http://a.example/", "s")
    told, metrics = ToldWeb((bad, good, good, good)), Metrics()
    blocks = {
        "block": BlockSettings(also=("quiz.example",)),
        "search_s": 1e-3,
        "pace": PaceSettings(queue_s=1e-3),
        "open_s": 1e-3,
    }
    async with gateways(told) as (one,):
        settings = WebSettings(gateways=(one.url,), gateway=quick(), results=2, **blocks)
        with caplog.at_level("WARNING", "dr_jax"):
            async with RemoteWeb(settings, WORLD, metrics=metrics) as web:
                assert f"gateway {one.url} has settings of its own, which count: results 10 (here 2)" in caplog.text
                assert await web.search("x") == (good, good)
                told.outcome = Page("http://quiz.example/1", "T", "gold")  # where another address has led
                for url in ("http://quiz.example/1", "http://a.example/"):
                    found = await web.open(url)
                    assert isinstance(found, WebError)
                    assert found.kind == "blocked"
        assert told.asked == ["x", "http://a.example/"]
        assert metrics.drain()["web/blocked_hits"] == 1
        with pytest.raises(UserError, match="asks the network"):
            await RemoteWeb(replace(settings, tape=TapeSettings("replay", "/no/tape")), WORLD).__aenter__()
        told.terms |= {"replays": True}
        async with RemoteWeb(replace(settings, tape=TapeSettings("replay", "/no/tape")), WORLD):
            pass


async def test_nobody_is_there_any_more() -> None:
    told = ToldWeb()
    serving = gateways(told, ToldWeb())
    one, two = await serving.__aenter__()
    async with remote(one.url, two.url, answer_s=0.5) as web:
        await serving.__aexit__(None, None, None)
        start = time.monotonic()
        with pytest.raises(WorldDownError) as raised:
            await web.open("http://a.example/")
        assert 0.45 < time.monotonic() - start < 10
        for url in (one.url, two.url):
            assert f"{url}: no connection: Connection refused" in str(raised.value)


async def test_a_gateway_that_returns_is_asked_again_and_an_outage_only_pauses() -> None:
    away = answering("", 502)
    handlers: dict[str, Handler] = {wire.SEARCH: away, wire.HEALTHY: away}
    async with impostor(handlers) as url, remote(url) as web:
        searching, waiting = asyncio.create_task(web.search("x")), asyncio.create_task(web.healthy())
        elsewhere = {"protocol": wire.PROTOCOL, "version": "0", "worlds": ["another"], "tape": ""}
        for hello in (away, answering({"refused": "?"}, 400), answering(elsewhere)):  # what listens there meanwhile
            handlers[wire.HELLO] = hello
            await asyncio.sleep(0.2)
            assert not searching.done()
            assert not waiting.done()
        assert not web._watching.done()
        handlers |= {wire.SEARCH: answering(wire.found_hits((HIT,))), wire.HEALTHY: answering({"healthy": True})}
        del handlers[wire.HELLO]
        assert await asyncio.wait_for(searching, 10) == (HIT,)
        await asyncio.wait_for(waiting, 10)


async def test_waiting_for_the_world_is_said_once_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    sick, metrics = ToldWeb(sick=WorldDownError("all of them are down")), Metrics()
    async with gateways(sick) as (one,), remote(one.url, metrics=metrics) as web:
        with caplog.at_level("INFO", "dr_jax"):
            waiting = asyncio.create_task(web.healthy())
            await until(lambda: metrics._gauges.get("gateways/down") == 1.0)
            await asyncio.sleep(0.2)
            sick.sick = None
            await asyncio.wait_for(waiting, 5.0)
    assert metrics.drain()["gateways/down"] == 0.0
    assert caplog.text.count("nothing new is begun") == 1
    assert "the run goes on" in caplog.text


async def test_what_was_made_is_used_where_it_cannot_be_kept() -> None:
    told, made = ToldWeb(), list[str]()

    async def make() -> tuple[Any, bool]:
        made.append("made")
        return ["says", 1], True

    async with gateways(told) as (one,), remote(one.url, answer_s=0.5) as web:
        assert await web.once("reading", "k", make) == ["says", 1]
        assert await web.once("reading", "k", make) == ["says", 1]
        assert made == ["made"]

        async def lose(*_: Any, **__: Any) -> None:
            raise WorldDownError("the disk is gone")

        told.keep = lose  # type: ignore[method-assign]
        assert await web.once("reading", "other", make) == ["says", 1]


async def test_one_that_says_hello_and_fails_at_its_work_rests_all_the_same() -> None:
    asked: list[str] = []

    async def fail(request: server.Request) -> server.StreamResponse:
        asked.append(request.path)
        return server.json_response({"refused": "a bug"}, status=500)

    handlers: dict[str, Handler] = {wire.SEARCH: fail}
    async with impostor(handlers) as url, remote(url, probe_s=0.01, rest_s=60.0, rest_max_s=60.0, answer_s=0.5) as web:
        with pytest.raises(WorldDownError, match="a bug"):
            await web.search("x")
        assert (len(asked), web._peers[0].rests_s > 50) == (1, True)
        web._peers[0]._until = 0.0
        web._peers[0].failed("it is silent", silent=True)
        await until(lambda: not web._peers[0].rests_s)  # it says hello


async def test_a_frozen_gateway_is_given_up_with_what_is_under_way_there() -> None:
    """Its process hangs, or its host is gone without a word: no connection breaks, and only its silence tells."""
    asked = asyncio.Event()
    silent: dict[str, Handler] = {}

    async def hang(_: server.Request) -> server.StreamResponse:
        asked.set()
        silent[wire.HELLO] = hang
        await asyncio.Event().wait()
        raise AssertionError

    silent[wire.SEARCH] = hang
    told = ToldWeb()
    async with impostor(silent) as frozen, gateways(told) as (good,):
        async with remote(frozen, good.url, connect_s=0.2, answer_s=60.0, rest_max_s=60.0) as web:
            start = time.monotonic()
            found = await asyncio.gather(*(web.search(query) for query in QUERIES))
            assert time.monotonic() - start < 20
            assert asked.is_set()
            assert web._peers[0].why == "it did not answer in time"
        assert found == [(HIT,)] * len(QUERIES)
    assert sorted(told.asked) == sorted(QUERIES)


async def test_what_a_stopping_gateway_has_begun_is_waited_for() -> None:
    """Where tapes are not shared, asking elsewhere would buy it again."""
    told, metrics = ToldWeb(), Metrics()
    told.go.clear()
    serving = gateways(told, grace_s=20.0)
    (one,) = await serving.__aenter__()
    async with gateways(ToldWeb()) as (two,), remote(one.url, two.url, metrics=metrics) as web:
        searches = [asyncio.create_task(web.search(query)) for query in QUERIES]
        await until(lambda: told.asked and sum(search.done() for search in searches) + len(told.asked) == len(QUERIES))
        ending = asyncio.create_task(serving.__aexit__(None, None, None))
        await until(lambda: "stopping" in web._peers[0].why)
        await asyncio.sleep(0.5)  # many looks at its health
        assert web._peers[0].in_flight == len(told.asked)
        told.go.set()
        assert await asyncio.gather(*searches) == [(HIT,)] * len(QUERIES)
        assert "gateways/failures" not in metrics.drain()
        await asyncio.wait_for(ending, 20)


async def test_a_full_gateway_is_passed_over_and_not_blamed() -> None:
    full, other = ToldWeb(), ToldWeb()
    full.go.clear()
    async with gateways(full, requests=1) as (one,), gateways(other) as (two,):
        async with remote(one.url, two.url, probe_s=60.0) as web:
            searches = [asyncio.create_task(web.search(query)) for query in QUERIES]
            await until(lambda: sum(search.done() for search in searches) == len(QUERIES) - 1)
            assert web._peers[0]._failures == 0
            full.go.set()
            await asyncio.gather(*searches)
        assert (len(full.asked), len(other.asked)) == (1, len(QUERIES) - 1)


async def test_where_the_world_is_down_another_gateway_is_asked_once() -> None:
    down, well = ToldWeb(WorldDownError("no provider answered")), ToldWeb()
    async with gateways(down, well) as (one, two), remote(one.url, two.url) as web:
        assert [await web.search(query) for query in QUERIES] == [(HIT,)] * len(QUERIES)
        assert down.asked
        assert not web._peers[0].rests_s
        well.outcome = WorldDownError("no provider here either")
        before = len(down.asked) + len(well.asked)
        with pytest.raises(WorldDownError, match=r"no provider .*\(gateway http://127\.0\.0\.1:\d+\)"):
            await web.search("x")
        assert len(down.asked) + len(well.asked) == before + 2


async def test_the_same_question_meets_the_same_memory() -> None:
    """Gateways with tapes of their own: whoever asks, in whatever order they are named, and few move when one is gone."""
    webs = [ToldWeb(identity=name) for name in ("a", "b", "c")]
    async with gateways(*webs) as served:
        urls = [one.url for one in served]
        for order in itertools.permutations(urls):
            async with remote(*order) as web:
                await asyncio.gather(*(web.search(query) for query in QUERIES))
        asked = [Counter(one.asked) for one in webs]
        assert sum(len(one) for one in asked) == len(QUERIES)
        assert all(asked)
        assert all(count == 6 for one in asked for count in one.values())
        for one in webs:
            one.asked.clear()
        async with remote(*urls) as web:
            web._peers[0]._until = time.monotonic() + 60
            web._watching.cancel()
            await asyncio.gather(*(web.search(query) for query in QUERIES))
        for was, one in zip(asked[1:], webs[1:], strict=True):
            assert set(was) <= set(one.asked)  # those of the one that is gone came on top


@pytest.mark.parametrize(("identity", "fewer"), [("the same", 48), ("", 0)])
async def test_gateways_of_one_tape_share_the_load(identity: str, fewer: int) -> None:
    """Where they do not, the same question goes to the same one, however busy that is."""
    webs = [ToldWeb(identity=identity), ToldWeb(identity=identity)]
    for one in webs:
        one.go.clear()
    async with gateways(*webs) as served, remote(*(one.url for one in served)) as web:
        asking = [asyncio.create_task(web.search("the same for all")) for _ in range(128)]
        await until(lambda: sum(len(one.asked) for one in webs) == 128)
        assert min(len(one.asked) for one in webs) == fewer
        for one in webs:
            one.go.set()
        await asyncio.gather(*asking)


async def test_rests_are_doubled_up_to_a_bound_and_forgotten() -> None:
    peer = Peer("http://a:1", "w", None, quick(rest_s=0.02, rest_max_s=0.1))  # type: ignore[arg-type]
    rests = []
    for _ in range(5):
        peer.failed("x")
        peer.failed("while it rests")
        rests.append(peer.rests_s)
        await until(lambda: not peer.rests_s)
    for rest, wanted in zip(rests, (0.02, 0.04, 0.08, 0.1, 0.1), strict=True):
        assert wanted - 0.02 < rest <= wanted
    peer.went_well()
    peer.failed("x")
    assert peer.rests_s <= 0.02


NOT_FOR_US = {
    "another server": (answering("<html>hello</html>"), "is not a gateway's"),
    "another API": (answering({"hello": "world"}), "is no gateway of dr_jax"),
    "newer": (answering({"protocol": 2, "version": "9", "worlds": [], "tape": ""}), r"version 2 of the protocol \(dr_jax 9\)"),
    "another world": (
        answering({"protocol": 1, "version": "0", "worlds": ["local"], "tape": ""}),
        "serves 'local'. Needed: 'serper': start it with the config of this run",
    ),
    "nothing there": (answering("no", 404), "is not a gateway's"),
}


@pytest.mark.parametrize("what", NOT_FOR_US)
async def test_what_is_not_a_gateway_for_this_run_is_said_at_the_start(what: str) -> None:
    handler, words = NOT_FOR_US[what]
    async with impostor({wire.HELLO: handler}) as url:
        with pytest.raises(UserError, match=words) as raised:
            async with remote(url):
                pass
        assert url in str(raised.value)


async def test_unreachable_gateways_are_named_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError) as raised:
        async with remote("http://127.0.0.1:9", "http://nowhere.invalid:80"):
            pass
    for words in (
        "No gateway can be reached: http://127.0.0.1:9 (no connection: Connection refused); http://nowhere.invalid:80 (no",
        "start one there (`dr-jax web-gateway CONFIG --host ADDRESS --port PORT`)",
    ):
        assert words in str(raised.value)
    async with gateways(ToldWeb()) as (good,), remote("http://127.0.0.1:9", good.url) as web:  # one that is there is enough
        assert await web.search("x") == (HIT,)
    assert "gateway http://127.0.0.1:9 is left alone" in caplog.text


async def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with gateways(ToldWeb(), token=TOKEN) as (one,):
        monkeypatch.setenv("OUR_TOKEN", TOKEN)
        async with remote(one.url, token_env="OUR_TOKEN") as web:
            assert await web.search("x") == (HIT,)
        with pytest.raises(UserError, match=r"asks for a token\. Needed: the gateway's own, in DR_JAX_GATEWAY_TOKEN"):
            async with remote(one.url):
                pass
        monkeypatch.setenv("OUR_TOKEN", "another-0123456789")
        with pytest.raises(UserError, match="refuses the token in OUR_TOKEN") as raised:
            async with remote(one.url, token_env="OUR_TOKEN"):
                pass
    assert "another" not in f"{raised.value}{caplog.text}"


async def test_nothing_is_left_behind() -> None:
    before = asyncio.all_tasks()
    told = ToldWeb()
    told.go.clear()
    async with gateways(told) as (one,):
        web = await remote(one.url).__aenter__()
        searching = [asyncio.create_task(web.search(query)) for query in QUERIES]
        await until(lambda: len(told.asked) == len(QUERIES))
        for search in searching:
            search.cancel()
        await asyncio.wait(searching)
        assert web._peers[0].in_flight == 0
        late = asyncio.create_task(web.search("late"))
        await until(lambda: "late" in told.asked)
        await web.__aexit__()
        with pytest.raises(WorldDownError, match="was closed while something was on its way"):
            await asyncio.wait_for(late, 10)
        told.go.set()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_each_host_has_its_gateway_and_whoever_takes_its_place_has_the_same_hosts() -> None:
    webs, urls = (
        [ToldWeb(Page("http://a.example/", "T", "text")) for _ in range(4)],
        [f"http://h{n}.example" for n in range(24)],
    )
    limits = {"search_s": 1e-3, "open_s": 1e-3, "pace": PaceSettings(queue_s=1e-3)}
    async with (
        gateways(*webs, token=TOKEN) as served,
        RemoteWeb(WebSettings(gateway=quick(), **limits), WORLD, token=TOKEN, apart=True) as web,
    ):
        places = [f"place {number}" for number in range(3)]
        for one, place in zip(served[:3], places, strict=True):
            await web.join(one.url, place)
        for path in ("/", "/b?c=d", ":80/e"):
            for url in urls:
                assert isinstance(await web.open(url + path), Page)
        met = [{re.sub(r"(example).*", r"\1", url) for url in told.asked} for told in webs]
        assert [len(told.asked) for told in webs] == [3 * len(hosts) for hosts in met]
        assert sum(len(hosts) for hosts in met) == len(urls)  # no host was asked by two of them
        assert min(len(hosts) for hosts in met[:3]) >= 3
        for told in webs:
            told.outcome = (HIT,)
        for query in QUERIES:
            await web.search(query)
        assert sorted(len(set(QUERIES) & set(told.asked)) for told in webs) == [0, 0, 0, len(QUERIES)]
        web.leave(served[0].url)
        await web.join(served[3].url, places[0])
        for told in webs:
            told.asked.clear()
            told.outcome = Page("http://a.example/", "T", "text")
        for url in urls:
            await web.open(url)
        assert [set(told.asked) for told in webs] == [set(), met[1], met[2], met[0]]


async def test_what_one_that_leaves_has_not_answered_is_asked_at_another_and_with_none_the_world_is_down() -> None:
    stuck, other = ToldWeb(), ToldWeb()
    stuck.go.clear()
    limits = {"search_s": 1e-3, "open_s": 1e-3, "pace": PaceSettings(queue_s=1e-3)}
    settings = WebSettings(gateway=quick(answer_s=5.0), **limits)
    async with gateways(stuck, other) as (one, two), RemoteWeb(settings, WORLD, apart=True) as web:
        waiting = asyncio.create_task(web.search("before anybody is there"))
        await asyncio.sleep(0.05)
        await web.join(one.url, "place")
        await until(lambda: stuck.asked)
        await web.join(two.url, "place")
        await web.join(two.url, "place")  # once is enough
        assert len(web._peers) == 2
        web.leave(one.url)
        assert await asyncio.wait_for(waiting, 3) == (HIT,)
        assert stuck.asked == other.asked == ["before anybody is there"]
        web.leave(two.url)
        start = time.monotonic()
        with pytest.raises(WorldDownError, match="none was there"):
            await web.search("after all have left")
        assert 4.5 < time.monotonic() - start < 15
        stuck.go.set()
