"""robots.txt over a real server: what RFC 9309 says, and what it says of failures."""

import asyncio
import time

import pytest

from dr_jax.base.metrics import Metrics
from dr_jax.web.page import WebError
from dr_jax.web.reply import Fetched
from tests.web.conftest import MakeFetcher, Site

RULES = """
User-agent: *
Disallow: /private
Allow: /private/open

User-agent: mozilla
Disallow: /

User-agent: dr-jax
Disallow: /ours$
Disallow: /*.pdf
"""


def kind(found: Fetched | WebError) -> str:
    return found.kind if isinstance(found, WebError) else "ok"


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("somebody/1", {"/private/x": "ok", "/a.pdf?x": "robots", "/ours": "robots", "/ours/x": "ok"}),
        ("Mozilla/5.0 (compatible; dr-jax)", {"/private/x": "ok", "/a.pdf?x": "robots", "/ours": "robots", "/ours/x": "ok"}),
    ],
)
async def test_what_a_site_asks_for_is_done(
    agent: str, expected: dict[str, str], site: Site, make_fetcher: MakeFetcher
) -> None:
    site.page("/robots.txt", RULES, Content_Type="text/plain")
    for path in expected:
        site.page(path.partition("?")[0], "x")
    metrics = Metrics()
    fetcher = await make_fetcher(metrics=metrics, robots="obey", user_agent=agent)
    found = {path: kind(await fetcher.get(f"http://w.here{path}")) for path in expected}
    assert found == expected
    assert site.asked["/robots.txt"] == metrics.drain()["web/robots_n"] == 1
    for path, one in expected.items():
        assert site.asked[path.partition("?")[0]] == (one == "ok")


async def test_nobody_asks_when_it_is_off(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/robots.txt", "User-agent: *\nDisallow: /")
    site.page("/a", "x")
    assert kind(await (await make_fetcher()).get("http://w.here/a")) == "ok"
    assert site.asked["/robots.txt"] == 0


@pytest.mark.parametrize(
    ("status", "expected"), [(404, "ok"), (403, "ok"), (410, "ok"), (500, "server"), (503, "server"), (429, "busy")]
)
async def test_a_file_that_is_not_there_opens_and_one_that_fails_closes(
    status: int, expected: str, site: Site, make_fetcher: MakeFetcher
) -> None:
    site.page("/robots.txt", "x", status)
    site.page("/a", "x")
    found = await (await make_fetcher(robots="obey")).get("http://w.here/a")
    assert kind(found) == expected
    assert site.asked["/a"] == (expected == "ok")
    if isinstance(found, WebError):
        assert "robots.txt" in found.message
        assert not found.lasting  # it is asked again soon, and nothing is remembered on a tape


async def test_every_hop_and_every_origin_is_asked_about(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/robots.txt", "User-agent: *\nDisallow: /private\nAllow: /private/open")
    site.page("/a", status=302, Location="http://other.here/private")
    site.page("/private", "x")
    fetcher = await make_fetcher(robots="obey")
    assert kind(await fetcher.get("http://w.here/a")) == "robots"
    assert (site.asked["/private"], site.asked["/robots.txt"]) == (0, 2)
    site.page("/private/open", "x")
    assert kind(await fetcher.get("http://w.here/private/open")) == "ok"


async def test_its_own_redirects_are_followed_but_never_inside(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", "x")
    site.page("/robots.txt", status=301, Location="http://other.here/rules")
    site.page("/rules", "User-agent: *\nDisallow: /a")
    assert kind(await (await make_fetcher(robots="obey")).get("http://w.here/a")) == "robots"
    site.page("/robots.txt", status=301, Location="http://127.0.0.1/robots.txt")
    assert kind(await (await make_fetcher(robots="obey")).get("http://w.here/a")) == "ok"


async def test_siblings_share_one_file(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/robots.txt", "User-agent: *\nDisallow: /b")
    site.page("/a", "x")
    fetcher = await make_fetcher(robots="obey")
    found = await asyncio.gather(*(fetcher.get(f"http://w.here/{name}") for name in "ababab"))
    assert [kind(one) for one in found] == ["ok", "robots"] * 3
    assert site.asked["/robots.txt"] == 1


async def test_a_file_made_to_harm_costs_little(site: Site, make_fetcher: MakeFetcher) -> None:
    """Patterns that a backtracking matcher would need ages for, and far more of them than are read."""
    pattern = "Disallow: /" + "*a" * 500 + "b\n"
    site.page("/robots.txt", "User-agent: *\n" + pattern * 2_000 + "Disallow: /x")
    site.page("/" + "a" * 4_000, "x")
    start = time.monotonic()
    assert kind(await (await make_fetcher(robots="obey", first_byte_s=5.0)).get("http://w.here/" + "a" * 4_000)) == "ok"
    assert time.monotonic() - start < 5


async def test_a_file_that_hangs_has_a_deadline(site: Site, make_fetcher: MakeFetcher) -> None:
    site.hang("/robots.txt")
    fetcher = await make_fetcher(robots="obey", first_byte_s=0.2)
    assert kind(await fetcher.get("http://w.here/a")) == "timeout"
    assert site.asked["/a"] == 0
