"""How long a run takes to its first episode, the first time and again: `python -m benchmarks.start [CONFIG]`.

Work:  `dr-jax train`'s own loop with a smaller evaluation and one update, each time a new process and a new run
Sides: with the compiled programs of an earlier start; without any. From the command to the end of the first episode, which is
       later than the first token
Out:   a table with what was compiled and what was loaded, and `results/start.json`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.result import Spread, write

_SMALLER = ("steps=1", "eval.questions=8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/quickstart.toml")
    parser.add_argument("--rounds", type=int, default=5, help="starts with compiled programs, after the one without")
    told = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rounds = track(range(told.rounds + 1), description="start", console=Console(stderr=True))
        first, *again = [_started(told.config, Path(folder), number) for number in rounds]
    table = Table(title=f"{told.config}: seconds from the command to the end of the first episode")
    for column in ("start", "seconds", "least", "most", "programs compiled", "loaded"):
        table.add_column(column, justify="left" if column == "start" else "right")
    sides = {name: Spread.of([one["first_s"] for one in some], "s") for name, some in (("again", again), ("first", [first]))}
    for name, some in (("first", [first]), ("again", again)):
        counts = [str(max(one[what] for one in some)) for what in ("compiled", "loaded")]
        table.add_row(name, *(f"{getattr(sides[name], what):.1f}" for what in ("median", "min", "max")), *counts)
    Console().print(table)
    print(f"written to {write('start', sides, ('jax',))}")


def _started(config: str, folder: Path, number: int) -> dict[str, Any]:
    """Run it once, with the compiled programs that lie in the folder."""
    run = (f"out={json.dumps(str(folder))}", f"name=run{number}")
    command = [sys.executable, "-m", "benchmarks.sides.start", str(time.time()), config, *_SMALLER, *run]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    told = subprocess.run(
        command, env=environment | {"XDG_CACHE_HOME": str(folder)}, check=True, stdout=subprocess.PIPE, text=True, timeout=600
    )
    answer: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
