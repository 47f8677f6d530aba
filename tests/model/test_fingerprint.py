import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dr_jax.model.fingerprint import fingerprint
from dr_jax.sharding.mesh import MeshSettings, make_mesh

WEIGHTS = {"a": jnp.arange(32, dtype=jnp.float32).reshape(8, 4), "b": jnp.ones((3,), jnp.bfloat16)}


def test_any_change_shows() -> None:
    ours = fingerprint(WEIGHTS)
    assert ours == fingerprint(dict(reversed(WEIGHTS.items())))
    a = np.asarray(WEIGHTS["a"])
    swapped, rolled = a[[1, 0, *range(2, 8)]], np.roll(a, 1)
    changed = a.copy()
    changed[3, 2] = np.nextafter(changed[3, 2], np.float32(9999))
    others = [{**WEIGHTS, "a": jnp.asarray(one)} for one in (swapped, rolled, changed, -a, a.T, a.reshape(4, 8))]
    others += [{**WEIGHTS, "b": jnp.ones((3,), jnp.float32)}, {"a": WEIGHTS["a"]}, {"c": WEIGHTS["a"], "b": WEIGHTS["b"]}]
    assert len({ours, *map(fingerprint, others)}) == 1 + len(others)


def test_where_the_weights_lie_does_not() -> None:
    mesh = make_mesh(MeshSettings())
    axis = mesh.axis_names[0]
    spread = jax.device_put(WEIGHTS["a"], NamedSharding(mesh, PartitionSpec(axis if 8 % mesh.shape[axis] == 0 else None)))
    assert fingerprint({**WEIGHTS, "a": spread}) == fingerprint(WEIGHTS)
