"""A run through two gateways, processes of their own that share a tape, one of which is ended in the middle of it."""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web as server

from dr_jax.agent.reader import ExtractiveReader, ReaderSettings
from dr_jax.agent.world import World
from dr_jax.base.config import read
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.littleweb.shelf import Shelf
from dr_jax.littleweb.world import LittleWorld, WorldSettings
from dr_jax.rollout.collect import finished
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey
from dr_jax.tokens.trajectory import Group, Outcome
from dr_jax.train.worlds import AnyWeb, built, way_out
from dr_jax.web.settings import WebSettings
from tests.fakes import ScriptedPolicy, answer, browse, search

ROOT = Path(__file__).parents[2]
LITTLE = WorldSettings(seed=0, entities=150, split="train")
GROUPS, SIBLINGS, AT_ONCE, TOPICS = 32, 2, 8, 8
TOKEN = "t0ken-of-this-test-0123456789"
CONFIG = """
steps = 1                       # what a run is told besides is nothing to a gateway
[littleweb]
entities = 150
[web]
search = ["serper", "littleweb"]
results = 3
[web.provider.serper]
url = "http://127.0.0.1:{port}/search"
per_s = 1000.0
concurrent = 64
[web.tape]
mode = "record"
path = "{tape}"
lease_s = 3.0
[web.extract]
workers = 1
"""


class Provider:
    """Sells searches, in Serper's shape, of littleweb; counts what is asked, and that is what it would bill."""

    def __init__(self, world: LittleWorld) -> None:
        self._shelf = Shelf(world)
        self.sold: Counter[str] = Counter()
        self.in_flight = 0

    async def answer(self, request: server.Request) -> server.StreamResponse:
        query = json.loads(await request.text())["q"]
        self.sold[query] += 1
        self.in_flight += 1
        await asyncio.sleep(0.1)
        self.in_flight -= 1
        found = [{"title": one.title, "link": one.link, "snippet": one.snippet} for one in self._shelf.search(query, 3)]
        return server.json_response({"organic": found})

    async def sells(self, count: int) -> None:
        """Wait until so many more searches were sold."""
        until = self.sold.total() + count
        for _ in range(6000):
            if self.sold.total() >= until:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nobody buys")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[int]:
        app = server.Application()
        app.router.add_post("/search", self.answer)
        runner = server.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await server.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()
            self._shelf.close()


@dataclass
class Process:
    """A gateway that was started as a person starts it."""

    running: asyncio.subprocess.Process
    url: str

    @property
    def readers(self) -> list[int]:
        """Its page readers."""
        pid = self.running.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def launched(config: Path, port: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a gateway; return it and where it is asked."""
    code = "from dr_jax.cli.main import run; run()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SERPER_API_KEY": "k3y-0123456789", "DR_JAX_GATEWAY_TOKEN": TOKEN}
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "web-gateway", str(config), "--port", port, "--json"),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert running.stdout is not None
    async with asyncio.timeout(60):
        told = json.loads(await running.stdout.readline())
    assert told["pid"] == running.pid
    return running, told["url"]


@asynccontextmanager
async def two_gateways(config: Path) -> AsyncIterator[tuple[Process, Process]]:
    one, two = (Process(*found) for found in await asyncio.gather(launched(config, "0"), launched(config, "0")))
    try:
        yield one, two
    finally:
        for process in (one, two):
            if process.running.returncode is None:
                process.running.send_signal(signal.SIGTERM)
                async with asyncio.timeout(60):
                    assert await process.running.wait() == 0


def topic(question: str) -> str:
    """What this question's episodes search for, and those of many another one, before and after a gateway has ended."""
    return f"topic {zlib.crc32(question.encode()) % TOPICS}"


def script(key: RequestKey, seen: str) -> str:
    """Search for the question and what others ask for too, open the best page, search for something more, answer."""
    if key.turn == 0:
        return search(f"about {key.question}", topic(key.question))
    if key.turn == 1:
        return browse(re.findall(r'"url": "(http://[^"]+)"', seen)[0])
    return search(f"more about {key.question}") if key.turn == 2 else answer("so")


async def run_of_episodes(web: object, chat: Chat, names: Iterable[str]) -> list[Group]:
    world = World(web, ExtractiveReader(ReaderSettings()))  # type: ignore[arg-type]
    actors = Actors(ScriptedPolicy(chat, script, seconds=0.02), chat, world, "research")

    async def group(name: str) -> Group:
        return await run_group(Question(name, name, ("x",)), actors, EpisodeSettings(), lambda one, _: one, size=SIBLINGS)

    return [group async for _, group in finished(names, group, at_once=AT_ONCE)]


async def scraped(url: str, name: str) -> float:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/metrics") as response:
        found = re.search(rf"^{name} (\S+)$", await response.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_gateway_ends_in_the_middle_of_a_run(
    how: signal.Signals, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No episode is lost. No query is bought twice, but what was at the provider when a process was killed without warning:
    nobody knows whether that was billed, its answer died with the process, and the other gateway counts what it asks again."""
    monkeypatch.setenv("DR_JAX_GATEWAY_TOKEN", TOKEN)
    provider, metrics, names = Provider(built(LITTLE)), Metrics(), [entity.name for entity in built(LITTLE).entities][:GROUPS]
    async with provider.served() as port:
        config = written(tmp_path, port)
        async with two_gateways(config) as (one, two):
            async with through(config, one.url, two.url, metrics) as web:
                running = asyncio.create_task(run_of_episodes(web, chat, names))
                while provider.sold.total() < GROUPS or provider.in_flight < 3:
                    await asyncio.sleep(0.001)
                    assert not running.done()
                readers = one.readers
                one.running.send_signal(how)
                async with asyncio.timeout(120):
                    assert await one.running.wait() == (0 if how == signal.SIGTERM else -signal.SIGKILL)
                    groups = await running
            orphans = await scraped(two.url, "dr_jax_web_tape_orphans_search_total")
            bought = await scraped(two.url, "dr_jax_search_serper_queries")
            assert await scraped(two.url, "dr_jax_search_failovers_total") == 0
        await gone(readers)
    refuse_loss(groups, provider)
    assert {group.question_id for group in groups} == set(names)
    twice = [query for query, count in provider.sold.items() if count > 1]
    assert len(twice) <= orphans
    assert max(provider.sold.values()) <= 2
    if how == signal.SIGTERM:
        assert (twice, orphans) == ([], 0)
    assert 0 < bought < provider.sold.total()  # both were asked
    assert metrics.drain()["gateways/failures"] >= 1


@pytest.mark.slow
async def test_gateways_are_killed_and_come_back_again_and_again(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DR_JAX_GATEWAY_TOKEN", TOKEN)
    provider, metrics, kills = Provider(built(LITTLE)), Metrics(), 6
    async with provider.served() as port:
        config = written(tmp_path, port)
        async with two_gateways(config) as pair:

            async def kill() -> None:
                for number in range(kills):
                    place = number % 2
                    await provider.sells(3 * AT_ONCE)  # the run goes on meanwhile
                    pair[place].running.kill()
                    await pair[place].running.wait()
                    pair[place].running, _ = await launched(config, pair[place].url.rpartition(":")[2])
                    await asyncio.sleep(2.5)  # until its clients have looked at its health

            killing = asyncio.create_task(kill())

            def names() -> Iterator[str]:
                entities = built(LITTLE).entities
                for number in itertools.count():
                    if killing.done():
                        return
                    yield f"{entities[number % len(entities)].name} {number}"

            async with through(config, pair[0].url, pair[1].url, metrics) as web, asyncio.timeout(280):
                groups = await run_of_episodes(web, chat, names())
            await killing
    refuse_loss(groups, provider)
    again = sum(count - 1 for count in provider.sold.values())
    assert again <= kills * 2 * AT_ONCE  # a group asks for two things at a time
    assert len(groups) > 3 * kills * AT_ONCE // 2
    assert metrics.drain()["gateways/failures"] >= kills


def written(folder: Path, port: int) -> Path:
    config = folder / "run.toml"
    config.write_text(CONFIG.format(port=port, tape=folder / "tape"))
    return config


@asynccontextmanager
async def through(config: Path, one: str, two: str, metrics: Metrics) -> AsyncIterator[AnyWeb]:
    settings = replace(read(Only, config, part=True).web, gateways=(one, two))
    async with way_out(settings, LITTLE, metrics=metrics) as web:
        yield web


def refuse_loss(groups: list[Group], provider: Provider) -> None:
    """Every episode ended as its policy wanted, and each query was bought."""
    episodes = [episode for one in groups for episode in one.episodes]
    assert Counter(episode.outcome for episode in episodes) == {Outcome.ANSWERED: len(groups) * SIBLINGS}
    assert not [tool.error for episode in episodes for tool in episode.tools if tool.error]
    names = [one.question_id for one in groups]
    assert set(provider.sold) == {
        *map(topic, names),
        *(f"{about} {name}" for about in ("about", "more about") for name in names),
    }


@dataclass(frozen=True)
class Only:
    """The part of a run's settings that is about the web."""

    web: WebSettings


async def gone(pids: list[int]) -> None:
    """Wait until processes have ended; those of a killed parent see their pipes close."""
    assert pids
    for _ in range(1000):
        if not set(map(str, pids)) & set(os.listdir("/proc")):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{pids} live")
