"""Chaos: every episode ends, the world's failures are those that were injected, and nothing is left over.

The quick one is part of every run of the tests; the whole storm is `make test-slow`, and prints its figures.
"""

import pytest

from dr_jax.learn.advantage import informative
from dr_jax.littleweb.faults import Faults
from dr_jax.tokens.trajectory import Outcome
from tests.rollout.weather import SEARCHES, Log, Weather, littleweb, ride

_BACK_S = 2.0  # after an outage, until which a search may still find the provider left alone
STORM = {"error_rate": 0.20, "hang_rate": 0.05, "garbage_rate": 0.05, "per_attempt": True}


COUNTED = {
    *("web/search_n", "web/query_n", "web/open_n", "web/fetch_n", "web/retries", "web/bytes", "reader/asked", "reader/read"),
    *("web/errors/protocol", "web/errors/world_down", "search/littleweb/errors/server", "search/littleweb/errors/shape"),
    *("web/search_s_p50", "web/search_s_p95", "web/open_s_p50", "web/open_s_p95", "web/fetch_s_max", "web/extract_s_p95"),
    *("search/littleweb/s_p95", "search/queries", "search/money", "web/extract_queue", "search/retries", "search/down"),
    *("search/littleweb/breaker", "web/pages/breaker", "rollout/outage_groups", "tools/web_search_s_p95"),
}


def chance(error: float, hang: float) -> float:
    """Of a search that fails: three failures in a row, or two silences, after which it is not asked a third time."""
    return (error + hang) ** 3 + hang**2 * (1 - error - hang)


def judge(log: Log, weather: Weather) -> str:
    """Hold what happened against what was injected; return the figures."""
    assert len(log.lines) == weather.groups * weather.size, "an episode did not end"
    failed = {line.name for line in log.lines if line.outcome is Outcome.WORLD_FAILED}
    begin, end = weather.faults.outage_s
    assert log.metrics["search/littleweb/breaker_opened"] >= 1, "nobody noticed the outage"
    back = max(log.back, end + _BACK_S)
    assert back < end + 20.0, "nobody noticed its end"
    struck = {line.name for line in log.lines if line.start < back and line.end > begin}
    calm = {line.name for line in log.lines} - struck
    doomed = {line.name for line in log.lines if line.doomed}
    assert failed & calm == doomed & calm, "the world failed others than those that were to fail"
    assert doomed <= failed | struck
    assert not any(line.rewarded for line in log.lines if line.name in failed), "a failure of the world was rewarded"
    trained = [one for group in informative(log.groups) for one in group.trainable]
    assert not {one.id for one in trained} & failed, "a failure of the world was trained"
    for group in log.groups:
        lost = sum(one.outcome is Outcome.WORLD_FAILED for one in group.episodes)
        assert lost <= 0.25 * weather.size or not group.trainable, "lucky survivors were trained"
    assert log.left == {"tasks": 0, "files": 0, "processes": 0}
    per_search = chance(STORM["error_rate"] + STORM["garbage_rate"], STORM["hang_rate"])
    share = 1 - (1 - per_search) ** SEARCHES
    half = len(log.memory_mb) // 2
    grown = max(log.memory_mb[half:]) - max(log.memory_mb[:half])
    return (
        f"{len(log.lines)} episodes, {weather.in_flight} in flight, in {log.seconds:.0f} s\n"
        f"WORLD_FAILED {len(failed)}: {len(failed & doomed)} of {len(doomed)} that had a search which was to fail, and "
        f"{len(failed - doomed)} by the outage\n"
        f"outside of the outage {len(failed & calm) / max(1, len(calm)):.4f} of {len(calm)} episodes, each of them foreseen; "
        f"by chance {share:.4f} (a search fails with {per_search:.4f})\n"
        f"pages that failed and were told to the policy: {sum(line.page_errors for line in log.lines)}; groups dropped: "
        f"{log.metrics.get('rollout/outage_groups', 0):.0f} of {weather.groups}; trained episodes: {len(trained)}\n"
        f"the outage lasted {end - begin:g} s; what had waited went on {log.back - end:.1f} s after it\n"
        f"memory {log.memory_mb[0]:.0f} to {log.memory_mb[-1]:.0f} MB, the second half {grown:+.1f} MB over the first"
    )


async def test_a_squall() -> None:
    weather = Weather(24, 8, 64, Faults(seed=1, outage_s=(0.5, 4.0), **STORM), hang_s=2.5)
    with littleweb(weather.faults) as (port, start):
        log = await ride(weather, port, start)
    print(judge(log, weather))
    assert any(line.outcome is Outcome.WORLD_FAILED for line in log.lines)
    assert any(line.outcome is Outcome.ANSWERED for line in log.lines)
    assert log.metrics.keys() >= COUNTED, COUNTED - log.metrics.keys()


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_two_thousand_episodes_in_a_storm() -> None:
    weather = Weather(250, 8, 512, Faults(seed=2, outage_s=(10.0, 30.0), **STORM), hang_s=5.0)
    with littleweb(weather.faults) as (port, start):
        log = await ride(weather, port, start)
    print("\n" + judge(log, weather))
    half = len(log.memory_mb) // 2
    assert max(log.memory_mb[half:]) < max(log.memory_mb[:half]) + 16, log.memory_mb
    assert max(line.end for line in log.lines) > 30.0, "all was over before the outage ended"
