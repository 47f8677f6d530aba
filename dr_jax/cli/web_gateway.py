"""`dr-jax web-gateway`: one way out to the web, and its tape, for many processes and hosts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from dr_jax.base.config import read
from dr_jax.base.metrics import Metrics
from dr_jax.cli.train import Json
from dr_jax.train.worlds import LittlewebSettings, ways_out
from dr_jax.web.gateway.server import Served, refuse_open_door, serve_gateway
from dr_jax.web.settings import WebSettings


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a gateway needs of the settings of a run."""

    web: WebSettings = field(default_factory=WebSettings)
    littleweb: LittlewebSettings = field(default_factory=LittlewebSettings)


def command(
    config: Annotated[Path | None, typer.Argument(help="The runs' TOML file; its tables web and littleweb are used.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that replace the file's: key.sub=value.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; others than loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8766,
    as_json: Json = False,
) -> None:
    """Serve search, pages and the tape over HTTP, until SIGTERM or Ctrl-C; then finish what is under way, and exit with 0.

    Runs ask it, and others like it, with the same config and web.gateways=["http://HOST:8766", ...]. It needs the search keys,
    they do not. Beyond loopback, a token is needed on both sides: export DR_JAX_GATEWAY_TOKEN=$(openssl rand -hex 32).

    Several gateways on one machine share a tape (web.tape.mode=record, one web.tape.path): what one has bought, none buys
    again. Each has web.budget of its own. GET /healthz says whether it lives, GET /metrics counts, times and costs.

    Where strangers can connect, put it behind a proxy that bounds connections and encrypts. Whatever stops it must wait for
    longer than web.gateway.grace_s = 60: Kubernetes waits for 30 s, unless terminationGracePeriodSeconds says otherwise.
    """
    settings = read(_Settings, config, overrides or [], part=True)
    asyncio.run(_serve(replace(settings, web=replace(settings.web, gateways=())), host, port, as_json=as_json))


async def _serve(settings: _Settings, host: str, port: int, *, as_json: bool) -> None:
    limits, metrics, stop = settings.web.gateway, Metrics(), asyncio.Event()
    refuse_open_door(host, limits.token, limits.token_env)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        webs = await ways_out(settings.web, settings.littleweb, metrics, stack)
        serving = serve_gateway(webs, limits, metrics, host=host, port=port, token=limits.token)
        _tell(await stack.enter_async_context(serving), settings.web, list(webs), as_json=as_json)
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):  # asked again, it ends at once
            asyncio.get_running_loop().remove_signal_handler(number)


def _tell(served: Served, settings: WebSettings, worlds: list[str], *, as_json: bool) -> None:
    tape = settings.tape.path if settings.tape.mode != "live" else ""
    if as_json:
        typer.echo(json.dumps({"url": served.url, "pid": os.getpid(), "worlds": worlds, "tape": tape}))
        return
    kept = f"tape {tape} ({settings.tape.mode})" if tape else "no tape: what is bought is forgotten with this process"
    typer.echo(f"gateway on {served.url}  -  {'; '.join(worlds)}  -  {kept}  -  SIGTERM or Ctrl-C stops it")
