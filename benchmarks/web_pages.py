"""Pages per second: dr_jax fetches, extracts and reads; trafilatura, in a bare process pool, extracts what it is handed.

In:    pages of littleweb and of `extraction_pages`, served on loopback by a third process on the same cores
Out:   two lines for each set of pages, and two for all: pages per second by the clock, and by processor time of everything that
       took part (ours: server, client and readers), which is what two busy cores give; `results/web_pages*.json`
Holds: both sides have as many processes; rounds alternate after a warm-up; nothing is remembered from one round to the next
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import trafilatura
from aiohttp import web

from benchmarks.extraction_pages import samples
from benchmarks.result import Spread, write
from dr_jax.agent.reader import make_reader
from dr_jax.agent.reading import Reader, ReaderSettings, Task
from dr_jax.base.metrics import Metrics
from dr_jax.littleweb.pages import Pages
from dr_jax.littleweb.world import WorldSettings, build
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.guard import AllowedHost
from dr_jax.web.page import Page
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web
from dr_jax.web.workers import ExtractSettings
from tests.fakes import small_chat

_IN_FLIGHT = 64
_CORES = 2
_KEY = RequestKey(run=0, question="benchmark", sibling=0, turn=0, purpose="read")
_QUESTION = "Which bridge did the council of Velmora build?"


@dataclass(frozen=True, slots=True)
class Served:
    """A page as it is sent."""

    body: bytes
    content_type: str


def littleweb(count: int) -> list[Served]:
    """Return pages of every site of littleweb."""
    pages = Pages(build(WorldSettings(seed=11, entities=400)))
    addresses = pages.addresses()
    found = [pages.get(host, path) for host, path in addresses[:: max(1, len(addresses) // count)]]
    return [Served(one.body, one.content_type) for one in found[:count]]


def saved(count: int, scale: int = 1) -> list[Served]:
    """Return pages of every kind that the extraction is measured on."""
    found = [page for draw in range(1 + count // 36) for page in samples(draw, scale)]
    return [Served(page.html.encode(), "text/html; charset=utf-8") for page in found[:count]]


def _serve(pages: list[Served], port: Connection) -> None:
    async def answer(request: web.Request) -> web.Response:
        page = pages[int(request.match_info["number"])]
        return web.Response(body=page.body, headers={"Content-Type": page.content_type})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{number}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


async def _ours(http: Web, reader: Reader, numbers: Sequence[int], turn: int) -> float:
    """Open and read pages, some at a time; return pages per second."""
    places = asyncio.Semaphore(_IN_FLIGHT)

    async def one(number: int) -> None:
        async with places:
            page = await http.open(f"http://pages.here/{number}?turn={turn}")
            if not isinstance(page, Page):
                raise RuntimeError(f"page {number}: {page}")
            await reader.read(page, Task(_QUESTION, f"When was the bridge near Velmora built? {turn}"), _KEY)

    start = time.perf_counter()
    await asyncio.gather(*(one(number) for number in numbers))
    return len(numbers) / (time.perf_counter() - start)


def _cpu_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def _theirs(pool: ProcessPoolExecutor, bodies: Sequence[bytes]) -> float:
    start = time.perf_counter()
    found = list(pool.map(trafilatura.extract, bodies, chunksize=8))
    assert len(found) == len(bodies)
    return len(bodies) / (time.perf_counter() - start)


async def measure(
    pages: list[Served], sets: dict[str, Sequence[int]], rounds: int, workers: int, server: tuple[int, int]
) -> None:
    """Alternate the two sides over each set, and write what came out; the server is its process and its port."""
    settings = WebSettings(extract=ExtractSettings(workers=workers), memory_mb=1)
    context = multiprocessing.get_context("spawn")
    reader = make_reader(ReaderSettings(), chat=small_chat(), policy=None, metrics=Metrics())
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        async with Web(settings, allow=[AllowedHost("pages.here", "127.0.0.1", server[1])]) as http:
            for name, numbers in sets.items():
                rows = []
                for turn in range(rounds + 1):
                    here = os.getpid(), server[0]
                    start = _cpu_s((*here, *http._extractors.pids))
                    mine = await _ours(http, reader, numbers, turn)
                    mine_s = _cpu_s((*here, *http._extractors.pids)) - start
                    start = _cpu_s((here[0], *(pool._processes or ())))
                    peer = await asyncio.to_thread(_theirs, pool, [pages[number].body for number in numbers])
                    peer_s = _cpu_s((here[0], *pool._processes)) - start
                    rows.append((mine, peer, _CORES * len(numbers) / mine_s, _CORES * len(numbers) / peer_s))
                _report(name, rows[1:], "by the clock", 0)
                _report(f"{name}_cpu", rows[1:], f"by processor time, on {_CORES} cores", 2)


def _report(name: str, rows: Sequence[tuple[float, ...]], how: str, place: int) -> None:
    sides = {
        "dr_jax: fetch, extract, read": Spread.of([row[place] for row in rows], "pages/s"),
        "trafilatura in a process pool": Spread.of([row[place + 1] for row in rows], "pages/s"),
    }
    write(name, sides, ("trafilatura", "lxml", "aiohttp"))
    mine, peer = sides.values()
    print(
        f"{name:24} {how}: {mine.median:.1f} ({mine.min:.1f} to {mine.max:.1f}) against {peer.median:.1f} "
        f"({peer.min:.1f} to {peer.max:.1f}) pages/s: {mine.median / peer.median:.2f}"
    )


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=216, help="of each of the three sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    pages = littleweb(asked.pages) + saved(asked.pages) + saved(asked.pages, scale=3)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(pages, there), daemon=True)
    server.start()
    try:
        everything, cut = range(len(pages)), asked.pages
        sets = {
            "web_pages_littleweb": everything[:cut],
            "web_pages_saved": everything[cut : 2 * cut],
            "web_pages_saved_long": everything[2 * cut :],
            "web_pages": everything,
        }
        asyncio.run(measure(pages, sets, asked.rounds, asked.workers, (server.pid or 0, here.recv())))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
