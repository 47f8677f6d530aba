import asyncio
import time

import pytest

from dr_jax.base.errors import WorldDownError
from dr_jax.web.pace import Pace, PaceSettings, QueueError, Slots


async def test_so_many_at_a_time() -> None:
    slots, inside, most = Slots(3, None, 1), 0, 0

    async def one() -> None:
        nonlocal inside, most
        async with slots.slot(5.0):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(one() for _ in range(12)))
    assert (most, slots.users) == (3, 0)


async def test_so_many_in_a_second() -> None:
    """Four at once, then ten in a second: eight need 0.4 s."""
    slots, start = Slots(100, 10.0, 4), time.monotonic()

    async def one() -> float:
        async with slots.slot(5.0):
            return time.monotonic() - start

    times = sorted(await asyncio.gather(*(one() for _ in range(8))))
    assert times[3] < 0.1
    assert 0.3 < times[-1] < 0.8


async def test_waiting_has_a_deadline_and_gives_the_place_back() -> None:
    slots = Slots(1, None, 1)
    async with slots.slot(1.0):
        with pytest.raises(QueueError):
            async with slots.slot(0.05):
                pass
    slow = Slots(1, 0.1, 1)
    async with slow.slot(1.0):
        pass
    for _ in range(2):  # the rate is used up, the place is not
        with pytest.raises(QueueError):
            async with slow.slot(0.05):
                pass
    assert slow.users == 0


async def test_an_error_inside_gives_the_place_back() -> None:
    slots = Slots(1, None, 1)
    for _ in range(2):
        with pytest.raises(KeyError):
            async with slots.slot(0.1):
                raise KeyError


async def test_hosts_do_not_wait_for_each_other_and_few_are_remembered() -> None:
    pace = Pace(PaceSettings(per_host=1, hosts=2, queue_s=0.05))
    async with pace.host("a"), pace.host("b"), pace.host("c"):
        with pytest.raises(QueueError):
            async with pace.host("a"):
                pass
        async with pace.host("own", own=True), pace.host("own", own=True):
            pass
    for host in "defgh":
        async with pace.host(host):
            pass
    assert len(pace._hosts) <= 3


async def test_whoever_waits_for_a_host_has_no_place_in_memory() -> None:
    pace = Pace(PaceSettings(concurrent=1, queue_s=0.05))
    async with pace.place() as one, pace.place() as other:
        await one.take()
        await one.take()
        with pytest.raises(WorldDownError, match="too many pages"):
            await other.take()
        await one.free()
        await other.take()
        with pytest.raises(WorldDownError):
            await one.take()
    async with pace.place() as again:
        await again.take()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="per_host is 0"):
        PaceSettings(per_host=0)
