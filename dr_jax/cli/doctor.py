"""`dr-jax doctor`: what is here, what is missing, and whether it works."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "aiohttp", "trafilatura")
_KEYS = (
    "SERPER_API_KEY",
    "BRAVE_API_KEY",
    "TAVILY_API_KEY",
    "GOOGLE_API_KEY",
    "GOOGLE_CSE_ID",
    "SEARXNG_URL",
    "OPENAI_API_KEY",
    "WANDB_API_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
)


def command(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print versions, devices and which keys are set (never their values); compile a program; fetch a page over HTTP."""
    found = examine()
    if as_json:
        typer.echo(json.dumps(found))
        raise typer.Exit(0 if found["ok"] else 1)
    table = Table(title="dr-jax doctor", title_justify="left", show_header=False)
    for group in ("versions", "machine", "keys", "checks"):
        for name, value in found[group].items():
            table.add_row(group, name, str(value))
    Console().print(table)
    raise typer.Exit(0 if found["ok"] else 1)


def examine() -> dict[str, Any]:
    """Return everything that the command prints; `ok` says whether both checks passed."""
    import jax

    versions = {name: _version(name) for name in ("dr-jax", *_PACKAGES)} | {"python": platform.python_version()}
    machine = {
        "devices": ", ".join(sorted({f"{len(jax.devices())} x {device.device_kind}" for device in jax.devices()})),
        "backend": jax.default_backend(),
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "disk free": f"{shutil.disk_usage('.').free / 2**30:.0f} GiB",
    }
    keys = {name: "present" if os.environ.get(name) else "absent" for name in _KEYS}
    checks = {"compile": _compile_check(), "http": asyncio.run(_http_check())}
    ok = all(text.startswith("ok") for text in checks.values())
    return {"versions": versions, "machine": machine, "keys": keys, "checks": checks, "ok": ok}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compile_check() -> str:
    import jax
    import jax.numpy as jnp

    start = time.perf_counter()
    found = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64))))
    return f"ok, {time.perf_counter() - start:.2f} s" if found == 64**3 else f"wrong result {found}, {64**3} expected"


async def _http_check() -> str:
    from dr_jax.littleweb.site import serve
    from dr_jax.littleweb.world import WorldSettings, build
    from dr_jax.web.guard import AllowedHost
    from dr_jax.web.page import WebError
    from dr_jax.web.settings import WebSettings
    from dr_jax.web.web import Web

    start = time.perf_counter()
    async with serve(build(WorldSettings(entities=200))) as site:
        allowed = AllowedHost(suffix="littleweb", address="127.0.0.1", port=site.port)
        async with Web(WebSettings(search="littleweb"), allow=(allowed,)) as web:
            hits = await web.search("city")
            if isinstance(hits, WebError) or not hits:
                return f"search failed: {hits}"
            page = await web.open(hits[0].url)
            if isinstance(page, WebError):
                return f"{hits[0].url} failed: {page.message}"
    return f"ok, search and one page in {time.perf_counter() - start:.2f} s"
