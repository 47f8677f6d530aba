"""`dr-jax`: one command per file; what a person can correct is told in one paragraph, with exit code 2."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from dr_jax import __version__
from dr_jax.base.errors import DrJaxError, UserError
from dr_jax.base.trace import configure, redacted

app = typer.Typer(
    name="dr-jax",
    help="Train language models to do deep research, with reinforcement learning on JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every decision.")] = False) -> None:
    """Set up what every command shares."""
    configure(logging.DEBUG if verbose else logging.INFO)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _register() -> None:
    from dr_jax.cli import (
        ask,
        browse,
        data,
        doctor,
        evaluate,
        littleweb,
        plan,
        report,
        search,
        sft,
        show,
        tape,
        train,
        watch,
        web_gateway,
    )

    app.command("train")(train.command)
    app.command("sft")(sft.command)
    app.command("eval")(evaluate.command)
    app.command("ask")(ask.command)
    app.command("show")(show.command)
    app.command("report")(report.command)
    app.command("watch")(watch.command)
    app.command("search")(search.command)
    app.command("browse")(browse.command)
    app.command("littleweb")(littleweb.command)
    app.command("web-gateway")(web_gateway.command)
    app.command("plan")(plan.command)
    app.command("doctor")(doctor.command)
    app.add_typer(data.app, name="data")
    app.add_typer(tape.app, name="tape")


_register()


def run() -> None:
    """Run the command line; the console script points here."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(redacted(f"dr-jax: {error}\n"))
        raise SystemExit(2) from None
    except DrJaxError as error:
        sys.stderr.write(redacted(f"dr-jax: {error}\n"))
        raise SystemExit(1) from None
