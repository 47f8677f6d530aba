"""`dr-jax tape`: look into what is remembered of the web, carry it elsewhere, make it smaller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dr_jax.base.errors import UserError
from dr_jax.cli.train import Json

if TYPE_CHECKING:
    from dr_jax.web.tape.file import TapeFile

app = typer.Typer(help="Look into a tape of the web, carry it elsewhere, make it smaller.", no_args_is_help=True)
TapePath = Annotated[Path, typer.Argument(metavar="TAPE", help="The file that web.tape.path names.")]


@app.command("stats")
def stats_command(tape: TapePath, as_json: Json = False) -> None:
    """Print what a tape holds: entries, bytes, ages and uses, by kind."""
    from dr_jax.web.tape.archive import stats

    with _opened(tape, writable=False) as file:
        found = stats(file)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(title=f"{tape}, version {found['version']}", title_justify="left")
    for name in ("", "entries", "errors", "MB", "oldest", "newest", "hits"):
        table.add_column(name, justify="left" if not name else "right")
    for kind, row in found["kinds"].items():
        ages = (_age(row["oldest_s"]), _age(row["newest_s"]))
        cells = (f"{row['entries']:,}", f"{row['errors']:,}", _megabytes(row["raw_bytes"]), *ages, f"{row['hits']:,}")
        table.add_row(kind, *cells)
    console = Console()
    console.print(table)
    console.print(
        f"{found['contents']:,} different contents of {_megabytes(found['raw_bytes'])} MB take "
        f"{_megabytes(found['stored_bytes'])} MB, the file {_megabytes(found['file_bytes'])} MB; "
        f"{found['leases']} asked for right now",
        highlight=False,
    )


@app.command("export")
def export_command(
    tape: TapePath,
    archive: Annotated[Path, typer.Argument(help="The file to write: JSON lines, compressed with zstd.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a tape into one file that people and other programs can read (`zstdcat FILE | head`)."""
    from dr_jax.web.tape.archive import export

    if archive.exists() and not force:
        raise UserError(f"{archive} exists", needed="a file that does not", fix="name another, or add --force")
    with _opened(tape, writable=False) as file, _bar("exporting", quiet=as_json) as bar:
        bar.total = int(file.base.execute("select count(*) from entries").fetchone()[0])
        count = export(file, archive, bar)
    _tell(as_json, f"{count:,} entries are in {archive}", entries=count, archive=str(archive), bytes=archive.stat().st_size)


@app.command("import")
def import_command(
    tape: TapePath,
    archive: Annotated[Path, typer.Argument(help="A file that `export` wrote.")],
    as_json: Json = False,
) -> None:
    """Put an archive into a tape, which is made if there is none; of two entries with one name the younger stays."""
    from dr_jax.web.tape.archive import load

    if not archive.is_file():
        raise UserError(f"There is no archive {archive}", needed="a file that `dr-jax tape export` wrote")
    with _opened(tape, writable=True) as file, _bar("importing", quiet=as_json) as bar:
        found = load(file, archive, bar)
    counts = {"added": found.added, "replaced": found.replaced, "older": found.older}
    _tell(
        as_json, f"{found.added:,} new, {found.replaced:,} younger, {found.older:,} not younger than what was there", **counts
    )


@app.command("prune")
def prune_command(
    tape: TapePath,
    older_days: Annotated[float | None, typer.Option(help="Forget what is at least so old.", min=0.0)] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind: search, fetch, page or reading.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only failures.")] = False,
    max_mb: Annotated[float | None, typer.Option(help="Then forget what was used longest ago, down to this.", min=0.0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: Json = False,
) -> None:
    """Forget part of a tape, and give the room back to the disk."""
    from dr_jax.web.tape.archive import prune, shrink
    from dr_jax.web.tape.entry import KINDS

    kinds = tuple(one for one in KINDS if one in (kind or KINDS))
    if unknown := set(kind or ()) - set(KINDS):
        raise UserError(f"--kind {', '.join(sorted(unknown))} is unknown", needed=f"one of {', '.join(KINDS)}")
    by_name = older_days is not None or bool(kind) or errors
    if not by_name and max_mb is None:
        raise UserError("Nothing says what to forget", needed="--older-days, --kind, --errors or --max-mb")
    if dry_run and max_mb is not None:
        raise UserError("--dry-run cannot count what --max-mb would forget", fix="leave one of them out")
    with _opened(tape, writable=True, make=False) as file:
        before = file.bytes_used
        older_s = 86_400 * (older_days or 0.0)
        forgotten = prune(file, kinds=kinds, older_s=older_s, errors_only=errors, dry=dry_run) if by_name else 0
        if max_mb is not None:
            forgotten += file.forget_longest_unused(int(max_mb * 1e6))
        shrunk = not dry_run and shrink(file)
        after = file.bytes_used
    would = "would be" if dry_run else "were"
    room = "" if shrunk or dry_run else "; another process uses the tape, so the room is used again and not given back"
    line = f"{forgotten:,} entries {would} forgotten; {_megabytes(before)} MB before, {_megabytes(after)} MB now{room}"
    _tell(as_json, line, forgotten=forgotten, bytes_before=before, bytes_after=after, shrunk=shrunk)


class _Bar:
    """A progress bar, moved every now and then."""

    def __init__(self, progress: Progress | None, what: str) -> None:
        self._progress, self.total = progress, 0
        self._task = progress.add_task(what, total=None) if progress else None

    def __call__(self, done: int) -> None:
        if self._progress is not None and self._task is not None and (done % 256 == 0 or done == self.total):
            self._progress.update(self._task, completed=done, total=self.total or None)


@contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[_Bar]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Bar(None, what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, what)


@contextmanager
def _opened(path: Path, *, writable: bool, make: bool = True) -> Iterator[TapeFile]:
    import sqlite3

    from dr_jax.web.tape.file import TapeFile

    if not path.is_file() and not (writable and make):
        raise UserError(f"There is no tape {path}", needed="the file that web.tape.path names")
    file = TapeFile(path, writable=writable, aside=False)
    try:
        file.open()
        yield file
    except sqlite3.OperationalError as error:
        raise UserError(f"The tape {path} cannot be used: {error}", fix="wait for the process that uses it") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"The tape {path} is corrupt: {error}", fix="use another; a run that records sets it aside") from error
    finally:
        file.close()


def _tell(as_json: bool, line: str, **found: Any) -> None:
    typer.echo(json.dumps(found) if as_json else f"{line}.")


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
