import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dr_jax
from dr_jax.base.errors import WorldDownError
from dr_jax.web.page import Page, WebError
from dr_jax.web.workers import Extractors, ExtractSettings

TASKS = """
import os, sys, time
def task(request, body):
    what = body.decode()
    if what == "sleep":
        time.sleep(60)
    if what == "spin":
        while True: pass
    if what == "match":
        import re
        re.match("(a+)+$", "a" * 40 + "b")   # inside C, where no signal handler of Python's would run
    if what == "eat":
        return {"size": len(b"x" * (4 << 30))}
    if what == "die":
        os._exit(3)
    if what == "raise":
        raise KeyError("secret words of the page")
    if what == "print":
        print("noise"); sys.stdout.flush(); os.write(1, b"more noise")
    if what == "large":
        return {"text": "ü" * 3_000_000}
    if what == "nothing":
        return None
    if what == "environment":
        return dict(os.environ)
    if what == "modules":
        import dr_jax.web.extract
        return {"jax": [name for name in sys.modules if name.split(".")[0] in ("jax", "numpy", "aiohttp", "asyncio")]}
    return {"pid": os.getpid(), "request": request, "length": len(body)}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tasks_of_a_test.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "tasks_of_a_test:task"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_pages_are_read_in_another_process() -> None:
    async with Extractors(ExtractSettings()) as pool:
        (pid,) = pool.pids
        page = await pool.extract(
            b"<title>T</title><p>Text <a href=x>link</a>", "http://a.org/", "text/html", "", truncated=True
        )
        assert page == Page("http://a.org/", "T", "Text link", (("link", "http://a.org/x"),), "text/html", True)
        found = await pool.extract(b"x", "http://a.org/", "image/png", "")
        assert isinstance(found, WebError)
        assert found.kind == "unsupported"
        assert (pid,) == pool.pids
        assert pid != os.getpid()
        assert alive(pid)
    assert not alive(pid)


@pytest.mark.parametrize("what", ["sleep", "spin", "match"])
async def test_a_page_that_hangs_the_parser_costs_its_worker_only(what: str, tasks: str) -> None:
    async with Extractors(ExtractSettings(workers=1, timeout_s=0.3), tasks) as pool:
        first = (await pool.do({}, b""))["done"]["pid"]
        start = time.monotonic()
        assert await pool.do({}, what.encode()) == {"failed": "it took more than 0.3 s"}
        assert time.monotonic() - start < 2
        assert not alive(first)
        second = (await pool.do({}, b""))["done"]["pid"]
        assert second != first
        assert pool.pids == (second,)
    assert not alive(second)


async def test_what_goes_wrong_in_a_worker(tasks: str) -> None:
    async with Extractors(ExtractSettings(memory_mb=512), tasks) as pool:
        first = (await pool.do({"a": "ü"}, b"123"))["done"]
        assert (first["request"], first["length"]) == ({"a": "ü"}, 3)
        assert await pool.do({}, b"eat") == {"failed": "it needs too much memory"}
        assert await pool.do({}, b"raise") == {"failed": "the parser failed with KeyError"}
        assert "done" in await pool.do({}, b"print")
        assert len((await pool.do({}, b"large"))["done"]["text"]) == 3_000_000
        assert (await pool.do({}, b"x" * 5_000_000))["done"]["length"] == 5_000_000
        assert (await pool.do({}, b""))["done"]["pid"] == first["pid"]
        found = await pool.extract(b"nothing", "http://a.org/", "text/html", "")
        assert found == WebError("extract", "http://a.org/ could not be read: the parser gave no page")
        assert await pool.do({}, b"die") == {"failed": "the parser broke down"}
        assert (await pool.do({}, b""))["done"]["pid"] != first["pid"]


async def test_a_worker_knows_no_secrets_and_no_jax(tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "0123456789abcdef")
    async with Extractors(ExtractSettings(), tasks) as pool:
        environment = (await pool.do({}, b"environment"))["done"]
        assert not [name for name in environment if "KEY" in name or "TOKEN" in name]
        assert (await pool.do({}, b"modules"))["done"]["jax"] == []


async def test_pages_wait_for_a_worker_and_workers_are_renewed(tasks: str) -> None:
    async with Extractors(ExtractSettings(workers=2, pages=10, queue=3), tasks) as pool:
        answers = await asyncio.gather(*(pool.do({}, b"") for _ in range(40)))
        assert all("done" in answer for answer in answers)
        assert len({answer["done"]["pid"] for answer in answers}) >= 4
        assert len(pool.pids) <= 2


async def test_workers_are_started_when_they_are_needed(tasks: str) -> None:
    async with Extractors(ExtractSettings(workers=3), tasks) as pool:
        for _ in range(3):
            await pool.do({}, b"")
        assert len(pool.pids) == 1
        await asyncio.gather(*(pool.do({}, b"large") for _ in range(6)))
        assert len(pool.pids) == 3
    assert ExtractSettings(workers=3).places == 3
    assert 1 <= ExtractSettings().places <= 8


async def test_a_full_pool_is_the_worlds_failure(tasks: str) -> None:
    async with Extractors(ExtractSettings(workers=1, timeout_s=2.0, queue=1, queue_s=0.8), tasks) as pool:
        await pool.do({}, b"")
        slow = asyncio.create_task(pool.do({}, b"sleep"))
        await asyncio.sleep(0.05)
        found = await asyncio.gather(*(pool.do({}, b"") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, WorldDownError) for one in found)
        assert "failed" in await slow
        assert "done" in await pool.do({}, b"")


async def test_a_caller_who_leaves_costs_the_worker_and_nothing_else(tasks: str) -> None:
    async with Extractors(ExtractSettings(), tasks) as pool:
        first = (await pool.do({}, b""))["done"]["pid"]
        leaving = asyncio.create_task(pool.do({}, b"sleep"))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.wait({leaving})
        assert not alive(first)
        assert (await pool.do({}, b""))["done"]["pid"] != first


async def test_workers_that_cannot_start_are_the_worlds_failure(capfd: pytest.CaptureFixture[str]) -> None:
    async with Extractors(ExtractSettings(), "no_such_module:task") as pool:
        with pytest.raises(WorldDownError, match="3 times; stderr says why"):
            await pool.do({}, b"")
        assert pool.pids == ()
    assert "no_such_module" in capfd.readouterr().err


async def test_a_worker_killed_while_idle_is_replaced(tasks: str) -> None:
    async with Extractors(ExtractSettings(), tasks) as pool:
        first = (await pool.do({}, b""))["done"]["pid"]
        os.kill(first, 9)
        await asyncio.sleep(0.2)
        assert (await pool.do({}, b""))["done"]["pid"] != first


PROGRAM = """
import asyncio, sys, os
from dr_jax.web.workers import Extractors, ExtractSettings
async def main():
    async with Extractors(ExtractSettings()) as pool:
        page = await pool.extract(b"<title>T</title>x", "http://a.org/", "text/html", "")
        print(page.title, "jax" in sys.modules, "trafilatura" in sys.modules, flush=True)
        if "{how}" == "killed":
            print(pool.pids[0], flush=True)
            os.kill(os.getpid(), 9)
asyncio.run(main())     # at import, without any `if __name__`
"""


@pytest.mark.parametrize("how", ["-m", "-c", "script", "killed"])
def test_any_kind_of_program_may_start_workers(how: str, tmp_path: Path) -> None:
    program = PROGRAM.replace("{how}", how)
    (tmp_path / "program_of_a_test.py").write_text(program)
    command = {"-m": ["-m", "program_of_a_test"], "-c": ["-c", program]}.get(how, [str(tmp_path / "program_of_a_test.py")])
    root = str(Path(dr_jax.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[0] == "T False False", done.stderr
    if how == "killed":  # the pipe ends, and so does the worker
        pid = int(done.stdout.splitlines()[1])
        ends = time.monotonic() + 5
        while alive(pid) and time.monotonic() < ends:
            time.sleep(0.02)
        assert not alive(pid)
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_settings_are_checked() -> None:
    for wrong in ({"workers": -1}, {"timeout_s": 0.0}, {"memory_mb": 10}):
        with pytest.raises(ValueError, match="need"):
            ExtractSettings(**wrong)
