"""Several processes that train together: they do what one would have done, wait for nobody too long, and end as one."""

import dataclasses
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_jax.model import hf
from dr_jax.rollout.record import read_episodes
from dr_jax.train.loop import train
from dr_jax.train.report import read_metrics
from dr_jax.train.settings import Settings
from tests.train.processes import start

CURVE = ("update/loss", "update/gradient_norm", "update/trained_tokens", "rollout/reward", "rollout/episodes", "batch/groups")


def silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing."""


def changed(settings: Settings, **tables: dict[str, Any]) -> Settings:
    """Replace settings: of the run itself in `run`, else of the table that is named."""
    own = tables.pop("run", {})
    parts = {name: dataclasses.replace(getattr(settings, name), **values) for name, values in tables.items()}
    return dataclasses.replace(settings, **parts, **own)


def curve(directory: Path) -> list[list[float]]:
    return [[row["step"], *(row[name] for name in CURVE)] for row in read_metrics(directory)]


def trained(directory: Path) -> Counter[tuple[int, str]]:
    """How many episodes were learned from in each update, by question, of all processes."""
    rows = (row for path in sorted(directory.glob("episodes*.jsonl")) for row in read_episodes(path))
    return Counter((row["step"], row["question_id"]) for row in rows)


async def test_two_processes_do_what_one_does(settings: Settings, tmp_path: Path) -> None:
    small = changed(settings, run={"steps": 2, "name": "two"}, eval={"questions": 2}, checkpoint={"every": 0})
    two = start(small, 2, 1)
    summary = await train(dataclasses.replace(small, name="one"), told=silent)
    assert two.ended(240) == [0, 0], two.said(0) + two.said(1)
    np.testing.assert_allclose(curve(two.directory), curve(tmp_path / "one"), rtol=1e-4, atol=1e-5)
    assert trained(two.directory) == trained(tmp_path / "one")
    assert len(list(read_episodes(two.directory / "episodes-1.jsonl"))) == 4  # of two groups of two, each has one a step
    exported, alone = (hf.read(directory / "model")[1] for directory in (two.directory, tmp_path / "one"))
    for name, weight in alone.items():
        np.testing.assert_allclose(exported[name], weight, atol=1e-4, err_msg=name)
    assert summary["eval"]["before"]["n"] == 2
    assert "update    2/2" in two.said(0)
    assert "update" not in two.said(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "devices"), [(2, 4), (4, 2)])
async def test_ten_updates_are_the_same_on_eight_devices_however_many_processes_have_them(
    settings: Settings, tmp_path: Path, count: int, devices: int
) -> None:
    wide = changed(settings, run={"steps": 10, "name": "many"}, rollout={"groups": 4}, checkpoint={"every": 5})
    many = start(wide, count, devices)
    await train(dataclasses.replace(wide, name="one"), told=silent)
    assert many.ended(600) == [0] * count, many.said(0)
    found, expected = (np.array([row["update/loss"] for row in read_metrics(tmp_path / name)]) for name in ("many", "one"))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(curve(many.directory), curve(tmp_path / "one"), rtol=1e-4, atol=1e-5)
    assert trained(many.directory) == trained(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_7_who_is_killed_ends_the_others_and_another_number_goes_on(settings: Settings, tmp_path: Path) -> None:
    """Two processes; the second is killed; one goes on alone, is ended by SIGTERM, and two go on to the end."""
    long = changed(
        settings,
        run={"steps": 300, "name": "run"},
        checkpoint={"every": 3},
        eval={"questions": 1},
        processes={"lost_s": 6.0},
        data={"questions": 30},
    )
    two = start(long, 2, 1)
    two.after(5, 300)
    two.processes[1].kill()
    killed = time.monotonic()
    assert two.ended(60) == [1, -signal.SIGKILL]
    assert time.monotonic() - killed < 45
    assert "Process 1 of 2 has not been heard of for 6 s" in two.said(0)
    assert "Traceback" not in two.said(0)

    one = start(long, 1, 1, "--resume")
    one.after(7, 300)
    one.processes[0].send_signal(signal.SIGTERM)
    assert one.ended(60) == [130], one.said(0)
    steps = len(read_metrics(one.directory)) + 3
    two = start(dataclasses.replace(long, steps=steps), 2, 1, "--resume")
    assert two.ended(300) == [0, 0], two.said(0)

    whole = dataclasses.replace(long, name="whole", steps=steps)
    await train(whole, told=silent)
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-4, atol=1e-5)
    assert trained(tmp_path / "run") == trained(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_of_eight_devices_goes_on_with_four_and_with_one(settings: Settings, tmp_path: Path) -> None:
    for steps, devices, words in ((2, 8, ()), (4, 4, ("--resume",)), (6, 1, ("--resume",))):
        one = start(changed(settings, run={"steps": steps}), 1, devices, *words)
        assert one.ended(200) == [0], one.said(0)
    await train(changed(settings, run={"steps": 6, "name": "whole"}), told=silent)
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_notice_to_one_process_ends_all_of_them_saved(settings: Settings) -> None:
    long = changed(settings, run={"steps": 300}, checkpoint={"every": 0}, eval={"questions": 1})
    two = start(long, 2, 1)
    two.after(2, 300)
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.ended(60) == [130, 130], two.said(0) + two.said(1)
    assert "interrupted and saved" in two.said(0)
    steps = len(read_metrics(two.directory))
    assert [path.name for path in (two.directory / "checkpoints").iterdir()] == [str(steps)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_process_whose_web_is_slow_delays_nobody_beyond_the_deadline(settings: Settings, staleness: int) -> None:
    slow = changed(
        settings,
        run={"steps": 3},
        rollout={"staleness": staleness},
        eval={"questions": 0},
        processes={"deadline_s": 2.0},
        checkpoint={"every": 0},
    )
    two = start(slow, 2, 1, dawdling=[1])
    assert two.ended(300) == [0, 0], two.said(0) + two.said(1)
    rows = read_metrics(two.directory)
    assert [row["rollout/episodes"] for row in rows] == [2.0, 2.0, 2.0]  # one group of the first process, none of the other
    assert all(row["update/trained_tokens"] > 0 for row in rows)
    assert rows[2]["wall_s"] - rows[1]["wall_s"] >= 2.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_are_started_unlike_each_other_are_refused(settings: Settings) -> None:
    two = start(settings, 2, 1, of_each=[[], ["seed=7"]])
    assert two.ended(200) == [2, 2], two.said(0) + two.said(1)
    for index in (0, 1):
        assert "Process 1 is not started as process 0 is: seed = '7' in place of '0'" in two.said(index)
