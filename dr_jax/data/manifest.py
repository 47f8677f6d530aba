"""Say what a training set was made of, for programs and for people.

In:    the recipe, what was counted on the way, hashes of inputs and outputs
Out:   `manifest.json`, which has no time in it: the same build gives the same bytes; `report.md`
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dr_jax import __version__
from dr_jax.base.config import to_tree
from dr_jax.data.recipe import Recipe, quotas

_PLACES = frozenset({"out"})  # where a build stands does not change what it is


@dataclass(slots=True)
class Counts:
    """What happened to the questions of one part."""

    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    candidates: int = 0
    considered: int = 0
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    unsure: Counter[str] = field(default_factory=Counter)
    drawn: Counter[str] = field(default_factory=Counter)


def made(
    recipe: Recipe,
    counts: Mapping[str, Counts],
    *,
    inputs: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Return the manifest as JSON values."""
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "recipe": {name: value for name, value in to_tree(recipe).items() if name not in _PLACES},
        "versions": {
            "dr-jax": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            "machine": platform.machine(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "pyarrow")},
        },
        "inputs": list(inputs),
        "held_out": list(held_out),
        "parts": {name: _part(own) for name, own in counts.items()},
        "wanted": {"train": quotas(recipe.size, recipe), "dev": quotas(recipe.dev, recipe)},
        "leakage": {name: dict(kinds) for name, kinds in pairs.items()},
        "unsure_are": "kept" if recipe.quality.unsure == "keep" else "dropped",
        "outputs": list(outputs),
    }


def write(directory: Path, found: Mapping[str, Any]) -> None:
    """Write manifest and report."""
    (directory / "manifest.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(report(found), encoding="utf-8")


def report(found: Mapping[str, Any]) -> str:
    """Return the manifest as a page to read."""
    parts: Mapping[str, Mapping[str, Any]] = found["parts"]
    filters = sorted({name for part in parts.values() for name in (*part["dropped"], *part["unsure"])})
    lines = [f"# {found['name']}", "", f"Seed {found['seed']}, dr-jax {found['versions']['dr-jax']}.", "", "## Questions", ""]
    heads = ["", "rows", "skipped", "duplicates", "candidates", "looked at", *filters, "train", "dev"]
    lines += _table(heads, [_line(name, part, filters) for name, part in parts.items()] + [_sums(parts, filters)])
    lines += [
        "",
        "Candidates are looked at in a random order until there are enough; a column with a filter's name counts what it "
        f"dropped. Questions about which a filter could not find out count in it as well: they are {found['unsure_are']}.",
        "",
        "## Why questions left",
        "",
    ]
    reasons = [
        [name, one, kind, str(count)]
        for name, part in parts.items()
        for one, kinds in (("-", part["skipped"]), *part["dropped"].items())
        for kind, count in kinds.items()
    ]
    reasons += [
        [name, one, f"unsure, {found['unsure_are']}", str(count)]
        for name, part in parts.items()
        for one, count in part["unsure"].items()
    ]
    lines += _table(["", "filter", "reason", "questions"], reasons) if reasons else ["None left."]
    lines += ["", "Each of them, with its reason, is in `dropped.jsonl`.", "", "## Leakage", ""]
    pairs = [[name, kind, str(count)] for name, kinds in found["leakage"].items() for kind, count in kinds.items()]
    lines += _table(["evaluation set", "kind", "pairs"], pairs) if pairs else ["No question met one of an evaluation set."]
    lines += ["", "The pairs are in `leakage.jsonl`.", "", "## Inputs", ""]
    both = [*found["inputs"], *found["held_out"]]
    shown = [[one["part"], one["name"], str(one["rows"]), f"`{one['fingerprint']}`"] for one in both]
    lines += _table(["part or set", "file", "rows", "fingerprint"], shown)
    lines += ["", "## Outputs", ""]
    outputs = [[one["file"], str(one["rows"]), f"`{one['content_sha256']}`"] for one in found["outputs"]]
    lines += _table(["file", "questions", "sha256 of their content"], outputs)
    return "\n".join(lines) + "\n"


def _part(own: Counts) -> dict[str, Any]:
    return {
        "rows": own.rows,
        "skipped": dict(sorted(own.skipped.items())),
        "duplicates": own.duplicates,
        "candidates": own.candidates,
        "considered": own.considered,
        "dropped": {name: dict(sorted(kinds.items())) for name, kinds in sorted(own.dropped.items())},
        "unsure": dict(sorted(own.unsure.items())),
        "drawn": {"train": own.drawn["train"], "dev": own.drawn["dev"]},
    }


def _line(name: str, part: Mapping[str, Any], filters: Sequence[str]) -> list[str]:
    return [name, *map(str, _numbers(part, filters))]


def _sums(parts: Mapping[str, Mapping[str, Any]], filters: Sequence[str]) -> list[str]:
    columns = zip(*(_numbers(part, filters) for part in parts.values()), strict=True)
    return ["**all**", *(f"**{sum(column)}**" for column in columns)]


def _numbers(part: Mapping[str, Any], filters: Sequence[str]) -> list[int]:
    lost = [sum(part["dropped"].get(name, {}).values()) + part["unsure"].get(name, 0) for name in filters]
    skipped = sum(part["skipped"].values())
    counted = [part["rows"], skipped, part["duplicates"], part["candidates"], part["considered"]]
    return [*counted, *lost, part["drawn"]["train"], part["drawn"]["dev"]]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *(f"| {' | '.join(row)} |" for row in cells)]
