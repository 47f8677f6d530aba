"""One run of littleweb, killed twenty times without warning, and what became of every question of its epoch."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from dr_jax.rollout.record import read_episodes
from dr_jax.train.report import read_metrics
from tests.train.drill import MOMENTS, Training, killed, stream, trained

KILLS = int(os.environ.get("DRILL_KILLS", "20"))
CURVE = ("rollout/reward", "update/loss", "update/gradient_norm")


def curve(directory: Path) -> list[list[float | None]]:
    return [[row["step"], *(row.get(name) for name in CURVE)] for row in read_metrics(directory)]


def drilled(out: Path, name: str, overrides: list[str], environment: dict[str, str] | None = None) -> Counter[str]:
    """Kill a run at random moments until it has been killed often enough, then let it end; return what was in progress."""
    rng, found = random.Random(0), Counter[str]()
    for number in range(KILLS):
        training = Training(out, name, overrides, environment)
        what = killed(training, MOMENTS[number % len(MOMENTS)], rng)
        assert what or training.end() == 0, training.log()
        if not what:
            break
        found[what] += 1
        print(f"kill {number + 1}: {what}, {len(read_metrics(training.directory))} updates written down", flush=True)
    last = Training(out, name, overrides, environment)
    assert last.end() == 0, last.log()
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_7_a_run_that_is_killed_at_random_trains_every_question_once_on_the_same_curve(tmp_path: Path) -> None:
    """Updates that drain make a run a function of its settings: its curve has to be the uninterrupted run's, every number."""
    steps = ["steps=20"]  # of two groups each: the 40 questions of one epoch
    found = drilled(tmp_path, "killed", steps)
    whole = Training(tmp_path, "whole", steps)
    assert whole.end() == 0, whole.log()
    assert found["update"], found
    assert found["checkpoint"], found
    went = trained(tmp_path / "killed")
    filtered = {name for names in stream(tmp_path / "killed")["filtered"].values() for name in names}
    assert len(went) + len(filtered - set(went)) == 40, "a question was lost"
    assert all(len(updates) == 1 for updates in went.values()), "a question was trained twice"
    assert went == trained(tmp_path / "whole")
    assert Counter(row["step"] for row in read_episodes(tmp_path / "killed" / "episodes.jsonl")) == dict.fromkeys(
        range(1, 21), 8
    )
    for one, other in zip(curve(tmp_path / "killed"), curve(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    print(f"killed {sum(found.values())} times: {dict(found)}; {len(went)} questions trained once, {len(filtered)} filtered")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_run_is_saved_and_gone_within_its_grace_period(tmp_path: Path) -> None:
    took = []
    for moment in MOMENTS:
        training = Training(tmp_path, "told", ["steps=50"])
        assert training.reach(moment, 2), training.log()
        start = time.monotonic()
        training.process.send_signal(signal.SIGTERM)
        assert training.end() == 130, training.log()
        took.append(time.monotonic() - start)
        saved = [int(path.name) for path in (tmp_path / "told" / "checkpoints").iterdir() if path.name.isdigit()]
        assert max(saved) == len(read_metrics(tmp_path / "told")) > 0
    print("saved and gone after " + ", ".join(f"{moment} {s:.1f} s" for moment, s in zip(MOMENTS, took, strict=True)))
    assert max(took) < 20
