"""Keep pages in host memory while the pool has no room for them.

In:    pages that were lifted out of the pools, and the places to keep them at
Out:   the same numbers, for the pages that go back
Holds: the copy to the host runs while the device computes; it is waited for when its pages are wanted, or when many are on
       their way. A page takes memory from the first time on that its place is used
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dr_jax.engine.runner import Pages

_ON_THEIR_WAY = 2  # calls whose pages take memory on the device until they have arrived


class HostPages:
    """Places for pages, in ordinary memory of the host.

    Args:
        count: of places.
        page: axes of one page: layers, key heads, tokens, channels.
        dtype: of keys and values.
    """

    def __init__(self, count: int, page: tuple[int, int, int, int], dtype: str) -> None:
        self._kept = Pages(*(np.empty((count, *page), jnp.dtype(dtype)) for _ in range(2)))
        self._coming: deque[tuple[Pages, Sequence[int]]] = deque()

    def put(self, pages: Pages, places: Sequence[int]) -> None:
        """Begin to copy the first pages of these to as many places."""
        for pool in pages:
            pool.copy_to_host_async()
        self._coming.append((pages, places))
        if len(self._coming) > _ON_THEIR_WAY:
            self._arrive()

    def get(self, places: Sequence[int], count: int) -> Pages:
        """Return what is at these places as `count` pages, those after them zeros."""
        wanted = set(places)
        while any(not wanted.isdisjoint(there) for _, there in self._coming):
            self._arrive()
        found = Pages(*(np.zeros((count, *kept.shape[1:]), kept.dtype) for kept in self._kept))
        for pages, kept in zip(found, self._kept, strict=True):
            pages[: len(places)] = kept[list(places)]
        return found

    def _arrive(self) -> None:
        pages, places = self._coming.popleft()
        for kept, new in zip(self._kept, jax.device_get(pages), strict=True):
            kept[list(places)] = new[: len(places)]
