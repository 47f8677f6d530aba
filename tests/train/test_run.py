"""The parts of a run where they meet: an engine that dies under an update, groups of before a resume, settings."""

import dataclasses
import threading
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dr_jax.base.metrics import Metrics
from dr_jax.engine.engine import EngineStoppedError
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.tokens.trajectory import Author, Episode, Group, Outcome, Segment, Trajectory, world
from dr_jax.train import state as states
from dr_jax.train.loop import _loop
from dr_jax.train.report import Report, read_metrics
from dr_jax.train.run import Run, opened
from dr_jax.train.settings import RolloutSettings, Settings
from dr_jax.train.state import Progress


def silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing."""


async def trained(run: Run, directory: Path, done: Progress) -> None:
    """Do what `train` does with an open run."""
    decode, keep = run.actor.chat.tokenizer.decode, done.step + 1
    with (
        Report(directory, keep_below=keep) as report,
        EpisodeWriter(directory / "episodes.jsonl", decode, keep_below=keep) as all_,
    ):
        run.warm_up(lambda *_: None)
        await _loop(run, done, report, all_, silent)


async def test_7_an_update_whose_engine_died_meanwhile_is_not_made_twice(settings: Settings, tmp_path: Path) -> None:
    settings, directory, done = dataclasses.replace(settings, steps=2), tmp_path / "died", Progress()
    directory.mkdir()
    async with opened(settings, Metrics(), silent) as run:
        run.write_to(directory, resume=False)
        update, engine = run.update, run.actor.engine

        def last(*given: Any, **named: Any) -> Any:
            found = update(*given, **named)
            threading.Thread(target=engine.close).start()
            while not engine._closing:
                pass
            return found

        run.update = last
        with pytest.raises(EngineStoppedError):
            await trained(run, directory, done)
    assert (done.step, run.version) == (1, 1)
    assert [row["step"] for row in read_metrics(directory)] == [1]
    learned = set(run.stream.state()["epochs"]["0"]["trained"])
    assert len(learned) == settings.rollout.groups

    async with opened(settings, Metrics(), silent) as run:
        run.write_to(directory, resume=True)
        resumed = states.restore(run)
        await trained(run, directory, resumed)
    assert (resumed.step, run.version, run.actor.engine.version) == (2, 2, 2)
    assert [row["step"] for row in read_metrics(directory)] == [1, 2]
    assert len(set(run.stream.state()["epochs"]["0"]["trained"])) == 2 * settings.rollout.groups


def said(question_id: str, version: int) -> Group:
    """Two siblings of whom each said one token with the weights of a version."""
    spoken = Trajectory((world([1]), Segment(Author.POLICY, (7,), (-0.5,), (version,))))
    ended = [Episode(f"{question_id}.{n}", question_id, (spoken,), Outcome.ANSWERED, answer="x") for n in range(2)]
    return Group(question_id, tuple(one.rewarded({"f1": float(number)}) for number, one in enumerate(ended)))


async def test_9_what_waited_from_before_a_resume_is_held_to_the_bound_of_now(settings: Settings) -> None:
    async with opened(settings, Metrics(), silent) as run:
        assert settings.rollout.drains
        run.warm_up(lambda *_: None)
        run.state = dataclasses.replace(run.state, step=jax.device_put(jnp.int32(3), run.state.step.sharding))
        run.adopt()
        old, new = (run.stream.next().question.id for _ in range(2))
        run.harvest.waiting[:] = [said(old, 2), said(new, 3)]
        async with aclosing(run.groups()) as collected:
            groups = await anext(collected)
        assert new in {group.question_id for group in groups}
        assert {group.oldest_version for group in groups} == {3}
        assert run.stream.state()["epochs"]["0"]["returned"] == [old]
        assert run.metrics.drain()["rollout/stale_groups"] == 1


async def test_weights_that_did_not_change_are_not_handed_over(settings: Settings) -> None:
    async with opened(settings, Metrics(), silent) as run:
        run.warm_up(lambda *_: None)
        before = run.actor.engine._device.weights
        run.adopt()
        with run.actor.engine.paused():
            assert run.actor.engine._device.weights is before
        run.state = dataclasses.replace(run.state, step=run.state.step + 1)
        run.adopt()
        with run.actor.engine.paused():
            assert run.actor.engine._device.weights is not before
            assert run.actor.engine.version == 1


async def test_the_first_weights_are_kept_only_where_something_is_compared_with_them(settings: Settings) -> None:
    compared = dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, kl="k3"))
    for one, gone in ((settings, True), (compared, False)):
        async with opened(one, Metrics(), silent) as run:
            assert {weight.is_deleted() for weight in run.actor.weights.values()} == {gone}
            assert not any(weight.is_deleted() for weight in run.state.weights.values())


def test_what_settings_of_a_rollout_mean_together() -> None:
    drained = RolloutSettings(groups=4, group_size=6)
    assert (drained.at_once, drained.most, drained.drains) == (4, 4, True)
    overlapped = RolloutSettings(groups=4, group_size=6, spare=2, staleness=2)
    assert (overlapped.at_once, overlapped.most, overlapped.drains) == (12, 12, False)
    racing = RolloutSettings(groups=4, group_size=6, in_flight=48)
    assert (racing.at_once, racing.most, racing.drains) == (8, 8, False)
    with pytest.raises(
        ValueError, match=r"in_flight = 7 is less than the 8 siblings of one group .*at least 8 are needed, or 0"
    ):
        RolloutSettings(groups=4, group_size=6, spare=2, in_flight=7)
    for name in ("spare", "in_flight", "staleness"):
        with pytest.raises(ValueError, match=f"{name}=-1.* of at least 0 are needed"):
            RolloutSettings(**{name: -1})
