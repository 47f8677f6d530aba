"""`dr-jax plan`: what a run would need of a TPU slice that is not here, and the most that it would give."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from dr_jax.train.forecast import Forecast

_G, _T = 1e9, 1e12


def command(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as configs/deepresearcher_7b.toml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that replace the file's: key.sub=value.")] = None,
    topology: Annotated[str, typer.Option(help="Chips and slice: v5p:4x4x4, v5e:8x8, v6e:8x8, …")] = "v5p:4x4x4",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compile a run's update, prefill and decode programs for a TPU slice, on this machine, and say what they need.

    Prints memory of a chip by part, arithmetic, collectives, attention kernels, the least time that published rates allow, and
    what to change where it does not fit. Nothing is run. Needs libtpu (`pip install 'dr-jax[tpu-aot]'`), no TPU. Exit code 1:
    it does not fit.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # with libtpu installed, JAX would look for a TPU here
    from dr_jax.base.config import read
    from dr_jax.train.forecast import advice, forecast
    from dr_jax.train.roofline import as_tree, assumptions
    from dr_jax.train.settings import Settings

    console = Console(stderr=True)
    settings = read(Settings, config, overrides or [])
    found = forecast(settings, topology, lambda line: console.print(f"compiling {line}", highlight=False))
    if as_json:
        typer.echo(json.dumps(as_tree(found), indent=2))
        raise typer.Exit(0 if found.fits else 1)
    _show(found, Console(), assumptions(found))
    for line in advice(found):
        typer.echo(line)
    raise typer.Exit(0 if found.fits else 1)


def _show(found: Forecast, console: Console, assumed: list[str]) -> None:
    rows = f"{found.settings.batch.rows} x {max(found.settings.batch.lengths):,}"
    meshes = ", ".join(f"{axis} {size}" for axis, size in found.learning.items() if size > 1)
    hosts = f"{found.processes} process{'es' if found.processes > 1 else ''}"
    console.print(
        f"[bold]{found.name}[/bold]: {found.chips} chips, {hosts}; {found.model}; update on {meshes or 'one chip'}, "
        f"rows of {rows}, remat = {found.settings.remat}; "
        f"an engine for each process on {' x '.join(map(str, found.sampling.values()))} chips",
        highlight=False,
    )
    for table in (_memory(found), _programs(found), _sent(found)):
        console.print(table)
    for one in found.compiled:
        calls = Counter[str]()
        for kernel in one.counts.kernels:
            calls[kernel.name] += kernel.calls
        told = ", ".join(f"{name} x {count:,}" for name, count in sorted(calls.items()))
        console.print(f"kernels of {one.name}: {told or 'none, plain JAX'}", highlight=False)
    _rates(found, console)
    console.print("assumed:", *(f"\n- {line}" for line in assumed), highlight=False)
    console.print("[bold green]fits[/bold green]" if found.fits else "[bold red]does not fit[/bold red]")


def _memory(found: Forecast) -> Table:
    from dr_jax.train.forecast import GIB

    memory = Table(title="memory of one chip, GiB", title_justify="left")
    for column in ("part", "GiB"):
        memory.add_column(column, justify="left" if column == "part" else "right")
    for name, size in found.parts.items():
        memory.add_row(name.replace("_", " "), f"{size / GIB:.2f}")
    for one in found.compiled:
        memory.add_row(f"while it runs: {one.name}", f"{one.temporaries / GIB:.2f} of its own, {one.peak / GIB:.2f} in all")
    memory.add_row("[bold]most[/bold]", f"[bold]{found.peak / GIB:.2f}[/bold] of {found.room / GIB:.2f} usable")
    return memory


def _programs(found: Forecast) -> Table:
    from dr_jax.train.ahead import Failed
    from dr_jax.train.roofline import least_time

    programs = Table(title="programs, one chip", title_justify="left")
    for column in ("program", "Tflop", "useful", "GB", "least s", "compiled in"):
        programs.add_column(column, justify="left" if column == "program" else "right")
    for each in found.programs:
        if isinstance(each, Failed):
            programs.add_row(f"{each.name}: [red]{escape(each.reason[:80])}", *[""] * 4, f"{each.seconds:.0f} s")
            continue
        time = least_time(found, each)
        flops = (time.compute * found.chip.flops, each.flops)
        numbers = [*(f"{one / _T:,.1f}" for one in flops), f"{each.counts.bytes / _G:,.1f}"]
        programs.add_row(each.name, *numbers, f"{time.together:.3f} to {time.apart:.3f}", f"{each.seconds:.0f} s")
    return programs


def _sent(found: Forecast) -> Table:
    sent = Table(title="sent to other chips, one chip", title_justify="left")
    for column in ("program", "collective", "calls", "GB"):
        sent.add_column(column, justify="right" if column in ("calls", "GB") else "left")
    for one in found.compiled:
        for kind, each in one.counts.collectives.items():
            sent.add_row(one.name, kind, f"{each.calls:,}", f"{each.bytes / _G:.2f}")
    return sent


def _rates(found: Forecast, console: Console) -> None:
    from dr_jax.train.roofline import speeds

    if (gradient := found.named("gradient")) is not None:
        counts = gradient.counts
        console.print(
            f"matrix products of the gradient, Tflop: {found.products / _T:,.2f} by the equations, {counts.flops / _T:,.2f} "
            f"counted in the program with its loops run to their end; {counts.flops_once / _T:,.2f} with each loop once: "
            f"XLA counts {gradient.xla_flops / _T:,.2f}, everything else with them",
            highlight=False,
        )
    for name, one in speeds(found).items():
        rate, use = one["tokens_per_s"], one["utilisation"]
        more = f"; then {one['step_s']:.3f} s for the step" if one.get("step_s") else ""
        console.print(
            f"{name}: {rate['apart']:,.0f} to {rate['together']:,.0f} tokens/s over all chips, utilisation "
            f"{use['apart']:.0%} to {use['together']:.0%}{more}",
            highlight=False,
        )
