import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from dr_jax.base.errors import UserError, WorldDownError
from dr_jax.web.pace import Slots
from dr_jax.web.page import Hit, WebError
from dr_jax.web.search import SERPER_KEY, SerperSearch, serper_key, vet_query
from tests.web.conftest import MakeFetcher, Site

KEY = "k3y-0123456789abcdef"
ORGANIC = [
    {"title": "Velmora", "link": "http://atlas.here/velmora", "snippet": "A  city.", "position": 1, "date": "2020"},
    {"title": "Rivers", "link": "http://lists.here/river", "position": 2},
]


@pytest.fixture
def make_search(make_fetcher: MakeFetcher) -> Callable[..., Awaitable[SerperSearch]]:
    async def make(key: str = "", results: int = 10) -> SerperSearch:
        return SerperSearch("http://search.here/search", results, await make_fetcher(first_byte_s=0.3), Slots(4, None, 1), key)

    return make


def answer(site: Site, content: object, status: int = 200, **headers: str) -> None:
    site.page("/search", json.dumps(content), status, **{"Content_Type": "application/json"} | headers)


async def test_hits_in_order(site: Site, make_search) -> None:
    answer(site, {"searchParameters": {"q": "x"}, "organic": ORGANIC})
    search = await make_search(KEY)
    expected = (Hit("Velmora", "http://atlas.here/velmora", "A city."), Hit("Rivers", "http://lists.here/river", ""))
    assert await search.search("who rules Velmora") == expected
    request = site.requests[-1]
    assert (request.method, request.headers["X-API-KEY"]) == ("POST", KEY)
    assert request.headers["Content-Type"] == "application/json"


async def test_halves_of_characters_do_not_get_through(site: Site, make_search) -> None:
    site.page("/search", b'{"organic": [{"title": "a \\ud83d", "link": "http://a.org/"}]}')
    assert await (await make_search()).search("x") == (Hit("a ?", "http://a.org/", ""),)


async def test_what_is_sent(site: Site, make_search) -> None:
    sent = []

    async def echo(request):
        sent.append(await request.json())
        return web.json_response({"organic": []})

    site.pages["/search"] = echo
    assert await (await make_search(results=7)).search("ü query") == ()
    assert sent == [{"q": "ü query", "num": 7, "gl": "us", "hl": "en"}]
    assert "X-API-KEY" not in site.requests[-1].headers


async def test_no_more_than_was_asked_for(site: Site, make_search) -> None:
    answer(site, {"organic": ORGANIC * 10})
    assert len(await (await make_search(results=3)).search("x")) == 3


@pytest.mark.parametrize(
    "content",
    [
        *({}, [], "text", 3, None, {"organic": None}, {"organic": {}}, {"organic": "x"}, {"organic": [1]}, {"organic": [[]]}),
        *({"organic": [{}]}, {"organic": [{"link": 3}]}, {"organic": [{"link": ""}]}, {"organic": [{"link": "a", "title": 3}]}),
        {"organic": [*ORGANIC, {"title": "no link"}]},
    ],
)
async def test_a_wrong_shape_is_an_error_and_not_an_empty_list(content: object, site: Site, make_search) -> None:
    answer(site, content)
    found = await (await make_search()).search("x")
    assert isinstance(found, WebError)
    assert (found.kind, found.lasting) == ("bad_answer", False)


@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"\xff\xfe\x00", b"[" * 100_000, b'{"organic": [{"link": "a'])
async def test_an_answer_that_is_not_json_is_an_error(body: bytes, site: Site, make_search) -> None:
    site.page("/search", body)
    found = await (await make_search()).search("x")
    assert isinstance(found, WebError)
    assert found.kind == "bad_answer"


@pytest.mark.parametrize(
    ("status", "says"), [(401, SERPER_KEY), (403, SERPER_KEY), (402, "credits"), (404, "404"), (302, "302"), (418, "418")]
)
async def test_a_provider_that_does_not_serve_us_is_down(status: int, says: str, site: Site, make_search) -> None:
    answer(site, {"message": f"Unauthorized: {KEY}"}, status, Location="http://elsewhere.here/")
    with pytest.raises(WorldDownError, match=says) as raised:
        await (await make_search(KEY)).search("x")
    assert KEY not in str(raised.value)
    assert KEY not in repr(raised.getrepr(style="short"))
    assert site.asked["/search"] == 1
    assert site.asked["/"] == 0  # the key went nowhere else


async def test_no_credits_comes_as_400_too(site: Site, make_search) -> None:
    answer(site, {"message": "Not enough credits", "statusCode": 400}, 400)
    with pytest.raises(WorldDownError, match="credits"):
        await (await make_search(KEY)).search("x")


async def test_a_query_that_the_provider_refuses_is_the_askers_mistake(site: Site, make_search) -> None:
    answer(site, {"message": "Query pattern not allowed"}, 400)
    found = await (await make_search(KEY)).search("x")
    assert isinstance(found, WebError)
    assert found.kind == "bad_query"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_provider_that_stays_ill_is_down(status: int, site: Site, make_search) -> None:
    answer(site, {}, status)
    with pytest.raises(WorldDownError, match=str(status)):
        await (await make_search()).search("x")
    assert site.asked["/search"] == 3


async def test_a_provider_that_hangs_is_down(site: Site, make_search) -> None:
    site.hang("/search")
    with pytest.raises(WorldDownError, match="in time"):
        await (await make_search()).search("x")


async def test_a_provider_that_breaks_off_is_down(site: Site, make_search) -> None:
    site.cut("/search", b'{"organic": []}')
    with pytest.raises(WorldDownError, match="broke off"):
        await (await make_search()).search("x")
    assert site.asked["/search"] == 3


async def test_a_provider_that_recovers_is_asked_again(site: Site, make_search) -> None:
    site.in_turn("/search", web.Response(status=500), web.json_response({"organic": ORGANIC}))
    assert len(await (await make_search()).search("x")) == 2


def test_queries_are_vetted() -> None:
    assert vet_query("  who \n rules ") == "who rules"
    assert vet_query("half \ud83d a pair") == "half ? a pair"
    for wrong in ("", " \n", "x" * 3000):
        found = vet_query(wrong)
        assert isinstance(found, WebError)
        assert found.kind == "bad_query"


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_missing_key_names_the_variable_and_the_way_without(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERPER_KEY, raising=False)
    if value is not None:
        monkeypatch.setenv(SERPER_KEY, value)
    with pytest.raises(UserError, match=f"{SERPER_KEY}.*littleweb") as raised:
        serper_key()
    assert not value or not value.strip() or value not in str(raised.value)


def test_a_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERPER_KEY, f" {KEY}\n")
    assert serper_key() == KEY
