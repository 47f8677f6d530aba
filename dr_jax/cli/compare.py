"""`dr-jax compare`: two evaluations, question by question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dr_jax.cli.train import Json


def command(
    left: Annotated[Path, typer.Argument(help="A directory of `dr-jax eval`, such as runs/before-eval.")],
    right: Annotated[Path, typer.Argument(help="Another one, of the same questions.")],
    as_json: Json = False,
) -> None:
    """Say whether one policy is better than another: mean F1 of both, the difference with its 95 % interval, and its p-value.

    Only questions that both attempted count. The interval is a bootstrap over questions, the p-value that of a sign-flip test.
    """
    from dr_jax.train.compare import compare

    found = compare(left, right)
    if as_json:
        typer.echo(json.dumps(found.tree()))
        return
    table = Table(title=f"{right} against {left}")
    for column in ("", "n", "F1", "against", "difference", "p", "EM", "against"):
        table.add_column(column, justify="right" if column else "left")
    for row in found.rows:
        low, high = row.ci95
        table.add_row(
            row.name,
            str(row.n),
            f"{row.right:.3f}",
            f"{row.left:.3f}",
            f"{row.difference:+.3f} ({low:+.2f} to {high:+.2f})",
            f"{row.p:.2g}",
            f"{row.right_em:.3f}",
            f"{row.left_em:.3f}",
        )
    console = Console()
    console.print(table)
    for count, what in ((found.unpaired, "only one attempted"), (found.world_failed, "the world failed in one or both")):
        if count:
            console.print(f"{count} question{'s' if count > 1 else ''} that {what}: not counted", highlight=False)
