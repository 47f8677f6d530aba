"""Keep every finished attempt on disk, so that an evaluation that was stopped does only what is missing.

In:    what a cell of the table is (its settings), then attempts and verdicts as they end
Out:   `attempts.jsonl`: one line each, on disk before the next; the same again, read
Holds: a line that a crash left half-written is left out, and said; a journal of other settings is refused with what differs;
       one process writes a journal at a time
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from dr_jax.base.errors import ConfigError, DataError
from dr_jax.base.trace import logger, redacted
from dr_jax.evaluate.attempt import Attempt, Key, of_row, read_attempt
from dr_jax.rollout.record import read_episodes

FILE = "attempts.jsonl"
_log = logger(__name__)
_EPISODES = "episodes.jsonl"
_SHOWN = 6  # differences that are told


@dataclass(slots=True)
class Cell:
    """One cell of the table: a model that attempts a set of questions in one way.

    Args:
        model, questions, way: what they are called.
        settings: all that its numbers depend on.
        attempts: that ended; of several at the same, the last.
        verdicts: by judge.
        judging: what it cost, by judge and what it was spent on.
        rest: what was spent on attempts that were stopped before they ended.
    """

    model: str
    questions: str
    way: str
    settings: dict[str, Any] = field(default_factory=dict)
    attempts: dict[Key, Attempt] = field(default_factory=dict)
    verdicts: dict[str, dict[Key, str]] = field(default_factory=dict)
    judging: dict[str, Counter[str]] = field(default_factory=dict)
    rest: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.model}.{self.questions}.{self.way}"

    def add(self, row: Mapping[str, Any]) -> None:
        """Add what a line says.

        Raises:
            KeyError, TypeError, ValueError: it is no line of a journal.
        """
        if "attempt" in row:
            attempt = read_attempt(row["attempt"])
            if attempt.key in self.attempts:
                self.rest.update(self.attempts[attempt.key].spent)
            self.attempts[attempt.key] = attempt
            for verdicts in self.verdicts.values():
                verdicts.pop(attempt.key, None)  # they were about another answer
        elif "spent" in row:
            self.rest.update(row["spent"])
        else:
            said = row["verdict"]
            self.verdicts.setdefault(said["judge"], {})[said["question"], int(said["sample"])] = str(said["said"])
            self.judging.setdefault(said["judge"], Counter()).update(said["spent"])


class Journal:
    """The journal of one cell, open for writing. A context manager.

    Args:
        directory: of the cell; made when missing.
        cell: names and settings; what the journal holds is read into it.

    Raises:
        ConfigError: what is there was made with other settings, or another process is writing it.
        DataError: it is no journal.
    """

    def __init__(self, directory: Path, cell: Cell) -> None:
        self.cell, self._path = cell, directory / FILE
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._go_on()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"Another process is writing {self._path}",
                needed="one at a time",
                fix="wait for it, or name another directory with --out",
            ) from None

    def _go_on(self) -> None:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            _log.warning("%s ends in half a line, which is left out; its attempt is made again", self._path)
            os.ftruncate(self._file, whole)
        if not whole:
            self._write({"cell": [self.cell.model, self.cell.questions, self.cell.way], "settings": self.cell.settings})
            return
        found = read(self._path.parent)
        differing = list(_differences(found.settings, json.loads(json.dumps(self.cell.settings))))
        if differing:
            more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise ConfigError(
                f"{self._path} was begun with other settings: {'; '.join(differing[:_SHOWN])}{more}",
                needed="the same settings, to go on with it",
                fix="name another directory with --out, or remove this one",
            )
        self.cell.attempts, self.cell.verdicts = found.attempts, found.verdicts
        self.cell.judging, self.cell.rest = found.judging, found.rest

    def attempt(self, attempt: Attempt) -> None:
        """Write an attempt; it is on disk when this returns."""
        self._add({"attempt": attempt.row()})

    def verdict(self, judge: str, key: Key, said: tuple[str, str], spent: dict[str, float]) -> None:
        """Write what a judge said, in one word and why; it is on disk when this returns."""
        told = {"judge": judge, "question": key[0], "sample": key[1], "said": said[0], "rationale": said[1], "spent": spent}
        self._add({"verdict": told})

    def spent(self, rest: dict[str, float]) -> None:
        """Write what was spent on attempts that did not end."""
        if rest:
            self._add({"spent": rest})

    def _add(self, row: dict[str, Any]) -> None:
        self._write(row)
        self.cell.add(row)

    def _write(self, row: dict[str, Any]) -> None:
        line = f"{redacted(json.dumps(row, ensure_ascii=False))}\n".encode("utf-8", "replace")
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)


def read(directory: Path) -> Cell:
    """Read the journal of a cell; half a line at its end is left out.

    Raises:
        DataError: there is none, or a line of it is no line of a journal.
    """
    path = directory / FILE
    if not path.exists():
        raise DataError(
            f"There is no {FILE} in {directory}", needed="a directory of `dr-jax eval --out`", fix="see what is in it"
        )
    cell: Cell | None = None
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
                if cell is None:
                    model, questions, way = row["cell"]
                    cell = Cell(model, questions, way, row["settings"])
                else:
                    cell.add(row)
            except (ValueError, KeyError, TypeError) as error:
                why = " ".join(str(error).split())[:120]
                raise DataError(
                    f"Line {number} of {path} is no line of a journal ({type(error).__name__}: {why})",
                    needed="the file as `dr-jax eval` wrote it",
                    fix="cut it before that line, or remove the directory",
                ) from error
    if cell is None:
        raise DataError(f"{path} is empty", needed="a journal that was begun", fix="remove it")
    return cell


def cells(directory: Path) -> list[Cell]:
    """Read a cell, all cells of an evaluation, or what `dr-jax eval` wrote of a single model and set.

    Raises:
        DataError: there is none.
    """
    if (directory / FILE).exists():
        return [read(directory)]
    if (directory / _EPISODES).exists():
        return [_single(directory)]
    found = [read(path.parent) for path in sorted(directory.glob(f"*/{FILE}"))]
    if not found:
        raise DataError(
            f"There is no evaluation in {directory}",
            needed=f"a directory with {FILE} or {_EPISODES}, or with directories that have the former",
            fix="name what `dr-jax eval` wrote",
        )
    return found


def _single(directory: Path) -> Cell:
    found = Cell(directory.name.removesuffix("-eval"), "questions", "agent")
    for row in read_episodes(directory / _EPISODES):
        if row.get("step") is not None:
            raise DataError(
                f"{directory} holds the episodes of a training run, several of a question",
                needed="a directory of `dr-jax eval`",
                fix=f"evaluate its model: dr-jax eval CONFIG --checkpoint {directory} name=NAME",
            )
        attempt = of_row(row)
        found.attempts[attempt.key] = attempt
    return found


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key} was {json.dumps(old)[:80]} and is {json.dumps(new)[:80]}"
