"""Write what a run did where a person and a program will look for it.

In:    one dict of numbers per step; evaluations before and after
Out:   `metrics.jsonl` (one object a step), `summary.json`, `curve.png`; the same for the trackers that are asked for
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dr_jax.base.trace import logger, redacted
from dr_jax.train.evaluate import figures
from dr_jax.train.trackers import ReportSettings, Tracker, opened

_log = logger(__name__)


class Report:
    """The numbers of one run directory. A context manager, which closes what it tells them to.

    Args:
        directory: the run's directory; made when missing.
        keep_below: on resume, lines of steps at or above this one are dropped: they will be written again.
        also: who is told them besides.

    Raises:
        ConfigError: a tracker is not installed, or lets nobody in.
    """

    def __init__(self, directory: Path, *, keep_below: int = 0, also: ReportSettings | None = None) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(directory) if row["step"] < keep_below]
        self._path.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._trackers = opened(also or ReportSettings(), directory, kept)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append one step's numbers."""
        known = _finite(numbers)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **known}))
        self._tell(lambda tracker: tracker.step(step, known))

    def measured(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """Tell the trackers of an evaluation before the first update or after the last one; `summary` writes it down."""
        self._tell(lambda tracker: tracker.step(step, figures(evaluation)))

    def summary(self, content: Mapping[str, Any]) -> None:
        """Write `summary.json` and draw `curve.png` from what stands in `metrics.jsonl`."""
        write_json(self._directory / "summary.json", content)
        draw_curve(read_metrics(self._directory), content.get("eval", {}), self._directory / "curve.png")
        self._tell(lambda tracker: tracker.summary(content))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                tell(tracker)
            # W&B raises whatever the connection to its own process does; a copy is not worth a run.
            except Exception as error:  # noqa: BLE001
                _log.warning("%s is told nothing more: %s: %s", type(tracker).__name__, type(error).__name__, error)
                self._trackers.remove(tracker)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tell(lambda tracker: tracker.close(whole=kind is None))


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


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has no NaN: a number that does not exist is left out rather than written as something else.
    return {key: value for key, value in row.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _line(row: Mapping[str, Any]) -> str:
    return redacted(json.dumps(row)) + "\n"


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
