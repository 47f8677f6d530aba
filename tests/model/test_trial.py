"""Kernels are tried before they are used, and left where they fail or are wrong."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model import trial
from dr_jax.sharding.mesh import MeshSettings, make_mesh

NUMBERS = (np.asarray([1.0, 2.0, 4.0], np.float32),)


def twice(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 2 * x, jnp.sum(x)


def nearly(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 2 * x * jnp.float32(1.01), jnp.sum(x)


def wrong(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 2 * x, jnp.sum(x) * jnp.float32(1.05)


def nothing(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 2 * x, jnp.sum(x) * jnp.float32(np.nan)


def broken(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    raise NotImplementedError("not on this device\nat all")


@pytest.mark.usefixtures("plain_log")
def test_what_is_wrong_or_fails_is_left_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    functions = {"plain": twice, "nearly": nearly, "wrong": wrong, "nothing": nothing, "broken": broken}
    trial.say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        found = trial.timed(functions, NUMBERS, "doubling")
        assert trial.timed(functions, NUMBERS, "doubling").keys() == found.keys()
    assert set(found) == {"plain", "nearly"}
    assert all(seconds > 0 for seconds in found.values())
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "'wrong' is not used for doubling: it is off by 0.05 of the largest value",
        "'nothing' is not used for doubling: it is off by inf of the largest value",
        "'broken' cannot be used for doubling: NotImplementedError: not on this device",
    ]


def test_the_fastest_is_taken_or_the_first_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"a": twice, "b": twice}
    for seconds, raced, first in (
        ({"plain": 3.0, "a": 2.0, "b": 1.0}, "b", "a"),
        ({"plain": 1.0, "b": 2.0}, "plain", "b"),
        ({"plain": 1.0}, "plain", "plain"),
    ):
        monkeypatch.setattr(trial, "timed", lambda functions, arguments, what, seconds=seconds: seconds)
        assert trial.chosen(twice, kernels, NUMBERS, "doubling", race=True) == raced
        assert trial.chosen(twice, kernels, NUMBERS, "doubling", race=False) == first


def test_processes_choose_alike_whatever_they_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "timed", lambda functions, arguments, what: {"plain": 1.0, "a": 3.0, "b": 2.0})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert trial.chosen(twice, {"a": twice, "b": twice}, NUMBERS, "doubling", race=True) == "a"


def test_a_trial_inside_a_program_that_is_being_traced_is_not_part_of_it() -> None:
    def traced(x: jax.Array) -> jax.Array:
        return x if trial.chosen(twice, {"wrong": wrong}, NUMBERS, "doubling", race=True) == "plain" else -x

    mesh = make_mesh(MeshSettings(data=2, fsdp=1), jax.devices()[:2])
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(jax.shard_map(traced, in_specs=jax.P("data"), out_specs=jax.P("data")))(jnp.ones(2))
    assert "mul" not in str(jaxpr)
