"""Start a run as several processes of this machine, each with CPU devices of its own, by the real command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dr_jax.base.config import to_tree
from dr_jax.train.report import read_metrics
from dr_jax.train.settings import Settings

# A process that is told to dawdle never gets its world ready: its web is too slow for any episode.
COMMAND = """
import asyncio, os
from dr_jax.cli.main import run
from dr_jax.train.places import Place
if os.environ.get("DAWDLES"):
    async def asleep(place):
        await asyncio.sleep(1000)
    Place.healthy = asleep
run()
"""


@dataclass
class Started:
    """Processes that run together."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]
    directory: Path

    def ended(self, timeout_s: float) -> list[int]:
        """Wait for all; return their exit codes."""
        end = time.monotonic() + timeout_s
        try:
            return [one.wait(max(0.1, end - time.monotonic())) for one in self.processes]
        finally:
            for one in self.processes:
                one.kill()
                one.wait()

    def said(self, index: int) -> str:
        """Return what one wrote to its terminal."""
        return self.logs[index].read_text(errors="replace")

    def after(self, steps: int, timeout_s: float) -> None:
        """Return when so many updates are made."""
        end = time.monotonic() + timeout_s
        while len(read_metrics(self.directory)) < steps:
            assert time.monotonic() < end, self.said(0)
            assert all(one.poll() is None for one in self.processes), self.said(0)
            time.sleep(0.05)


def start(
    settings: Settings,
    count: int,
    devices: int,
    *words: str,
    dawdling: Sequence[int] = (),
    of_each: Sequence[Sequence[str]] = (),
) -> Started:
    """Start a run as `count` processes of `devices` devices each.

    Args:
        settings: of the run.
        count: of processes.
        devices: of each.
        words: further ones of the command.
        dawdling: whose web never answers.
        of_each: further words for each process.
    """
    home = Path(settings.out)
    config = home / f"{settings.name}.toml"
    config.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    root = str(Path(__file__).parents[2])
    logs, processes = [home / f"{settings.name}.{index}.log" for index in range(count)], []
    for index, log in enumerate(logs):
        own = {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": root,
            **({"DAWDLES": "1"} if index in dawdling else {}),
        }
        join = ["--join", f"127.0.0.1:{port}/{index}/{count}"]
        with log.open("wb") as file:
            command = [sys.executable, "-c", COMMAND, "train", str(config), *written(settings), *join, *words]
            command += of_each[index] if of_each else []
            processes.append(subprocess.Popen(command, stdout=file, stderr=file, cwd=root, env=os.environ | own))
    return Started(processes, logs, home / settings.name)


def written(settings: Settings) -> list[str]:
    """Write settings as words of the command line, where they are not the default."""
    default = flat(to_tree(Settings()))
    return [f"{name}={toml(value)}" for name, value in flat(to_tree(settings)).items() if value != default.get(name)]


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    """Return the leaves of a tree of settings by their dotted names; the parts of the reward are one leaf."""
    if not isinstance(tree, dict) or prefix.endswith("parts"):
        return {prefix: tree}
    return {name: leaf for key, one in tree.items() for name, leaf in flat(one, f"{prefix}.{key}" if prefix else key).items()}


def toml(value: object) -> str:
    """Write a value as TOML does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"'{key}' = {toml(one)}" for key, one in value.items()) + "}"
    return f"'{value}'" if isinstance(value, str) else str(list(value)) if isinstance(value, list | tuple) else str(value)
