"""`dr-jax ask`: one episode, live."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dr_jax.cli.train import Json


def command(
    question: Annotated[str, typer.Argument(help="What to find out; without it, a question of littleweb's.")] = "",
    config: Annotated[Path, typer.Option(help="Which policy, web and tools.")] = Path("configs/quickstart.toml"),
    override: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value")] = None,
    checkpoint: Annotated[str, typer.Option(help="A model directory to ask instead of the config's model.load.")] = "",
    as_json: Json = False,
) -> None:
    """Ask one question and watch the policy think, search, read and answer."""
    from dr_jax.base.config import read
    from dr_jax.rollout.episode import Event
    from dr_jax.train.measure import ask
    from dr_jax.train.settings import Settings

    extra = [f"model.load={json.dumps(checkpoint)}"] if checkpoint else []
    settings = read(Settings, config, [*(override or []), *extra])
    console = Console(stderr=as_json)
    colours = {"prompt": "bold", "said": "green", "observed": "bright_black", "ended": "bold"}

    def watch(event: Event) -> None:
        kind, text = event
        console.print(f"[{colours[kind]}]{escape(text)}[/]\n", highlight=False)

    with console.status("compiling") as status:

        def told(phase: str, index: int, numbers: object) -> None:
            status.update(f"{phase} {index}")

        asked, episode = asyncio.run(ask(settings, question, told=told, watch=watch))
    if as_json:
        told_of = {"question": asked.text, "answer": episode.answer, "outcome": episode.outcome.value}
        typer.echo(json.dumps({**told_of, "failure": episode.failure}))
        return
    accepted = "" if asked.id == "asked" else f"   accepted: {' | '.join(asked.answers)}"
    console.print(f"answer: [bold]{escape(episode.answer or '-')}[/bold] ({episode.outcome.value}){accepted}", highlight=False)
    if episode.failure:
        console.print(f"the world failed: {escape(episode.failure)}", highlight=False)
