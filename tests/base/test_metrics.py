import json
import logging

import pytest

from dr_jax.base.metrics import Metrics, Under, bootstrap_interval, timed
from dr_jax.base.trace import configure, redacted


def test_drain_reports_and_restarts() -> None:
    metrics = Metrics()
    metrics.add("pages", 2)
    metrics.add("pages")
    metrics.gauge("busy", 0.5)
    for value in (1.0, 2.0, 9.0):
        metrics.observe("s", value)
    drained = metrics.drain()
    assert (drained["pages"], drained["busy"], drained["s_mean"], drained["s_p50"], drained["s_n"]) == (3, 0.5, 4.0, 2.0, 3)
    assert "pages" not in metrics.drain()


def test_timed_counts_a_block_that_raises() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError), timed(metrics, "s"):
        raise KeyError
    assert metrics.drain()["s_n"] == 1


def test_interval_of_a_constant_is_a_point_and_of_a_coin_is_wide() -> None:
    assert bootstrap_interval([0.5] * 10) == (0.5, 0.5)
    low, high = bootstrap_interval([0.0, 1.0] * 50)
    assert 0.38 < low < 0.43
    assert 0.57 < high < 0.62


def test_no_secret_reaches_a_log_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "0123456789abcdef")
    configure()
    logging.getLogger("dr_jax.x").warning("sent 0123456789abcdef away")
    assert redacted("key 0123456789abcdef.") == "key <SERPER_API_KEY>."


def test_a_second_part_counts_below_a_name_of_its_own() -> None:
    metrics = Metrics()
    second = Under(metrics, "reader")
    metrics.add("engine/tokens", 2)
    second.add("engine/tokens", 3)
    second.gauge("engine/waiting", 1)
    with timed(second, "engine/s"):
        pass
    found = metrics.drain()
    assert (found["engine/tokens"], found["reader/engine/tokens"], found["reader/engine/waiting"]) == (2, 3, 1)
    assert found["reader/engine/s_n"] == 1
    second.add("engine/tokens")
    assert second.drain()["reader/engine/tokens"] == 1
    assert metrics.drain() == {"reader/engine/waiting": 1}


def test_what_another_process_counted_is_drained_with_what_this_one_did() -> None:
    here, there = Metrics(), Metrics()
    for metrics, amount in ((here, 2.0), (there, 3.0)):
        metrics.add("pages", amount)
        metrics.gauge("busy", amount)
        metrics.observe("seconds", amount)
    there.gauge("only/there", 5.0)
    for value in range(1000):
        there.observe("many", float(value))
    sent = there.sent()
    assert json.loads(json.dumps(sent)) == sent
    assert "pages" not in there.drain()
    here.absorb(sent)
    found = here.drain()
    assert (found["pages"], found["busy"], found["busy_max"], found["only/there"]) == (5.0, 2.5, 3.0, 5.0)
    assert (found["seconds_mean"], found["seconds_n"], found["seconds_max"]) == (2.5, 2.0, 3.0)
    assert found["many_n"] == 1000
    assert found["many_max"] == 999.0
    assert found["many_p50"] == pytest.approx(499.5, abs=10)
    assert here.drain() == {"busy": 2.0}
