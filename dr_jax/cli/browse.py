"""`dr-jax browse`: what the agent would see of a page, through the same guard, fetch and extraction."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dr_jax.agent.endpoint import Endpoint
from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.model_reader import READ, ModelReader
from dr_jax.agent.reading import ReaderSettings, Reading, Task
from dr_jax.base.config import read
from dr_jax.base.errors import UserError
from dr_jax.base.metrics import Metrics
from dr_jax.cli.train import Json
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.guard import AllowedHost, host_of
from dr_jax.web.page import Page, WebError
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web
from dr_jax.web.workers import Extractors

if TYPE_CHECKING:
    from dr_jax.littleweb.world import WorldSettings

_TYPES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), "text/html"),
    ".pdf": "application/pdf",
    ".xml": "application/xml",
    ".rss": "application/rss+xml",
    ".atom": "application/atom+xml",
    ".json": "application/json",
    ".txt": "text/plain",
    ".md": "text/plain",
}


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings that browsing needs, where no config is named."""

    web: WebSettings = field(default_factory=WebSettings)
    reader: ReaderSettings = field(default_factory=ReaderSettings)


def command(
    target: Annotated[
        str, typer.Argument(metavar="URL|FILE", help="An address, or a saved page: .html, .pdf, .xml, .json, .txt.")
    ],
    question: Annotated[str, typer.Option(help="Print what the page says about this, and not its whole text.")] = "",
    links: Annotated[bool, typer.Option("--links", help="Print the page's links too.")] = False,
    config: Annotated[Path | None, typer.Option(help="A config whose tables web and reader are used.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="NAME=ADDRESS:PORT, a host inside that may be reached.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value")] = None,
    as_json: Json = False,
) -> None:
    """Open one page and print what the agent would see of it.

    A saved page is read without any network, in the same kind of process. Exit code 1: there is no such page, or it shows
    nothing; 2: the address or the file is none.
    """
    from dr_jax.littleweb.world import WorldSettings

    allowed = tuple(_permission(text) for text in allow or [])
    if config is None:
        settings, world = read(_Settings, None, override or []), WorldSettings()
    else:
        settings, world = _of_config(config, override or [])
    file = _saved(target)
    found = _open_file(file, settings.web) if file else asyncio.run(_open(target, settings.web, world, allowed))
    if isinstance(found, WebError):
        if as_json:
            typer.echo(json.dumps({"error": found.kind, "message": found.message}, ensure_ascii=False))
        typer.echo(f"dr-jax: {found.message.rstrip('.')}.", err=True)
        raise typer.Exit(2 if found.kind == "bad_url" else 1)
    reading = asyncio.run(_read(found, question, settings.reader)) if question.strip() else None
    _show(found, reading, links=links, as_json=as_json)


def _of_config(config: Path, overrides: list[str]) -> tuple[_Settings, WorldSettings]:
    from dr_jax.train.settings import Settings

    settings = read(Settings, config, overrides)
    return _Settings(settings.web, settings.reader), settings.littleweb.world("train")


def _permission(text: str) -> AllowedHost:
    name, _, place = text.partition("=")
    address, _, port = place.rpartition(":")
    try:
        return AllowedHost(name, address.strip("[]"), int(port))
    except ValueError:
        raise UserError(
            f"--allow {text!r} is no permission", needed="NAME=ADDRESS:PORT, such as intranet=10.0.0.7:8080"
        ) from None


def _saved(target: str) -> Path | None:
    """Return the file that is meant, or None when it is an address.

    Raises:
        UserError: there is no such file, or none of its kind is read.
    """
    if "://" in target:
        return None
    file = Path(target).expanduser()
    if not file.is_file():
        raise UserError(
            f"{target!r} is neither an address nor a file that exists", needed="https://…, http://…, or a saved page"
        )
    if file.suffix.lower() not in _TYPES:
        raise UserError(f"{target!r} is a file of a kind that is not read", needed=f"one of {' '.join(_TYPES)}")
    return file


def _open_file(file: Path, settings: WebSettings) -> Page | WebError:
    cap, address, kind = settings.fetch.body_bytes, file.absolute().as_uri(), _TYPES[file.suffix.lower()]
    try:
        with file.open("rb") as opened:
            body = opened.read(cap + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error

    async def extracted() -> Page | WebError:
        async with Extractors(settings.extract) as pool:
            return await pool.extract(body[:cap], address, kind, "", truncated=len(body) > cap)

    return asyncio.run(extracted())


async def _open(url: str, settings: WebSettings, world: WorldSettings, allowed: tuple[AllowedHost, ...]) -> Page | WebError:
    from dr_jax.train.worlds import way_out, world_name

    if settings.gateways:
        if allowed:
            raise UserError(
                "--allow says nothing to a gateway, which is what asks",
                fix="leave --allow out, or browse with --set web.gateways=[]",
            )
        async with way_out(settings, world) as remote:
            return await remote.open(url)
    name = world_name(settings, world) if "littleweb" in settings.order else ""  # as a run's, on whose tape it may be
    if "local" not in settings.order:  # nothing is searched, so nobody needs a key
        settings = replace(settings, search="littleweb")
    async with AsyncExitStack() as stack:
        if host_of(url).endswith(".littleweb") and settings.tape.mode != "replay":
            from dr_jax.littleweb.site import serve
            from dr_jax.littleweb.world import build

            site = await stack.enter_async_context(serve(build(world)))
            allowed = (*allowed, AllowedHost(suffix="littleweb", address="127.0.0.1", port=site.port))
        web = await stack.enter_async_context(Web(settings, allow=allowed, world=name))
        return await web.open(url)


async def _read(page: Page, question: str, settings: ReaderSettings) -> tuple[Reading, ...]:
    """Read as a run would: by the config's server if it names one; a policy is not loaded for a single page."""
    key, task = RequestKey(run=0, question="browse", sibling=0, turn=0, purpose="read"), Task(question, question)
    if settings.kind != "openai":
        return await ExtractiveReader(settings).read(page, task, key)
    metrics = Metrics()
    async with Endpoint(settings.endpoint, READ, settings.max_new_tokens, metrics=metrics) as endpoint:
        return await ModelReader(endpoint, settings, metrics).read(page, task, key)


def _show(page: Page, reading: tuple[Reading, ...] | None, *, links: bool, as_json: bool) -> None:
    if as_json:
        told: dict[str, object] = {"url": page.url, "title": page.title, "date": page.date}
        told |= {"content_type": page.content_type, "truncated": page.truncated}
        if reading is None:
            told["text"] = page.text
        else:
            told["reading"] = [{"part": one.page_number, "says": one.summary} for one in reading]
        if links:
            told["links"] = [{"text": text, "url": url} for text, url in page.links]
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    console.print(f"[bold]{escape(page.title or '-')}[/bold]{f'  ({page.date})' if page.date else ''}", highlight=False)
    console.print(f"[cyan]{escape(page.url)}[/cyan]\n", highlight=False)
    shown = page.text if reading is None else "\n".join(one.summary for one in reading) or "It says nothing about that."
    console.print(shown, markup=False, highlight=False, emoji=False)
    if page.truncated:
        console.print("\n[yellow]It goes on; the rest is not shown.[/yellow]", highlight=False)
    if links:
        console.print()
        for text, url in page.links:
            console.print(f"{escape(text or '-')}  [cyan]{escape(url)}[/cyan]", highlight=False)
