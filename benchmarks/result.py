"""Write what a benchmark measured, in one shape for all of them.

Out:   `results/NAME.json`: sides with median, min, max and unit; ratios of the first side's median to each other's; machine,
       versions, commit
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Spread:
    """One side's measurements."""

    median: float
    min: float
    max: float
    unit: str

    @classmethod
    def of(cls, measured: Sequence[float], unit: str) -> Spread:
        """Summarise some measurements."""
        low, middle, high = min(measured), statistics.median(measured), max(measured)
        return cls(round(middle, 4), round(low, 4), round(high, 4), unit)


def write(
    name: str, sides: Mapping[str, Spread], packages: Sequence[str] = ("trafilatura", "lxml"), folder: Path = RESULTS
) -> Path:
    """Write the measurements; the first side is ours.

    Args:
        name: of the file, without suffix.
        sides: by name, ours first.
        packages: whose versions matter.
        folder: where it is written.
    """
    mine, *peers = sides
    content = {
        "name": name,
        "sides": {side: asdict(spread) for side, spread in sides.items()},
        "ratios": {peer: round(sides[mine].median / sides[peer].median, 4) for peer in peers if sides[peer].median},
    }
    return write_json(name, content, packages, folder)


def write_json(name: str, content: Mapping[str, Any], packages: Sequence[str], folder: Path = RESULTS) -> Path:
    """Write what was found, with where and with what: machine, versions, commit."""
    content = dict(content) | {
        "machine": {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {one: version(one) for one in packages},
        "commit": commit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def bars(name: str, sides: Mapping[str, Spread], folder: Path = RESULTS) -> Path:
    """Draw a bar for every side, with the spread of its rounds; the first side is ours. Return `NAME.png`."""
    from matplotlib.figure import Figure  # here: sides in environments of their own do not have it

    figure = Figure(figsize=(6, 0.6 + 0.5 * len(sides)), layout="constrained")
    axes = figure.subplots()
    medians = [spread.median for spread in sides.values()]
    reach = [[one.median - one.min for one in sides.values()], [one.max - one.median for one in sides.values()]]
    axes.barh(list(sides), medians, xerr=reach, color=["tab:blue", *["tab:gray"] * (len(sides) - 1)], capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(next(iter(sides.values())).unit)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=120)
    return path


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), platform.machine()
    )


def commit() -> str:
    """Return the commit of this code."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()
