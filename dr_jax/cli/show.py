"""`dr-jax show`: the episodes of a run as a person wants to read them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dr_jax.cli.train import Json

_COLOURS = {"policy": "bright_green", "world": "bright_black"}


def command(
    run: Annotated[Path, typer.Argument(help="A run's directory, such as runs/quickstart.")],
    episode: Annotated[str, typer.Argument(help="An episode's id; without it, the newest ones are listed.")] = "",
    outcome: Annotated[str, typer.Option(help="List only episodes that ended so, e.g. answered.")] = "",
    limit: Annotated[int, typer.Option(help="How many to list.")] = 20,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show id, log-probability and version of every token.")] = False,
    as_json: Json = False,
) -> None:
    """List a run's episodes, or show one: authors in colour, calls, observations, reward parts, log-probabilities.

    Green is what the policy wrote and is trained on; grey is what the world wrote and never is.
    """
    from dr_jax.base.errors import DataError
    from dr_jax.rollout.record import read_all_episodes

    if not (run / "episodes.jsonl").exists():
        raise DataError(f"There are no episodes in {run}", needed="a run's directory", fix="see `ls runs`")
    rows = (row for row in read_all_episodes(run) if not outcome or row["outcome"] == outcome)
    console = Console()
    if not episode:
        count, chosen = 0, deque[dict[str, Any]](maxlen=limit)
        for row in rows:
            chosen.append(row)
            count += 1
        if as_json:
            typer.echo(json.dumps([_brief(row) for row in chosen]))
        else:
            console.print(_listing(chosen, f"{len(chosen)} of {count} episodes in {run}"))
        return
    last, found = deque[str](maxlen=5), list[dict[str, Any]]()
    for row in rows:
        last.append(row["id"])
        found = [row] if row["id"] == episode else found
    if not found:
        some = ", ".join(last)
        raise DataError(
            f"There is no episode {episode!r} in {run}", needed=f"an id such as {some}", fix="list them without an id"
        )
    if as_json:
        typer.echo(json.dumps(found[-1]))
    else:
        console.print(_shown(found[-1], _tokenizer(run) if tokens else None, _mismatch(run, found[-1].get("step"))))


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("id", "step", "outcome", "failure", "rewards", "answer", "question")}


def _listing(rows: Iterable[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    for name in ("update", "reward", "calls"):
        table.add_column(name, justify="right")
    for name, share in (("id, question", 3), ("outcome: answer, accepted", 2)):
        table.add_column(name, overflow="fold", ratio=share)
    for row in rows:
        accepted = " | ".join(row["answers"])
        table.add_row(
            str(row.get("step", "")),
            f"{sum(row['rewards'].values()):+.2f}" if row["rewards"] else "-",
            str(len(row["tools"])),
            Text(f"{row['id']}\n").append(row["question"], style="bold"),
            Text(f"{row['outcome']}: {row['answer'] or row['failure'] or '-'}\n").append(accepted, style="dim"),
        )
    return table


def _shown(row: dict[str, Any], tokenizer: Any, mismatch: str) -> Group:
    parts: list[Any] = [Text(row["question"], style="bold"), Text(f"accepted: {' | '.join(row['answers'])}", style="dim")]
    for number, trajectory in enumerate(row["trajectories"]):
        text = Text()
        for segment in trajectory["segments"]:
            colour = _COLOURS[segment["author"]]
            if tokenizer is None or segment["author"] == "world":
                text.append(segment["text"], style=colour)
            else:
                _tokens(text, segment, tokenizer)
        parts.append(Panel(text, title=f"trajectory {number + 1} of {len(row['trajectories'])}", title_align="left"))
    facts = Table(show_header=False, box=None)
    facts.add_row("outcome", row["outcome"] + (f" ({row['failure']})" if row.get("failure") else ""))
    facts.add_row("answer", row["answer"] or "-")
    facts.add_row("rewards", ", ".join(f"{name} {value:+.3f}" for name, value in row["rewards"].items()) or "none")
    facts.add_row(
        "tools", "; ".join(f"{tool['name']} {tool['error'] or 'ok'} {tool['seconds']:.2f} s" for tool in row["tools"])
    )
    facts.add_row("seconds", ", ".join(f"{name} {value:.2f}" for name, value in row["seconds"].items()))
    facts.add_row("sampled", _sampled(row))
    facts.add_row("mismatch", mismatch)
    return Group(*parts, facts)


def _tokens(text: Text, segment: dict[str, Any], tokenizer: Any) -> None:
    for token, logprob, version in zip(segment["ids"], segment["logprobs"], segment["versions"], strict=True):
        text.append(tokenizer.decode([token]), style=_COLOURS["policy"])
        text.append(f"[{token} {logprob:.3f} v{version}]", style="cyan")


def _sampled(row: dict[str, Any]) -> str:
    policy = [one for trajectory in row["trajectories"] for one in trajectory["segments"] if one["author"] == "policy"]
    logprobs = [value for segment in policy for value in segment["logprobs"]]
    versions = sorted({version for segment in policy for version in segment["versions"]})
    if not logprobs:
        return "nothing"
    mean = sum(logprobs) / len(logprobs)
    return f"{len(logprobs)} tokens, mean log-probability {mean:.3f}, least {min(logprobs):.2f}, versions {versions}"


def _mismatch(run: Path, step: int | None) -> str:
    """How far engine and trainer were apart, in log-probability, about the tokens of the update that this episode went into."""
    from dr_jax.train.report import read_metrics

    row = next((row for row in read_metrics(run) if row["step"] == step), {})
    if "update/mismatch_max" not in row:
        return "not compared: it was not trained on"
    worst, mean = row["update/mismatch_max"], row["update/mismatch_mean"]
    return f"engine and trainer differ by at most {worst:.1e}, on average {mean:.1e}, about the tokens of update {step}"


def _tokenizer(run: Path) -> Any:
    from dr_jax.model.load import tokenizer_source
    from dr_jax.tokens.tokenizer import Tokenizer

    model = json.loads((run / "config.json").read_text(encoding="utf-8"))["model"]
    return Tokenizer.load(tokenizer_source(model["load"], model["tokenizer"]))
