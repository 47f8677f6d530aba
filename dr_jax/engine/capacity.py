"""Check that the pools of keys and values, and what is parked of them, fit before they are made.

In:    settings, sizes, the devices and over how many of them key heads are split
Fails: CapacityError that says how many slots would fit
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from dr_jax.base.errors import CapacityError
from dr_jax.engine.settings import EngineSettings, host_bytes, memory_bytes
from dr_jax.model.sizes import Sizes

_GIB = 2**30
_SPARE = 0.1  # of what is free: for activations, logits and the programs themselves


def refuse_too_large(settings: EngineSettings, sizes: Sizes, devices: Iterable[Any], ways: int) -> None:
    """Check the pools against what each device has free, weights being there already, or against `engine.memory_gib`.

    Args:
        settings: capacities.
        sizes: of the model.
        devices: that each hold a part; those that tell nothing of their memory, as CPUs do, are not asked.
        ways: into how many parts the key heads are split.

    Raises:
        CapacityError: the pools are larger, with the number of slots, or of pages, that fit.
    """
    room = settings.memory_gib * _GIB
    where = "engine.memory_gib allows"
    if not room:
        free = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in map(_stats, devices) if stats]
        if not free:
            return
        room, where = min(free) * (1 - _SPARE), "are free on the fullest device, a tenth being left for computing"
    needed = memory_bytes(settings, sizes) // ways
    if needed <= room:
        return
    pages = int(room / (needed / settings.page_count))
    slots = max(0, (pages - 1) // settings.pages_per_request)
    if settings.pages:
        found, fits = f"engine.pages = {settings.pages}", f"at most {pages} pages"
        fix = f"engine.pages={pages}" if pages > settings.pages_per_request else ""
    else:
        found = f"engine.slots = {settings.slots} of engine.max_context = {settings.max_context} tokens"
        fits = f"at most {slots} slots of this context" if slots else "a shorter context: not one slot fits"
        fix = f"engine.slots={slots}" if slots else ""
    fixes = [fix, "a smaller engine.max_context", "engine.dtype=bfloat16" if settings.dtype == "float32" else ""]
    raise CapacityError(
        f"{found} take {needed / _GIB:.2f} GiB of each device for keys and values, and {room / _GIB:.2f} GiB {where}",
        needed=fits,
        fix=" or ".join(one for one in fixes if one),
    )


def refuse_too_many_parked(settings: EngineSettings, sizes: Sizes) -> None:
    """Check parked pages against the memory of this machine: they take it as they come, and a later lack would end the run.

    Raises:
        CapacityError: they could take more than there is, with the number of pages that fit.
    """
    room = int((1 - _SPARE) * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    needed = host_bytes(settings, sizes)
    if needed > room:
        pages = room * settings.host_pages // needed
        raise CapacityError(
            f"engine.host_pages = {settings.host_pages} can take {needed / _GIB:.2f} GiB, and this machine has "
            f"{room / _GIB:.2f} GiB, a tenth being left",
            needed=f"at most {pages} pages",
            fix=f"engine.host_pages={pages}",
        )


def _stats(device: Any) -> dict[str, int] | None:
    stats = device.memory_stats()
    return stats if stats and "bytes_limit" in stats and "bytes_in_use" in stats else None
