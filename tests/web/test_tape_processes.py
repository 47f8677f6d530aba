"""Several processes and one tape: who asks, who waits, and what happens when one is killed."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.tape import lease
from dr_jax.web.tape.entry import Entry, ReplayMiss, TapeSettings
from dr_jax.web.tape.file import TapeFile
from dr_jax.web.tape.tape import Tape

# Asks for some keys through a tape; every time that it does ask, it writes a line.
ASKER = """
import asyncio, sys
from dr_jax.base.metrics import Metrics
from dr_jax.web.tape.entry import Entry, TapeSettings
from dr_jax.web.tape.tape import Tape

async def main(path, seconds, lease_s, *keys):
    async def ask(key):
        print("asked", key, flush=True)
        await asyncio.sleep(float(seconds))
        return key.encode(), Entry({}, key.encode())
    async with Tape(TapeSettings("record", path, lease_s=float(lease_s)), Metrics()) as tape:
        found = await asyncio.gather(*(tape.once("search", key, lambda key=key: ask(key), lambda e: e.body) for key in keys))
        assert [one.decode() for one in found] == list(keys)
    print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
KEYS = [f"question {number}" for number in range(40)]


def asker(path: Path, seconds: float, lease_s: float, *keys: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", ASKER, str(path), str(seconds), str(lease_s), *keys]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def shared(path: Path, metrics: Metrics | None = None, **settings: float) -> Tape:
    return Tape(TapeSettings("record", str(path), **settings), metrics or Metrics())


async def counted(key: str, asked: list[str]) -> tuple[str, Entry]:
    asked.append(key)
    return f"made {key}", Entry({}, f"made {key}".encode())


def read(entry: Entry) -> str:
    return entry.body.decode()


def test_four_processes_ask_each_thing_once(tmp_path: Path) -> None:
    processes = [asker(tmp_path / "t", 0.02, 30, *KEYS[number:], *KEYS[:number]) for number in range(4)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    asked = [line for lines in said for line in lines if line.startswith("asked")]
    assert sorted(asked) == sorted(f"asked {key}" for key in KEYS)


@pytest.mark.parametrize("reaped", [True, False])
async def test_what_a_killed_process_was_asking_is_taken_over(reaped: bool, tmp_path: Path) -> None:
    """At once when its end can be seen; otherwise, here because its parent has not looked yet, when its lease is over."""
    path, asked, metrics = tmp_path / "t", list[str](), Metrics()
    process = asker(path, 600, 600 if reaped else 1.0, "q")
    assert process.stdout is not None
    assert (await asyncio.to_thread(process.stdout.readline)).startswith("asked")
    async with shared(path, metrics) as tape:
        waiting = asyncio.create_task(tape.once("search", "q", lambda: counted("q", asked), read))
        await until(lambda: "web/tape_waits" in metrics._counts)
        assert not asked
        os.kill(process.pid, signal.SIGKILL)
        if reaped:
            process.wait()
        assert await asyncio.wait_for(waiting, 30) == "made q"
        assert await tape.once("search", "other", lambda: counted("other", asked), read) == "made other"
    assert asked == ["q", "other"]
    assert metrics.drain()["web/tape_orphans/search"] == 1
    process.wait()
    process.stdout.close()


async def until(true: object) -> None:
    for _ in range(3000):
        if callable(true) and true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def test_who_waits_gets_what_the_other_found(tmp_path: Path) -> None:
    asked, metrics, go = list[str](), Metrics(), asyncio.Event()

    async def slow() -> tuple[str, Entry]:
        await go.wait()
        return await counted("q", asked)

    async with shared(tmp_path / "t") as one, shared(tmp_path / "t", metrics) as two:
        first = asyncio.create_task(one.once("search", "q", slow, read))
        await until(lambda: one._mine)
        second = asyncio.create_task(two.once("search", "q", lambda: counted("q", asked), read))
        await until(lambda: "web/tape_waits" in metrics._counts)
        go.set()
        assert await asyncio.gather(first, second) == ["made q", "made q"]
    assert asked == ["q"]
    assert metrics.drain()["web/tape_hits"] == 1


async def test_whoever_gives_up_ends_nobody_elses_claim(tmp_path: Path) -> None:
    asked, go = list[str](), asyncio.Event()
    down = Entry({"kind": "world_down", "message": "not in time"}, error=True, passing=True)

    async def slow() -> tuple[str, Entry]:
        await go.wait()
        return await counted("q", asked)

    async with shared(tmp_path / "t") as one, shared(tmp_path / "t", wait_s=0.3) as two:
        first = asyncio.create_task(one.once("search", "q", slow, read))
        await until(lambda: one._mine)
        for tape in (one, two):  # as their searches do that took too long
            await tape.keep("search", "q", down)
            with pytest.raises(WorldDownError, match="busy with search 'q'"):
                await two.once("search", "q", lambda: counted("q", asked), read)
        go.set()
        assert await first == "made q"
        assert await two.once("search", "q", lambda: counted("q", asked), read) == "made q"
    assert asked == ["q"]


async def test_a_lease_is_renewed_as_long_as_its_owner_lives(tmp_path: Path) -> None:
    asked, go = list[str](), asyncio.Event()

    async def slow() -> tuple[str, Entry]:
        await go.wait()
        return await counted("q", asked)

    async with shared(tmp_path / "t", lease_s=1.0) as one, shared(tmp_path / "t", lease_s=1.0, wait_s=3.0) as two:
        first = asyncio.create_task(one.once("search", "q", slow, read))
        await until(lambda: one._mine)
        with pytest.raises(WorldDownError, match=r"busy with search 'q' for 3 s"):  # three leases long
            await two.once("search", "q", lambda: counted("q", asked), read)
        go.set()
        assert await first == "made q"
    assert asked == ["q"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "tape leases"]


async def test_what_failed_or_was_given_up_is_free_for_the_next(tmp_path: Path) -> None:
    asked = list[str]()

    async def fail() -> tuple[str, Entry]:
        raise WorldDownError("no provider")

    async def hang() -> tuple[str, Entry]:
        await asyncio.Event().wait()
        raise AssertionError

    async def nothing() -> tuple[str, None]:
        return "not to be remembered", None

    async with shared(tmp_path / "t", lease_s=600) as one, shared(tmp_path / "t", wait_s=30) as two:
        with pytest.raises(WorldDownError, match="no provider"):
            await one.once("search", "q", fail, read)
        hanging = asyncio.create_task(one.once("search", "q", hang, read))
        await until(lambda: one._mine)
        hanging.cancel()
        await asyncio.wait({hanging})
        assert await two.once("search", "q", nothing, read) == "not to be remembered"
        assert await two.once("search", "q", lambda: counted("q", asked), read) == "made q"
    assert asked == ["q"]


async def test_what_was_paid_for_is_written_down_although_nobody_waits(tmp_path: Path) -> None:
    found = asyncio.Event()

    async def quick() -> tuple[str, Entry]:
        found.set()
        return "made", Entry({}, b"made")

    async with shared(tmp_path / "t") as tape:
        for number in range(20):
            asking = asyncio.create_task(tape.once("search", f"{number}", quick, read))
            found.clear()
            await found.wait()
            await asyncio.sleep(0)  # now it waits for the file
            asking.cancel()
            await asyncio.wait({asking})
    async with shared(tmp_path / "t") as tape:
        assert [await tape.recall("search", f"{number}") for number in range(20)] == [Entry({}, b"made")] * 20


def test_a_writer_that_is_killed_leaves_a_whole_tape(tmp_path: Path) -> None:
    path = tmp_path / "t"
    writer = (
        "import sys; from pathlib import Path\n"
        "from dr_jax.web.tape.file import TapeFile; from dr_jax.web.tape.entry import Entry\n"
        "file = TapeFile(Path(sys.argv[1]), writable=True); file.open()\n"
        "for n in range(10**6):\n"
        "    file.insert('fetch', f'{n}', Entry({'n': n}, f'{n}'.encode() * 999))\n"
        "    print(n, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    while last < 300:
        last = int(process.stdout.readline())
    process.kill()
    rest = process.stdout.read().split("\n")
    process.stdout.close()
    process.wait()
    last = max([last, *(int(line) for line in rest[:-1] if line)])
    file = TapeFile(path, writable=True)
    file.open()
    for number in range(last + 1):  # whatever it said that it had written is there
        assert file.select("fetch", f"{number}") == Entry({"n": number}, f"{number}".encode() * 999)
    file.close()
    assert [one.name for one in tmp_path.iterdir()] == ["t"]


def test_a_tape_that_another_process_has_set_aside_is_opened_anew(tmp_path: Path) -> None:
    one, two = (TapeFile(tmp_path / "t", writable=True) for _ in range(2))
    for file in (one, two):
        file.open()
    for file in (one, two):
        file.insert("fetch", "a", Entry({}, b"a"))
        file.set_aside(sqlite3.DatabaseError("torn"))
        file.open()
        file.insert("fetch", f"{file is one}", Entry({}, b"b"))
    assert two.select("fetch", "True") == two.select("fetch", "False") == Entry({}, b"b")
    one.close()
    two.close()
    assert sorted(one.name for one in tmp_path.iterdir() if one.name[-4:] not in ("-wal", "-shm")) == ["t", "t.corrupt-1"]


def test_a_claim_of_another_machine_counts_until_its_time_is_over(tmp_path: Path) -> None:
    file = TapeFile(tmp_path / "t", writable=True)
    file.open()
    for until_s, expected in ((60.0, "theirs"), (-1.0, "orphaned")):
        with file.transaction() as base:
            base.execute("insert or replace into leases values ('fetch', 'k', 'elsewhere 1 x', ?)", (time.time() + until_s,))
        assert lease.claim(file, "fetch", "k", lease.owner_name(), 60.0, lambda: None) == expected
    file.close()


async def test_errors_have_an_age_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "t"
    async with shared(path) as tape:
        await tape.keep("fetch", "good", Entry({}, b"x"))
        await tape.keep("fetch", "gone", Entry({"kind": "not_found"}, error=True))
        await tape.keep("reading", "r", Entry({}, json.dumps(["says this"]).encode()))
    base = sqlite3.connect(path)
    with base:
        base.execute("update entries set at = at - 8 * 3600")
    base.close()
    async with shared(path) as tape:
        assert await tape.recall("fetch", "good") is not None
        assert await tape.recall("fetch", "gone") is None
        assert await tape.stale("fetch", "gone") == Entry({"kind": "not_found"}, error=True)
        assert await tape.recall("reading", "r") is not None
    async with shared(path, error_s=9 * 3600, fetch_s=3600.0, reading_s=60.0) as tape:
        assert [await tape.recall("fetch", "good"), await tape.recall("reading", "r")] == [None, None]
        assert await tape.recall("fetch", "gone") is not None
    async with Tape(TapeSettings("replay", str(path)), Metrics()) as tape:
        assert await tape.once("fetch", "good", lambda: counted("x", []), read) == "x"
        with pytest.raises(ReplayMiss, match="no fetch 'other'"):
            await tape.once("fetch", "other", lambda: counted("x", []), read)


async def test_what_was_used_longest_ago_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, metrics = tmp_path / "t", Metrics()
    async with shared(path, metrics, max_mb=1) as tape:
        for number in range(192):
            await tape.keep("fetch", f"{number}", Entry({}, os.urandom(10_000)))
            assert await tape.recall("fetch", "0") is not None  # used again and again
        assert tape._file.bytes_used <= 1 << 20
        kept = [number for number in range(192) if await tape.recall("fetch", f"{number}") is not None]
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 192))
    assert metrics.drain()["web/tape_evicted"] == 192 - len(kept)
    assert caplog.text.count("a replay of this run will miss it") == 1
    base = sqlite3.connect(path)
    assert base.execute("select count(*) from blobs").fetchone() == base.execute("select count(*) from entries").fetchone()
    base.close()


FIRST = (
    "create table blobs (sha256 blob primary key, size integer not null, data blob not null) without rowid",
    """create table entries (kind text not null, key text not null, at real not null, meta text not null, sha256 blob,
       primary key (kind, key)) without rowid""",
    "pragma application_id = 1685219960",
    "pragma user_version = 1",
)


async def test_a_tape_of_the_first_version_is_read_as_it_is_and_written_as_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "t"
    base = sqlite3.connect(path)
    for statement in FIRST:
        base.execute(statement)
    now = time.time()
    base.execute("insert into entries values ('fetch', 'a', ?, '{\"url\": 1}', null)", (now,))
    base.execute('insert into entries values (\'fetch\', \'bad\', ?, \'{"kind": "not_found", "message": "m"}\', null)', (now,))
    base.commit()
    base.close()
    async with Tape(TapeSettings("replay", str(path)), Metrics()) as tape:
        assert await tape.recall("fetch", "a") == Entry({"url": 1})
    async with shared(path) as one, shared(path) as two:
        assert await one.recall("fetch", "a") == Entry({"url": 1})
        assert await one.recall("fetch", "bad") == Entry({"kind": "not_found", "message": "m"}, error=True)
        await two.keep("fetch", "b", Entry({}, b"x"))
        assert one.identity == two.identity != ""
    base = sqlite3.connect(path)
    base.execute("pragma user_version = 99")
    base.close()
    with pytest.raises(Exception, match=r"version 99\. Needed: version 2 or older"):
        async with shared(path):
            pass


def test_many_begin_one_tape_at_the_same_time(tmp_path: Path) -> None:
    """Changing the journal's mode is where SQLite does not wait by itself."""
    for number in range(10):
        path, start = tmp_path / str(number), threading.Barrier(8)

        def begin(path: Path = path, start: threading.Barrier = start) -> str:
            file = TapeFile(path, writable=True)
            start.wait()
            file.open()
            file.close()
            return file.identity

        with ThreadPoolExecutor(8) as threads:
            assert len({one.result() for one in [threads.submit(begin) for _ in range(8)]}) == 1
