import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import begin
from dr_jax.model.decoder import describe
from dr_jax.model.load import load
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.train.checkpoint import Checkpoints
from dr_jax.train.saved import saved


@pytest.fixture
def run(policy_directory: Path, tmp_path: Path) -> Path:
    """A run with two checkpoints whose weights are all 1 and all 2."""
    sizes, weights = load(policy_directory)
    axes = {name: spec.axes for name, spec in describe(sizes).items()}
    optimizer = make_optimizer(OptimizerSettings(), axes, steps=2)
    kept = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    for step in (1, 2):
        filled = {name: weight * 0 + float(step) for name, weight in weights.items()}
        kept.save(step, begin(filled, optimizer), {"progress": {}})
    kept.close()
    config = {"model": {"load": str(policy_directory)}, "checkpoint": {"directory": ""}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def test_a_run_is_a_model_with_the_weights_of_its_newest_checkpoint_or_of_a_step(run: Path, policy_directory: Path) -> None:
    before = sorted(str(path) for path in run.rglob("*"))
    for name, value in ((run, 2.0), (run / "checkpoints", 2.0), (run / "checkpoints" / "1", 1.0)):
        found = saved(str(name))
        assert found is not None
        assert found.base == str(policy_directory)
        sizes, weights = found.read(mesh=make_mesh(MeshSettings()))
        assert sizes == load(policy_directory)[0]
        assert {float(one) for weight in weights.values() for one in np.unique(jax.device_get(weight))} == {value}
    assert sorted(str(path) for path in run.rglob("*")) == before  # nothing was written


def test_what_is_no_run_is_a_model(policy_directory: Path) -> None:
    assert saved(str(policy_directory)) is None
    assert saved("smollm2") is None
    assert saved("") is None


def test_what_cannot_be_read_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        saved(str(run / "checkpoints" / "7"))
    mesh = make_mesh(MeshSettings())
    found = saved(str(run))
    assert found is not None
    host = run / "checkpoints" / "2" / "host" / "metadata"
    told = json.loads(host.read_text())
    told["model"]["embed"] = [1, 1]
    host.write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"another model than .*: embed has shape \(1, 1\)"):
        found.read(mesh=mesh)
    host.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        found.read(mesh=mesh)
    (run / "config.json").write_text(json.dumps({"model": {"load": "x"}, "checkpoint": {"directory": str(tmp_path / "none")}}))
    with pytest.raises(CheckpointError, match="a run that was saved"):
        saved(str(run))
