import asyncio

import pytest

from dr_jax.base.errors import WorldDownError
from dr_jax.web.once import Once


class Work:
    """Counts how often it is done, and waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.stopped, self.go = 0, 0, asyncio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return f"result {self.begun}"


def once(max_bytes: int = 1000, fresh_s: float = 60.0) -> Once[str]:
    return Once(lambda result: None if result.startswith("!") else len(result), max_bytes, fresh_s)


async def test_sixteen_ask_and_one_works() -> None:
    shared, work = once(), Work()
    asking = [asyncio.create_task(shared.get("k", work)) for _ in range(16)]
    await asyncio.sleep(0)
    work.go.set()
    assert set(await asyncio.gather(*asking)) == {"result 1"}
    assert await shared.get("k", work) == "result 1"
    assert work.begun == 1
    assert await shared.get("other", work) == "result 2"


async def test_one_who_leaves_stops_nobody_and_the_last_one_stops_the_work() -> None:
    shared, work = once(), Work()
    first, second = (asyncio.create_task(shared.get("k", work)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    assert not work.stopped
    second.cancel()
    await asyncio.wait({second})
    third = asyncio.create_task(shared.get("k", work))  # does not join what is being stopped
    await asyncio.sleep(0.01)
    assert (work.begun, work.stopped) == (2, 1)
    work.go.set()
    assert await third == "result 2"


async def test_errors_are_raised_in_everyone_and_forgotten() -> None:
    shared, calls = once(), []

    async def fail() -> str:
        calls.append(1)
        await asyncio.sleep(0.01)
        raise WorldDownError("no")

    for _ in range(2):
        found = await asyncio.gather(*(shared.get("k", fail) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, WorldDownError) for one in found)
    assert len(calls) == 2


async def test_what_is_remembered_is_bounded_in_bytes_and_in_time() -> None:
    made = []

    def make(text: str):
        async def work() -> str:
            made.append(text)
            return text

        return work

    shared = once(max_bytes=10)
    for key in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb", "!aaa", "!aaa", "x" * 11, "x" * 11):
        assert await shared.get(key, make(key)) == key
    # cccc drove out bbbb, which was asked for longest ago; what has no size or too much is never kept
    assert made == ["aaaa", "bbbb", "cccc", "bbbb", "!aaa", "!aaa", "x" * 11, "x" * 11]
    stale = once(fresh_s=0.0)
    await stale.get("k", make("k"))
    await asyncio.sleep(0.001)
    assert stale.known("k") is None


async def test_closing_leaves_no_task_and_tells_who_waits() -> None:
    shared, work = once(), Work()
    waiting = asyncio.create_task(shared.get("k", work))
    await asyncio.sleep(0.01)
    await shared.close()
    with pytest.raises(WorldDownError, match="closed"):
        await waiting
    assert work.stopped == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
