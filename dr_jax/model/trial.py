"""Try kernels on the device that is here: which of them agree with plain JAX, and how fast they are.

In:    functions by name, plain JAX first; arguments
Out:   seconds of a run of each that agrees
Holds: what fails or disagrees is left, and that is said once
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from dr_jax.base.trace import logger

_log = logger(__name__)
_ERROR = 0.02  # of the largest value; bfloat16 rounds to 0.004, a wrong mask is off by about 1
_RUNS = 3


def chosen(
    plain: Callable[..., Any], kernels: Mapping[str, Callable[..., Any]], arguments: Sequence[Any], what: str, *, race: bool
) -> str:
    """Return the name of the kernel to use, or `plain`.

    Args:
        plain: what the kernels are held against; returns a pytree of arrays.
        kernels: by name, the preferred ones first.
        arguments: arrays in host memory.
        what: they are used for; for the log.
        race: take the fastest, plain JAX included; otherwise, and wherever several processes must choose alike, take the first
            that agrees.
    """
    # In a thread of its own: here, a program may be in the middle of being traced, for one device of many.
    with ThreadPoolExecutor(1) as pool:
        seconds = pool.submit(timed, {"plain": plain, **kernels}, arguments, what).result()
    if not race or jax.process_count() > 1:
        return next((name for name in kernels if name in seconds), "plain")
    best = min(seconds, key=lambda name: seconds[name])
    told = ", ".join(f"{name} {1e3 * each:.2f} ms" for name, each in seconds.items())
    _log.info("%s: %s; %s is used", what, told, best)
    return best


def timed(functions: Mapping[str, Callable[..., Any]], arguments: Sequence[Any], what: str) -> dict[str, float]:
    """Run every function; return the seconds of the first, and of those that agree with it within 2 % of the largest value."""
    (first, plain), *others = functions.items()
    expected, seconds = _run(plain, arguments)
    found = {first: seconds}
    for name, function in others:
        try:
            results, seconds = _run(function, arguments)
        except Exception as error:  # noqa: BLE001  # whatever a kernel or its compiler does not like: there is another way
            reason = (str(error).splitlines() or [""])[0][:200]
            say(f"{name!r} cannot be used for {what}: {type(error).__name__}: {reason}")
            continue
        off = max(map(_error, results, expected))
        if off < _ERROR:
            found[name] = seconds
        else:
            say(f"{name!r} is not used for {what}: it is off by {off:.2g} of the largest value")
    return found


@lru_cache(maxsize=256)
def say(what: str) -> None:
    """Warn once."""
    _log.warning("%s; plain JAX is there instead", what)


def _run(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[list[np.ndarray], float]:
    placed = jax.device_put(tuple(arguments), jax.local_devices()[0])
    program = jax.jit(function)
    results = jax.block_until_ready(program(*placed))
    spent = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(program(*placed))
        spent.append(time.perf_counter() - start)
    return [np.asarray(result, np.float32) for result in jax.tree.leaves(results)], min(spent)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    off = np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6)
    return float(off) if np.isfinite(off) else float("inf")
