"""Put a page together: one file that asks nobody for anything.

In:    runs, read
Out:   HTML with its own style, script and data
Holds: data are base64, so nothing in them can end an element; the policy of the page allows the one script and the one
       style that stand in it, by their hashes, and no string ever becomes HTML
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dr_jax.report.curves import CHARTS
from dr_jax.report.data import BLOCK, RunData, packed, plain
from dr_jax.report.episodes import COLUMNS

_SCRIPTS = ("dom.js", "charts.js", "tables.js", "reader.js", "episodes.js", "page.js")


def write(path: Path, runs: Sequence[RunData], *, limit: int) -> None:
    """Write the page of these runs, so that a reader sees the old file or the new one, never half of it.

    Args:
        path: the file.
        runs: read as far as they should be shown.
        limit: how many episodes of each the page may hold.
    """
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(_parts(runs, limit))
    partial.replace(path)


def live() -> str:
    """Return the page that asks the server it came from for a run, again and again."""
    return "".join(_page({**constants(), "live": True, "runs": []}, iter(())))


def policy(script: str, style: str, *, connect: str) -> str:
    """Return the content security policy of a page with this script and this style."""
    allowed = f"script-src {_hash(script)}; style-src {_hash(style)}; connect-src {connect}"
    closed = "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    return f"default-src 'none'; {allowed}; {closed}"


def constants() -> dict[str, Any]:
    """Return what the script has to know whatever the run."""
    return {"charts": [chart._asdict() for chart in CHARTS], "columns": COLUMNS, "block": BLOCK}


def _parts(runs: Sequence[RunData], limit: int) -> Iterator[str]:
    chosen = [run.thinned(limit) for run in runs]
    shown = [{**run.head(), "index": [one.row for one in known]} for run, known in zip(runs, chosen, strict=True)]
    names = [run["name"] for run in shown]
    for number, run in enumerate(shown, start=1):
        if names.count(run["name"]) > 1:
            run["name"] += f" ({number})"
    content = {**constants(), "live": False, "runs": shown}
    blocks = ((block for block in run.blocks(known)) for run, known in zip(runs, chosen, strict=True))
    return _page(content, blocks)


def _page(content: dict[str, Any], runs: Iterator[Iterator[str]]) -> Iterator[str]:
    script = "'use strict';\n" + "".join(_asset(name) for name in _SCRIPTS)
    style = _asset("page.css")
    title = "dr_jax: " + (", ".join(run["name"] for run in content["runs"]) or "watching a run")
    before, after = _asset("page.html").split("<!-- data -->")
    allowed = policy(script, style, connect="'self'" if content["live"] else "'none'")
    for name, text in (("policy", allowed), ("title", _escaped(title)), ("style", style)):
        before = before.replace(f"<!-- {name} -->", text)
    yield before
    yield f'<script type="application/x-head" id="head">{packed(plain(content))}</script>\n'
    for blocks in runs:
        yield '<script type="application/x-episodes">'
        yield from (f"{block}\n" for block in blocks)
        yield "</script>\n"
    yield after.replace("<!-- script -->", script)


def _asset(name: str) -> str:
    return files("dr_jax.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
