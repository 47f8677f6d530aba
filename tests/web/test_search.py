"""Each provider against a server that answers in its documented shape."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from dr_jax.base.errors import UserError
from dr_jax.web.page import Hit, WebError
from dr_jax.web.search.catalogue import PROVIDERS, cost, remembered_as, template
from dr_jax.web.search.desk import http_ask
from dr_jax.web.search.provider import Hits, Query, vet_query
from dr_jax.web.search.settings import (
    BreakerSettings,
    BudgetSettings,
    LocalSettings,
    ProviderSettings,
    ProvidersSettings,
    SearchSettings,
)
from dr_jax.web.search.source import HttpAsk, ProviderError
from tests.web.conftest import MakeFetcher, Site

KEY = "k3y-0123456789abcdef"
FOUND = (Hit("Velmora", "https://atlas.org/velmora", "A city."), Hit("Rivers", "https://lists.org/river", ""))
MakeAsk = Callable[..., Awaitable[HttpAsk[Hits]]]


def rows(url: str, snippet: str, **more: Any) -> list[dict[str, Any]]:
    """Two results, the first with further fields, the second with as few as there may be."""
    return [
        {"title": "Velmora", url: "https://atlas.org/velmora", snippet: "A  city.", **more},
        {"title": "Rivers", url: "https://lists.org/river"},
    ]


GOOGLE_ABOUT = {"kind": "customsearch#search", "searchInformation": {"searchTime": 0.2, "totalResults": "0"}, "queries": {}}
SERPER_FOUND = {"searchParameters": {"q": "x", "type": "search"}, "organic": rows("link", "snippet", position=1), "credits": 1}
TAVILY_ROWS = rows("url", "content", score=0.81, raw_content=None)
ANSWERS: dict[str, tuple[Any, Any]] = {  # to a search that found two pages, and to one that found nothing
    "littleweb": (SERPER_FOUND, {"organic": []}),
    "serper": (SERPER_FOUND, {"searchParameters": {"q": "x"}, "organic": [], "credits": 1}),
    "brave": (
        {
            "type": "search",
            "query": {"original": "x", "more_results_available": True},
            "mixed": {"type": "mixed", "main": [{"type": "web", "index": 0}]},
            "web": {"type": "search", "results": rows("url", "description", page_age="2020-01-01", language="en")},
        },
        {"type": "search", "query": {"original": "x"}},
    ),
    "tavily": (
        {"query": "x", "answer": None, "images": [], "results": TAVILY_ROWS, "response_time": 1.2, "request_id": "1"},
        {"query": "x", "results": []},
    ),
    "searxng": (
        {
            "query": "x",
            "number_of_results": 0,
            "results": rows("url", "content", engine="brave", parsed_url=["https", "atlas.org", "/velmora"], score=1.0),
            "answers": [],
            "suggestions": [],
            "unresponsive_engines": [["google", "timeout"]],
        },
        {"query": "x", "results": [], "unresponsive_engines": []},
    ),
    "google": (GOOGLE_ABOUT | {"items": rows("link", "snippet", htmlTitle="<b>", displayLink="atlas.org")}, GOOGLE_ABOUT),
}
NAMES = sorted(ANSWERS)


@pytest.fixture
def make_ask(make_fetcher: MakeFetcher) -> MakeAsk:
    async def make(name: str, results: int = 10, **parameters: Any) -> HttpAsk[Hits]:
        key = KEY if PROVIDERS[name].key else ""
        query = Query("", results, f"http://{name}.here/search", key, parameters)
        return http_ask(name, PROVIDERS[name], query, await make_fetcher(first_byte_s=0.3))

    return make


def answer(site: Site, content: object, status: int = 200, **headers: str) -> None:
    site.page("/search", json.dumps(content), status, **{"Content_Type": "application/json"} | headers)


async def failing(ask: HttpAsk[Hits]) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        await ask("x")
    error = raised.value
    assert KEY not in str(error)
    assert KEY not in repr(raised.getrepr(style="long"))
    return error


@pytest.mark.parametrize("name", NAMES)
async def test_hits_in_order(name: str, site: Site, make_ask: MakeAsk) -> None:
    answer(site, ANSWERS[name][0])
    assert await (await make_ask(name))("who rules Velmora") == FOUND
    assert await (await make_ask(name, results=1))("who rules Velmora") == FOUND[:1]
    assert KEY not in str(site.requests[-1].url)


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_found_is_empty(name: str, site: Site, make_ask: MakeAsk) -> None:
    answer(site, ANSWERS[name][1])
    assert await (await make_ask(name))("x") == ()


SENT = {  # method, headers, and what the query is sent as: posted, or in the address
    "littleweb": ("POST", {}, {"q": "ü x", "num": 7, "gl": "us", "hl": "en"}),
    "serper": ("POST", {"X-API-KEY": KEY}, {"q": "ü x", "num": 7, "gl": "us", "hl": "en"}),
    "brave": (
        "GET",
        {"X-Subscription-Token": KEY, "Accept": "application/json"},
        {"q": "ü x", "count": "7", "text_decorations": "false", "result_filter": "web"},
    ),
    "tavily": ("POST", {"Authorization": f"Bearer {KEY}"}, {"query": "ü x", "max_results": 7, "search_depth": "basic"}),
    "searxng": ("GET", {}, {"q": "ü x", "format": "json", "pageno": "1"}),
    "google": ("GET", {"X-Goog-Api-Key": KEY}, {"q": "ü x", "num": "7"}),
}


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_sent(name: str, site: Site, make_ask: MakeAsk) -> None:
    sent: list[Any] = []

    async def echo(request: web.Request) -> web.Response:
        sent.append(dict(request.query) if request.method == "GET" else await request.json())
        return web.json_response(ANSWERS[name][1])

    site.pages["/search"] = echo
    method, headers, expected = SENT[name]
    await (await make_ask(name, results=7))("ü x")
    await (await make_ask(name, results=7, gl="de", safe=True))("ü x")
    assert sent == [expected, expected | {"gl": "de", "safe": True if method == "POST" else "true"}]
    request = site.requests[0]
    assert request.method == method
    assert headers.items() <= request.headers.items()
    others = {"X-API-KEY", "X-Subscription-Token", "Authorization", "X-Goog-Api-Key"} - headers.keys()
    assert not others & set(request.headers)


WRONG: list[Any] = [{}, [], "text", 3, None, {"error": "x"}]
WRONG_LISTS: list[Any] = [
    *(None, {}, "x", [1], [[]], [{}], [{"title": "no address"}]),
    *([{"url": 3, "link": 3}], [{"url": "", "link": ""}], [{"url": "a", "link": "a", "title": 3}]),
    [*rows("url", "snippet"), *rows("link", "snippet")],
]


def with_list(name: str, found: Any) -> Any:
    shapes = {"brave": {"type": "search", "web": {"results": found}}, "google": GOOGLE_ABOUT | {"items": found}}
    return shapes.get(name, {"results": found, "organic": found})


@pytest.mark.parametrize("name", NAMES)
async def test_a_wrong_shape_is_the_providers_failure_and_not_an_empty_list(name: str, site: Site, make_ask: MakeAsk) -> None:
    ask = await make_ask(name)
    bodies = [json.dumps(content).encode() for content in (*WRONG, *(with_list(name, found) for found in WRONG_LISTS))]
    for body in (*bodies, b"", b"<html>busy</html>", b"\xff\xfe\x00", b"[" * 100_000, b'{"organic": [{"link": "a', b"{} {}"):
        site.page("/search", body)
        error = await failing(ask)
        assert (error.kind, error.again) == ("shape", True), body[:200]


async def test_an_empty_answer_of_engines_that_failed_is_a_failure(site: Site, make_ask: MakeAsk) -> None:
    answer(site, {"query": "x", "results": [], "unresponsive_engines": [["google", "Suspended: CAPTCHA"]]})
    assert "engines" in str(await failing(await make_ask("searxng")))


def google_error(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "errors": [{"reason": reason, "domain": "usageLimits"}]}}


BRAVE_KEY = {"type": "ErrorResponse", "error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "status": 422, "detail": KEY}}
REFUSALS: list[tuple[str, int, Any, str, str]] = [  # provider, status, body, kind, what the message names
    ("serper", 400, {"message": "Not enough credits", "statusCode": 400}, "credits", "credits"),
    ("serper", 403, {"message": f"Unauthorized. {KEY}", "statusCode": 403}, "key", "SERPER_API_KEY"),
    ("brave", 422, BRAVE_KEY, "key", "BRAVE_API_KEY"),
    ("tavily", 401, {"detail": {"error": "Unauthorized: missing or invalid API key."}}, "key", "TAVILY_API_KEY"),
    ("tavily", 432, {"detail": {"error": "This request exceeds your plan's set usage limit."}}, "credits", "432"),
    ("tavily", 433, {"detail": {"error": "This request exceeds the pay-as-you-go limit."}}, "credits", "433"),
    ("searxng", 403, "<h1>Forbidden</h1>", "key", "settings.yml"),
    (
        "google",
        400,
        google_error(400, "badRequest", "API key not valid. Please pass a valid API key."),
        "key",
        "GOOGLE_API_KEY",
    ),
    ("google", 403, google_error(403, "dailyLimitExceeded", "Daily Limit Exceeded"), "credits", "quota"),
    ("google", 403, google_error(403, "userRateLimitExceeded", "User Rate Limit Exceeded"), "busy", "too often"),
    ("google", 403, google_error(403, "accessNotConfigured", "Custom Search API has not been used"), "key", "GOOGLE_API_KEY"),
    ("littleweb", 403, "", "key", "the server"),
    *((name, 401, {"message": KEY}, "key", "401") for name in NAMES),
    *((name, 402, {"message": "pay"}, "credits", "402") for name in NAMES),
    *((name, 403, {"message": KEY}, "key", "403") for name in NAMES),
    *((name, 429, {}, "busy", "429") for name in NAMES),
    *((name, status, "<html>oops", "server", str(status)) for name in NAMES for status in (500, 503)),
    *((name, status, {}, "status", str(status)) for name in NAMES for status in (302, 404, 418)),
]


@pytest.mark.parametrize(("name", "status", "body", "kind", "says"), REFUSALS)
async def test_refusals(name: str, status: int, body: Any, kind: str, says: str, site: Site, make_ask: MakeAsk) -> None:
    answer(site, body, status, Location="http://elsewhere.here/")
    error = await failing(await make_ask(name))
    assert error.kind == kind
    assert says in str(error)
    assert error.again == (kind in ("busy", "server"))
    assert error.after_s is None
    assert site.asked["/search"] == 1
    assert site.asked["/"] == 0  # the key went nowhere else


@pytest.mark.parametrize("name", NAMES)
async def test_retry_after_is_told(name: str, site: Site, make_ask: MakeAsk) -> None:
    ask = await make_ask(name)
    for status in (429, 503):
        answer(site, {}, status, Retry_After="7")
        assert (await failing(ask)).after_s == 7.0


@pytest.mark.parametrize(("name", "status"), [*((name, 400) for name in NAMES), ("brave", 422)])
async def test_a_query_that_is_not_taken_is_the_askers_mistake(name: str, status: int, site: Site, make_ask: MakeAsk) -> None:
    answer(site, {"message": "Query pattern not allowed"}, status)
    found = await (await make_ask(name))("x")
    assert isinstance(found, WebError)
    assert found.kind == "bad_query"


@pytest.mark.parametrize("name", NAMES)
async def test_hanging_and_breaking_off(name: str, site: Site, make_ask: MakeAsk) -> None:
    ask = await make_ask(name)
    site.cut("/search", json.dumps(ANSWERS[name][0]).encode())
    assert (await failing(ask)).kind == "unreachable"
    site.hang("/search")
    error = await failing(ask)
    assert (error.kind, error.again) == ("timeout", True)


async def test_odd_characters_do_not_get_through(site: Site, make_ask: MakeAsk) -> None:
    site.page("/search", b'{"organic": [{"title": "a \\ud83d\\u0000b\\n", "link": "http://a.org/", "snippet": null}]}')
    assert await (await make_ask("serper"))("x") == (Hit("a ?b", "http://a.org/", ""),)


def test_queries_are_vetted() -> None:
    assert vet_query("  who \n rules ") == "who rules"
    assert vet_query("half \ud83d a pair") == "half ? a pair"
    for wrong in ("", " \n", "x" * 3000):
        found = vet_query(wrong)
        assert isinstance(found, WebError)
        assert found.kind == "bad_query"


@pytest.mark.parametrize("name", ["serper", "brave", "tavily", "google"])
@pytest.mark.parametrize("value", [None, "", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_missing_key_names_the_variable_and_the_ways_without(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = PROVIDERS[name].key
    monkeypatch.setenv("GOOGLE_CSE_ID", "cx")
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable}.*littleweb.*searxng.*local") as raised:
        template(name, ProviderSettings(), 10)
    assert not value or not value.strip() or value not in str(raised.value)


def test_what_the_environment_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", f" {KEY}\n")
    monkeypatch.delenv("GOOGLE_CSE_ID", raising=False)
    with pytest.raises(UserError, match=r"GOOGLE_CSE_ID.*web\.provider\.google\.parameters\.cx"):
        template("google", ProviderSettings(), 10)
    monkeypatch.setenv("GOOGLE_CSE_ID", "of-environment")
    found = template("google", ProviderSettings(), 100)
    assert (found.key, found.results, found.parameters) == (KEY, 10, {"cx": "of-environment"})
    assert template("google", ProviderSettings(parameters={"cx": "own"}), 5).parameters == {"cx": "own"}
    assert KEY not in repr(found)
    monkeypatch.delenv("SEARXNG_URL", raising=False)
    with pytest.raises(UserError, match="SEARXNG_URL"):
        template("searxng", ProviderSettings(), 10)
    monkeypatch.setenv("SEARXNG_URL", "http://127.0.0.1:8888/")
    query = template("searxng", ProviderSettings(), 10)
    assert PROVIDERS["searxng"].ask(query).url == "http://127.0.0.1:8888/search?q=&format=json&pageno=1"
    assert template("searxng", ProviderSettings(url="https://s.org/search"), 10).url == "https://s.org/search"


def test_prices() -> None:
    """Serper takes two credits for more than ten results; a price of the settings prevails."""
    assert (cost("serper", ProviderSettings(), 10), cost("serper", ProviderSettings(), 20)) == (0.001, 0.002)
    assert cost("google", ProviderSettings(), 100) == 0.005
    assert (cost("searxng", ProviderSettings(), 10), cost("littleweb", ProviderSettings(), 10)) == (0.0, 0.0)
    assert cost("brave", ProviderSettings(cost=0.003), 10) == 0.003


def test_results_are_remembered_by_order_and_parameters() -> None:
    def called(*order: str, **providers: ProviderSettings) -> str:
        provider = ProvidersSettings(**providers)
        return remembered_as(SearchSettings(order, 10, 60.0, provider, LocalSettings(), BreakerSettings()))

    assert called("littleweb") == "littleweb"
    assert called("brave", "local") == "brave,local"
    assert called("serper", serper=ProviderSettings(parameters={"hl": "de", "gl": "de"})) == "serper[gl=de][hl=de]"


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        *((ProviderSettings, one) for one in ({"url": "a.org"}, {"per_s": 0.0}, {"concurrent": 0}, {"cost": -1.0})),
        *((BudgetSettings, one) for one in ({"queries": -1}, {"money": -0.1})),
        *((BreakerSettings, one) for one in ({"failures": 0}, {"open_s": 0.0}, {"open_s": 9.0, "most_s": 1.0})),
        *((LocalSettings, one) for one in ({"threads": 0}, {"update_s": 0.0})),
    ],
)
def test_settings_are_checked(cls: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needed"):
        cls(**wrong)
