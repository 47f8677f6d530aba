"""Run things side by side.

In:    awaitables
Out:   their results, in order
Holds: the first error cancels the others and is raised as itself, not in a group; cancelling leaves no task
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run all of them at once and return their results in order.

    Raises:
        BaseException: what the first one raised, after the others have ended.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as raised:
        raise _first(raised) from raised
    return [task.result() for task in tasks]


def _first(raised: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = raised
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
