"""`dr-jax littleweb`: serve the embedded web, to be looked at in a browser."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import typer


def command(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    entities: Annotated[int, typer.Option(help="How many entities it has.")] = 2400,
    split: Annotated[str, typer.Option(help="`train` or `eval`; the two share no name.")] = "train",
) -> None:
    """Serve one fictional world over HTTP until Ctrl-C: its sites, its search, some questions with their answers."""
    asyncio.run(_serve(port, seed, entities, "eval" if split == "eval" else "train"))


async def _serve(port: int, seed: int, entities: int, split: Literal["train", "eval"]) -> None:
    from dr_jax.littleweb.site import serve
    from dr_jax.littleweb.world import WorldSettings, build

    async with serve(build(WorldSettings(seed=seed, entities=entities, split=split)), port=port) as site:
        typer.echo(f"littleweb (seed {seed}, {split}, {entities} entities) on {site.base_url}  -  Ctrl-C ends it")
        await asyncio.Event().wait()
