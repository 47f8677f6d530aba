"""`dr-jax train`: the whole experiment that a config describes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dr_jax.cli.progress import Screen, bereaved, leave_within, resumable

Config = Annotated[Path, typer.Argument(help="A TOML file, such as configs/quickstart.toml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that replace the file's: key.sub=value.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def command(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of this run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print settings, sizes, memory and plan; train nothing.")] = False,
    as_json: Json = False,
    join: Annotated[
        str, typer.Option("--join", metavar="auto|HOST:PORT/INDEX/COUNT", help="Be one of several processes, one a host.")
    ] = "",
) -> None:
    """Train a policy by reinforcement on its own episodes, with an evaluation before and after.

    Writes runs/NAME/: config.json, metrics.jsonl, episodes.jsonl, checkpoints, model, curve.png, summary.json. Of several
    processes the first writes; the others write their own episodes beside it: episodes-1.jsonl and so on.
    """
    from dr_jax.base.config import read
    from dr_jax.sharding import hosts
    from dr_jax.train.settings import Settings

    settings = read(Settings, config, overrides or [])
    if join:
        hosts.join(join)
    if dry_run:
        from dr_jax.train.plan import plan

        typer.echo(json.dumps(plan(settings), indent=2))
        return
    from dr_jax.train.loop import train

    console = Console()
    screen = Screen(console, settings.steps, quiet=as_json)
    with resumable(), bereaved():
        summary = asyncio.run(
            train(settings, resume=resume, told=screen, terminated=lambda: leave_within(settings.checkpoint.grace_s))
        )
    if hosts.index():  # the first process tells
        return
    if as_json:
        typer.echo(json.dumps(summary))
        return
    before, after = summary["eval"]["before"], summary["eval"]["after"]
    console.print(
        f"held-out F1 {before['f1']:.3f} {before['ci95']} before, [bold]{after['f1']:.3f}[/bold] {after['ci95']} after "
        f"{summary['steps']} updates in {summary['wall_s']:.0f} s; largest mismatch {summary['mismatch_max']:.1e}",
        highlight=False,
    )
    console.print(
        f"episodes: dr-jax show {Path(settings.out) / settings.name}   curve: {Path(settings.out) / settings.name}/curve.png"
    )
