"""What two hosts must have in common to draw the same ids.

In:    versions and clock here and there
Out:   a sentence that names both, where they differ by too much
"""

from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path
from typing import TypedDict

import jax

import dr_jax


class Facts(TypedDict):
    """Of one host; plain text, so that another version of dr_jax can read it."""

    host: str
    dr_jax: str
    jax: str


def facts() -> Facts:
    """Gather them here. Version numbers change seldom, so dr_jax is known by its source as well."""
    return {"host": socket.gethostname(), "dr_jax": f"{dr_jax.__version__} (source {source()})", "jax": jax.__version__}


def source() -> str:
    """Return eight letters that are others wherever the source of dr_jax differs."""
    root, digest = Path(dr_jax.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def ahead_s(asked: float, their_clock: float, answered: float) -> float:
    """Return how many seconds their clock is surely ahead of ours (behind, if negative); 0 when the way there explains it.

    Args:
        asked: our clock when we asked for theirs.
        their_clock: what they answered.
        answered: our clock when the answer was here.
    """
    if their_clock > answered:
        return their_clock - answered
    return min(0.0, their_clock - asked)


def difference(here: Facts, there: Facts, ahead: float, most_s: float) -> str:
    """Return what makes a host unfit, naming both; "" for nothing.

    Args:
        here, there: versions.
        ahead: of their clock, in seconds.
        most_s: how far clocks may be apart.
    """
    for name in ("dr_jax", "jax"):
        mine, theirs = here.get(name), there.get(name)
        if mine != theirs:
            return f"it has {name} {theirs}, and the trainer on {here['host']} has {name} {mine}; install the same on both"
    if abs(ahead) > most_s:
        now = time.time()
        return (
            f"its clock says {_clock(now + ahead)} when the one of the trainer on {here['host']} says {_clock(now)}; they may "
            f"be {most_s:g} s apart (rollout.ray.clock_s): have both follow a time server"
        )
    return ""


def _clock(now: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
