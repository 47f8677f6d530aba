"""A checkpoint of one mesh is gone on from on another: eight devices, then four, then one."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dr_jax.learn.advantage import centered
from dr_jax.learn.batch import BatchSettings, pack
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import State, begin, make_update, through
from dr_jax.model.decoder import describe, initial
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_rows, place_weights
from dr_jax.train.checkpoint import Checkpoints
from tests.learn.episodes import episode, group

SIZES = Sizes(vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ff=32, qk_norm=True)
AXES = {name: spec.axes for name, spec in describe(SIZES).items()}
OPTIMIZER = make_optimizer(OptimizerSettings(learning_rate=0.01, eps=1e-3), AXES, steps=10)
LOSS = LossSettings(kl="none")
GROUPS = [group(episode("wwppwp", reward=1.0, vocabulary=31), episode("wwppp", reward=0.0, vocabulary=31))]


def state_on(mesh: jax.sharding.Mesh) -> State:
    weights = jax.jit(lambda key: initial(SIZES, key))(jax.random.key(0))
    return begin(place_weights(weights, describe(SIZES), mesh), OPTIMIZER)


def updated(state: State, mesh: jax.sharding.Mesh) -> tuple[State, dict[str, float]]:
    batches = [place_rows(one, mesh) for one in pack(GROUPS, BatchSettings(rows=8, lengths=(16,)), advantage=centered)]
    return make_update(through(SIZES), LOSS, OPTIMIZER, state)(state, batches)


@pytest.mark.parametrize(
    "made_on", [pytest.param(MeshSettings(fsdp=8), marks=pytest.mark.slow), MeshSettings(data=2, fsdp=2, tensor=2)]
)
def test_a_checkpoint_of_eight_devices_is_restored_on_four_and_on_one(tmp_path: Path, made_on: MeshSettings) -> None:
    eight = make_mesh(made_on)
    state, _ = updated(state_on(eight), eight)
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, state, {"noted": [1, 2]})
    kept.wait()
    after, stats = updated(state, eight)
    for count, settings in ((4, MeshSettings(fsdp=2, tensor=2)), (1, MeshSettings())):
        mesh = make_mesh(settings, jax.devices()[:count])
        found = kept.restore(state_on(mesh))
        assert found is not None
        restored, host = found
        assert host["noted"] == [1, 2]
        for name, weight in restored.weights.items():
            assert weight.sharding.device_set == set(jax.devices()[:count]), name
        part = restored.weights["layers.up"].sharding.shard_shape((2, 16, 32))
        assert part == ((2, 8, 16) if count == 4 else (2, 16, 32))
        again, numbers = updated(restored, mesh)
        assert int(again.step) == 2
        assert numbers["update/loss"] == pytest.approx(stats["update/loss"], abs=1e-6)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    kept.close()
