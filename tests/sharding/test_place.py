from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dr_jax.base.errors import CapacityError
from dr_jax.sharding import hosts, rules
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_rows, place_weights, row_ways


@dataclass(frozen=True)
class Spec:
    shape: tuple[int, ...]
    axes: tuple[str, ...]


def test_the_table() -> None:
    assert rules.spec(("layer", "width", "heads", "channels")) == PartitionSpec(None, ("fsdp",), ("tensor",), None)
    assert rules.spec(("row",)) == PartitionSpec(("sequence", "data", "fsdp"))


def test_weights_lie_where_the_table_says() -> None:
    mesh = make_mesh(MeshSettings(2, 2, 2))
    described = {"up": Spec((3, 8, 12), ("layer", "width", "ff")), "norm": Spec((8,), ("gain",))}
    weights = {name: np.arange(np.prod(spec.shape), dtype=np.float32).reshape(spec.shape) for name, spec in described.items()}
    placed = place_weights(weights, described, mesh)
    assert placed["up"].sharding.shard_shape((3, 8, 12)) == (3, 4, 6)
    assert placed["norm"].sharding.is_fully_replicated
    for name, weight in weights.items():
        np.testing.assert_array_equal(placed[name], weight)


def test_an_axis_that_does_not_divide_is_copied_only_where_the_table_says_so() -> None:
    mesh = make_mesh(MeshSettings(1, 1, 8))
    key = rules.sharding("key", Spec((2, 16, 2, 8), ("layer", "width", "kv_heads", "channels")), mesh)
    assert key.is_fully_replicated
    with pytest.raises(CapacityError, match=r"query \(16, 12\) cannot be split: its axis 'heads' of 12 .* by 8.*mesh.tensor"):
        rules.sharding("query", Spec((16, 12), ("width", "heads")), mesh)


def test_rows_are_split_and_scalars_copied() -> None:
    mesh = make_mesh(MeshSettings(2, 2, 2))
    assert row_ways(mesh) == 4
    with jax.transfer_guard("disallow"):  # place_rows transfers explicitly
        placed = place_rows({"ids": np.arange(24).reshape(8, 3), "count": np.int32(5)}, mesh)
    assert placed["ids"].sharding.shard_shape((8, 3)) == (2, 3)
    np.testing.assert_array_equal(placed["ids"], np.arange(24).reshape(8, 3))
    assert int(placed["count"]) == 5
    with pytest.raises(CapacityError, match=r"6 row\(s\) cannot be split over data x fsdp = 4"):
        place_rows(np.zeros((6, 3)), mesh)


def test_long_rows_are_cut_into_stretches_that_lie_side_by_side() -> None:
    mesh = make_mesh(MeshSettings(data=2, fsdp=1, tensor=2, sequence=2))
    placed = place_rows(np.arange(16).reshape(2, 8), mesh)
    np.testing.assert_array_equal(placed, [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7], [12, 13, 14, 15]])
    assert placed.sharding.shard_shape((4, 4)) == (1, 4)
    with pytest.raises(CapacityError, match=r"shape \(2, 7\) cannot be cut into mesh.sequence = 2 stretches"):
        place_rows(np.zeros((2, 7)), mesh)


def test_activations_keep_their_rows_inside_a_mesh_and_nothing_happens_outside() -> None:
    x = jnp.zeros((8, 6))
    assert rules.split(x, "row") is x
    with jax.set_mesh(make_mesh(MeshSettings(2, 2, 2))):
        out = jax.jit(lambda x: rules.split(x * 2.0, "row"))(x)
        assert out.sharding.shard_shape((8, 6))[0] == 2
        whole = jax.jit(lambda x: rules.split(x, "row", None))(out)
        assert whole.sharding.shard_shape((8, 6)) == (2, 6)
        assert jax.jit(lambda x: rules.split(x, "row"))(jnp.zeros((3, 6))).shape == (3, 6)


def test_one_process_agrees_with_itself() -> None:
    assert (hosts.index(), hosts.count()) == (0, 1)
    assert hosts.agree([3, 4]).tolist() == [[3, 4]]
    split = place_rows(np.arange(8), make_mesh())
    assert hosts.whole(split).tolist() == list(range(8))
    assert hosts.whole(np.arange(2)).tolist() == [0, 1]
