from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AxisType

from dr_jax.base.errors import ConfigError
from dr_jax.sharding.mesh import MeshSettings, _by_process, make_mesh


def test_by_default_all_devices_share_the_weights() -> None:
    mesh = make_mesh()
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_the_open_axis_takes_what_is_left() -> None:
    assert dict(make_mesh(MeshSettings(data=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert dict(make_mesh(MeshSettings(data=-1, fsdp=1)).shape) == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert dict(make_mesh(devices=jax.devices()[:3]).shape) == {"data": 1, "fsdp": 3, "tensor": 1, "sequence": 1}


def test_a_mesh_that_does_not_divide_lists_those_that_would() -> None:
    with pytest.raises(ConfigError, match=r"tensor 3 x sequence 1 does not divide 8 cpu.*Needed: .*data 1, fsdp 4, tensor 2"):
        make_mesh(MeshSettings(tensor=3))
    with pytest.raises(ConfigError, match=r"product is 8"):
        make_mesh(MeshSettings(data=2, fsdp=2, tensor=1))


def test_a_mesh_with_stretches_of_rows() -> None:
    assert dict(make_mesh(MeshSettings(tensor=2, sequence=2)).shape) == {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}
    with pytest.raises(ConfigError, match=r"sequence 3 does not divide 8.*data 1, fsdp 4, tensor 1, sequence 2.*mesh.sequence"):
        make_mesh(MeshSettings(sequence=3))


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="empty axis"):
        MeshSettings(data=0)
    with pytest.raises(ValueError, match="more than one axis open"):
        MeshSettings(data=-1)


def test_axes_within_a_row_lie_inside_of_a_process() -> None:
    # Two hosts of 2 x 2 chips side by side, counted row by row.
    devices = [SimpleNamespace(id=number, process_index=number % 4 // 2) for number in range(8)]
    arranged = _by_process((1, 2, 4, 1), devices)
    assert [one.id for one in arranged[0, 0, :, 0]] == [0, 1, 4, 5]
    assert _by_process((1, 1, 8, 1), devices) is None  # no host has eight
    assert _by_process((1, 4, 1, 1), devices[:2]) is None  # a single one
