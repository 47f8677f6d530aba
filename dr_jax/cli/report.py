"""`dr-jax report`: runs as one page for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Tokenizer = Annotated[
    Path | None, typer.Option(help="A directory with tokenizer.json, if it is neither in the run nor where its settings say.")
]


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs, such as runs/quickstart.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; report.html in the first run's directory.")] = None,
    episodes: Annotated[
        int, typer.Option(help="How many episodes of each run the page may hold, in whole groups.", min=1)
    ] = 10_000,
    tokenizer: Tokenizer = None,
) -> None:
    """Write one HTML page that needs nothing else: curves, evaluations with intervals, settings, and every episode to read.

    Several runs are drawn side by side. Of a run with more episodes than --episodes, every so manieth group is kept, evenly
    over the updates. `dr-jax watch` shows a run that goes on.
    """
    from dr_jax.base.errors import DataError
    from dr_jax.report.data import RunData
    from dr_jax.report.page import write

    found = [RunData(run, tokenizer=tokenizer) for run in runs]
    for run in found:
        run.follow()
    path = out or runs[0] / "report.html"
    if not path.parent.is_dir():
        raise DataError(f"There is no directory {path.parent}", needed="a place for the page", fix="make it, or name another")
    write(path, found, limit=episodes)
    shown = sum(len(run.episodes) for run in found)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, of {shown:,} episodes; open it in a browser")
