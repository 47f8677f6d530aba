"""Slices of TPUs are known by name."""

import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.train.chips import CHIPS, chip_of, topology


def test_a_topology_that_there_is_not_is_said_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no topology 'v5p:4x4'.*v5e: 2x2, .*v6e: 2x2, .*Fix: --topology v5p:4x4x"):
        topology("v5p:4x4")
    with pytest.raises(ConfigError, match="no topology 'a100:8'"):
        chip_of("a100:8")


def test_a_ring_goes_both_ways_by_two_links() -> None:
    # 4,800 Gbps are 600 GB/s by six links.
    assert CHIPS["v5p"].ring_bandwidth == pytest.approx(200e9)
    assert CHIPS["v5e"].ring_bandwidth == pytest.approx(100e9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.slices])
def test_every_slice_is_one_that_the_compiler_knows(name: str) -> None:
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    sizes = [int(size) for size in name.partition(":")[2].split("x")]
    count = 1
    for size in sizes:
        count *= size
    assert len(topology(name)) == count
