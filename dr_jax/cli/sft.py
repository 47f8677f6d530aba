"""`dr-jax sft`: the supervised cold start."""

from __future__ import annotations

import time
from collections.abc import Mapping

import typer
from rich.console import Console

from dr_jax.cli.train import Config, Overrides


def command(config: Config, overrides: Overrides = None) -> None:
    """Train a small policy from nothing on episodes of scripted researchers.

    Writes runs/NAME/model in Hugging Face format (weights and tokenizer) and runs/NAME/metrics.jsonl.
    """
    from dr_jax.base.config import read, to_tree
    from dr_jax.train.cold_start import cold_start
    from dr_jax.train.report import Report, write_json
    from dr_jax.train.settings import Settings
    from dr_jax.train.state import run_directory

    settings = read(Settings, config, overrides or [])
    directory = run_directory(settings, resume=False)
    write_json(directory / "config.json", to_tree(settings))
    report, console, start = Report(directory), Console(), time.perf_counter()

    def progress(step: int, numbers: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - start
        report.step(step, {**numbers, "wall_s": seconds})
        if step % 10 == 0 or step == settings.steps:
            left = seconds / step * (settings.steps - step)
            console.print(
                f"update {step:>5}/{settings.steps}  loss {numbers['update/loss']:.4f}  "
                f"demonstrations {numbers['cold_start/episodes']:.0f}  {seconds:.0f} s, about {left:.0f} s to go",
                highlight=False,
            )

    model = cold_start(settings, directory, progress=progress)
    typer.echo(f"wrote {model} after {time.perf_counter() - start:.0f} s")
