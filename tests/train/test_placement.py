"""Engine and update on devices of their own: of the eight that the tests have."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.train.actor import load_actor
from dr_jax.train.loop import train
from dr_jax.train.placement import place
from dr_jax.train.report import read_metrics
from dr_jax.train.settings import Settings


def apart(settings: Settings, devices: int, data: int, fsdp: int, rows: int = 12) -> Settings:
    return dataclasses.replace(
        settings,
        rollout=dataclasses.replace(settings.rollout, devices=devices, staleness=1, in_flight=8),
        mesh=dataclasses.replace(settings.mesh, data=data, fsdp=fsdp),
        batch=dataclasses.replace(settings.batch, rows=rows),
        steps=3,
    )


def silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing."""


def test_the_last_devices_sample_and_the_others_learn(settings: Settings) -> None:
    actor = load_actor(apart(settings, 2, 3, 2), Metrics())
    assert actor.placement.apart
    assert [device.id for device in actor.mesh.devices.flat] == [0, 1, 2, 3, 4, 5]
    assert {device.id for weight in actor.weights.values() for device in weight.devices()} == {0, 1, 2, 3, 4, 5}
    lent = actor.lent(actor.weights, "bfloat16")
    assert {device.id for weight in lent.values() for device in weight.devices()} == {6, 7}
    for name, weight in lent.items():
        np.testing.assert_array_equal(weight, np.asarray(actor.weights[name]).astype("bfloat16"), err_msg=name)
    shared = load_actor(settings, Metrics())
    assert not shared.placement.apart


async def test_weights_go_from_those_that_learn_to_those_that_sample(settings: Settings, tmp_path: Path) -> None:
    summary = await train(apart(settings, 2, 3, 2), told=silent)
    assert summary["steps"] == 3
    assert summary["mismatch_max"] <= 1e-3  # the gate: tokens of each version were drawn with that version's weights
    rows = read_metrics(tmp_path / "run")
    assert max(row["update/mismatch_max"] for row in rows) > 0, "nothing was on-policy"
    assert any(row["update/step_norm"] > 1e-4 for row in rows[:-1]), "the weights did not move"


def test_what_cannot_be_divided_is_said(settings: Settings) -> None:
    count = len(jax.devices())
    with pytest.raises(ConfigError, match=rf"rollout.devices = {count} leaves none of {count} cpu.*at most 7.*devices=4"):
        place(apart(settings, count, 1, -1))
    with pytest.raises(ConfigError, match=r"mesh data 5 .* does not divide 6"):
        place(apart(settings, 2, 5, 2))
    with pytest.raises(ConfigError, match=r"cannot be split over rollout.devices = 4: .*its 2 heads.*change rollout.devices"):
        load_actor(apart(settings, 4, 1, 4, rows=8), Metrics())
    with pytest.raises(ValueError, match="devices of at least 0"):
        dataclasses.replace(settings.rollout, devices=-1)
