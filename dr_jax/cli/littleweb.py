"""`dr-jax littleweb`: serve the embedded web, to be looked at in a browser."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer


class Split(StrEnum):
    """The two kinds of world."""

    TRAIN = "train"
    EVAL = "eval"


def command(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    entities: Annotated[int, typer.Option(help="How many entities it has.")] = 2400,
    split: Annotated[Split, typer.Option(help="The two share no name.")] = Split.TRAIN,
) -> None:
    """Serve one fictional world over HTTP until Ctrl-C: its sites, its search, some questions with their answers."""
    asyncio.run(_serve(port, seed, entities, split))


async def _serve(port: int, seed: int, entities: int, split: Split) -> None:
    from dr_jax.base.errors import UserError
    from dr_jax.littleweb.site import serve
    from dr_jax.littleweb.world import WorldSettings, build

    try:
        settings = WorldSettings(seed=seed, entities=entities, split=split.value)
    except ValueError as error:
        raise UserError(str(error)) from error
    async with serve(build(settings), port=port) as site:
        typer.echo(f"littleweb (seed {seed}, {split}, {entities} entities) on {site.base_url}  -  Ctrl-C ends it")
        await asyncio.Event().wait()
