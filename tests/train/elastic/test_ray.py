"""Workers as real processes of a real Ray cluster on this machine: joining, newer weights, a kill, a wrong address."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.engine.settings import EngineSettings
from dr_jax.tokens.policy import RequestKey, Sampling
from dr_jax.train.elastic.pool import Pool
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.elastic.worker import Spec
from tests.engine.oracle import SIZES, assert_same, sample, weights

ray = pytest.importorskip("ray", reason="needs the extra `ray`: pip install 'dr-jax[ray]'")
# A busy machine takes minutes to start three workers, each of which may take 240 s.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]

SETTINGS = EngineSettings(
    slots=4, pages=97, page_size=4, max_context=96, tokens_per_call=2, prefill_rows=(4,), prefill_width=8, block=8
)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def key(sibling: int) -> RequestKey:
    return RequestKey(7, f"question {sibling}", sibling, 0)


async def until(pool: Pool, hands: int) -> None:
    """Wait for so many workers."""
    async with asyncio.timeout(240):
        while len(pool.hands) != hands:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_killed_actors_requests_go_on_elsewhere_and_another_takes_its_place() -> None:
    from dr_jax.train.elastic.crew import Crew

    settings, metrics = RaySettings(workers=2, address="local", own=False, report_s=0.05, connect_s=120), Metrics()
    pool = Pool(staleness=0, alone_s=200, metrics=metrics)
    async with Crew(settings, Spec(SIZES, SETTINGS), weights(0), 0, pool, metrics) as crew:
        await until(pool, 2)
        asked = [(PROMPT, Sampling(80), key(one)) for one in range(40)]
        drawing = asyncio.gather(*(pool.sample(*one) for one in asked))
        while metrics.snapshot()[0].get("rollout/drawn_elsewhere", 0) < 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ray.kill(next(iter(crew.actors.values())))
        found = await asyncio.wait_for(drawing, 120)
        for one, sampled in zip(asked, found, strict=True):
            assert_same(sampled, sample(weights(0), *one))
        assert metrics.snapshot()[0]["rollout/migrated"] >= 1
        await until(pool, 2)
        await asyncio.to_thread(crew.publish, weights(1), 1)
        newer = await asyncio.wait_for(pool.sample(PROMPT, Sampling(9), key(0)), 60)
        assert set(newer.versions) == {1}
        assert newer.ids == sample(weights(1), PROMPT, Sampling(9), key(0)).ids


async def test_an_address_where_nobody_is_is_told_within_the_deadline(tmp_path: Path) -> None:
    from dr_jax.train.elastic.cluster import connected

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=address):
        async with asyncio.timeout(10), connected(RaySettings(workers=1, address=address, connect_s=5)):
            pass
