import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dr_jax.base.errors import ConfigError, DrJaxError, UserError
from dr_jax.base.metrics import Metrics
from dr_jax.web import entries
from dr_jax.web.page import Hit
from dr_jax.web.tape.entry import Entry, ReplayMiss, TapeSettings
from dr_jax.web.tape.tape import Tape

ENTRY = Entry({"url": "http://a.org/", "status": 200, "title": "Čeština"}, b"<p>body" * 1000)


def tape(path: Path, mode: str = "record", metrics: Metrics | None = None, **settings: float) -> Tape:
    return Tape(TapeSettings(mode=mode, path=str(path), **settings), metrics or Metrics())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def read_all(path: Path) -> None:
    async with tape(path, "replay") as player:
        for number in range(200):
            await player.recall("fetch", f"key {number}")


async def test_what_was_kept_is_recalled_by_this_run_and_the_next(tmp_path: Path) -> None:
    path, metrics = tmp_path / "deep" / "tape.sqlite", Metrics()
    async with tape(path, metrics=metrics) as recorder:
        assert await recorder.recall("fetch", "a") is None
        await recorder.keep("fetch", "a", ENTRY)
        await recorder.keep("fetch", "empty", Entry({}))
        assert await recorder.recall("fetch", "a") == ENTRY
        assert await recorder.recall("search", "a") is None
        assert await recorder.recall("fetch", "empty") == Entry({})
    assert metrics.drain()["web/tape_hits"] == 2
    async with tape(path, "replay") as player:
        assert await player.recall("fetch", "a") == ENTRY
        await player.keep("fetch", "b", ENTRY)  # a replayed tape is not written to
        assert await player.recall("fetch", "b") is None
    assert path.stat().st_size < 40_000


async def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    async with tape(tmp_path / "t") as recorder:
        for key in "abc":
            await recorder.keep("fetch", key, ENTRY)
    base = sqlite3.connect(tmp_path / "t")
    assert base.execute("select count(*) from blobs").fetchone() == (1,)
    assert base.execute("select count(*) from entries").fetchone() == (3,)
    base.close()


async def test_freshness_is_by_kind_and_replay_ignores_it(tmp_path: Path) -> None:
    path = tmp_path / "t"
    async with tape(path) as recorder:
        for kind in ("search", "fetch", "page"):
            await recorder.keep(kind, "k", ENTRY)
    base = sqlite3.connect(path)
    with base:
        base.execute("update entries set at = at - 2 * 86400")
    base.close()
    async with tape(path) as recorder:
        found = [await recorder.recall(kind, "k") is not None for kind in ("search", "fetch", "page")]
    assert found == [True, False, True]  # 7 days, 1 day, and what was extracted from the same bytes does not age
    async with tape(path, "replay") as player:
        assert await player.recall("fetch", "k") == ENTRY


async def test_what_may_be_cured_is_only_replayed_and_only_where_nothing_better_is(tmp_path: Path) -> None:
    path, ill = tmp_path / "t", Entry({"kind": "server", "message": "503"}, error=True, passing=True)
    made: list[str] = []

    async def make(name: str, entry: Entry) -> tuple[str, Entry]:
        made.append(name)
        return name, entry

    async with tape(path) as recorder:
        for name in ("first", "second"):
            assert await recorder.once("fetch", "a", lambda name=name: make(name, ill), lambda entry: "tape") == name
        await recorder.keep("fetch", "b", ENTRY)
        await recorder.keep("fetch", "b", ill)
        assert await recorder.recall("fetch", "b") == ENTRY
    async with tape(path, "replay") as player:
        assert await player.recall("fetch", "a") == Entry(ill.meta, error=True)
        assert await player.recall("fetch", "b") == ENTRY
    async with tape(path) as recorder:
        assert await recorder.once("fetch", "a", lambda: make("third", ENTRY), lambda entry: "tape") == "third"
        assert await recorder.once("fetch", "a", lambda: make("never", ENTRY), lambda entry: "tape") == "tape"
    assert made == ["first", "second", "third"]


async def test_live_touches_no_file(tmp_path: Path) -> None:
    async with Tape(TapeSettings(), Metrics()) as none:
        await none.keep("fetch", "a", ENTRY)
        assert await none.recall("fetch", "a") is None
    assert not names(tmp_path)


async def test_a_miss_names_kind_and_key(tmp_path: Path) -> None:
    async with tape(tmp_path / "t"):
        pass
    async with tape(tmp_path / "t", "replay") as player:
        miss = player.missed("search", "littleweb 10 who rules Velmora")
    assert isinstance(miss, ReplayMiss)
    assert isinstance(miss, DrJaxError)
    assert "no search 'littleweb 10 who rules Velmora'" in str(miss)


@pytest.mark.parametrize("damage", ["not a database", "header only", "torn pages"])
async def test_a_corrupt_tape_is_set_aside(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, metrics = tmp_path / "t", Metrics()
    async with tape(path) as recorder:
        for number in range(200):
            await recorder.keep("fetch", f"key {number}", Entry({"n": number}, f"{number}".encode() * 1000))
    content = path.read_bytes()
    broken = {
        "not a database": b"hello, this is a letter" * 100,
        "header only": content[:100] + b"\xff" * 5000,
        "torn pages": content[:8192] + b"\xa5" * (len(content) - 8192),
    }[damage]
    path.write_bytes(broken)
    with caplog.at_level(logging.WARNING, "dr_jax"):
        async with tape(path, metrics=metrics) as recorder:
            for number in range(200):
                await recorder.recall("fetch", f"key {number}")
            await recorder.keep("fetch", "new", ENTRY)
            assert await recorder.recall("fetch", "new") == ENTRY
    assert (tmp_path / "t.corrupt-1").read_bytes()[:50] == broken[:50]
    assert "t.corrupt-1" in caplog.text
    path.write_bytes(broken)
    with pytest.raises(UserError, match="corrupt"):
        await read_all(path)
    assert path.read_bytes() == broken


async def test_a_damaged_blob_is_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t"
    async with tape(path) as recorder:
        for key, wrong in (("a", b"x"), ("b", None)):
            await recorder.keep("fetch", key, Entry({}, key.encode() * 100))
            base = sqlite3.connect(path)
            with base:
                if wrong is None:
                    base.execute("delete from blobs where size = 100")
                else:
                    base.execute("update blobs set data = ?", (wrong,))
            base.close()
            assert await recorder.recall("fetch", key) is None
        assert "damaged fetch 'a'" in caplog.text
        await recorder.keep("fetch", "a", Entry({}, b"a" * 100))
        assert await recorder.recall("fetch", "a") == Entry({}, b"a" * 100)


async def test_what_is_not_a_tape_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    base = sqlite3.connect(path)
    base.execute("create table money (amount)")
    base.close()
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="not a tape"):
        async with tape(path):
            pass
    assert path.read_bytes()[100:] == content[100:]
    assert not [name for name in names(tmp_path) if "corrupt" in name]


async def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no tape"):
        async with tape(tmp_path / "missing", "replay"):
            pass
    assert not (tmp_path / "missing").exists()
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot be"):
            async with tape(path):
                pass
    with pytest.raises(ValueError, match="needs the path"):
        TapeSettings(mode="record")


async def test_two_processes_may_share_a_tape(tmp_path: Path) -> None:
    path = tmp_path / "t"
    async with tape(path) as one, tape(path) as two:
        await asyncio.gather(*(who.keep("fetch", f"{n}", ENTRY) for n in range(50) for who in (one, two)))
        assert await two.recall("fetch", "49") == ENTRY


async def test_a_locked_tape_does_not_stop_the_web(tmp_path: Path) -> None:
    path, metrics = tmp_path / "t", Metrics()
    async with tape(path, metrics=metrics, busy_s=0.05) as recorder:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin exclusive")
        await recorder.keep("fetch", "a", ENTRY)
        other.close()
        await recorder.keep("fetch", "b", ENTRY)
        assert await recorder.recall("fetch", "b") == ENTRY
    assert metrics.drain()["web/tape_errors"] == 1


@pytest.mark.parametrize("body", [b"not json", b'[{"title": "x"}]', b'{"kind": "x"}'])
async def test_an_entry_that_cannot_be_read_is_asked_for_again(body: bytes, tmp_path: Path) -> None:
    metrics, path = Metrics(), str(tmp_path / "tape")
    hit = (Hit("t", "http://a/", "s"),)

    async def make() -> tuple[Any, Entry]:
        return hit, entries.of_hits(hit)

    async with Tape(TapeSettings("record", path), metrics) as tape:
        await tape.keep("search", "q", Entry({}, body))
        assert await tape.once("search", "q", make, entries.hits) == hit
    assert metrics.drain()["web/tape_errors"] >= 1
    async with Tape(TapeSettings("replay", path), Metrics()) as tape:
        assert await tape.once("search", "q", make, entries.hits) == hit
