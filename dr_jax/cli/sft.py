"""`dr-jax sft`: the supervised cold start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console

from dr_jax.cli.progress import resumable
from dr_jax.cli.train import Config, Overrides


def command(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of this run.")] = False,
) -> None:
    """Train a small policy from nothing on episodes of scripted researchers.

    Writes runs/NAME/: config.json, metrics.jsonl, tokenizer, checkpoints, and model in Hugging Face format.
    """
    from dr_jax.base.config import read, to_tree
    from dr_jax.train.cold_start import cold_start
    from dr_jax.train.report import write_json
    from dr_jax.train.settings import Settings
    from dr_jax.train.state import refuse_nothing, run_directory

    settings = read(Settings, config, overrides or [])
    refuse_nothing(settings, resume=resume)
    directory = run_directory(settings, resume=resume)
    write_json(directory / "config.json", to_tree(settings))
    console, start, done = Console(), time.perf_counter(), 0

    def progress(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal done
        done += 1
        if step % 10 == 0 or step == settings.steps:
            left = (time.perf_counter() - start) / done * (settings.steps - step)
            console.print(
                f"update {step:>5}/{settings.steps}  loss {numbers['update/loss']:.4f}  "
                f"demonstrations {numbers['cold_start/episodes']:.0f}  {numbers['wall_s']:.0f} s, about {left:.0f} s to go",
                highlight=False,
            )

    with resumable():
        model = cold_start(settings, directory, resume=resume, progress=progress)
    typer.echo(f"wrote {model}")
