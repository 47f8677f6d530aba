"""Hold all candidate questions on disk, each once, in the order in which they will be drawn.

In:    questions of the parts, in the order that they are read in
Out:   those of a part by rank; those that were chosen
Holds: a question's rank depends on the seed and on its words alone, so the draw does not change with the order of files, and
       two spellings of one question are one
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from dr_jax.base.errors import DataError
from dr_jax.data.holdout import identity
from dr_jax.data.question import Question
from dr_jax.data.write import tree

_TABLE = """
CREATE TABLE question (
  part TEXT, rank INTEGER, spelled BLOB UNIQUE, id TEXT UNIQUE, place TEXT, body TEXT, split TEXT)"""
_ORDER = "CREATE INDEX drawn ON question (part, rank)"


class Staging:
    """Candidate questions on disk.

    Args:
        path: of the database; what stood there is removed, and so is this at the end.
        seed: of the ranks.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed = path, seed
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")  # a broken build begins this file anew
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(_TABLE)
        self._database.execute(_ORDER)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)

    def add(self, part: str, found: Iterable[tuple[str, Question]]) -> tuple[int, int]:
        """Add questions of a part with their places; return how many were new and how many had been met.

        Raises:
            DataError: two different questions have one id.
        """
        new = met = 0
        self._database.execute("BEGIN")
        try:
            for place, question in found:
                spelled = identity(question.text) or question.text
                row = (part, self._rank(spelled), _short(spelled), question.id, place, json.dumps(tree(question)), "")
                try:
                    self._database.execute("INSERT INTO question VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                    new += 1
                except sqlite3.IntegrityError:
                    self._refuse_shared_id(question.id, _short(spelled), place)
                    met += 1
        finally:
            self._database.execute("COMMIT")
        return new, met

    def ranked(self, part: str, after: int, count: int) -> list[tuple[int, Question]]:
        """Return the next questions of a part that were not chosen, with their ranks."""
        rows = self._database.execute(
            "SELECT rank, body FROM question WHERE part = ? AND rank > ? AND split = '' ORDER BY rank LIMIT ?",
            (part, after, count),
        )
        return [(rank, _question(body)) for rank, body in rows]

    def choose(self, split: str, chosen: Sequence[tuple[Question, Mapping[str, str]]]) -> None:
        """Put questions in a split, with what was learnt of them."""
        self._database.execute("BEGIN")
        for question, facts in chosen:
            kept = replace(question, split=split, meta={**question.meta, **facts})
            self._database.execute(
                "UPDATE question SET split = ?, body = ? WHERE id = ?", (split, json.dumps(tree(kept)), question.id)
            )
        self._database.execute("COMMIT")

    def chosen(self, split: str) -> Iterator[Question]:
        """Yield the questions of a split, all parts mixed, in the order of their ranks."""
        for (body,) in self._database.execute("SELECT body FROM question WHERE split = ? ORDER BY rank, id", (split,)):
            yield _question(body)

    def texts(self) -> Iterator[str]:
        """Yield the text of every candidate."""
        for (body,) in self._database.execute("SELECT body FROM question"):
            yield json.loads(body)["question"]

    def spelled_like(self, question: Question) -> str:
        """Return the id of the candidate that is this question in whatever spelling; "" if there is none."""
        spelled = _short(identity(question.text) or question.text)
        row = self._database.execute("SELECT id FROM question WHERE spelled = ?", (spelled,)).fetchone()
        return row[0] if row else ""

    def _rank(self, spelled: str) -> int:
        drawn = hashlib.blake2b(f"{self._seed}\0{spelled}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn, "big") >> 1  # SQLite's integers have a sign

    def _refuse_shared_id(self, name: str, spelled: bytes, place: str) -> None:
        row = self._database.execute("SELECT place, spelled FROM question WHERE id = ?", (name,)).fetchone()
        if row is not None and row[1] != spelled:
            raise DataError(
                f"{place}: id {name!r} was used before, by {row[0]}, for another question",
                needed="one id per question of a part",
                fix="rename one of them, or leave ids out of JSONL files to have them numbered",
            )


def _short(spelled: str) -> bytes:
    return hashlib.blake2b(spelled.encode(), digest_size=16).digest()


def _question(body: str) -> Question:
    fields = json.loads(body)
    return Question(
        fields["id"],
        fields["question"],
        tuple(fields["answers"]),
        fields["source"],
        fields["split"],
        fields["hops"],
        fields["meta"],
    )
