"""Bad weather: scripted episodes against littleweb over real HTTP, which goes wrong on purpose, and what became of them.

In:    how many, how many at once, which faults
Out:   Log: one line for each episode, and what was left of tasks, sockets, processes and memory
Known: every search of an episode is of its own, so its faults are known beforehand: they depend on the seed, the query and
       how often it was asked. A search whose attempts all fail (503, garbage, or no answer, which is tried at most twice) is
       the world's failure; a page that fails, however it does, is an observation. An outage fails all searches at once
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dr_jax.agent.reader import make_reader
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.tools import ToolSettings
from dr_jax.agent.world import World
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.littleweb.faults import Faults
from dr_jax.littleweb.site import serve
from dr_jax.littleweb.world import LittleWorld, WorldSettings, build
from dr_jax.rewards.total import Total
from dr_jax.rollout.collect import finished
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group, weathered
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Group, Outcome
from dr_jax.web.fetch import FetchSettings
from dr_jax.web.guard import AllowedHost
from dr_jax.web.pace import PaceSettings
from dr_jax.web.search.settings import BreakerSettings
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web
from tests.fakes import answer, browse, search, small_chat

WORLD = WorldSettings(seed=5, entities=200)
SEARCHES = 2  # of each episode
ATTEMPTS = 3
_ADDRESS = re.compile(r'"url": "(http://[^"]+)"')


@dataclass(frozen=True, slots=True)
class Weather:
    """What is run, against what.

    Args:
        groups: of episodes.
        size: of a group.
        in_flight: episodes at once.
        faults: of littleweb.
        hang_s: after which an answer is not waited for any more.
    """

    groups: int
    size: int
    in_flight: int
    faults: Faults
    hang_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """One episode: how it ended, and when its group ran, in seconds since littleweb started.

    Its own seconds count from when it was begun, which on a busy machine is later than its group's start: added to that they
    would end too early, and an episode that the outage hit would pass for one that was over before it.
    """

    name: str
    start: float
    end: float
    outcome: Outcome
    failure: str
    page_errors: int
    rewarded: bool
    doomed: bool


@dataclass(slots=True)
class Log:
    """What was seen."""

    lines: list[Line] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    back: float = 0.0  # when work that had waited for the end of an outage was begun, at last


class Wanderer:
    """Searches, opens what it found first, searches again, answers. It remembers nothing."""

    def __init__(self, chat: Chat, names: Sequence[str]) -> None:
        self._chat, self._names = chat, names

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        await asyncio.sleep(0.01)
        match key.turn:
            case 0 | 2:
                text = search(query(self._names, key.question, key.sibling, key.turn // 2))
            case 1:
                found = _ADDRESS.findall(self._chat.tokenizer.decode(prompt_ids))
                text = browse(*found[key.sibling % 3 : key.sibling % 3 + 1] or ["http://atlas.littleweb/nowhere"])
            case _:
                text = answer(key.question if key.sibling % 2 else "unknown")
        ids = (*self._chat.tokenizer.markup(text), self._chat.stop_ids[0])
        return Sampled(ids, (-0.5,) * len(ids), (0,) * len(ids), "stop")


def query(names: Sequence[str], question: str, sibling: int, number: int) -> str:
    """What an episode searches for: something that is found, in words that nobody else uses."""
    return f"{names[int(question) % len(names)]} {question}x{sibling}x{number}"


def doomed(faults: Faults, query: str) -> bool:
    """Whether all attempts at a search fail, outside of an outage."""
    silent = 0
    for attempt in range(ATTEMPTS):
        kind = faults.decide(f"search:{query}", attempt, faults.outage_s[1]).kind
        silent += kind == "hang"
        if kind == "none" or silent > 1:
            return kind != "none"
    return True


@contextmanager
def littleweb(faults: Faults) -> Iterator[tuple[int, Callable[[], float]]]:
    """Serve it from a process of its own; yield its port, and what starts it: when it did, on the machine's monotonic clock."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(faults, there), daemon=True)
    process.start()

    def told() -> Any:
        assert here.poll(180), "littleweb did not start"
        return here.recv()

    def start() -> float:
        here.send("start")
        return float(told())

    try:
        yield told(), start
    finally:
        process.terminate()
        process.join()
        process.close()
        here.close()
        there.close()


def _serve(faults: Faults, told: Connection) -> None:
    async def run(world: LittleWorld, port: int) -> None:
        async with serve(world, port=port, faults=faults):
            told.send(time.monotonic())
            await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = build(WORLD)
    told.send(port)
    told.recv()  # everybody is ready: an outage counts from here
    asyncio.run(run(world, port))


async def ride(weather: Weather, port: int, start: Callable[[], float]) -> Log:
    """Run all episodes as a training run does: nothing is begun while the world is known to be down."""
    log, metrics, chat = Log(), Metrics(), small_chat()
    names = [one.name for one in build(WORLD).entities]
    before = held()
    settings = WebSettings(
        results=3,
        memory_mb=4,
        fetch=FetchSettings(first_byte_s=weather.hang_s, attempts=ATTEMPTS, wait_s=0.05, wait_max_s=0.2),
        pace=PaceSettings(queue_s=120.0),
        breaker=BreakerSettings(failures=20, open_s=0.5, most_s=1.0),
    )
    async with Web(settings, allow=[AllowedHost("littleweb", "127.0.0.1", port)], metrics=metrics) as web:
        reader = make_reader(ReaderSettings(sentences=2), chat=chat, policy=None, metrics=metrics)
        world = World(web, reader, ToolSettings(results=3, snippet_chars=40, observation_tokens=800), metrics=metrics)
        actors = Actors(Wanderer(chat, names), chat, world, "research")
        episode = EpisodeSettings(turns=4, tokens=16_000, max_new_tokens=400, policy_s=60.0, world_s=150.0, all_s=400.0)

        async def group(number: int) -> tuple[Group, float, float]:
            asked = time.monotonic() - started
            await web.healthy()
            begun = time.monotonic() - started
            if begun - asked > 0.2:
                log.back = begun
            question = Question(str(number), f"What of {names[number % len(names)]}?", (str(number),))
            ended = await run_group(question, actors, episode, Total(), size=weather.size)
            return weathered(ended, 0.25, metrics), begun, time.monotonic() - started

        started = await asyncio.to_thread(start)
        at_once = weather.in_flight // weather.size
        async with aclosing(finished(range(weather.groups), group, at_once=at_once)) as ended:
            async for _, (one, begun, over) in ended:
                log.groups.append(_slim(one))
                log.lines += _lines(one, (begun, over), names, weather)
                if len(log.groups) % max(1, weather.groups // 20) == 0:
                    log.memory_mb.append(_memory_mb())
        log.seconds = time.monotonic() - started
        await reader.close()
    await asyncio.sleep(0.1)  # sockets that were closed are let go of
    log.left = {name: count - before[name] for name, count in held().items()}
    log.metrics = metrics.drain()
    return log


def _lines(group: Group, ran: tuple[float, float], names: Sequence[str], weather: Weather) -> list[Line]:
    return [
        Line(
            name=one.id,
            start=ran[0],
            end=ran[1],
            outcome=one.outcome,
            failure=one.failure,
            page_errors=sum(bool(tool.error) for tool in one.tools if tool.name == "browse_webpage"),
            rewarded=one.trainable,
            doomed=any(doomed(weather.faults, query(names, group.question_id, sibling, n)) for n in range(SEARCHES)),
        )
        for sibling, one in enumerate(group.episodes)
    ]


def _slim(group: Group) -> Group:
    """Keep what is asked of a group later: outcomes and rewards, not what was said."""
    return replace(group, episodes=tuple(replace(one, trajectories=(), turns=(), tools=()) for one in group.episodes))


def held() -> dict[str, int]:
    """How many tasks, open files and child processes there are."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {"tasks": len(asyncio.all_tasks()), "files": len(os.listdir("/proc/self/fd")), "processes": len(children)}


def _memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
