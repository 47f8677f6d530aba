"""`dr-jax search`: what a search finds, as the tools would get it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dr_jax.cli.train import Json
from dr_jax.web.page import Hit, WebError
from dr_jax.web.settings import WebSettings

if TYPE_CHECKING:
    from dr_jax.littleweb.world import WorldSettings


@dataclass(frozen=True, slots=True)
class _WebOnly:
    """The settings that searching needs, where no config is named."""

    web: WebSettings = field(default_factory=WebSettings)


def command(
    query: Annotated[str, typer.Argument(help="What to search for.")],
    config: Annotated[Path | None, typer.Option(help="A config whose table web is used; the defaults without one.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Whom to ask; again for a second one, should it fail.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value")] = None,
    as_json: Json = False,
) -> None:
    """Search once and print the hits, best first. Without a provider, littleweb is served and searched."""
    from dr_jax.littleweb.world import WorldSettings

    asked = [f"web.search={json.dumps(provider)}"] if provider else []
    if config is None:
        from dr_jax.base.config import read

        web, world = read(_WebOnly, None, [*asked, *(override or [])]).web, WorldSettings()
    else:
        web, world = _of_config(config, [*asked, *(override or [])])
    found = asyncio.run(_search(query, web, world))
    if isinstance(found, WebError):
        typer.echo(f"dr-jax: {found.message}.", err=True)
        raise typer.Exit(1)
    _show(query, web.order, found, as_json=as_json)


def _of_config(config: Path, overrides: list[str]) -> tuple[WebSettings, WorldSettings]:
    from dr_jax.base.config import read
    from dr_jax.train.settings import Settings

    settings = read(Settings, config, overrides)
    return settings.web, settings.littleweb.world("train")


async def _search(query: str, settings: WebSettings, world: WorldSettings) -> tuple[Hit, ...] | WebError:
    from dr_jax.train.worlds import way_out

    async with way_out(settings, world) as web:
        return await web.search(query)


def _show(query: str, order: tuple[str, ...], hits: tuple[Hit, ...], *, as_json: bool) -> None:
    if as_json:
        found = [{"title": hit.title, "url": hit.url, "snippet": hit.snippet} for hit in hits]
        typer.echo(json.dumps({"query": query, "search": list(order), "hits": found}, ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    for number, hit in enumerate(hits, start=1):
        console.print(f"[bold]{number:>2}  {escape(hit.title or '-')}[/bold]", highlight=False)
        console.print(f"    [cyan]{escape(hit.url)}[/cyan]", highlight=False)
        if hit.snippet:
            console.print(f"    {escape(hit.snippet)}", highlight=False)
    if not hits:
        console.print("Nothing was found.")
