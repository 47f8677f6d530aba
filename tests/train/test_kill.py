"""One run of littleweb, killed twenty times without warning, and what became of every question of its epoch."""

import math
import os
import random
import shutil
import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dr_jax.rollout.record import read_episodes
from dr_jax.train.report import read_metrics

pytest.importorskip("gcp_storage_emulator")

from tests.train.bucket import Bucket, served
from tests.train.drill import MOMENTS, ROOT, Training, killed, stream, trained

KILLS = int(os.environ.get("DRILL_KILLS", "20"))
SEEDS = (1, 2, 3)
T99 = {2: 9.925, 3: 5.841, 4: 4.604}  # two-sided, by degrees of freedom
POLICY = ROOT / "data" / "littleweb_policy"
CURVE = ("rollout/reward", "update/loss", "update/gradient_norm")


def curve(directory: Path) -> list[list[float]]:
    """Reward, loss and gradient of every update; 0 where there was nothing to learn."""
    return [[row["step"], *(row.get(name, 0.0) for name in CURVE)] for row in read_metrics(directory)]


def drilled(out: Path, overrides: list[str], bucket: Bucket | None = None) -> Counter[str]:
    """Kill a run at random moments until it has been killed often enough, then let it end; return what was in progress.

    With a bucket, every second machine that goes on has nothing of the run but what is there.
    """
    rng, found = random.Random(0), Counter[str]()
    environment, saving = (bucket.environment, bucket.saving) if bucket else ({}, None)

    def begun(number: int) -> Training:
        fresh = bucket is not None and number > 2 and number % 2 == 1
        if fresh:
            shutil.rmtree(out / "killed")
        return Training(out, "killed", overrides, environment, resume=fresh, saving=saving)

    for number in range(KILLS):
        training = begun(number)
        what = killed(training, MOMENTS[number % len(MOMENTS)], rng)
        assert what or training.end() == 0, training.log()
        if not what:
            break
        found[what] += 1
        print(f"kill {number + 1}: {what}, {len(read_metrics(training.directory))} updates written down", flush=True)
    last = begun(KILLS)
    assert last.end() == 0, last.log()
    return found


def ends(directory: Path) -> dict[str, float]:
    """How a curve ends: the mean reward of its second half, and how far all updates have moved the weights."""
    rewards = [row["rollout/reward"] for row in read_metrics(directory)]
    first, last = (load_file(place / "model.safetensors") for place in (POLICY, directory / "model"))
    moved = math.sqrt(sum(float(np.square(last[name] - first[name], dtype=np.float64).sum()) for name in first))
    return {"reward": statistics.mean(rewards[len(rewards) // 2 :]), "moved": moved}


def refuse_outside(out: Path, others: list[Training]) -> None:
    """Check that the killed run ended as runs of other seeds do that nobody killed: where one more of them is to be expected.

    The interval is that of prediction, at 99 %: t of n - 1 degrees of freedom, the mean of n and one more draw.
    """
    for other in others:
        assert other.end() == 0, other.log()
    found, all_ends = ends(out / "killed"), [ends(other.directory) for other in others]
    for name, value in found.items():
        values = [one[name] for one in all_ends]
        room = T99[len(values) - 1] * statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
        print(f"{name}: {value:.4f}; not killed: {', '.join(f'{one:.4f}' for one in values)}; room {room:.4f}")
        assert abs(value - statistics.mean(values)) <= room


def refuse_double(directory: Path) -> Counter[str]:
    """Check the books of a run whose epochs overlap: what its episodes tell was trained in which update is what its stream
    says of every question, epoch by epoch, and nothing was trained by weights more than one version newer than drew it.

    Returns:
        How many questions of the first epoch were trained, filtered and are still under way (one that is given back for its
        age is asked again behind others); together all of them.
    """
    state, went = stream(directory), trained(directory)
    named = {question for epoch in state["epochs"].values() for question in (*epoch["trained"], *epoch["in_flight"])} | set(
        went
    )
    named |= {question for names in state["filtered"].values() for question in names}
    assert len(named) == 40
    first = state["epochs"].get("0", {})
    late = {question for name in ("in_flight", "returned") for question in first.get(name, ())}
    assert len(late) <= 2, "more of the first epoch is under way than one update takes"
    owed, filtered = Counter[str](), {int(epoch): set(names) for epoch, names in state["filtered"].items()}
    for epoch in range(state["latest"] + 1):
        still = state["epochs"].get(str(epoch))
        owed.update(still["trained"] if still else named - filtered.get(epoch, set()))
    assert {question: len(updates) for question, updates in went.items()} == +owed
    version, versions = 0, {}
    for row in read_metrics(directory):
        versions[row["step"]] = version
        version += "update/loss" in row
    for row in read_episodes(directory / "episodes.jsonl"):
        drew = [one for each in row["trajectories"] for part in each["segments"] for one in part.get("versions", ())]
        assert not row["rewards"] or min(drew) >= versions[row["step"]] - 1, row["id"]
    gone = filtered.get(0, set())
    done = set(first["trained"]) if first else named - gone
    assert done | gone | late == named, "a question of the first epoch was lost"
    return Counter(trained=len(done), filtered=len(gone), late=len(late))


def audit(out: Path, found: Counter[str]) -> None:
    """Check what became of every question and of the curve, beside a run that nobody killed."""
    went = trained(out / "killed")
    filtered = {name for names in stream(out / "killed")["filtered"].values() for name in names}
    assert len(went) + len(filtered - set(went)) == 40, "a question was lost"
    assert all(len(updates) == 1 for updates in went.values()), "a question was trained twice"
    assert went == trained(out / "whole")
    assert Counter(row["step"] for row in read_episodes(out / "killed" / "episodes.jsonl")) == dict.fromkeys(range(1, 21), 8)
    for one, other in zip(curve(out / "killed"), curve(out / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    print(f"killed {sum(found.values())} times: {dict(found)}; {len(went)} questions trained once, {len(filtered)} filtered")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_7_a_run_that_is_killed_at_random_trains_every_question_once_on_the_same_curve(tmp_path: Path) -> None:
    """Updates that drain make a run a function of its settings: its curve has to be the uninterrupted run's, every number."""
    steps = ["steps=20"]  # of two groups each: the 40 questions of one epoch
    found = drilled(tmp_path, steps)
    others = [Training(tmp_path, f"whole-{seed}", [*steps, f"seed={seed}"]) for seed in SEEDS]
    whole = Training(tmp_path, "whole", steps)
    assert whole.end() == 0, whole.log()
    assert found["update"], found
    assert found["checkpoint"], found
    audit(tmp_path, found)
    refuse_outside(tmp_path, others)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_7_the_same_with_groups_in_flight_across_updates(tmp_path: Path) -> None:
    """Which groups an update gets then depends on the clock: the books have to be in order, and the end is one among others."""
    steps = ["steps=24", "rollout.staleness=1", "loss.importance=truncated"]  # 48 groups: the first epoch's, and some more
    others = [Training(tmp_path, f"whole-{seed}", [*steps, f"seed={seed}"]) for seed in SEEDS]
    found = drilled(tmp_path, steps)
    assert found["update"], found
    assert found["checkpoint"], found
    books = refuse_double(tmp_path / "killed")
    resumed = sum(row.get("rollout/resumed_tokens", 0) for row in read_metrics(tmp_path / "killed"))
    assert resumed, "no unfinished episode went on where it was"
    print(f"{resumed:.0f} ids of unfinished episodes were not drawn again")
    print(f"killed {sum(found.values())} times: {dict(found)}; of the first epoch's questions {dict(books)}")
    for other in others:
        assert other.end() == 0, other.log()
        refuse_double(other.directory)
    refuse_outside(tmp_path, others)


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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_7_the_same_with_everything_in_a_bucket_that_fails_now_and_then(tmp_path: Path) -> None:
    with served(share=0.02) as bucket:
        found = drilled(tmp_path, ["steps=20", "checkpoint.directory=gs://runs/killed/checkpoints"], bucket)
        assert bucket.answered[503] > 0
        print(f"the bucket answered {bucket.answered[0]} requests and failed {bucket.answered[503]}")
    whole = Training(tmp_path, "whole", ["steps=20"])
    assert whole.end() == 0, whole.log()
    audit(tmp_path, found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_run_does_not_wait_for_a_slow_bucket(tmp_path: Path) -> None:
    place = ["steps=50", "checkpoint.directory=gs://runs/told/checkpoints"]
    with served() as bucket:
        training = Training(tmp_path, "told", place, bucket.environment)
        assert training.reach("update", 3), training.log()
        bucket.seconds = 3.0
        start = time.monotonic()
        training.process.send_signal(signal.SIGTERM)
        assert training.end() == 130, training.log()
        took = time.monotonic() - start
        bucket.seconds = 0.0
        again = Training(tmp_path, "told", place, bucket.environment)
        assert again.reach("update", 1), again.log()
        again.kill()
    print(f"gone after {took:.1f} s with a bucket that takes 3 s for every answer")
    assert took < 20
