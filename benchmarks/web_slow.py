"""A thousand slow fetches on one event loop: how late it is for everything else.

In:    a server in another process that answers after some seconds, from a thousand host names
Out:   how late a task came that wanted to run every few milliseconds, by the clock, and by the processor time that the loop
       spent meanwhile, which is how late it would be on a core of its own; `results/web_slow.json`
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
from aiohttp import web

from benchmarks.result import Spread, write
from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import Fetcher, FetchSettings
from dr_jax.web.guard import AllowedHost, Guard
from dr_jax.web.pace import Pace, PaceSettings
from dr_jax.web.reply import Fetched

_EVERY_S = 0.005
_BODY = b"<p>" + b"slow words " * 2000  # 22 kB, sent in pieces


def _serve(port: Connection, slow_s: float) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(slow_s / 2)
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        for start in range(0, len(_BODY), len(_BODY) // 4 + 1):
            await response.write(_BODY[start : start + len(_BODY) // 4 + 1])
            await asyncio.sleep(slow_s / 8)
        return response

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


async def lag(into: list[tuple[float, float]]) -> None:
    """Note how late each of many short sleeps ends, in seconds, and how long this thread computed meanwhile."""
    while True:
        due, computed = time.perf_counter() + _EVERY_S, time.thread_time()
        await asyncio.sleep(_EVERY_S)
        into.append((time.perf_counter() - due, time.thread_time() - computed))


async def measure(port: int, fetches: int) -> tuple[list[tuple[float, float]], float]:
    """Fetch them all at once; return the lags, and how long all of it took, in seconds."""
    guard, late = Guard([AllowedHost("slow.here", "127.0.0.1", port)]), list[tuple[float, float]]()
    limits = FetchSettings(first_byte_s=60.0, total_s=120.0, deadline_s=120.0, attempts=1)
    async with Fetcher(limits, guard, Pace(PaceSettings(concurrent=fetches, own=fetches)), Metrics()) as fetcher:
        watch = asyncio.create_task(lag(late))
        start = time.perf_counter()
        found = await asyncio.gather(*(fetcher.get(f"http://h{number}.slow.here/") for number in range(fetches)))
        seconds = time.perf_counter() - start
        watch.cancel()
        await asyncio.wait({watch})
    assert all(isinstance(one, Fetched) and one.body == _BODY for one in found)
    return late, seconds


async def idle(seconds: float) -> list[tuple[float, float]]:
    """Return the lags of an event loop that has nothing else to do: what the machine itself takes."""
    late = list[tuple[float, float]]()
    watch = asyncio.create_task(lag(late))
    await asyncio.sleep(seconds)
    watch.cancel()
    await asyncio.wait({watch})
    return late


def p99_ms(late: list[tuple[float, float]]) -> tuple[float, float]:
    """The 99th percentiles of both, in milliseconds."""
    by_clock, by_processor = np.quantile(np.asarray(late), 0.99, axis=0)
    return 1000 * float(by_clock), 1000 * float(by_processor)


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fetches", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each answer takes")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, asked.seconds), daemon=True)
    server.start()
    try:
        port, rows = here.recv(), []
        for _ in range(asked.rounds):
            quiet = p99_ms(asyncio.run(idle(asked.seconds)))
            late, seconds = asyncio.run(measure(port, asked.fetches))
            rows.append((*p99_ms(late), quiet[0], seconds))
    finally:
        server.terminate()
        server.join()
    names = (f"{asked.fetches} slow fetches", "by processor time", "idle loop")
    sides = {name: Spread.of([row[place] for row in rows], "ms late, p99") for place, name in enumerate(names)}
    write("web_slow", sides, ("aiohttp",))
    took = float(np.median([row[3] for row in rows]))
    print(
        f"{asked.fetches} fetches of {asked.seconds:g} s each, at once, took {took:.1f} s; p99 of how late the event loop was:"
    )
    for name, side in sides.items():
        print(f"  {name:20} {side.median:6.1f} ms ({side.min:.1f} to {side.max:.1f})")


if __name__ == "__main__":
    main()
