"""`dr-jax watch`: the page of a run while it goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from dr_jax.cli.report import Tokenizer


def command(
    run: Annotated[Path, typer.Argument(help="A run's directory, such as runs/quickstart; it may just have begun.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8770,
    tokenizer: Tokenizer = None,
) -> None:
    """Serve the page of `dr-jax report` to this machine, with what the run writes as it writes it, until Ctrl-C.

    On another machine: ssh -L 8770:localhost:8770 HOST, then open http://localhost:8770.
    """
    asyncio.run(_serve(run, port, tokenizer))


async def _serve(run: Path, port: int, tokenizer: Path | None) -> None:
    from dr_jax.report.data import RunData
    from dr_jax.report.live import watching

    async with watching(RunData(run, tokenizer=tokenizer, begun=False), port=port) as address:
        typer.echo(f"{run} on {address}  -  Ctrl-C ends it")
        await asyncio.Event().wait()
