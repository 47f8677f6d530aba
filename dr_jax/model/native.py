"""Custom calls of XLA for CPUs, made by this machine's C++ compiler when they are first used.

In:    a source beside the module that calls it; `native.h` is what sources have in common
Out:   XLA knows its custom calls
Fails: NoKernelError: there is no compiler, it did not understand the source, or what it made cannot be loaded
Holds: a source is compiled once for a compiler, a processor and a JAX, into the user's cache
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
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

from dr_jax.base.cache import cache_folder
from dr_jax.base.errors import DrJaxError

CHANNELS = (16, 32, 64, 128)  # of a head; the sources have a program for each
_COMMON = Path(__file__).with_name("native.h")
_FLAGS = ("-std=gnu++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
_PATIENCE_S = 120


class NoKernelError(DrJaxError):
    """This machine has no kernel for its CPU."""


def refusal(channels: int, dtype: str, what: str) -> str:
    """Return why heads of so many channels cannot be used, or nothing; `what` is of that dtype."""
    if dtype != "float32":
        return f"{what} in {dtype}, not in float32"
    return "" if channels in CHANNELS else f"heads of {channels} channels, not of {', '.join(map(str, CHANNELS))}"


def load(source: Path, *names: str) -> None:
    """Make what a source says, if that was not done before, and tell XLA of its custom calls.

    What cannot be made is not tried again in this process.

    Args:
        source: in C++; it finds `native.h`.
        names: of the custom calls that are in it.

    Raises:
        NoKernelError: it cannot be made or loaded.
    """
    if reason := failure(source, *names):
        raise NoKernelError(reason)


@lru_cache(maxsize=8)
def failure(source: Path, *names: str) -> str:
    """Do what `load` does, once, and return why it cannot be done, or nothing."""
    try:
        _load(source, *names)
    except NoKernelError as error:
        return str(error)
    return ""


def _load(source: Path, *names: str) -> None:
    made = _made(source)
    try:
        library = ctypes.CDLL(str(made))
        calls = {name: library[name] for name in names}
    except (OSError, AttributeError) as error:
        with contextlib.suppress(OSError):
            made.unlink()  # so that the next start makes it again
        raise NoKernelError(f"What was made of {source.name} cannot be loaded: {error}") from error
    for name, call in calls.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(call), platform="cpu")


def _made(source: Path) -> Path:
    compiler = _compiler()
    name = f"{source.stem}-{_name(source, compiler)}.so"
    try:
        kernel = cache_folder("kernels") / name
        if kernel.exists():
            return kernel
        kernel.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that several processes may make it at once and the last one takes the place of the first.
        with tempfile.TemporaryDirectory(dir=kernel.parent) as folder:
            made = Path(folder) / kernel.name
            _compile(compiler, source, made)
            made.replace(kernel)
    except (OSError, RuntimeError) as error:  # a user may have no home
        reason = f"the cache cannot be written ({error}); XDG_CACHE_HOME names another place"
        raise NoKernelError(f"What was made of {source.name} was not kept: {reason}") from error
    return kernel


def _compile(compiler: list[str], source: Path, made: Path) -> None:
    folders = (f"-I{_COMMON.parent}", f"-I{jax.ffi.include_dir()}")
    told = _run([*compiler, *_FLAGS, *folders, str(source), "-o", str(made)], source.name)
    if told.returncode:
        lines = (
            [line for line in told.stderr.splitlines() if "error" in line] or told.stderr.splitlines() or ["it says nothing"]
        )
        raise NoKernelError(f"{compiler[0]} did not compile {source.name}: {lines[0][:200]}")


def _run(command: list[str], source: str) -> subprocess.CompletedProcess[str]:
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        return subprocess.run(command, timeout=_PATIENCE_S, check=False, **quiet)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise NoKernelError(f"{command[0]} was not done with {source} after {_PATIENCE_S} s") from error
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


def _name(source: Path, compiler: list[str]) -> str:
    """Return a name that changes with everything that what is made depends on; a home may be shared by different machines."""
    told = _run([*compiler, "--version"], source.name).stdout
    try:
        texts = [one.read_text("utf-8") for one in (source, _COMMON)]
    except OSError as error:
        raise NoKernelError(f"{source.name} cannot be read ({error})") from error
    parts = (*texts, *compiler, told, jax.lib.__version__, platform.machine(), _processor(), *_FLAGS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
