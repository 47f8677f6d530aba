"""The few facts that several processes must agree on.

In:    small integers of this process, or an array spread over several
Out:   everybody's integers, or the whole array in host memory
Holds: with one process nothing is sent and nothing is waited for
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np


def index() -> int:
    """Return this process's number, from 0."""
    return jax.process_index()


def count() -> int:
    """Return how many processes run this program together."""
    return jax.process_count()


def agree(values: Sequence[int]) -> np.ndarray:
    """Return the values of every process [process, value]; every process must call this with as many values."""
    mine = np.asarray(values, np.int32)
    if count() == 1:
        return mine[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(mine))


def whole(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return an array's values in host memory; where several processes hold its parts, every process must call this."""
    if isinstance(array, np.ndarray):
        return array
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
