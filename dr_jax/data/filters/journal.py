"""Remember every decision, so that a build that was stopped goes on where it was and can say why each question left.

In:    decisions, by filter, its settings, and the question's content
Out:   those decisions again; all that were dropped
Holds: a decision is on disk before the next questions are decided; one file, SQLite, safe to copy when no build runs
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType

from dr_jax.base.errors import DataError
from dr_jax.data.filters.decision import Decision, Filter, Verdict, fingerprint
from dr_jax.data.question import Question

_TABLE = """
CREATE TABLE IF NOT EXISTS decision (
  filter TEXT, settings TEXT, content TEXT, question TEXT, verdict TEXT, reason TEXT, facts TEXT,
  PRIMARY KEY (filter, settings, content)) WITHOUT ROWID"""


class Journal:
    """Decisions on disk.

    Args:
        path: of the file; it is made if it does not exist.

    Raises:
        DataError: the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise DataError(f"{path} is no journal of decisions: {error}", fix="move it away; it is made anew") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    def known(self, one: Filter, questions: Iterable[Question]) -> dict[str, Decision]:
        """Return what this filter, with these settings, has decided, by the questions' fingerprints."""
        found: dict[str, Decision] = {}
        asked = "SELECT verdict, reason, facts FROM decision WHERE filter = ? AND settings = ? AND content = ?"
        with closing(self._database.cursor()) as cursor:
            for question in questions:
                key = fingerprint(question)
                row = cursor.execute(asked, (one.name, one.settings, key)).fetchone()
                if row is not None:
                    found[key] = Decision(Verdict(row[0]), row[1], json.loads(row[2]))
        return found

    def write(self, one: Filter, questions: Sequence[Question], decisions: Sequence[Decision]) -> None:
        """Add decisions; they are on disk when this returns."""
        rows = [
            (
                one.name,
                one.settings,
                fingerprint(question),
                question.id,
                said.verdict.value,
                said.reason,
                json.dumps(said.facts),
            )
            for question, said in zip(questions, decisions, strict=True)
        ]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO decision VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


async def decided(
    one: Filter, questions: Sequence[Question], journal: Journal, told: Callable[[int], None] | None = None
) -> list[Decision]:
    """Decide about questions, asking the filter only about those that the journal does not know.

    Args:
        one: the filter.
        questions: to decide about.
        journal: what was decided before, and where decisions go as they come.
        told: called with the number of new decisions each time some come.

    Raises:
        DrJaxError: as the filter raises; what others were under way is cancelled, what was decided stays.
    """
    known = journal.known(one, questions)
    open_ones = [question for question in questions if fingerprint(question) not in known]
    chunks = [open_ones[start : start + one.together] for start in range(0, len(open_ones), one.together)]
    waiting = iter(chunks)

    async def work() -> None:
        for chunk in waiting:
            decisions = await one.decide(chunk)
            journal.write(one, chunk, decisions)
            known.update(zip(map(fingerprint, chunk), decisions, strict=True))
            if told is not None:
                told(len(chunk))

    tasks = [asyncio.create_task(work()) for _ in range(min(one.at_once, len(chunks)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [known[fingerprint(question)] for question in questions]
