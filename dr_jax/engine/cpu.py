"""Queries meet pages of keys and values on a CPU, with a kernel that this machine's C++ compiler makes of `paged.cc`.

In:    queries, the pools, which layer, the pages of each row, how many tokens each query may see
Out:   what each query gathered, as `paged.paged_attention` would but for rounding
Fails: NoKernelError: there is no compiler, it did not understand the source, or what it made cannot be loaded
Holds: it is made once for a source, a compiler, a processor and a JAX, in the user's cache. XLA's own code for a CPU copies
       pages together and takes what is done with them apart into many small operations
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dr_jax.base.cache import cache_folder
from dr_jax.base.errors import DrJaxError

CHANNELS = (16, 32, 64, 128)  # of a head; the source has a program for each
_SOURCE = Path(__file__).with_name("paged.cc")
_CALL = "dr_jax_paged_attention"
_FLAGS = ("-std=gnu++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
_PATIENCE_S = 120


class NoKernelError(DrJaxError):
    """This machine has no kernel for its CPU."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class OnCpu:
    """How queries meet pages on one CPU device."""

    stretches: ClassVar[bool] = True

    def __call__(
        self,
        q_BQHC: Float[Array, "B Q H C"],
        pools: tuple[Float[Array, "L K P W C"], Float[Array, "L K P W C"]],
        layer: Int[Array, ""],
        tables_BX: Int[Array, "B X"],
        visible_BQ: Int[Array, "B Q"],
    ) -> Float[Array, "B Q H C"]:
        """Return what each query gathered from the first `visible_BQ` places of its row; zeros where there are none."""
        load()  # where a program comes out of JAX's cache, nobody else has
        out = jax.ShapeDtypeStruct(q_BQHC.shape, jnp.float32)
        whole = (jnp.asarray(one, jnp.int32) for one in (layer, tables_BX, visible_BQ))
        met: Array = jax.ffi.ffi_call(_CALL, out)(q_BQHC.astype(jnp.float32), *pools, *whole)
        return met.astype(q_BQHC.dtype)


@lru_cache(maxsize=1)
def load() -> None:
    """Make the kernel, if that was not done before, and tell XLA of it.

    Raises:
        NoKernelError: it cannot be made or loaded.
    """
    made = _made()
    try:
        call = ctypes.CDLL(str(made))[_CALL]
    except (OSError, AttributeError) as error:
        with contextlib.suppress(OSError):
            made.unlink()  # so that the next start makes it again
        raise NoKernelError(f"The kernel for pages of keys and values cannot be loaded: {error}") from error
    jax.ffi.register_ffi_target(_CALL, jax.ffi.pycapsule(call), platform="cpu")


def _made() -> Path:
    compiler = _compiler()
    name = f"{_name(compiler)}.so"
    try:
        kernel = cache_folder("kernels") / name
        if kernel.exists():
            return kernel
        kernel.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that several processes may make it at once and the last one takes the place of the first.
        with tempfile.TemporaryDirectory(dir=kernel.parent) as folder:
            made = Path(folder) / kernel.name
            _compile(compiler, made)
            made.replace(kernel)
    except (OSError, RuntimeError) as error:  # a user may have no home
        reason = f"the cache cannot be written ({error}); XDG_CACHE_HOME names another place"
        raise NoKernelError(f"The kernel for pages of keys and values was not kept: {reason}") from error
    return kernel


def _compile(compiler: list[str], made: Path) -> None:
    told = _run([*compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(_SOURCE), "-o", str(made)])
    if told.returncode:
        lines = (
            [line for line in told.stderr.splitlines() if "error" in line] or told.stderr.splitlines() or ["it says nothing"]
        )
        raise NoKernelError(f"{compiler[0]} did not compile {_SOURCE.name}: {lines[0][:200]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        return subprocess.run(command, timeout=_PATIENCE_S, check=False, **quiet)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise NoKernelError(f"{command[0]} was not done with {_SOURCE.name} after {_PATIENCE_S} s") from error
    except OSError as error:
        raise NoKernelError(f"{command[0]} cannot be run ({error.strerror})") from error


def _compiler() -> list[str]:
    """Return the command that compiles: what CXX says, which may have options, or what is there."""
    asked = os.environ.get("CXX", "").split()
    for command in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    raise NoKernelError(
        f"CXX = {asked[0]!r} is not there" if asked else "There is no C++ compiler (c++, g++ or clang++; CXX names another)"
    )


def _name(compiler: list[str]) -> str:
    """Return a name that changes with everything that what is made depends on; a home may be shared by different machines."""
    told, source = _run([*compiler, "--version"]).stdout, _SOURCE.read_text("utf-8")
    parts = (source, *compiler, told, jax.lib.__version__, platform.machine(), _processor(), *_FLAGS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
