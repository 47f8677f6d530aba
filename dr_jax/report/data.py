"""Gather what a page shows of a run, while it goes on or when it is done.

In:    a run's directory
Out:   `head()`: settings, summary, numbers, lines and the index of episodes, as JSON values; episodes one by one or in blocks
Bound: a page holds whole groups of at most `limit` episodes, evenly over the updates; what is left out is counted
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.report.curves import PerUpdate, lines
from dr_jax.report.episodes import Decode, Tails, brief, decoder, told
from dr_jax.train.report import read_metrics

BLOCK = 32  # episodes that are compressed together: enough for a good ratio, few enough to be opened at once
_DIGITS = 6  # of a metric; the file has them all


@dataclass(slots=True)
class Known:
    """What is remembered of an episode: its place (file, start, length) and its row of the index."""

    place: tuple[str, int, int]
    row: list[Any]


class RunData:
    """One run, read as far as it is written.

    Args:
        directory: the run's.
        tokenizer: where its tokenizer is, if neither in the run nor where its settings say.

    Raises:
        DataError: there is nothing of a run in it, unless `begun` says that it may yet come.
    """

    def __init__(self, directory: Path, *, tokenizer: Path | None = None, begun: bool = True) -> None:
        files = ("metrics.jsonl", "episodes.jsonl", "summary.json")
        if not directory.is_dir() or (begun and not any((directory / name).exists() for name in files)):
            raise DataError(
                f"There is nothing of a run in {directory}", needed=f"a directory with {', '.join(files)}", fix="see `ls runs`"
            )
        self.directory = directory
        self._tokenizer = tokenizer
        self._decode: Decode | None = None
        self._tails = Tails(directory)
        self.generation = 0
        self.episodes: list[Known] = []
        self._updates: dict[int, PerUpdate] = {}

    def follow(self) -> None:
        """Read the episodes that were written since the last call.

        Raises:
            DataError: a line is no episode.
        """
        for name, line in self._tails.new():
            self._begin_anew()
            self.episodes.append(Known((name, line.start, line.length), brief(line.row, self.directory / name)))
            if isinstance(step := line.row.get("step"), int):
                self._updates.setdefault(step, PerUpdate()).add(line.row)
        self._begin_anew()

    def _begin_anew(self) -> None:
        if self.generation != self._tails.generation:
            self.generation, self.episodes, self._updates = self._tails.generation, [], {}

    def head(self) -> dict[str, Any]:
        """Return everything but the episodes themselves."""
        rows, summary, config = read_metrics(self.directory), self._object("summary.json"), self._object("config.json")
        evaluations = summary.get("eval") or {}
        if "f1" in evaluations:  # `dr-jax eval` measures once
            evaluations = {"measured": evaluations}
        return {
            "name": self.directory.resolve().name,
            "config": config,
            "summary": summary,
            "evaluations": {name: one for name, one in evaluations.items() if one},
            "metrics": _columns(rows),
            "lines": lines(rows, self._updates, evaluations),
            "episodes": len(self.episodes),
            "generation": self.generation,
        }

    def _object(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}", needed="a file that a run has written") from error
        return found if isinstance(found, dict) else {}

    def thinned(self, limit: int) -> list[Known]:
        """Return all episodes, or every so manieth group of them, so that no more than about `limit` are left."""
        every = math.ceil(len(self.episodes) / limit)
        groups = itertools.groupby(self.episodes, key=lambda one: (one.row[1], one.row[9]))
        return [one for number, (_, group) in enumerate(groups) if number % every == 0 for one in group]

    def whole(self, chosen: Sequence[Known]) -> Iterator[dict[str, Any]]:
        """Read chosen episodes again, each as the reader shows it."""
        decode = self._decoded()
        for row in self._tails.whole([one.place for one in chosen]):
            yield told(row, decode)

    def _decoded(self) -> Decode | None:
        if self._decode is None:
            model = self._object("config.json").get("model") or {}
            named = [Path(str(model[key])) for key in ("tokenizer", "load") if model.get(key)]
            self._decode = decoder([*([self._tokenizer] if self._tokenizer else []), self.directory / "model", *named])
        return self._decode

    def blocks(self, chosen: Sequence[Known]) -> Iterator[str]:
        """Pack episodes, in their order, BLOCK at a time: lines of JSON, gzip, base64."""
        for start in range(0, len(chosen), BLOCK):
            yield packed("\n".join(plain(row) for row in self.whole(chosen[start : start + BLOCK])))


def packed(text: str) -> str:
    """Compress a text to base64, the same one always alike."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def plain(value: Any) -> str:
    """Write JSON that a browser reads: what is no finite number becomes null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into one list per metric, shorter to write; null where a row lacks it."""
    names = sorted({name for row in rows for name in row})
    return {name: [_short(row.get(name)) for row in rows] for name in names}


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
