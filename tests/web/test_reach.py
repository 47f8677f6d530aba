"""When no page at all can be reached: noticed, told apart from pages that are no good, and over by itself."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import FetchSettings
from dr_jax.web.guard import AllowedHost
from dr_jax.web.page import Page, WebError
from dr_jax.web.reach import Reach
from dr_jax.web.reply import Fetched
from dr_jax.web.search.settings import BreakerSettings
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web
from tests.web.conftest import Site

QUICK = BreakerSettings(failures=6, open_s=0.1, most_s=0.2, down_s=5.0)


class Network:
    """Answers for every address, unless it is cut, or the host is named among the dead."""

    def __init__(self) -> None:
        self.cut = False
        self.dead: set[str] = set()
        self.asked: list[str] = []

    async def get(self, url: str) -> Fetched | WebError:
        self.asked.append(url)
        await asyncio.sleep(0)
        if self.cut or url.split("/")[2] in self.dead:
            return WebError("unreachable", f"{url} could not be reached")
        if url.endswith("gone"):
            return WebError("not_found", f"{url} answered with status 404")
        return Fetched(url, 200, "text/html", "", b"<p>x")


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    yield Network()
    assert not [task for task in asyncio.all_tasks() if "recovery" in task.get_name()]


async def opened(reach: Reach, network: Network, url: str) -> str:
    try:
        found = await reach.asked(url, lambda: network.get(url))
    except WorldDownError:
        return "down"
    return found.kind if isinstance(found, WebError) else "page"


async def test_a_host_that_is_dead_is_a_bad_page_for_ever(network: Network) -> None:
    network.dead = {"a.org", "b.org"}
    reach = Reach(QUICK, Metrics(), network.get)
    assert {await opened(reach, network, f"http://{host}.org/{n}") for n in range(20) for host in "ab"} == {"unreachable"}
    assert not reach.down


async def test_any_answer_in_between_shows_that_the_web_is_there(network: Network) -> None:
    network.dead = {f"{n}.org" for n in range(100)}
    reach = Reach(QUICK, Metrics(), network.get)
    for n in range(100):
        assert await opened(reach, network, f"http://{n}.org/") == "unreachable"
        if n % 5 == 4:
            assert await opened(reach, network, "http://alive.org/gone") == "not_found"


async def test_an_outage_is_the_worlds_and_is_over_when_pages_that_were_seen_answer(network: Network) -> None:
    metrics = Metrics()
    reach = Reach(QUICK, metrics, network.get)
    for n in range(6):
        assert await opened(reach, network, f"http://seen{n}.org/") == "page"
    network.cut = True
    first = [await opened(reach, network, f"http://new{n}.org/") for n in range(8)]
    assert first == [*["unreachable"] * 5, "down", "down", "down"]
    asked = len(network.asked)
    waiting = [asyncio.create_task(reach.healthy()) for _ in range(30)]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in waiting)
    assert metrics.drain()["web/pages_down"] == 1.0
    probed = network.asked[asked:]
    assert set(probed) == {f"http://seen{n}.org/" for n in range(2, 6)}
    assert len(probed) <= 20
    network.dead = {"seen5.org", *(f"new{n}.org" for n in range(8))}
    network.cut = False
    await asyncio.wait_for(asyncio.gather(*waiting), 5.0)
    assert metrics.drain()["web/pages_down"] == 0.0
    assert await opened(reach, network, "http://seen2.org/") == "page"
    assert await opened(reach, network, "http://new1.org/") == "unreachable"
    await reach.close()


async def test_whoever_asks_finds_out_too_when_nobody_waits(network: Network) -> None:
    reach = Reach(QUICK, Metrics(), network.get)
    network.cut = True
    assert [await opened(reach, network, f"http://new{n}.org/") for n in range(6)][-1] == "down"
    network.cut = False
    assert await opened(reach, network, "http://new.org/") == "down"
    await asyncio.sleep(0.15)
    assert await opened(reach, network, "http://new.org/") == "page"


async def test_what_is_under_way_when_it_begins_is_not_told_to_be_a_bad_page(network: Network) -> None:
    reach = Reach(QUICK, Metrics(), network.get)
    network.cut = True
    found = await asyncio.gather(*(opened(reach, network, f"http://new{n}.org/") for n in range(100)))
    assert found == ["unreachable"] * 5 + ["down"] * 95


async def test_waiting_has_an_end(network: Network) -> None:
    reach = Reach(BreakerSettings(failures=3, open_s=0.05, most_s=0.1, down_s=0.3), Metrics(), network.get)
    network.cut = True
    for n in range(3):
        await opened(reach, network, f"http://new{n}.org/")
    with pytest.raises(WorldDownError, match=r"within 0\.3 s"):
        await reach.healthy()
    await reach.close()


async def test_pages_over_http(site: Site) -> None:
    """The site answers every page with 503 for a while, and searches as ever."""
    site.page("/search", '{"organic": []}', Content_Type="application/json")
    settings = WebSettings(fetch=FetchSettings(attempts=1, wait_s=0.01), breaker=QUICK)
    async with Web(settings, allow=[AllowedHost("littleweb", "127.0.0.1", site.port)], metrics=Metrics()) as web:
        site.page("/page", "<p>found")
        assert isinstance(await web.open("http://a.littleweb/page"), Page)
        site.page("/page", "", 503)
        for n in range(5):
            assert isinstance(await web.open(f"http://{n}.littleweb/page"), WebError)
        with pytest.raises(WorldDownError, match="No web page can be reached: the last 6 pages"):
            await web.open("http://b.littleweb/page")
        assert await web.search("x") == ()
        waiting = asyncio.create_task(web.healthy())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        site.page("/page", "<p>found")
        await asyncio.wait_for(waiting, 10.0)
        assert isinstance(await web.open("http://b.littleweb/page"), Page)


async def test_what_was_refused_here_shows_no_network(network: Network) -> None:
    """A page on the block list, or one that robots.txt closes, is no sign of life in the middle of an outage."""
    reach = Reach(QUICK, Metrics(), network.get)
    network.cut = True

    async def blocked() -> WebError:
        return WebError("blocked", "on the block list")

    for n in range(5):
        assert await opened(reach, network, f"http://new{n}.org/") == "unreachable"
        assert await reach.asked("http://listed.org/", blocked) == await blocked()
    assert await opened(reach, network, "http://new9.org/") == "down"


async def test_failing_hosts_are_kept_in_bounds(network: Network) -> None:
    network.dead = {"a.org", "b.org"}
    reach = Reach(QUICK, Metrics(), network.get)
    start = time.perf_counter()
    for n in range(3_000):
        await opened(reach, network, f"http://{'ab'[n % 2]}.org/{n}")
    assert time.perf_counter() - start < 5.0
