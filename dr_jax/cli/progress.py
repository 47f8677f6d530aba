"""Show a run on a terminal: one line a step, a table per evaluation, a bar while something long goes on."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dr_jax.base.errors import LostError
from dr_jax.base.trace import redacted


@contextmanager
def resumable() -> Iterator[None]:
    """Tell who interrupts a run how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("dr-jax: interrupted and saved; the same command with --resume goes on from here", err=True)
        raise typer.Exit(130) from None


@contextmanager
def bereaved() -> Iterator[None]:
    """End at once when another process of the run is gone: JAX would wait for it at the exit, for minutes."""
    try:
        yield
    except LostError as error:
        typer.echo(redacted(f"dr-jax: {error}"), err=True)
        sys.stderr.flush()
        os._exit(1)


def leave_within(seconds: float) -> None:
    """End this process in so many seconds, whatever it waits for by then: whoever announced the end will not wait longer."""

    def leave() -> None:
        os.write(2, b"dr-jax: not everything was saved in time; the same command with --resume does the rest again\n")
        os._exit(130)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


class Screen:
    """Prints what a run reports, in `progress(phase, index, numbers)` form.

    Args:
        console: where to print.
        steps: how many updates the run makes.
        quiet: print nothing; for `--json`.
    """

    def __init__(self, console: Console, steps: int, *, quiet: bool = False) -> None:
        self._console, self._steps, self._quiet = console, steps, quiet

    def __call__(self, phase: str, index: int, numbers: Mapping[str, Any]) -> None:
        """Print one event."""
        if self._quiet:
            return
        match phase:
            case "step":
                self._console.print(step_line(index, self._steps, numbers), highlight=False, soft_wrap=True)
            case "eval":
                self._console.print(evaluation(f"held-out questions after {index} updates", numbers))
            case "saved":
                self._console.print(f"saved step {index} in {numbers['directory']}", style="dim")
            case "warm_up":
                self._passing(f"compiling {numbers.get('program', '')} {index}", last=False)
            case "evaluating":
                self._passing(f"held-out questions {index}/{numbers['count']}", last=index == numbers["count"])
            case _:
                self._console.print(f"{phase} {index}", style="dim")

    def _passing(self, line: str, *, last: bool) -> None:
        """Print over the line before; in a file, where that cannot be, only the last one."""
        if self._console.is_terminal:
            self._console.print(f"{line:<60}", style="dim", end="\n" if last else "\r")
        elif last:
            self._console.print(line)


def step_line(step: int, steps: int, numbers: Mapping[str, Any]) -> str:
    """One update in one line."""
    shown = [
        ("f1 part", "rollout/f1", "{:+.2f}"),
        ("reward", "rollout/reward", "{:+.2f}"),
        ("calls", "rollout/tool_calls", "{:.2f}"),
        ("tokens", "rollout/tokens", "{:.0f}"),
        ("loss", "update/loss", "{:+.3f}"),
        ("mismatch", "update/mismatch_max", "{:.1e}"),
        ("", "wall_s", "{:.0f}s"),
    ]
    parts = [f"{label} {form.format(numbers[key])}".strip() for label, key, form in shown if key in numbers]
    return f"[bold]update {step:>4}/{steps}[/bold]  " + "  ".join(parts)


def evaluation(title: str, found: Mapping[str, Any]) -> Table:
    """An evaluation as a table: one row per source and per number of hops, and one for all."""
    table = Table(title=title, title_justify="left")
    for name in ("", "n", "F1", "95 % interval", "EM", "calls", "outcomes"):
        table.add_column(name, justify="left" if name in ("", "outcomes") else "right")
    rows = {**found.get("by_source", {}), **found.get("by_hops", {})}
    for name, row in (*(rows.items() if len(rows) > 1 else ()), ("all", found)):
        low, high = row["ci95"]
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items())
        cells = (f"{row['f1']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['em']:.3f}", f"{row['tool_calls']:.2f}", outcomes)
        table.add_row(name, str(row["n"]), *cells, style="bold" if name == "all" else "")
    return table


def texts(title: str, rows: Sequence[Sequence[str]]) -> Table:
    """Texts as a table: the first row is its head; what looks like a number stands to the right."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(rows[0]):
        numbers = all(row[place].lstrip("+-")[:1].isdigit() for row in rows[1:] if row[place])
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(escape(cell) for cell in row))
    return table
