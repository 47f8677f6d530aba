"""`dr-jax data`: build training sets, look into question files, and see what a model knows without looking it up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dr_jax.cli.train import Config, Json, Overrides

if TYPE_CHECKING:
    from dr_jax.data.build import Told
    from dr_jax.data.filters.decision import Decision
    from dr_jax.data.question import Question
    from dr_jax.train.recipe import BuildSettings

app = typer.Typer(no_args_is_help=True, help="Build training sets, look into question files, ask what a model knows.")
Form = Annotated[str, typer.Option("--format", help="Of the files; without it, it is recognised. `dr-jax data formats`.")]


@app.command()
def build(
    config: Annotated[Path, typer.Argument(help="A recipe, such as configs/data/deepresearcher_80k.toml.")],
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Directory that the set's directory goes into.")] = "",
    as_json: Json = False,
) -> None:
    """Make a training set: mixture by ratio, filters, de-duplication, split.

    Writes OUT/NAME/: train.parquet, dev.parquet, manifest.json, report.md, dropped.jsonl, leakage.jsonl. The same recipe and
    files give the same hashes. After an interruption the same command asks no model a second time.
    """
    from dr_jax.base.config import read
    from dr_jax.train.recipe import BuildSettings

    recipe = read(BuildSettings, config, [*(overrides or []), *([f"out={json.dumps(out)}"] if out else [])])
    console = Console(stderr=as_json)
    with _bars(console) as told:
        found = asyncio.run(_built(recipe, told))
    if as_json:
        typer.echo(json.dumps(found))
        return
    directory = Path(recipe.out) / recipe.name
    table = Table(title=str(directory), title_justify="left")
    for name in ("", "candidates", "looked at", "dropped", "train", "dev"):
        table.add_column(name, justify="left" if not name else "right")
    for name, part in found["parts"].items():
        lost = sum(count for kinds in part["dropped"].values() for count in kinds.values()) + sum(part["unsure"].values())
        cells = (part["candidates"], part["considered"], lost, part["drawn"]["train"], part["drawn"]["dev"])
        table.add_row(name, *map(str, cells))
    console.print(table)
    for one in found["outputs"]:
        console.print(f"{one['file']}: {one['rows']} questions, content {one['content_sha256'][:16]}", highlight=False)
    console.print(f"what happened to each question: {directory / 'report.md'}", highlight=False)


@app.command()
def inspect(
    place: Annotated[str, typer.Argument(help="A file, a pattern, hub:OWNER/NAME/FILE or tfds:NAME:SPLIT.")],
    form: Form = "",
    against: Annotated[list[str] | None, typer.Option(help="Evaluation questions that must not leak into it.")] = None,
    examples: Annotated[int, typer.Option(help="How many questions to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Count questions by source, show some, and list those that an evaluation set has as well (exit code 1 if there are)."""
    from dr_jax.data.holdout import identity
    from dr_jax.data.sources.registry import read

    questions = read(place, form=form)
    pairs = asyncio.run(_leaks(questions, against or []))
    repeated = len(questions) - len({identity(question.text) for question in questions})
    sources = Counter(question.source for question in questions)
    if as_json:
        found = {"questions": len(questions), "repeated": repeated, "sources": dict(sources), "leaks": pairs}
        typer.echo(json.dumps(found, ensure_ascii=False))
        raise typer.Exit(1 if pairs else 0)
    console = Console()
    console.print(_by_source(questions, place))
    console.print(f"{len(questions)} questions, {repeated} of them said before in another spelling", highlight=False)
    for question in questions[:examples]:
        console.print(
            f"\n{question.id}: {question.text}\n  {' | '.join(question.answers)[:200]}", highlight=False, markup=False
        )
    for pair in pairs:
        console.print(f"{pair['kind']}: {pair['train']} = {pair['id']} of {pair['set']}", highlight=False, markup=False)
    if against:
        console.print(f"{len(pairs)} questions leak from {', '.join(against)}", highlight=False)
    raise typer.Exit(1 if pairs else 0)


@app.command()
def formats(as_json: Json = False) -> None:
    """List the formats that questions are read from."""
    from dr_jax.data.sources.registry import FORMATS

    if as_json:
        typer.echo(json.dumps({name: known.about for name, known in FORMATS.items()}))
        return
    table = Table(show_header=False, box=None)
    for name, known in FORMATS.items():
        table.add_row(name, known.about)
    Console().print(table)


@app.command()
def probe(
    config: Config,
    overrides: Overrides = None,
    questions: Annotated[str, typer.Option(help="A question file.")] = "",
    form: Form = "",
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 10,
    limit: Annotated[int, typer.Option(help="Questions to ask, taken evenly from the sources; 0 is all.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(help="Of one answer.")] = 64,
    as_json: Json = False,
) -> None:
    """Ask a model questions without tools, and print those that it knows by heart.

    Writes runs/NAME-probe/: questions.jsonl with pass rate, difficulty band and whether a search is needed; journal.sqlite,
    from which an interrupted probe goes on.
    """
    from dr_jax.base.config import read
    from dr_jax.base.errors import ConfigError
    from dr_jax.data.filters.contamination import ContaminationSettings
    from dr_jax.data.sources import registry
    from dr_jax.data.write import write_jsonl
    from dr_jax.train.contamination import probe as probed
    from dr_jax.train.settings import Settings

    settings = read(Settings, config, overrides or [])
    place = questions or settings.data.path
    if not place:
        raise ConfigError("There are no questions", needed="--questions FILE, or data.path", fix="name a question file")
    try:
        wanted = ContaminationSettings(samples=samples, max_new_tokens=max_new_tokens)
    except ValueError as error:
        raise ConfigError(str(error), fix="change --samples or --max-new-tokens") from error
    asked = registry.read(place, limit or None, form=form)
    directory = Path(settings.out) / f"{settings.name}-probe"
    console = Console(stderr=as_json)
    with _bars(console) as told:
        found = asyncio.run(probed(settings, asked, wanted, directory / "journal.sqlite", told=told))
    write_jsonl(directory / "questions.jsonl", (question for question, _ in found))
    _show_probe(console, settings.model.load, found, as_json=as_json)


def _show_probe(console: Console, model: str, found: list[tuple[Question, Decision]], *, as_json: bool) -> None:
    from dr_jax.data.filters.decision import Verdict

    known = [(question, said) for question, said in found if said.verdict is Verdict.DROPPED]
    bands = Counter(said.facts["band"] for _, said in found)
    if as_json:
        dropped = [{"id": question.id, "question": question.text, "reason": said.reason} for question, said in known]
        typer.echo(json.dumps({"questions": len(found), "bands": dict(bands), "dropped": dropped}, ensure_ascii=False))
        return
    table = Table(title=f"known to {model} without looking it up", title_justify="left")
    for name in ("", "question", "accepted", "why"):
        table.add_column(name)
    for question, said in known:
        table.add_row(question.id, question.text, " | ".join(question.answers)[:60], said.reason)
    console.print(table)
    shown = ", ".join(f"{count} {band}" for band, count in bands.items())
    console.print(f"{len(known)} of {len(found)} questions would be dropped; {shown}", highlight=False)


async def _built(recipe: BuildSettings, told: Told) -> dict[str, Any]:
    from dr_jax.data.build import build as built

    if not recipe.asks_models:
        return await built(recipe, told=told)
    from dr_jax.train.contamination import asked  # a model is asked: only now is JAX needed

    async with asked(recipe, told) as whom:
        return await built(recipe, whom, told=told)


async def _leaks(questions: list[Question], against: list[str]) -> list[dict[str, str]]:
    from dr_jax.data.filters.decision import Verdict
    from dr_jax.data.filters.leakage import Leakage, WordWeights
    from dr_jax.data.sources.registry import read

    if not against:
        return []
    held_out = {place: read(place) for place in against}
    every = [*questions, *(question for own in held_out.values() for question in own)]
    one = Leakage(held_out, WordWeights(question.text for question in every))
    return [
        {"train": question.id, "question": question.text, **said.facts}
        for question, said in zip(questions, await one.decide(questions), strict=True)
        if said.verdict is Verdict.DROPPED
    ]


def _by_source(questions: list[Question], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("", "questions", "hops", "answers", "words"):
        table.add_column(name, justify="left" if not name else "right")
    for source in sorted({question.source for question in questions}):
        own = [question for question in questions if question.source == source]
        hops = sorted({question.hops for question in own if question.hops})
        answers, words = (sum(numbers) / len(own) for numbers in _lengths(own))
        table.add_row(source, str(len(own)), ", ".join(map(str, hops)) or "-", f"{answers:.1f}", f"{words:.1f}")
    return table


def _lengths(questions: list[Question]) -> tuple[list[int], list[int]]:
    return [len(question.answers) for question in questions], [len(question.text.split()) for question in questions]


@contextmanager
def _bars(console: Console) -> Iterator[Told]:
    """One bar per phase; what is not on a terminal gets none."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def told(phase: str, done: int, whole: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=whole or None)
            progress.update(tasks[phase], completed=done, total=whole or None)

        yield told
