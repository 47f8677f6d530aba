import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dr_jax.base.errors import CheckpointError, ConfigError, MismatchError
from dr_jax.model import hf
from dr_jax.model.decoder import initial
from dr_jax.rollout.record import read_episodes
from dr_jax.rollout.underway import Flight
from dr_jax.tokens import vocabulary
from dr_jax.tokens.policy import Begun
from dr_jax.train.checkpoint import Checkpoints
from dr_jax.train.loop import refuse_mismatch, train
from dr_jax.train.report import read_metrics
from dr_jax.train.settings import Settings
from tests.fakes import small_tokenizer
from tests.train import parts


def silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing."""


CURVE = ("rollout/reward", "update/loss", "update/gradient_norm")


def episodes_of(directory: Path) -> Counter[int]:
    """How many episodes were written down for each update."""
    return Counter(row["step"] for row in read_episodes(directory / "episodes.jsonl"))


def ids_of(directory: Path) -> dict[str, list[Any]]:
    """What every episode consists of, and which versions drew it."""
    rows = read_episodes(directory / "episodes.jsonl")
    return {
        row["id"]: [(part["ids"], part.get("versions")) for one in row["trajectories"] for part in one["segments"]]
        for row in rows
    }


def drawn_of(directory: Path) -> int:
    """How many ids the policy has drawn for the episodes that were trained on."""
    return sum(len(versions or ()) for parts in ids_of(directory).values() for _, versions in parts)


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what dr_jax logs."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, root = Kept(), logging.getLogger("dr_jax")
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)


def curve(directory: Path) -> list[list[float]]:
    return [[row["step"], *(row[name] for name in CURVE)] for row in read_metrics(directory)]


async def test_a_run_writes_what_it_promises_and_resumes_on_the_same_curve(settings: Settings, tmp_path: Path) -> None:
    summary = await train(settings, told=silent)
    whole = tmp_path / "run"
    written = {path.name for path in whole.iterdir()}
    promised = {"config.json", "metrics.jsonl", "episodes.jsonl", "checkpoints", "model", "curve.png", "summary.json"}
    assert promised <= written
    assert json.loads((whole / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert set(summary) >= {"eval", "steps", "wall_s", "mismatch_max"}
    assert summary["steps"] == 4
    assert summary["mismatch_max"] <= 1e-3
    assert set(summary["eval"]["before"]) >= {"f1", "n", "ci95"}
    assert summary["eval"]["after"]["n"] == 3

    short = dataclasses.replace(settings, name="half", steps=2)
    await train(short, told=silent)
    await train(dataclasses.replace(short, steps=4), resume=True, told=silent)
    assert [row[0] for row in curve(whole)] == [1, 2, 3, 4]
    np.testing.assert_allclose(curve(tmp_path / "half"), curve(whole), rtol=1e-5)

    trained = [(row["step"], row["question_id"]) for row in read_episodes(tmp_path / "half" / "episodes.jsonl")]
    questions = {step: {question for at, question in trained if at == step} for step in range(1, 5)}
    assert len(trained) == 4 * 2 * 2
    assert sum(map(len, questions.values())) == len(set.union(*questions.values())), "invariant 7: a question was trained twice"


async def test_what_is_interrupted_is_saved_and_goes_on(settings: Settings, tmp_path: Path) -> None:
    def stop_after_two(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
        if phase == "step" and index == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = asyncio.all_tasks()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(train(settings, told=stop_after_two))
    assert asyncio.all_tasks() == before
    summary = await train(settings, resume=True, told=silent)
    assert summary["steps"] == 4
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


async def test_an_update_that_is_interrupted_is_kept_with_its_row_and_its_episodes(settings: Settings, tmp_path: Path) -> None:
    interrupted = dataclasses.replace(settings, advantage="tests.train.parts:interrupted")
    parts.CALLS.clear()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(train(interrupted, told=silent))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    assert episodes_of(tmp_path / "run") == {1: 4, 2: 4}
    await train(interrupted, resume=True, told=silent)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert episodes_of(tmp_path / "run") == {1: 4, 2: 4, 3: 4, 4: 4}


async def test_what_was_finished_and_measured_before_an_interruption_is_not_done_again(
    settings: Settings, tmp_path: Path
) -> None:
    one_by_one = dataclasses.replace(
        settings,
        rollout=dataclasses.replace(settings.rollout, in_flight=2),  # one group at a time
        reward=dataclasses.replace(settings.reward, parts={"tests.train.parts:counted": 1.0}),
    )
    parts.EPISODES.clear()
    with pytest.raises(asyncio.CancelledError):  # in the second update's second group
        await asyncio.create_task(train(one_by_one, told=silent))
    noted = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert noted["progress"]["step"] == 1
    assert noted["waiting"]
    kept = sum(len(json.loads(group)["episodes"]) for group in noted["waiting"])
    kept += sum(len(json.loads(group)["ended"]) for group in noted["left"])
    assert kept == len(parts.EPISODES) - 4 >= 3, "of the second update; the first took four"
    phases: list[str] = []
    await train(one_by_one, resume=True, told=lambda phase, index, _: phases.append(f"{phase} {index}"))
    assert "eval 0" not in phases
    assert len(parts.EPISODES) == 16
    again = dataclasses.replace(one_by_one, name="whole")
    await train(again, told=silent)
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-5)


async def test_ids_that_were_drawn_of_a_turn_before_an_interruption_are_not_drawn_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tell = Counter[str](), Flight.tell

    def counting(flight: Flight, sibling: int, more: Begun) -> None:
        tell(flight, sibling, more)
        told.update(times=1, ids=len(more.ids))
        if told["times"] == 20:  # in the second update: an episode of it is one turn, told of four times
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Flight, "tell", counting)
    settings = dataclasses.replace(settings, engine=dataclasses.replace(settings.engine, tokens_per_call=4))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(train(settings, told=silent))
    noted = json.loads((tmp_path / "run" / "progress.json").read_text())
    begun = sum(len(one["begun"]["ids"]) for group in noted["left"] for one in json.loads(group)["left"])
    assert begun, "it was not interrupted in the middle of a turn"
    before, told["ids"] = drawn_of(tmp_path / "run") + begun, 0
    await train(settings, resume=True, told=silent)
    assert read_metrics(tmp_path / "run")[1]["rollout/resumed_tokens"] == begun
    after = told["ids"]
    await train(dataclasses.replace(settings, name="whole"), told=silent)
    assert before + after == drawn_of(tmp_path / "whole")
    assert ids_of(tmp_path / "run") == ids_of(tmp_path / "whole")
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-5)


async def test_a_checkpoint_of_another_version_is_told_from_a_broken_one(settings: Settings, tmp_path: Path) -> None:
    short = dataclasses.replace(settings, steps=1)
    await train(short, told=silent)
    path = tmp_path / "run" / "checkpoints" / "1" / "host" / "metadata"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "left"}))
    (tmp_path / "run" / "progress.json").unlink()
    with pytest.raises(CheckpointError, match=r"of step 1 cannot be read: KeyError\('left'\).*version of dr_jax wrote"):
        await train(dataclasses.replace(short, steps=2), resume=True, told=silent)


async def test_episodes_go_on_while_a_checkpoint_waits_for_its_place(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, save, seen = [0], Checkpoints.save, list[int]()

    def slow(self: Checkpoints, step: int, *rest: Any) -> None:
        before = ticks[0]
        time.sleep(0.5)
        seen.append(ticks[0] - before)
        save(self, step, *rest)

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.01)
            ticks[0] += 1

    monkeypatch.setattr(Checkpoints, "save", slow)
    ticking = asyncio.create_task(tick())
    await train(settings, told=silent)
    ticking.cancel()
    assert len(seen) == 3, "after the second update, the fourth, and at the end"
    assert min(seen[:2]) > 3


async def test_what_was_spent_stays_spent(settings: Settings, tmp_path: Path) -> None:
    """A run that goes back to an earlier checkpoint, or to none, has not got its money back."""
    dear = dataclasses.replace(settings, steps=1, checkpoint=dataclasses.replace(settings.checkpoint, every=0))
    await train(dear, told=silent)
    path = tmp_path / "run" / "progress.json"
    noted = json.loads(path.read_text())
    noted["spent"]["money"] = 12.5
    noted["progress"]["step"] = 7
    path.write_text(json.dumps(noted))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    phases: list[str] = []
    await train(dear, resume=True, told=lambda phase, index, _: phases.append(f"{phase} {index}"))
    assert json.loads(path.read_text())["spent"]["money"] == 12.5
    assert "eval 0" not in phases
    assert "step 1" in phases


def tear(checkpoint: Path) -> None:
    for file in checkpoint.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x00 torn")


async def test_a_corrupt_checkpoint_falls_back_to_the_one_before(settings: Settings, tmp_path: Path) -> None:
    await train(settings, told=silent)
    checkpoints = tmp_path / "run" / "checkpoints"
    tear(checkpoints / "4")
    steps: list[int] = []
    with logged() as said:
        await train(settings, resume=True, told=lambda phase, index, _: steps.append(index) if phase == "step" else None)
    assert steps == [3, 4]
    assert [line for line in said if "checkpoints/4 cannot be read, trying the one before it" in line]
    assert {path.name for path in checkpoints.iterdir()} == {"2", "4", "4.unreadable"}
    assert episodes_of(tmp_path / "run") == {1: 4, 2: 4, 3: 4, 4: 4}
    for name in ("2", "4"):
        tear(checkpoints / name)
    with pytest.raises(CheckpointError, match=r"None of the checkpoints in .* can be read \(4: .*; 2: "):
        await train(settings, resume=True, told=silent)


async def test_a_checkpoint_of_another_model_is_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    await train(dataclasses.replace(settings, steps=2), told=silent)
    sizes = dataclasses.replace(hf.read(settings.model.load)[0], ff=32)
    hf.write(tmp_path / "other", sizes, initial(sizes, jax.random.key(0)))
    vocabulary.save(small_tokenizer(), tmp_path / "other")
    other = dataclasses.replace(settings, model=dataclasses.replace(settings.model, load=str(tmp_path / "other")))
    with pytest.raises(CheckpointError, match=r"another model: \S+ has shape \[.*64.*Needed: shape \[.*32"):
        await train(other, resume=True, told=silent)


def overlapped(settings: Settings, **options: Any) -> Settings:
    """Keep episodes in flight across updates, twice as many as an update needs."""
    given = {"staleness": 1, "in_flight": 8} | options
    return dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, **given))


async def test_9_no_trained_token_is_older_than_the_bound(settings: Settings, tmp_path: Path) -> None:
    await train(overlapped(settings), told=silent)
    versions = set()
    for row in read_episodes(tmp_path / "run" / "episodes.jsonl"):
        segments = [segment for one in row["trajectories"] for segment in one["segments"] if segment["author"] == "policy"]
        assert all(row["step"] - 1 - version <= 1 for segment in segments for version in segment["versions"])
        versions |= {row["step"] - 1 - version for segment in segments for version in segment["versions"]}
    assert versions == {0, 1}, "nothing went on across an update"


async def test_episodes_begin_and_end_while_an_update_is_computed(settings: Settings) -> None:
    parts.ENDED.clear()
    parts.MEANWHILE.clear()
    reward = dataclasses.replace(settings.reward, parts={"tests.train.parts:noted": 1.0})
    wide = overlapped(settings, staleness=3)  # eight groups may be under way, complete, or being learned from
    await train(dataclasses.replace(wide, steps=1, advantage="tests.train.parts:slow", reward=reward), told=silent)
    # Two groups of two were under way beside those that are learned from: the fifth episode began with the update or during it.
    assert parts.MEANWHILE[0] >= 5


async def test_7_what_is_in_flight_across_updates_is_neither_lost_nor_trained_twice(settings: Settings, tmp_path: Path) -> None:
    few = dataclasses.replace(overlapped(settings, spare=1), data=dataclasses.replace(settings.data, questions=12), steps=6)

    def stop_after(last: int) -> Any:
        def told(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
            if phase == "step" and index == last:
                os.kill(os.getpid(), signal.SIGTERM)

        return told

    before = asyncio.all_tasks()
    for last in (1, 2, 4):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(train(few, resume=last > 1, told=stop_after(last)))
        assert asyncio.all_tasks() == before
    await train(few, resume=True, told=silent)
    rows = list(read_episodes(tmp_path / "run" / "episodes.jsonl"))
    assert Counter(row["step"] for row in rows) == dict.fromkeys(range(1, 7), 4)
    asked = Counter(row["question_id"] for row in rows)
    assert len(asked) == 12, "a question was lost"
    assert set(asked.values()) == {2}, "a question was trained twice"


async def test_an_earlier_run_of_the_same_name_is_moved_aside(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="no run in"):
        await train(settings, resume=True, told=silent)
    short = dataclasses.replace(settings, steps=0, eval=dataclasses.replace(settings.eval, questions=1))
    await train(short, told=silent)
    assert (tmp_path / "run.1" / "summary.json").read_text() == "{}"


@pytest.mark.parametrize("found", [0.5, float("nan")])
def test_a_mismatch_stops_the_run(settings: Settings, found: float) -> None:
    refuse_mismatch(settings, 1, 1e-4)
    with pytest.raises(MismatchError, match="At update 3 engine and trainer differ"):
        refuse_mismatch(settings, 3, found)


async def test_a_mismatch_leaves_and_saves_the_weights_of_before(settings: Settings, tmp_path: Path) -> None:
    strict = dataclasses.replace(settings, mismatch_gate=1e-30)
    with pytest.raises(MismatchError, match="At update 1 engine and trainer differ"):
        await train(strict, told=silent)
    assert read_metrics(tmp_path / "run") == []
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    await train(dataclasses.replace(settings, steps=1), told=silent)
    with pytest.raises(MismatchError, match="At update 2"):
        await train(dataclasses.replace(strict, steps=2), resume=True, told=silent)
    summary = await train(dataclasses.replace(settings, steps=2), resume=True, told=silent)
    await train(dataclasses.replace(settings, name="whole", steps=2), told=silent)
    assert summary["steps"] == 2
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-5)
