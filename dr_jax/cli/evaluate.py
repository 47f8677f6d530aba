"""`dr-jax eval`: measure a policy on a question set."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console

from dr_jax.cli.progress import evaluation
from dr_jax.cli.train import Config, Json, Overrides


def command(
    config: Config,
    overrides: Overrides = None,
    checkpoint: Annotated[str, typer.Option(help="A model directory to measure instead of the config's model.load.")] = "",
    as_json: Json = False,
) -> None:
    """Run one episode per question and print F1, EM, intervals, outcomes and tool calls by source.

    Questions come from data.path (parquet or JSONL), or from littleweb's held-out world. Episodes go to
    runs/NAME-eval/episodes.jsonl; read them with `dr-jax show`.
    """
    from dr_jax.base.config import read
    from dr_jax.train.measure import measure
    from dr_jax.train.settings import Settings

    extra = [f"model.load={json.dumps(checkpoint)}"] if checkpoint else []
    settings = read(Settings, config, [*(overrides or []), *extra])
    console = Console(stderr=as_json)
    with console.status("starting") as status:

        def told(phase: str, index: int, numbers: object) -> None:
            status.update(f"{phase} {index}")

        found = asyncio.run(measure(settings, told=told))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        console.print(evaluation(f"{settings.model.load} on {settings.data.path or 'littleweb, held-out world'}", found))
        console.print(f"largest mismatch between engine and trainer {found['mismatch_max']:.1e}", highlight=False)
