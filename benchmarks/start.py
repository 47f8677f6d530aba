"""How long a run takes to its first token and episode, the first time and again: `python -m benchmarks.start [CONFIG]`.

Work:  `dr-jax train`'s own loop with a smaller evaluation and one update, each time a new process and a new run
Sides: with the compiled programs of an earlier start; without any. From the command to the first id that reaches whoever asked
       for it, several being drawn in one call, and to the end of the first episode
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
    table = Table(title=f"{told.config}: seconds from the command")
    for column in ("start", "until", "seconds", "least", "most", "programs compiled", "loaded"):
        table.add_column(column, justify="left" if column in ("start", "until") else "right")
    sides: dict[str, Spread] = {}
    for name, some in (("again", again), ("first", [first])):
        counts = [str(max(one[what] for one in some)) for what in ("compiled", "loaded")]
        for until, what, side in (("the first episode", "first_s", name), ("the first token", "token_s", f"{name}, token")):
            sides[side] = spread = Spread.of([one[what] for one in some], "s")
            table.add_row(name, until, *(f"{value:.1f}" for value in (spread.median, spread.min, spread.max)), *counts)
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
