import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dr_jax.base.errors import UserError
from dr_jax.report.data import RunData
from dr_jax.report.live import watching
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.train.report import Report
from tests.report.runs import attempt, decode, make_run, numbers

LIMIT = aiohttp.ClientTimeout(total=20)


async def got(address: str, host: str = "") -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(timeout=LIMIT) as session,
        session.get(address, headers={"Host": host} if host else {}) as answer,
    ):
        return answer.status, await answer.text()


async def news(address: str, state: str = "", generation: int = 0, have: int = 0) -> Any:
    status, text = await got(f"{address}run?state={state}&generation={generation}&have={have}")
    return json.loads(text) if status == 200 else status


async def test_a_page_hears_only_what_is_new(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", updates=1, done=False)
    async with watching(RunData(run, begun=False)) as address:
        assert "connect-src 'self'" in (await got(address))[1]
        first = await news(address)
        assert (len(first["index"]), first["run"]["metrics"]["step"]) == (8, [1])
        assert await news(address, first["state"], have=8) == 204
        with EpisodeWriter(run / "episodes.jsonl", decode, keep_below=9) as writer:
            writer.write(*attempt(8, group=9, sibling=0, step=2), step=2)
        Report(run, keep_below=9).step(2, numbers(2))
        second = await news(address, first["state"], first["generation"], have=8)
        assert second["run"]["metrics"]["step"] == [1, 2]
        assert second["generation"] == 1  # the file was written anew, so all of it is told
        assert len(second["index"]) == 9
        with EpisodeWriter(run / "episodes.jsonl", decode, keep_below=9):
            pass
        with (run / "episodes.jsonl").open("a") as file:
            file.write((run / "episodes.jsonl").read_text().splitlines()[0] + "\n")
        third = await news(address, second["state"], second["generation"], have=9)
        assert (len(third["index"]), third["generation"]) == (10, 2)
        with (run / "episodes.jsonl").open("a") as file:
            file.write((run / "episodes.jsonl").read_text().splitlines()[1] + "\n")
        fourth = await news(address, third["state"], third["generation"], have=10)
        assert [row[0] for row in fourth["index"]] == ["q0.1"]


async def test_one_episode_is_told_whole(tmp_path: Path) -> None:
    async with watching(RunData(make_run(tmp_path / "r"))) as address:
        await news(address)
        status, text = await got(f"{address}episode?at=3&generation=0")
        assert (status, json.loads(text)["id"]) == (200, "q0.3")
        assert (await got(f"{address}episode?at=3&generation=1"))[0] == 404
        assert (await got(f"{address}episode?at=99"))[0] == 404
        assert (await got(f"{address}episode?at=-1"))[0] == 400
        assert (await got(f"{address}episode?at=x"))[0] == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("127.0.0.1.evil.example:8770", 403)],
)
async def test_a_name_of_somebody_elses_that_leads_here_is_refused(tmp_path: Path, host: str, status: int) -> None:
    async with watching(RunData(make_run(tmp_path / "r"))) as address:
        for path in ("", "run", "episode?at=0&generation=0") if status == 403 else ("", "run"):
            assert (await got(address + path, host))[0] == status


async def test_a_run_that_has_not_written_yet_is_waited_for(tmp_path: Path) -> None:
    async with watching(RunData(tmp_path, begun=False)) as address:
        found = await news(address)
        assert (found["index"], found["run"]["metrics"]) == ([], {})


async def test_a_broken_file_is_told_to_the_page(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text("{\n")
    async with watching(RunData(tmp_path, begun=False)) as address:
        status, text = await got(f"{address}run")
        assert (status, "Line 1 of" in text) == (500, True)


async def test_a_port_that_is_taken_is_one_paragraph(tmp_path: Path) -> None:
    run = RunData(make_run(tmp_path / "r"))
    async with watching(run) as address:
        with pytest.raises(UserError, match="cannot be used"):
            async with watching(run, port=int(address.rstrip("/").rsplit(":", 1)[1])):
                pass


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    code = "from dr_jax.cli.main import run; run()"
    command = [sys.executable, "-c", code, "watch", str(make_run(tmp_path / "r")), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout
        try:
            address = next(word for word in process.stdout.readline().split() if word.startswith("http://127.0.0.1:"))
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert b"<title>dr_jax: watching a run</title>" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
