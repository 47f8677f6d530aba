"""Tables of an evaluation as texts, for a terminal and for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dr_jax.evaluate.compare import METRICS
from dr_jax.evaluate.published import beside
from dr_jax.evaluate.table import money

Texts = list[list[str]]  # a header, then rows


def cells(found: Mapping[str, Any]) -> Texts:
    """Return one row per cell; columns that say nothing in any row are left out."""
    return _without_empty([_cell([row["model"], row["set"], row["way"]], row) for row in found["rows"]])


def groups(found: Mapping[str, Any]) -> Texts:
    """Return one row per cell and source, number of hops, and outcome, where there is more than one of them."""
    rows = []
    for row in found["rows"]:
        for by in ("by_source", "by_hops", "by_outcome"):
            if len(row[by]) > 1:
                rows += [_cell([row["model"], row["set"], row["way"], name], one) for name, one in row[by].items()]
    return _without_empty(rows) if rows else []


def comparisons(found: Sequence[Mapping[str, Any]], metrics: Sequence[str] = METRICS) -> Texts:
    """Return one row per comparison and metric; all of them by default."""
    rows = [["A", "B", "metric", "n", "of A", "of B", "B - A", "95 %", "p"]]
    for one in found:
        for metric, numbers in one.items():
            if metric in metrics:
                low, high = numbers["ci95"]
                texts = [_plain(numbers["first"]), _plain(numbers["second"]), f"{numbers['difference']:+.3f}"]
                texts += [f"{low:+.3f} to {high:+.3f}", f"{numbers['p']:.2g}"]
                rows.append([one["first"], one["second"], metric, str(numbers["n"]), *texts])
    return rows if len(rows) > 1 else []


def markdown(found: Mapping[str, Any]) -> str:
    """Return all tables of an evaluation, the published one with our rows among them, as Markdown."""
    tables = [cells(found), groups(found), comparisons(found["compared"]), beside(found["rows"])]
    return "\n".join(_markdown(one) for one in tables if one)


def _cell(names: list[str], row: Mapping[str, Any]) -> dict[str, str]:
    heads = ("model", "set", "way", "of")
    texts = dict(zip(heads, names, strict=False)) | {"n": str(row["questions"])}
    if "f1" in row:
        texts |= {"F1": _plain(row["f1"]["mean"]), "95 %": _interval(row["f1"]), "EM": _plain(row["em"]["mean"])}
        texts["cover EM"] = _plain(row["cover_em"]["mean"])
        if "judge" in row:
            texts |= {"judge": _plain(row["judge"]["mean"]), "judge 95 %": _interval(row["judge"])}
        passes = [name for name in row if name.startswith("pass@")]
        texts |= {name: _plain(row[name]["mean"]) for name in passes}
        if "majority_f1" in row:
            texts["majority F1"] = _plain(row["majority_f1"]["mean"])
        texts |= {"calls": f"{row['calls']['mean']:.2f}", "tokens": f"{row['tokens']['mean']:.0f}"}
        texts["seconds"] = f"{row['seconds']['mean']:.2f}"
    texts["cost"] = f"{money(row):.4g}" if money(row) else ""
    texts["world failed"] = str(row["world_failed"] or "")
    texts["unreadable"] = str(row["unreadable"] or "")
    return texts


def _without_empty(rows: Sequence[Mapping[str, str]]) -> Texts:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    kept = [name for name in heads if any(row.get(name) for row in rows)]
    return [kept, *([row.get(name, "") for name in kept] for row in rows)]


def _markdown(texts: Texts) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in texts]
    return "\n".join([lines[0], f"|{'---|' * len(texts[0])}", *lines[1:], ""])


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _interval(number: Mapping[str, Any]) -> str:
    low, high = number["ci95"]
    return f"{low:.3f} to {high:.3f}"
