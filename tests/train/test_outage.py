"""A whole run in an outage: it pauses, says so, trains on nobody who was merely lucky, and goes on by itself."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dr_jax.base.config import read
from dr_jax.rollout.record import read_episodes
from dr_jax.train.loop import train
from dr_jax.train.measure import measure
from dr_jax.train.report import read_metrics
from dr_jax.train.settings import Settings

_DOWN_S = 25.0


class Provider:
    """A search provider that is down for some seconds, from the first query after `arm` on."""

    def __init__(self) -> None:
        self.armed = False
        self.until = 0.0
        self.refused = 0
        self.port = 0

    async def search(self, request: web.Request) -> web.Response:
        if self.armed and not self.until:
            self.until = time.monotonic() + _DOWN_S
        if time.monotonic() < self.until:
            self.refused += 1
            return web.Response(status=503)
        return web.json_response({"organic": [{"title": "x", "link": "http://lists.littleweb/city", "snippet": "cities"}]})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.router.add_post("/search", provider.search)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.port = runner.addresses[0][1]
    yield provider
    await runner.cleanup()


@pytest.fixture
def settings(provider: Provider, tmp_path: Path) -> Settings:
    """The quickstart's policy, which searches, in a run of a few episodes."""
    wanted = [
        *(f"out='{tmp_path}'", "name='run'", "steps=2", "eval.questions=0", "data.questions=60", "littleweb.entities=200"),
        *("rollout.groups=2", "rollout.group_size=8", "rollout.failed_share=0.0", "checkpoint.every=0"),
        *("engine.slots=8", "engine.prefill_rows=[8]"),
        f"web.provider.littleweb.url='http://127.0.0.1:{provider.port}/search'",
        *("web.breaker.failures=3", "web.breaker.open_s=0.5", "web.breaker.most_s=1.0", "web.fetch.attempts=2"),
    ]
    return read(Settings, Path(__file__).parents[2] / "configs" / "quickstart.toml", wanted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_an_evaluation_outlasts_an_outage(settings: Settings, provider: Provider) -> None:
    provider.armed = True
    found = await measure(replace(settings, eval=replace(settings.eval, questions=8)), told=lambda *_: None)
    assert provider.refused >= 3
    assert (found["n"], found["world_failed"]) == (8, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_run_outlasts_an_outage(
    settings: Settings, provider: Provider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
        provider.armed |= phase == "eval"  # before the first update

    with caplog.at_level(logging.INFO, logger="dr_jax"):
        summary = await train(settings, told=told)
    assert summary["steps"] == 2
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "no search provider is up; nothing new is begun until one is" in said
    assert "a search provider is up again" in said
    rows = read_metrics(tmp_path / "run")
    assert sum(row.get("rollout/lost_groups", 0) for row in rows) >= 1
    episodes = list(read_episodes(tmp_path / "run" / "episodes.jsonl"))
    by_group: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in episodes:
        by_group.setdefault((row["step"], row["question_id"]), []).append(row)
    full = [group for group in by_group.values() if any(row["rewards"] for row in group)]
    assert len(full) == 2 * 2, "an update was not filled up"
    for group in by_group.values():
        lost = sum(row["outcome"] == "world_failed" for row in group)
        assert not lost or not any(row["rewards"] for row in group)
    paused = max(row.get("search/down_s_max", 0) for row in rows)
    print(f"{len(episodes)} episodes, {len(by_group) - len(full)} groups lost; new ones waited for {paused:.1f} s")
