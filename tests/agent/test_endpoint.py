"""A reading model behind a server that speaks OpenAI's chat completions: a real one, on loopback, that does as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from dr_jax.agent.endpoint import Endpoint, EndpointSettings, Spending, SpendingSettings
from dr_jax.agent.model_reader import READ, ModelReader
from dr_jax.agent.reading import ReaderSettings, Reading, Task
from dr_jax.base.config import read as read_settings
from dr_jax.base.errors import BudgetError, ConfigError, UserError, WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Page
from dr_jax.web.search.settings import BreakerSettings

KEY = RequestKey(0, "q", 0, 0)
TOWN = Page("http://x/p", "p", "Velin is a town. Velin was founded by Oren Vash.")
TASK = Task("Who founded Velin?", "Velin founder")
SECRET = "s3cr3t-0123456789"
SAYS = json.dumps({"information": "Oren Vash founded it.", "page_down": False})


def completion(text: Any = SAYS, read: int = 100, written: int = 10) -> dict[str, Any]:
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


class Server:
    """Answers in turn: a dict as JSON, a (status, body, headers), a number of seconds of silence; the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Any] = [completion()]
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                answer = completion()
            if isinstance(answer, dict):
                return web.json_response(answer)
            status, body, headers = answer
            return web.Response(status=status, text=body, headers=headers)
        finally:
            self.running -= 1


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


def endpoint(server: Server, metrics: Metrics | None = None, spending: Spending | None = None, **settings: Any) -> Endpoint:
    breaker = BreakerSettings(failures=3, open_s=0.1, most_s=0.2, hold_s=1.0, down_s=5.0)
    wanted = EndpointSettings(**{"url": server.url, "model": "m", "seconds": 2.0, "breaker": breaker} | settings)
    return Endpoint(wanted, READ, 64, metrics=metrics or Metrics(), spending=spending)


async def read(opened: Endpoint, metrics: Metrics | None = None) -> tuple[Reading, ...]:
    return await ModelReader(opened, ReaderSettings(sentences=1), metrics or Metrics()).read(TOWN, TASK, KEY)


async def test_a_page_is_read_with_the_key_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READER_API_KEY", SECRET)
    metrics = Metrics()
    async with endpoint(server, metrics, key="READER_API_KEY", parameters={"seed": 7, "temperature": 0.5}) as opened:
        assert await read(opened) == (Reading(1, "Oren Vash founded it."),)
    (body,), (headers,) = server.bodies, server.headers
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert (body["model"], body["max_tokens"], body["seed"], body["temperature"]) == ("m", 64, 7, 0.5)
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert json.loads(body["messages"][1]["content"])["sub_question"] == "Velin founder"
    counted = metrics.drain()
    assert {name: counted[f"reader/{name}"] for name in ("calls", "tokens_read", "tokens_written")} == {
        "calls": 1,
        "tokens_read": 100,
        "tokens_written": 10,
    }
    assert counted["reader/web/query_n"] == 1  # it is no traffic of the web's
    assert not [name for name in counted if name.startswith("web/")]
    assert counted["reader/openai/s_n"] == 1


async def test_what_can_get_better_is_asked_again_and_what_cannot_is_not(server: Server) -> None:
    for answers in ([(503, "", {})], [(429, "", {"Retry-After": "0"})], [(200, "<html>", {})], [{"choices": []}]):
        server.bodies.clear()
        server.answers = [*answers, completion()]
        async with endpoint(server) as opened:
            assert await read(opened) == (Reading(1, "Oren Vash founded it."),)
        assert len(server.bodies) == 2, answers
    for status, words in ((401, "check the value of|names none"), (402, "credits"), (404, "status 404"), (400, "status 400")):
        server.bodies.clear()
        server.answers = [(status, "no", {})]
        async with endpoint(server) as opened:
            with pytest.raises(WorldDownError, match=words):
                await read(opened)
        assert len(server.bodies) == 1, status


async def test_a_server_that_is_down_is_the_worlds_failure_and_comes_back(server: Server) -> None:
    metrics = Metrics()
    server.answers = [(500, "", {})]
    async with endpoint(server, metrics) as opened:
        await opened.healthy()
        with pytest.raises(WorldDownError, match="No reader answered"):
            await read(opened)
        assert len(server.bodies) == 3  # the breaker has opened
        with pytest.raises(WorldDownError, match="left alone"):
            await read(opened)
        waiting = asyncio.create_task(opened.healthy())
        await asyncio.sleep(0.15)
        assert not waiting.done()
        assert metrics.drain()["reader/down"] == 1.0
        server.answers = [completion()]
        await asyncio.wait_for(waiting, 5.0)
        assert await read(opened) == (Reading(1, "Oren Vash founded it."),)
    assert metrics.drain()["reader/down"] == 0.0


async def test_a_server_that_is_silent_has_a_deadline(server: Server) -> None:
    server.answers = [30.0]
    async with endpoint(server, seconds=0.2, attempts=2) as opened:
        with pytest.raises(WorldDownError, match="did not answer"):
            await asyncio.wait_for(read(opened), 10.0)
    assert len(server.bodies) == 2


async def test_a_message_that_is_not_taken_is_read_without_the_model(server: Server) -> None:
    for status, body in ((400, '{"error": {"code": "context_length_exceeded"}}'), (413, ""), (400, "content_filter")):
        metrics = Metrics()
        server.answers = [(status, body, {})]
        async with endpoint(server, metrics) as opened:
            assert await read(opened, metrics) == (Reading(1, "Velin was founded by Oren Vash."),)
        counted = metrics.drain()
        assert (counted["reader/segments_too_long"], counted["reader/calls"], counted["reader/tokens_read"]) == (1, 0, 0)


@pytest.mark.parametrize("text", ["I cannot do that.", None, '{"information": 3}'])
async def test_a_reply_that_cannot_be_read_is_counted(server: Server, text: Any) -> None:
    metrics = Metrics()
    server.answers = [completion(text)]
    async with endpoint(server) as opened:
        assert await read(opened, metrics) == (Reading(1, "Velin was founded by Oren Vash."),)
    assert metrics.drain()["reader/unreadable_replies"] == 1


async def test_no_more_than_so_many_at_once(server: Server) -> None:
    server.answers = [0.05]
    async with endpoint(server, concurrent=3) as opened:
        await asyncio.gather(*(read(opened) for _ in range(12)))
    assert server.most == 3


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        (SpendingSettings(calls=4), 4),
        (SpendingSettings(tokens=1298), 8),  # a call is counted as 300 + 100 + 64 + 64 tokens until it has taken its 110
        (SpendingSettings(money=0.001297), 7),
    ],
)
async def test_the_budget_is_never_passed(server: Server, budget: SpendingSettings, calls: int) -> None:
    settings = EndpointSettings(server.url, "m", input_cost=1.0, output_cost=1.0, budget=budget)
    spending = Spending(settings, Metrics())
    opened = Endpoint(settings, "s" * 300, 64, metrics=Metrics(), spending=spending)
    async with opened:
        for _ in range(calls):
            assert await opened.reply("m" * 100, KEY) == SAYS
        with pytest.raises(BudgetError, match=r"raise reader\.endpoint\.budget"):
            await opened.reply("m" * 100, KEY)
    assert len(server.bodies) == calls
    assert not budget.tokens or spending.tokens <= budget.tokens
    assert not budget.money or spending.money <= budget.money + 1e-9
    assert spending.tokens == 110 * calls


async def test_the_budget_holds_for_calls_at_once(server: Server) -> None:
    server.answers = [0.05]
    spending = Spending(EndpointSettings(budget=SpendingSettings(calls=5)), Metrics())
    async with endpoint(server, spending=spending) as opened:
        found = await asyncio.gather(*(opened.reply(str(n), KEY) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(one, BudgetError) for one in found) == 15
    assert len(server.bodies) == spending.calls == 5


def test_keys_are_names_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("READER_API_KEY", raising=False)
    settings = EndpointSettings("https://a.org/v1", "m", "READER_API_KEY")
    with pytest.raises(UserError, match=r"READER_API_KEY, which is not set.*extractive"):
        Endpoint(settings, READ, 64, metrics=Metrics())
    with pytest.raises(ConfigError, match="NAME of an environment variable") as found:
        read_settings(ReaderSettings, None, [f"endpoint.key='{SECRET}'"])
    assert SECRET not in str(found.value)
    for wrong in ("endpoint.url='a.org'", "endpoint.seconds=0.0", "kind='openai'", "endpoint.budget.calls=-1"):
        with pytest.raises(ConfigError, match=r"needed|needs"):
            read_settings(ReaderSettings, None, [wrong])


async def test_parameters_that_let_a_reply_be_longer_are_reserved_for(server: Server) -> None:
    """The most that may be written is what the request says, and so often as it asks for replies."""
    settings = EndpointSettings(
        url=server.url, model="m", parameters={"max_tokens": 20_000, "n": 2}, budget=SpendingSettings(tokens=30_000)
    )
    metrics = Metrics()
    async with Endpoint(settings, READ, 100, metrics=metrics, spending=Spending(settings, metrics)) as endpoint:
        with pytest.raises(BudgetError):
            await endpoint.reply("a page", KEY)
    assert server.bodies == []
