"""Write what a run did where a person and a program will look for it.

In:    one dict of numbers per step; evaluations before and after
Out:   `metrics.jsonl` (one object a step), `summary.json`, `curve.png`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dr_jax.base.trace import redacted


class Report:
    """The numbers of one run directory.

    Args:
        directory: the run's directory; made when missing.
        keep_below: on resume, lines of steps at or above this one are dropped: they will be written again.
    """

    def __init__(self, directory: Path, *, keep_below: int = 0) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(directory) if row["step"] < keep_below]
        self._path.write_text("".join(_line(row) for row in kept), encoding="utf-8")

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append one step's numbers."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **numbers}))

    def summary(self, content: Mapping[str, Any]) -> None:
        """Write `summary.json` and draw `curve.png` from what stands in `metrics.jsonl`."""
        write_json(self._directory / "summary.json", content)
        draw_curve(read_metrics(self._directory), content.get("eval", {}), self._directory / "curve.png")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Read a run's metrics; a half-written last line is left out."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write an object so that a reader sees the old file or the new one, never half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(redacted(json.dumps(content, indent=indent, ensure_ascii=False, default=str)) + "\n", encoding="utf-8")
    partial.replace(path)


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN: a number that does not exist is left out rather than written as something else.
    finite = {key: value for key, value in row.items() if not (isinstance(value, float) and not math.isfinite(value))}
    return redacted(json.dumps(finite)) + "\n"


def draw_curve(rows: list[dict[str, Any]], evaluations: Mapping[str, Any], path: Path) -> None:
    """Draw reward, F1 and tool calls over the steps, with the evaluations and their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for name, label in (
        ("rollout/f1", "F1 part of the reward"),
        ("rollout/reward", "training reward"),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            top.plot(*zip(*points, strict=True), label=label)
    last = max((row["step"] for row in rows), default=0)
    for when, step in (("before", 0), ("after", last)):
        if when in evaluations:
            (low, high), mean = evaluations[when]["ci95"], evaluations[when]["f1"]
            top.errorbar([step], [mean], yerr=[[mean - low], [high - mean]], fmt="o", capsize=4, label=f"held-out F1 {when}")
    for name, label in (("rollout/tool_calls", "tool calls per episode"), ("rollout/turns", "turns per episode")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            bottom.plot(*zip(*points, strict=True), label=label)
    bottom.set_xlabel("update")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small") if axes.get_legend_handles_labels()[0] else None
    figure.savefig(path, dpi=110)
