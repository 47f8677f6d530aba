"""`dr-jax eval`: measure a policy on a question set, or many in many ways; compare two evaluations."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dr_jax.cli.progress import evaluation, texts
from dr_jax.cli.train import Json

if TYPE_CHECKING:
    from dr_jax.evaluate.settings import EvaluationSettings, Plan

_MANY = "Many at once"
_MAIN = ("f1", "em", "judge")  # what a terminal shows of a comparison; the files have everything


def command(
    config: Annotated[Path | None, typer.Argument(help="A TOML file, such as configs/quickstart.toml.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that replace the file's: key.sub=value.")] = None,
    checkpoint: Annotated[
        str, typer.Option(help="A model's or a run's directory to measure instead of the config's model.load.")
    ] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH, as model.load or a run's directory, or NAME=URL of a server.", rich_help_panel=_MANY),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=FILE, as data.path, or NAME=littleweb.", rich_help_panel=_MANY),
    ] = None,
    way: Annotated[
        list[str] | None, typer.Option(help="agent, no_tools, one_shot or search_only.", rich_help_panel=_MANY)
    ] = None,
    samples: Annotated[int, typer.Option(help="Attempts at each question.", rich_help_panel=_MANY)] = 1,
    judge: Annotated[str, typer.Option(help="PATH or URL of a model that judges answers.", rich_help_panel=_MANY)] = "",
    out: Annotated[Path | None, typer.Option(help="Where to; runs/NAME-evals by default.", rich_help_panel=_MANY)] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="RUN_A RUN_B", help="Compare two finished evaluations, or two cells of them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run one episode per question and print F1, EM, intervals, outcomes and tool calls by source.

    Questions come from data.path (parquet, JSONL, or a published format), or from littleweb's held-out world. Episodes go to
    runs/NAME-eval/episodes.jsonl; read them with `dr-jax show`.

    With --model, --set, --way, --samples, --judge or --out, every model attempts every set in every way. Each cell of the
    table has a directory OUT/MODEL.SET.WAY with a journal. The same command goes on where it was stopped, and prints the table
    at once when nothing is missing.

    --compare needs no config: differences on the same questions, with intervals and p-values, and DeepResearcher's published
    table with our rows, where the sets are its.
    """
    if compare is not None:
        _compare(compare[0], compare[1], as_json=as_json)
        return
    if config is None:
        raise typer.BadParameter("a TOML file is needed, such as configs/quickstart.toml", param_hint="CONFIG")
    wanted = [*(overrides or []), *([f"model.load={json.dumps(checkpoint)}"] if checkpoint else [])]
    if model or questions or way or samples != 1 or judge or out is not None:
        from dr_jax.base.config import read
        from dr_jax.evaluate.settings import EvaluationSettings, Plan, named

        settings = read(EvaluationSettings, config, wanted)
        plan = Plan(
            models=named(model or [], "--model", {"policy": settings.model.load}),
            sets=named(questions or [], "--set", {_set_name(settings.data.eval_path or settings.data.path): ""}),
            ways=tuple(dict.fromkeys(way or ["agent"])),  # type: ignore[arg-type]  # Plan checks them
            samples=samples,
            judge=judge,
            out=out or Path(settings.out) / f"{settings.name}-evals",
        )
        _many(settings, plan, as_json=as_json)
    else:
        _one(config, wanted, as_json=as_json)


def _one(config: Path, overrides: list[str], *, as_json: bool) -> None:
    from dr_jax.base.config import read
    from dr_jax.train.measure import measure
    from dr_jax.train.settings import Settings

    settings = read(Settings, config, overrides)
    console = Console(stderr=as_json)
    with console.status("starting") as status:

        def told(phase: str, index: int, numbers: object) -> None:
            status.update(f"{phase} {index}")

        found = asyncio.run(measure(settings, told=told))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        console.print(evaluation(f"{settings.model.load} on {settings.data.path or 'littleweb, held-out world'}", found))
        console.print(f"largest mismatch between engine and trainer {found['mismatch_max']:.1e}", highlight=False)


def _many(settings: EvaluationSettings, plan: Plan, *, as_json: bool) -> None:
    from dr_jax.evaluate import shown
    from dr_jax.evaluate.harness import evaluate
    from dr_jax.evaluate.published import beside

    console = Console(stderr=as_json)
    with console.status("starting") as status:

        def told(phase: str, index: int, numbers: Any) -> None:
            status.update(f"{phase} {numbers.get('cell', '')} {index}/{numbers['count']}")

        try:
            found = asyncio.run(evaluate(settings, plan, told=told))
        except (KeyboardInterrupt, asyncio.CancelledError):
            typer.echo("dr-jax: interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print(console, f"{plan.out}", shown.cells(found))
    _print(console, f"against {next(iter(plan.models))}", shown.comparisons(found["compared"], _MAIN))
    _print(console, "DeepResearcher's table", beside(found["rows"]))
    console.print(f"by source, hops and outcome: {plan.out}/table.md; episodes: dr-jax show {plan.out}/MODEL.SET.WAY")


def _compare(first: Path, second: Path, *, as_json: bool) -> None:
    from dr_jax.evaluate import shown
    from dr_jax.evaluate.compare import compared, pairs
    from dr_jax.evaluate.journal import cells
    from dr_jax.evaluate.published import beside
    from dr_jax.evaluate.table import table

    read = [cells(first), cells(second)]
    found = [compared(one, other) for one, other in pairs(*read)]
    rows = [table(cell, next(iter(sorted(cell.verdicts)), "")) for some in read for cell in some]
    if as_json:
        typer.echo(json.dumps({"compared": found, "rows": rows}))
        return
    console = Console()
    _print(console, f"{second} against {first}", shown.comparisons(found))
    for one in found:
        if one["only_first"] or one["only_second"]:
            alone = f"{one['only_first']} questions only in the first, {one['only_second']} only in the second"
            console.print(f"{one['first']}, {one['second']}: {alone}; they are left out", highlight=False)
    _print(console, "DeepResearcher's table", beside(rows))


def _print(console: Console, title: str, rows: list[list[str]]) -> None:
    if rows:
        console.print(texts(title, rows))


def _set_name(path: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_@+-" else "-" for letter in Path(path).stem) or "littleweb"
