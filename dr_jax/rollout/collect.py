"""Keep many attempts in flight and hand them out as they finish.

In:    things to do (draws of a stream, questions), how to do one, how many at once
Out:   an async iterator of results in the order in which they end
Holds: no more than the limit are in flight, finished ones waiting to be taken included; leaving the loop, by an error or a
       cancellation too, ends every task that was started
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def finished(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, at_once: int
) -> AsyncGenerator[tuple[Item, Result], None]:
    """Work on items, up to `at_once` together, and yield each with its result as it ends.

    Args:
        items: taken one by one, as places become free; may be endless.
        work: starts one.
        at_once: the limit; at least 1.
    """
    waiting = iter(items)
    running: dict[asyncio.Task[Result], Item] = {}

    def start() -> None:
        for item in waiting:
            running[asyncio.create_task(_worked(work, item))] = item
            if len(running) >= at_once:
                return

    try:
        start()
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                item = running.pop(task)
                yield item, task.result()
            if len(running) < at_once:
                start()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def in_order(
    items: list[Item], work: Callable[[Item], Awaitable[Result]], *, at_once: int, done: Callable[[int], None] = lambda n: None
) -> list[Result]:
    """Work on all items, up to `at_once` together, and return their results in the items' order.

    Args:
        items: what to do.
        work: starts one.
        at_once: the limit.
        done: told how many have ended.
    """
    results: dict[int, Result] = {}

    async def numbered(place: int) -> Result:
        return await work(items[place])

    async with aclosing(finished(range(len(items)), numbered, at_once=at_once)) as stream:
        async for place, result in stream:
            results[place] = result
            done(len(results))
    return [results[place] for place in range(len(items))]


async def _worked(work: Callable[[Item], Awaitable[Result]], item: Item) -> Result:
    return await work(item)
