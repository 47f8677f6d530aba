"""Very many episodes in flight on one host: `python -m benchmarks.crowd`.

Work:  2,048 episodes of littleweb's questions at once, through the real rollout, over real HTTP against a server in another
       process whose every answer takes a log-normal time (median 1.2 s, 95th percentile 8 s)
Sides: `scripted`: a researcher whose words are written, and who takes 20 s on average for a generation, as when so many share a
       device. `engine`: the quickstart's policy in the real engine, which has as many slots as it has
Out:   how late the event loop was (99th percentile; by the clock, and by the processor time that it spent meanwhile, which is
       how late it would be on a core of its own), memory, processor time; `results/crowd.json`, `results/crowd_memory.json`
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.result import RESULTS, Spread, write
from benchmarks.web_slow import lag
from dr_jax.agent.prompt import system_prompt
from dr_jax.agent.reader import make_reader
from dr_jax.agent.world import World
from dr_jax.base.config import read
from dr_jax.base.garbage import short_pauses
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream
from dr_jax.littleweb.faults import Faults
from dr_jax.littleweb.questions import draw
from dr_jax.littleweb.site import serve
from dr_jax.littleweb.world import WorldSettings, build
from dr_jax.rewards.total import Total
from dr_jax.rollout.episode import Actors
from dr_jax.rollout.flight import Flights
from dr_jax.rollout.group import run_group
from dr_jax.rollout.harvest import Harvest
from dr_jax.rollout.underway import Flight, UnderWay
from dr_jax.tokens.policy import Policy, RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode, Group
from dr_jax.train.actor import load_actor
from dr_jax.train.demonstrate import Manners, Researchers
from dr_jax.train.settings import Settings
from dr_jax.web.guard import AllowedHost
from dr_jax.web.web import Web

ROOT = Path(__file__).parents[1]
WORLD = WorldSettings(seed=5, entities=2400)
SLOW = Faults(seed=7, latency_median_s=1.2, latency_sigma=1.153)
SIZE = 8  # siblings of a group
WEB = ("web.pace.own=1024", "web.pace.concurrent=1024", "web.fetch.first_byte_s=60", "web.fetch.total_s=60")
Who = Literal["scripted", "engine"]


@dataclass(frozen=True, slots=True)
class Crowd:
    """What so many episodes in flight cost.

    Args:
        in_flight: episodes at once, on average over the seconds that were measured.
        ended: episodes, in the seconds that were measured.
        seconds: that were measured, after all had begun.
        late_ms: 99th percentile of how late the event loop was by the clock.
        computed_ms: the same by the processor time that the loop's thread spent meanwhile.
        worst_ms: the latest that it was, by the clock, the beginning of all of them included.
        before_mb: memory before the first episode.
        memory_mb: memory in the seconds that were measured, every half second.
        processor_s: of this process, for the seconds that were measured.
    """

    in_flight: float
    ended: int
    seconds: float
    late_ms: float
    computed_ms: float
    worst_ms: float
    before_mb: float
    memory_mb: tuple[float, ...]
    processor_s: float

    @property
    def grown_mb(self) -> float:
        """Memory at the most, beyond that before the first episode."""
        return max(self.memory_mb) - self.before_mb


class _Slow:
    """A policy that takes its time: exponential, seeded by the request."""

    def __init__(self, policy: Policy, mean_s: float) -> None:
        self._policy, self._mean_s = policy, mean_s

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        await asyncio.sleep(random.Random(str(key)).expovariate(1 / self._mean_s))
        return await self._policy.sample(prompt_ids, sampling, key)


class _Counted:
    """A policy and a rewarding that know how many episodes are between the two, and hold groups back while those are enough."""

    def __init__(self, policy: Policy, expected: int) -> None:
        self._policy, self._total, self._expected = policy, Total(), expected
        self.now = self.ended = self._promised = 0
        self.complete = asyncio.Event()
        self._first, self._freed = asyncio.Lock(), asyncio.Event()

    async def room(self) -> None:
        """Return when there is room for the siblings of one more group, in the order of asking."""
        async with self._first:
            while self._promised + SIZE > self._expected:
                self._freed.clear()
                await self._freed.wait()
            self._promised += SIZE

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        if not key.turn:
            self.now += 1
            if self.now >= self._expected:
                self.complete.set()
        return await self._policy.sample(prompt_ids, sampling, key)

    def rewarding(self, episode: Episode, question: Question) -> Episode:
        self.now -= 1
        self._promised -= 1
        self._freed.set()
        self.ended += 1
        return self._total(episode, question)


async def crowd(who: Who, in_flight: int, *, seconds: float, generation_s: float = 20.0) -> Crowd:
    """Keep so many in flight until all have begun, and then for some seconds.

    Args:
        who: acts.
        in_flight: episodes.
        seconds: to measure.
        generation_s: that a scripted researcher takes, on average.
    """
    settings, metrics = read(Settings, ROOT / "configs" / "quickstart.toml", WEB), Metrics()
    puzzles = draw(build(WORLD), 3000, hops=settings.data.hops, seed=0)
    actor = load_actor(settings, metrics)
    async with AsyncExitStack() as stack:
        port = stack.enter_context(littleweb())
        web = await stack.enter_async_context(
            Web(settings.web, allow=[AllowedHost("littleweb", "127.0.0.1", port)], metrics=metrics)
        )
        reader = make_reader(settings.reader, chat=actor.chat, policy=None, metrics=metrics)
        world = World(web, reader, settings.tools, metrics=metrics)
        if who == "engine":
            stack.enter_context(actor.engine)
            await asyncio.to_thread(actor.engine.warm_up)
            counted = _Counted(actor.engine, in_flight)
        else:
            written = Researchers(actor.chat, {one.question.id: one for one in puzzles}, Manners())
            counted = _Counted(_Slow(written, generation_s), in_flight)
        actors = Actors(counted, actor.chat, world, system_prompt(settings.prompt, world.schemas))

        async def fly(flight: Flight) -> Group:
            await counted.room()
            question, episode = flight.draw.question, settings.episode
            return await run_group(question, actors, episode, counted.rewarding, size=SIZE, flight=flight)

        stream = Stream([one.question for one in puzzles], 0)
        groups, harvest = 2 * in_flight // SIZE, Harvest(8, metrics)  # some wait for their last sibling, some for room
        under_way, most = UnderWay(stream, metrics), groups + 64
        flights = Flights(stream, under_way, harvest, fly, at_once=groups, staleness=8, most=most, metrics=metrics)
        with short_pauses():  # as in the training loop
            return await _watched(flights, counted, seconds)


async def _watched(flights: Flights, counted: _Counted, seconds: float) -> Crowd:
    """Let them fly, take what is complete, and watch the loop and the memory."""
    late, before_mb, memory, alive = list[tuple[float, float]](), memory_mb(), list[float](), list[int]()
    async with flights:
        watch = asyncio.create_task(lag(late))
        taking = asyncio.create_task(_take(flights))
        begun = asyncio.create_task(counted.complete.wait())
        await asyncio.wait({begun, taking}, return_when=asyncio.FIRST_COMPLETED)
        first, ended, start, processor = len(late), counted.ended, time.perf_counter(), time.process_time()
        while time.perf_counter() < start + seconds and not taking.done():
            await asyncio.sleep(0.5)
            memory.append(memory_mb())
            alive.append(counted.now)
        took, spent = time.perf_counter() - start, time.process_time() - processor
        for task in (watch, taking, begun):
            task.cancel()
        await asyncio.wait({watch, taking, begun})
        if not taking.cancelled():
            taking.result()  # raises what ended it
    by_clock, by_processor = 1000 * np.quantile(np.asarray(late[first:]), 0.99, axis=0)
    worst = 1000 * max(one for one, _ in late)
    return Crowd(
        float(np.mean(alive)),
        counted.ended - ended,
        took,
        float(by_clock),
        float(by_processor),
        worst,
        before_mb,
        tuple(memory),
        spent,
    )


async def _take(flights: Flights) -> None:
    while True:
        await flights.take(0)  # nothing is learned from it


def memory_mb() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def littleweb() -> Iterator[int]:
    """Serve it, slowly, from a process of its own; yield its port."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection) -> None:
    async def run() -> None:
        async with serve(build(WORLD), faults=SLOW) as site:
            told.send(site.port)
            await asyncio.Event().wait()

    asyncio.run(run())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=["scripted", "engine"], choices=["scripted", "engine"])
    parser.add_argument("--in-flight", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure each, after all episodes have begun")
    parser.add_argument("--out", type=Path, default=RESULTS)
    told = parser.parse_args(arguments)
    found = {who: asyncio.run(crowd(who, told.in_flight, seconds=told.seconds)) for who in told.sides}
    show(found)
    packages = ("jax", "aiohttp")
    write("crowd", {who: Spread.of([one.late_ms], "ms late, p99") for who, one in found.items()}, packages, told.out)
    write("crowd_memory", {who: Spread.of(one.memory_mb, "MB") for who, one in found.items()}, packages, told.out)


def show(found: dict[str, Crowd]) -> None:
    """Print a table."""
    table = Table(title="very many episodes in flight")
    columns = ("side", "in flight", "ended", "late p99 ms", "computing ms", "worst ms", "memory MB", "grown MB", "busy cores")
    for column in columns:
        table.add_column(column, justify="left" if column == "side" else "right")
    for who, one in found.items():
        numbers = (one.late_ms, one.computed_ms, one.worst_ms, max(one.memory_mb), one.grown_mb)
        ended, cores = f"{one.ended} in {one.seconds:.0f} s", f"{one.processor_s / one.seconds:.2f}"
        table.add_row(who, f"{one.in_flight:.0f}", ended, *(f"{n:,.1f}" for n in numbers), cores)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
