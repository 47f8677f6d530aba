"""Sixteen siblings ask everything once, and a recorded run is the same again with the network cut."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import web

from dr_jax.rollout.record import read_episodes
from tests.rollout.replayed import ILL, KEY, LOST, PAGES, SIBLINGS, attempt, timeless

SECRET = "very-secret-0123456789"
ROOT = Path(__file__).parents[2]


class Servers:
    """A search provider, pages and a reading model, all on one port; counts what each is asked."""

    def __init__(self) -> None:
        self.searched: Counter[str] = Counter()
        self.opened: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.headers: list[Mapping[str, str]] = []
        self.port = 0

    async def search(self, request: web.Request) -> web.Response:
        query = (await request.json())["q"]
        self.searched[query] += 1
        if query == LOST:
            raise web.HTTPBadGateway
        hits = [{"title": f"Page {url[7]}", "link": url, "snippet": query} for url in (*PAGES, ILL)]
        return web.json_response({"organic": hits})

    async def page(self, request: web.Request) -> web.Response:
        self.opened[request.host] += 1
        if "ill" in request.host:
            return web.Response(status=503)
        name = request.host[0]
        fact = "Velin was founded by Oren Vash." if name == "b" else f"Velin has {ord(name)} bridges."
        return web.Response(text=f"<title>Page {name}</title><p>{fact}", content_type="text/html")

    async def chat(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers)
        body = await request.json()
        asked = json.loads(body["messages"][1]["content"])
        self.read[body["messages"][1]["content"]] += 1
        new = "" if asked["text"] in asked["known"] else asked["text"]
        said = "I will not say." if "100 bridges" in new else json.dumps({"information": new, "page_down": False})
        message = {"role": "assistant", "content": said}
        return web.json_response({"choices": [{"message": message}], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers()
    app = web.Application()
    app.router.add_post("/search", servers.search)
    app.router.add_get("/page", servers.page)
    app.router.add_post("/v1/chat/completions", servers.chat)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    servers.port = runner.addresses[0][1]
    yield servers
    await runner.cleanup()


def played(tape: Path, out: Path, port: int, mode: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.rollout.replayed", str(tape), str(out), str(port), mode]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


async def test_each_page_is_fetched_extracted_and_read_once_and_replay_is_the_same(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    tape, recorded = tmp_path / "tape.sqlite", tmp_path / "recorded.jsonl"
    counted = await attempt(tape, recorded, servers.port, "record")
    rows = list(read_episodes(recorded))
    assert len(rows) == SIBLINGS
    assert Counter(row["outcome"] for row in rows) == {"answered": SIBLINGS - 1, "world_failed": 1}
    assert {row["answer"] for row in rows if row["outcome"] == "answered"} == {"Oren Vash"}
    assert servers.searched.pop(LOST) == 3  # attempts, of the one sibling who asked
    assert servers.searched == {"Velin founder": 1, "Velin": 1, "Oren Vash": 1}
    assert servers.opened.pop("ill.littleweb") == 3  # attempts, of the one sibling who asked
    assert servers.opened == {url[7:].removesuffix("/page"): 1 for url in PAGES}
    assert (counted["web/fetch_n"], counted["web/extract_s_n"]) == (4 + 3, 4)
    assert set(servers.read.values()) == {1}
    assert counted["reader/read"] == len(servers.read) == counted["reader/calls"]
    assert counted["reader/asked"] > 4 * counted["reader/read"]
    assert counted["reader/unreadable_replies"] >= 1
    assert SECRET.encode() not in timeless(recorded)
    assert {headers.get("Authorization") for headers in servers.headers} == {f"Bearer {SECRET}"}

    monkeypatch.delenv(KEY)  # what is played back needs none
    again = tmp_path / "again.jsonl"
    port = servers.port
    done = played(tape, again, port, "replay")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert timeless(again) == timeless(recorded)
    assert len(timeless(recorded)) > 10_000
    assert told["web/tape_hits"] == 4 + 5 + counted["reader/read"]  # searches, pages, readings
    assert not {"web/fetch_n", "web/query_n", "web/extract_s_n", "reader/calls", "reader/read"} & told.keys()

    monkeypatch.setenv(KEY, SECRET)
    asked = servers.searched.total() + servers.opened.total() + servers.read.total()
    live = played(tmp_path / "no tape", tmp_path / "live.jsonl", port, "live")
    assert live.returncode != 0
    assert "the network is cut: socket.connect" in live.stderr
    assert servers.searched.total() + servers.opened.total() + servers.read.total() == asked
