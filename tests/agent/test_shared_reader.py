"""Reading each page once: in memory, on a tape, under the right name."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_jax.agent.model_reader import Told
from dr_jax.agent.reader import make_reader
from dr_jax.agent.reading import ReaderSettings, Reading, Task
from dr_jax.agent.shared_reader import SharedReader, Shelf
from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Page
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import ReplayMiss, TapeSettings
from dr_jax.web.web import Web
from tests.fakes import ScriptedPolicy

PAGE = Page("http://x/p", "p", "Velin was founded by Oren Vash.")
TASK = Task("Who founded Velin?", "Velin founder", ("it is a town",))


class Slow:
    """Reads after a while, and counts how often."""

    def __init__(self, *, sure: bool = True) -> None:
        self.count, self.sure, self.failing = 0, sure, False

    async def __call__(self, page: Page, task: Task, key: RequestKey) -> Told:
        self.count += 1
        await asyncio.sleep(0.02)
        if self.failing:
            raise WorldDownError("the reader is down")
        return Told((Reading(1, f"reading {self.count}"),), sure=self.sure)


def key(sibling: int) -> RequestKey:
    return RequestKey(0, "q", sibling, 1)


def shared(read: Slow, identity: str = "model", shelf: Shelf | None = None, **settings: Any) -> SharedReader:
    return SharedReader(read, lambda: identity, ReaderSettings(**settings), Metrics(), shelf)


async def test_sixteen_siblings_read_once_and_so_do_those_who_come_later() -> None:
    read, metrics = Slow(), Metrics()
    reader = SharedReader(read, lambda: "model", ReaderSettings(), metrics)
    elsewhere = replace(PAGE, url="http://mirror/p")  # the content counts, not where it is found
    found = await asyncio.gather(*(reader.read(elsewhere if n % 2 else PAGE, TASK, key(n)) for n in range(16)))
    assert set(found) == {(Reading(1, "reading 1"),)}
    assert await reader.read(PAGE, TASK, key(99)) == found[0]
    assert read.count == 1
    counted = metrics.drain()
    assert (counted["reader/asked"], counted["reader/read"]) == (17, 1)


async def test_another_page_task_or_version_is_another_reading() -> None:
    read = Slow()
    version = ["1"]
    reader = SharedReader(read, lambda: version[0], ReaderSettings(), Metrics())
    asked = [
        (PAGE, TASK),
        (replace(PAGE, text="Velin is a town."), TASK),
        (replace(PAGE, title="another"), TASK),
        (PAGE, replace(TASK, question="?")),
        (PAGE, replace(TASK, sub_question="?")),
        (PAGE, replace(TASK, known=())),
    ]
    for page, task in asked:
        await reader.read(page, task, key(0))
    version[0] = "2"
    await reader.read(PAGE, TASK, key(0))
    assert read.count == len(asked) + 1


async def test_a_reader_that_is_down_is_not_an_empty_reading_and_is_not_remembered() -> None:
    read = Slow()
    read.failing = True
    reader = shared(read)
    with pytest.raises(WorldDownError):
        await reader.read(PAGE, TASK, key(0))
    read.failing = False
    assert await reader.read(PAGE, TASK, key(0)) == (Reading(1, "reading 2"),)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("once")]


def tape(path: Path, mode: Any = "record") -> Web:
    return Web(WebSettings(tape=TapeSettings(mode, str(path))))


async def test_another_process_finds_it_on_the_tape(tmp_path: Path) -> None:
    path, read = tmp_path / "tape", Slow()
    async with tape(path) as web:
        told = await shared(read, shelf=Shelf(web)).read(PAGE, TASK, key(0))
    async with tape(path) as web:
        assert await shared(read, shelf=Shelf(web)).read(PAGE, TASK, key(1)) == told
        assert read.count == 1
        for other in (shared(read, "another", Shelf(web)), shared(read, shelf=Shelf(web), max_segments=2)):
            await other.read(PAGE, TASK, key(1))
        assert read.count == 3
    async with tape(path, "replay") as web:
        shelf = Shelf(web, replays=True, must=True)
        assert await shared(read, shelf=shelf).read(PAGE, TASK, key(2)) == told
        with pytest.raises(ReplayMiss, match="no reading of http://x/p"):
            await shared(read, "a third", shelf).read(PAGE, TASK, key(2))
        here = shared(read, "a third", Shelf(web, replays=True))
        assert await here.read(PAGE, TASK, key(2)) == (Reading(1, "reading 4"),)  # one that runs here reads again


async def test_what_was_told_in_a_models_place_is_only_replayed(tmp_path: Path) -> None:
    path, unsure, sure = tmp_path / "tape", Slow(sure=False), Slow()
    async with tape(path) as web:
        told = await shared(unsure, shelf=Shelf(web)).read(PAGE, TASK, key(0))
    async with tape(path, "replay") as web:
        assert await shared(sure, shelf=Shelf(web, replays=True)).read(PAGE, TASK, key(0)) == told
    async with tape(path) as web:
        await shared(sure, shelf=Shelf(web)).read(PAGE, TASK, key(0))
    assert sure.count == 1


async def test_what_cannot_be_read_on_the_tape_is_read_again() -> None:
    class Torn:
        """A tape that somebody else wrote."""

        async def kept(self, kind: str, name: str) -> Any:
            return {"readings": [["one", "x"]]}

        async def keep(self, kind: str, name: str, value: Any, *, lasts: bool = True) -> None:
            """Take it."""

        async def once(self, kind: str, name: str, make: Any) -> Any:
            return await self.kept(kind, name)

    read = Slow()
    await shared(read, shelf=Shelf(Torn())).read(PAGE, TASK, key(0))
    assert read.count == 1


async def test_siblings_share_what_the_policy_reads_until_its_weights_change(chat: Chat) -> None:
    policy = ScriptedPolicy(chat, ['{"information": "Oren Vash", "page_down": false}'])
    version = [3]
    reader = make_reader(
        ReaderSettings(kind="policy"), chat=chat, policy=policy, metrics=Metrics(), version=lambda: f"version {version[0]}"
    )
    for sibling in range(4):
        assert await reader.read(PAGE, TASK, key(sibling)) == (Reading(1, "Oren Vash"),)
    assert len(policy.prompts) == 1
    version[0] = 4
    await reader.read(PAGE, TASK, key(5))
    assert len(policy.prompts) == 2


async def test_processes_that_share_a_tape_read_a_page_once(tmp_path: Path) -> None:
    path, read = tmp_path / "tape", Slow()
    async with tape(path) as one, tape(path) as other:
        found = await asyncio.gather(*(shared(read, shelf=Shelf(web)).read(PAGE, TASK, key(0)) for web in (one, other)))
    assert found == [(Reading(1, "reading 1"),)] * 2
    assert read.count == 1


async def test_an_outage_is_replayed_and_ends_with_itself(tmp_path: Path) -> None:
    path, read = tmp_path / "tape", Slow()
    read.failing = True
    async with tape(path) as web:
        with pytest.raises(WorldDownError):
            await shared(read, shelf=Shelf(web)).read(PAGE, TASK, key(0))
    async with tape(path, "replay") as web:
        with pytest.raises(WorldDownError, match="the reader is down"):
            await shared(read, shelf=Shelf(web, replays=True, must=True)).read(PAGE, TASK, key(0))
    read.failing = False
    async with tape(path) as web:
        assert await shared(read, shelf=Shelf(web)).read(PAGE, TASK, key(0)) == (Reading(1, "reading 2"),)
