"""How many bytes of each device a run may fill.

In:    the devices that learn, what lies on each already, what a person allows
Out:   `Room`
Holds: an accelerator says itself how much it has; devices of a CPU share what the host has free, within its container's limit
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax

GIB = 2**30
SPARE = 0.1  # of an accelerator's memory: what falls between buffers, calls of the engine that are queued, new weights for it
_HOST_SHARE = 0.5  # of what a host has free: pages, workers and whoever else works there want some, too
_CONTAINERS = (  # limit, use, and its statistics with the line of what could be dropped: cgroups of version 2 and 1
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class Room:
    """What a run may fill.

    Args:
        usable: bytes of one device that are planned with, what lies there already included.
        most: bytes of one device that there are.
        where: whose they are, as the end of a sentence that begins with a number of GiB.
    """

    usable: float
    most: float
    where: str


def room(devices: Sequence[jax.Device], held: int, memory_gib: float = 0.0) -> Room:
    """Find out how much there is.

    Args:
        devices: of this process that learn.
        held: bytes that the run itself has on each of them already.
        memory_gib: what a person allows of each; 0 asks the devices.
    """
    if memory_gib:
        return Room(memory_gib * GIB, memory_gib * GIB, "are what memory_gib allows")
    told = [stats for stats in (device.memory_stats() for device in devices) if stats and "bytes_limit" in stats]
    if told:
        others = max(0, max(stats.get("bytes_in_use", 0) for stats in told) - held)
        most = min(stats["bytes_limit"] for stats in told) - others
        return Room(most * (1 - SPARE), most, f"can be used of the {most / GIB:.3g} of each device")
    free = host_free() / len(jax.local_devices(backend=devices[0].platform))
    return Room(held + free * _HOST_SHARE, held + free, "can be used of each device: half of what this host has free")


def host_free(system: Path = Path("/proc/meminfo"), container: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of this host that a process can still have, within the limit of its container where there is one.

    Args:
        system: what Linux says of its memory; where there is no such file, all memory of the host is taken for free.
        container: the root of its control group.
    """
    try:
        free = _line(system.read_text(), "MemAvailable:") * 1024
    except OSError:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used, statistics, droppable in _CONTAINERS:
        with suppress(OSError, ValueError):  # there is no such file, or no limit: it says `max`
            busy = int((container / used).read_text()) - _line((container / statistics).read_text(), droppable)
            free = min(free, max(0, int((container / limit).read_text()) - busy))
    return free


def _line(text: str, name: str) -> int:
    """Return the number of the line that begins so."""
    return next(int(words[1]) for words in map(str.split, text.splitlines()) if words and words[0] == name)
