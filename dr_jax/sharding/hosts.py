"""Start as one of several processes, and the few facts that they must agree on.

In:    where the others are; small integers of this process, or an array spread over several; short texts under names
Out:   everybody's integers, the whole array in host memory, or what another process wrote under a name
Holds: with one process nothing is sent and nothing is waited for
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from dr_jax.base.errors import ConfigError
from dr_jax.base.trace import logger

_log = logger(__name__)


def join(where: str, *, timeout_s: int = 300) -> None:
    """Become one of the processes that run this program together. Call it before anything asks for a device.

    Args:
        where: `auto` on a Cloud TPU pod, in GKE's TPU slices and wherever else JAX finds the others by itself; or
            `HOST:PORT/INDEX/COUNT`: where process 0 listens, which process this is, and how many there are. Each process
            takes every device of its host.
        timeout_s: how long the others are waited for.

    Raises:
        ConfigError: `where` is neither, the others cannot be found, or they do not come in time.
    """
    arguments = {} if where == "auto" else _place(where)
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout_s, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        raise ConfigError(
            f"The processes of {where} did not come together: {' '.join(str(error).split())[:300]}",
            needed=f"all of them within {timeout_s} s, each started with its own index and the same HOST:PORT",
            fix="start them all, or give HOST:PORT/INDEX/COUNT in place of auto",
        ) from error
    _log.info("this is process %d of %d; if process 0 dies, JAX ends all others at once: their leader died", index(), count())


def _place(where: str) -> dict[str, Any]:
    found = re.fullmatch(r"([^/\s]+:\d+)/(\d+)/(\d+)", where)
    if found is None or not int(found[2]) < int(found[3]):
        raise ConfigError(
            f"{where!r} does not say where the other processes are",
            needed="auto, or HOST:PORT/INDEX/COUNT with INDEX from 0 to COUNT - 1",
            fix="for the second of four hosts whose first is 10.0.0.2: --join 10.0.0.2:8476/1/4",
        )
    # Deactivated: beside SLURM's variables JAX would otherwise leave each process a single GPU.
    return {
        "coordinator_address": found[1],
        "process_id": int(found[2]),
        "num_processes": int(found[3]),
        "cluster_detection_method": "deactivate",
    }


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


def write(name: str, text: str) -> None:
    """Write a text where every process can read it: process 0 keeps it, whatever the devices are doing.

    Raises:
        ConnectionError: process 0 does not answer.
    """
    with _answering():
        _client().key_value_set(name, text, allow_overwrite=True)


def read(name: str, *, wait_s: float) -> str | None:
    """Return what some process wrote under a name; None when nobody has within so many seconds.

    Raises:
        ConnectionError: process 0 does not answer.
    """
    with _answering():
        return _client().blocking_key_value_get(name, int(1000 * wait_s))
    return None


def written(folder: str) -> dict[str, str]:
    """Return all that is written below `folder/`, by what follows it.

    Raises:
        ConnectionError: process 0 does not answer.
    """
    with _answering():
        return {name.removeprefix(f"{folder}/"): text for name, text in _client().key_value_dir_get(f"{folder}/")}
    return {}


def of_first(name: str, own: str, *, wait_s: float = 600.0) -> str:
    """Return what process 0 found under a name, where each finds something of its own and all must go on with the same.

    Raises:
        ConnectionError: process 0 does not answer, or has not looked within so many seconds.
    """
    if count() == 1:
        return own
    if index() == 0:
        write(f"first/{name}", own)
        return own
    if (found := read(f"first/{name}", wait_s=wait_s)) is None:
        raise ConnectionError(f"process 0 has not said what it found for {name} within {wait_s:g} s")
    return found


def erase(name: str) -> None:
    """Forget what was written under a name, so that process 0 does not keep it for ever.

    Raises:
        ConnectionError: process 0 does not answer.
    """
    with _answering():
        _client().key_value_delete(name)


def _client() -> Any:
    """The connection to process 0. JAX has no public name for it; Orbax takes it from here, too."""
    from jax._src import distributed

    return distributed.global_state.client


@contextmanager
def _answering() -> Iterator[None]:
    """Pass over what is not there; tell a lost connection from it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(("DEADLINE_EXCEEDED", "NOT_FOUND")):
            raise ConnectionError(" ".join(str(error).split())[:300]) from error


def whole(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return an array's values in host memory; where several processes hold its parts, every process must call this."""
    if isinstance(array, np.ndarray):
        return array
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
