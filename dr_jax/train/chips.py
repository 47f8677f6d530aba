"""TPUs that programs can be compiled for, none of which need be here: what is published of a chip, and which slices there are.

In:    a name such as `v5p:4x4x4`
Out:   `Chip`, and the devices of the slice as JAX describes them
Fails: ConfigError that lists the known names
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from dr_jax.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Chip:
    """What is published of one chip.

    Args:
        flops: bfloat16 operations a second, at the peak.
        hbm_gib: memory.
        hbm_bandwidth: bytes a second.
        ici_bandwidth: bytes a second that leave it for other chips, over all of its links.
        links: to neighbours.
        source: where that is said.
        host: the slice that one host of a larger one has.
        slices: topologies on offer.
    """

    flops: float
    hbm_gib: int
    hbm_bandwidth: float
    ici_bandwidth: float
    links: int
    source: str
    host: str
    slices: tuple[str, ...]

    @property
    def ring_bandwidth(self) -> float:
        """Bytes a second that leave a chip in a ring that goes both ways: by two of its links."""
        return 2 * self.ici_bandwidth / self.links


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
_DOCS = "https://cloud.google.com/tpu/docs/"
CHIPS = {  # Gbps of the interconnect / 8 are bytes
    "v5e": Chip(197e12, 16, 819e9, 1600e9 / 8, 4, f"{_DOCS}v5e and v6e", "2x2", _FLAT),
    "v5p": Chip(459e12, 95, 2765e9, 4800e9 / 8, 6, f"{_DOCS}v5p", "2x2x1", _DEEP),
    "v6e": Chip(918e12, 32, 1640e9, 3584e9 / 8, 4, f"{_DOCS}v6e", "2x2", _FLAT),
}
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def chip_of(name: str) -> Chip:
    """Return what a topology is made of.

    Raises:
        ConfigError: there is no such topology, with those that there are.
    """
    kind, _, shape = name.partition(":")
    known = CHIPS.get(kind)
    if known is not None and shape in known.slices:
        return known
    told = "; ".join(f"{one}: {', '.join(chip.slices)}" for one, chip in CHIPS.items())
    near = difflib.get_close_matches(name, [f"{one}:{each}" for one, chip in CHIPS.items() for each in chip.slices], 1)
    raise ConfigError(
        f"There is no topology {name!r}",
        needed=f"CHIP:SLICE of these: {told}",
        fix=f"--topology {near[0]}" if near else "",
    )


def topology(name: str) -> Sequence[jax.Device]:
    """Return the devices of a TPU topology such as `v5e:4x4`, of which none need be here.

    Raises:
        ConfigError: there is no such topology, or libtpu is not installed.
    """
    from jax.experimental import topologies

    chip_of(name)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except RuntimeError as error:  # jax raises these two, and no other
        raise ConfigError(
            f"Cannot compile for {name!r}: {str(error).splitlines()[0]}",
            needed="libtpu, which has the compiler; no TPU",
            fix="pip install 'dr-jax[tpu-aot]'",
        ) from error
