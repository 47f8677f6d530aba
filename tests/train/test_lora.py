"""Runs that train adapters beside a model that stays as it is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dr_jax.base.config import read
from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.model import hf
from dr_jax.model.lora import LoraSettings
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.train.cold_start import cold_start
from dr_jax.train.loop import train
from dr_jax.train.plan import memory
from dr_jax.train.report import read_metrics
from dr_jax.train.saved import saved
from dr_jax.train.settings import Settings


def silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing."""


@pytest.fixture
def adapted(settings: Settings) -> Settings:
    return dataclasses.replace(settings, lora=LoraSettings(rank=2, targets=("query", "value", "down")))


async def test_a_run_of_adapters_is_saved_goes_on_and_is_a_model(
    adapted: Settings, policy_directory: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    before = load_file(policy_directory / "model.safetensors")
    await train(dataclasses.replace(adapted, steps=1), told=silent)
    host = json.loads((run / "checkpoints" / "1" / "host" / "metadata").read_text())
    assert set(host["model"]) == {f"layers.{name}.lora_{half}" for name in ("query", "value", "down") for half in "ab"}
    assert host["base"].startswith(f"{policy_directory}, weights ")
    small, whole = (sum(file.stat().st_size for file in place.rglob("*")) for place in (run / "checkpoints", policy_directory))
    assert small < whole

    summary = await train(dataclasses.replace(adapted, steps=2), resume=True, told=silent)
    assert summary["steps"] == 2
    assert summary["mismatch_max"] <= 1e-3  # the engine samples from merged weights, the trainer computes beside them
    written, adapter = load_file(run / "model" / "model.safetensors"), load_file(run / "adapter" / "adapter_model.safetensors")
    for name, weight in before.items():
        moved = any(part in name for part in ("q_proj", "v_proj", "down_proj"))
        assert (np.abs(written[name] - weight).max() > 1e-4) == moved, name
        if moved:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            added = 16.0 * adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
            np.testing.assert_allclose(written[name], weight + added, atol=1e-5)
    found = saved(str(run))
    assert found is not None
    _, weights = found.read(mesh=make_mesh(MeshSettings()))
    for name, weight in hf.read(run / "model")[1].items():
        np.testing.assert_allclose(weights[name], weight, atol=1e-6)

    other = dataclasses.replace(adapted, steps=3, lora=dataclasses.replace(adapted.lora, alpha=1.0))
    with pytest.raises(CheckpointError, match=r"belong to .*alpha 32. Needed: .*alpha 1.*set model.load and lora as"):
        await train(other, resume=True, told=silent)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_adapters_learn(adapted: Settings, policy_directory: Path, tmp_path: Path) -> None:
    """Of a base whose embedding is ten times as large: a fresh one's head is so even that the layers cannot tip it."""
    sizes, weights = hf.read(policy_directory)
    hf.write(tmp_path / "base", sizes, weights | {"embed": np.float32(10) * weights["embed"]}, tokenizer_dir=policy_directory)
    long = dataclasses.replace(
        adapted,
        steps=25,
        model=dataclasses.replace(adapted.model, load=str(tmp_path / "base")),
        data=dataclasses.replace(adapted.data, questions=400),
        rollout=dataclasses.replace(adapted.rollout, groups=4, group_size=4),
        lora=LoraSettings(rank=4),
    )
    await train(long, told=silent)
    rewards = [row["rollout/reward"] for row in read_metrics(tmp_path / "run")]
    print(f"reward of the first five updates {np.mean(rewards[:5]):.3f}, of the last five {np.mean(rewards[-5:]):.3f}")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.5


def test_memory_of_adapters_is_small(adapted: Settings, policy_directory: Path) -> None:
    sizes = hf.read(policy_directory)[0]
    whole, parts = memory(dataclasses.replace(adapted, lora=LoraSettings()), sizes), memory(adapted, sizes)
    assert parts["optimizer"] < whole["optimizer"] / 4
    assert parts["gradients"] < whole["gradients"] / 4
    assert parts["reference"] == 0


def test_what_adapters_do_not_go_with(adapted: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"muon orthogonalises whole matrices .*adamw is needed"):
        read(Settings, None, ["lora.rank=2", "optimizer.name=muon"])
    with pytest.raises(ConfigError, match=r"lora.rank has no model to stand beside"):
        cold_start(adapted, tmp_path, progress=lambda step, numbers: None)
