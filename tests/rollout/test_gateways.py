"""A run through two gateways, processes of their own that share a tape, one of which is ended in the middle of it."""

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
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
from dr_jax.rollout.collect import in_order
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey
from dr_jax.tokens.trajectory import Group, Outcome
from dr_jax.train.worlds import built, way_out
from dr_jax.web.web import WebSettings
from tests.fakes import ScriptedPolicy, answer, browse, search

ROOT = Path(__file__).parents[2]
LITTLE = WorldSettings(seed=0, entities=150, split="train")
GROUPS, SIBLINGS, AT_ONCE = 32, 2, 8
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


async def started(config: Path) -> Process:
    code = "from dr_jax.cli.main import run; run()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SERPER_API_KEY": "k3y-0123456789", "DR_JAX_GATEWAY_TOKEN": TOKEN}
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "web-gateway", str(config), "--port", "0", "--json"),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert running.stdout is not None
    async with asyncio.timeout(60):
        told = json.loads(await running.stdout.readline())
    assert told["pid"] == running.pid
    return Process(running, told["url"])


@asynccontextmanager
async def two_gateways(config: Path) -> AsyncIterator[tuple[Process, Process]]:
    one, two = await asyncio.gather(started(config), started(config))
    try:
        yield one, two
    finally:
        for process in (one, two):
            if process.running.returncode is None:
                process.running.send_signal(signal.SIGTERM)
                async with asyncio.timeout(60):
                    assert await process.running.wait() == 0


def script(key: RequestKey, seen: str) -> str:
    """Search for the question, open the best page, search for what is only this question's, answer."""
    if key.turn == 0:
        return search(f"about {key.question}")
    if key.turn == 1:
        return browse(re.findall(r'"url": "(http://[^"]+)"', seen)[0])
    return search(f"more about {key.question}") if key.turn == 2 else answer("so")


async def run_of_episodes(web: object, chat: Chat) -> list[Group]:
    names = [entity.name for entity in built(LITTLE).entities][:GROUPS]
    world = World(web, ExtractiveReader(ReaderSettings()))  # type: ignore[arg-type]
    actors = Actors(ScriptedPolicy(chat, script, seconds=0.02), chat, world, "research")

    async def group(name: str) -> Group:
        return await run_group(Question(name, name, ("x",)), actors, EpisodeSettings(), lambda one, _: one, size=SIBLINGS)

    return await in_order(names, group, at_once=AT_ONCE)


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
    provider, metrics, config = Provider(built(LITTLE)), Metrics(), tmp_path / "run.toml"
    async with provider.served() as port:
        config.write_text(CONFIG.format(port=port, tape=tmp_path / "tape"))
        async with two_gateways(config) as (one, two):
            settings = replace(read(Only, config, part=True).web, gateways=(one.url, two.url))
            async with way_out(settings, LITTLE, metrics=metrics) as web:
                running = asyncio.create_task(run_of_episodes(web, chat))
                while provider.sold.total() < GROUPS // 2 or provider.in_flight < 3:
                    await asyncio.sleep(0.001)
                    assert not running.done()
                readers = one.readers
                one.running.send_signal(how)
                async with asyncio.timeout(120):
                    assert await one.running.wait() == (0 if how == signal.SIGTERM else -signal.SIGKILL)
                    groups = await running
            orphans = await scraped(two.url, "dr_jax_web_tape_orphans_search_total")
            bought = await scraped(two.url, "dr_jax_search_serper_queries")
            failed_over = await scraped(two.url, "dr_jax_search_failovers_total")
        await gone(readers)
    episodes = [episode for one in groups for episode in one.episodes]
    assert Counter(episode.outcome for episode in episodes) == {Outcome.ANSWERED: GROUPS * SIBLINGS}
    assert not [tool.error for episode in episodes for tool in episode.tools if tool.error]
    assert set(provider.sold) == {f"{about} {name}" for about in ("about", "more about") for name in names_of(groups)}
    twice = [query for query, count in provider.sold.items() if count > 1]
    assert len(twice) <= orphans
    assert max(provider.sold.values()) <= 2
    if how == signal.SIGTERM:
        assert (twice, orphans) == ([], 0)
    assert 0 < bought < provider.sold.total()  # both were asked
    assert failed_over == 0
    assert metrics.drain()["gateways/failures"] >= 1


@dataclass(frozen=True)
class Only:
    """The part of a run's settings that is about the web."""

    web: WebSettings


def names_of(groups: list[Group]) -> list[str]:
    return [group.question_id for group in groups]


async def gone(pids: list[int]) -> None:
    """Wait until processes have ended; those of a killed parent see their pipes close."""
    assert pids
    for _ in range(1000):
        if not set(map(str, pids)) & set(os.listdir("/proc")):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{pids} live")
