"""The web's work in real processes of a real Ray cluster on this machine: the same hits and pages, a kill, a missing key."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.littleweb.faults import Faults
from dr_jax.tokens.trajectory import Group
from dr_jax.train.elastic.settings import RaySettings, WebWorkerSettings
from dr_jax.train.run import opened
from dr_jax.train.settings import RolloutSettings, Settings
from dr_jax.train.worlds import LittlewebSettings, way_out
from dr_jax.web.gateway import wire
from dr_jax.web.page import Page
from dr_jax.web.search.settings import BudgetSettings
from dr_jax.web.settings import WebSettings

ray = pytest.importorskip("ray", reason="needs the extra `ray`: pip install 'dr-jax[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
FAR = RaySettings(address="local", connect_s=120, rest_s=0.5, web=WebWorkerSettings(workers=2, start_s=240))
LITTLE = LittlewebSettings(entities=300)


async def until(actors: dict[str, Any], count: int, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Wait until so many workers are there, and none of some others."""
    async with asyncio.timeout(240):
        while len(actors) != count or without & set(actors):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def kill(actor: Any) -> None:
    os.kill(await actor.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)


async def test_hits_and_pages_are_the_same_and_outlive_a_killed_worker() -> None:
    from dr_jax.train.elastic.web_crew import Errand, WebCrew

    world, metrics, web = LITTLE.world("train"), Metrics(), WebSettings()
    async with way_out(web, world) as here:
        queries = ["director of a museum", "population of the capital", "river", "bridge", "employer"]
        hits = [await here.search(query) for query in queries]
        urls = sorted({hit.url for found in hits if isinstance(found, tuple) for hit in found})
        pages = [await here.open(url) for url in urls]
    assert len(urls) >= 10
    assert all(isinstance(page, Page) for page in pages)
    slow = replace(LITTLE, faults=Faults(seed=3, latency_median_s=1.0, latency_sigma=0.3))
    async with WebCrew(FAR, Errand(web, slow), metrics) as crew, crew.way(world, metrics) as there:
        await until(crew.actors, 2)
        first = dict(crew.actors)
        asking = asyncio.gather(*(there.search(query) for query in queries), *(there.open(url) for url in urls))
        await asyncio.sleep(0.4)
        assert not asking.done()
        _, (_, victim) = max(crew.actors.items(), key=lambda one: next(p for p in there._peers if p.url == one[0]).in_flight)
        await kill(victim)
        found = await asyncio.wait_for(asking, 120)
        assert found == [*hits, *pages]
        assert metrics.snapshot()[0]["gateways/failures"] >= 1
        await until(crew.actors, 2, without={url for url, (_, actor) in first.items() if actor is victim})
        assert sorted(place for place, _ in crew.actors.values()) == sorted(place for place, _ in first.values())
        assert metrics.snapshot()[0]["web/workers_lost"] == 1
        assert await there.search(queries[0]) == hits[0]
        for url, (_, actor) in crew.actors.items():
            assert not await actor.__ray_call__.remote(lambda _: "jax" in sys.modules)
            async with aiohttp.ClientSession() as anybody, anybody.post(url + wire.SEARCH, json={"query": "x"}) as refused:
                assert refused.status == 401


async def test_a_runs_episodes_are_the_same_as_with_the_web_at_home() -> None:
    told = ("rollout.groups=3", "rollout.group_size=4", "eval.questions=1", "littleweb.entities=300", "data.questions=50")
    slow = "littleweb.faults={seed = 3, latency_median_s = 0.5, latency_sigma = 0.3}"
    settings = read(Settings, ROOT / "configs" / "quickstart.toml", [*told, slow])

    async def rolled(rollout: RolloutSettings, metrics: Metrics) -> list[Group]:
        async with (
            opened(replace(settings, rollout=rollout), metrics, lambda *_: None) as run,
            aclosing(run.groups()) as groups,
        ):
            taking = asyncio.ensure_future(anext(groups))
            if run.web_crew is not None:
                await until(run.web_crew.actors, 2)
                while not metrics.snapshot()[0].get("web/open_n", 0):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await kill(next(iter(run.web_crew.actors.values()))[1])
                assert not taking.done()
            return await asyncio.wait_for(taking, 240)

    metrics = Metrics()
    at_home = await rolled(settings.rollout, Metrics())
    elsewhere = await rolled(replace(settings.rollout, ray=FAR), metrics)
    counts = metrics.snapshot()[0]
    assert (counts["web/workers_lost"], counts["web/search_n"] > 12, counts["web/open_n"] > 4) == (1, True, True)
    assert [group.question_id for group in elsewhere] == [group.question_id for group in at_home]
    for mine, theirs in zip(at_home, elsewhere, strict=True):
        assert [one.outcome for one in mine.episodes] == [one.outcome for one in theirs.episodes]
        for one, other in zip(mine.episodes, theirs.episodes, strict=True):
            assert [trajectory.ids for trajectory in one.trajectories] == [trajectory.ids for trajectory in other.trajectories]


async def test_a_missing_key_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from dr_jax.train.elastic.web_crew import Errand, WebCrew

    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    far = replace(FAR, web=replace(FAR.web, workers=1, start_s=90))
    with pytest.raises(ConfigError, match=r"The web worker at .* cannot begin: .*SERPER_API_KEY"):
        async with asyncio.timeout(80), WebCrew(far, Errand(WebSettings(search="serper"), LITTLE), Metrics()):
            pass


def test_what_workers_that_come_and_go_cannot_keep_is_refused() -> None:
    from dr_jax.train.elastic.web_crew import refuse

    refuse(WebSettings())
    with pytest.raises(ConfigError, match="begin anew"):
        refuse(WebSettings(budget=BudgetSettings(queries=5)))
    with pytest.raises(ConfigError, match=r"web\.gateways"):
        refuse(WebSettings(gateways=("http://127.0.0.1:1",)))
