"""Search over a world's pages: SQLite FTS5, BM25, titles weighed above text.

In:    documents
Out:   for a query, hits in a fixed order; any text is a safe query
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from dr_jax.littleweb.pages import Document

_WORD = re.compile(r"\w+")
_TITLE_WEIGHT = 6.0
_SNIPPET = 100


@dataclass(frozen=True, slots=True)
class Found:
    """One result: title, link, and the page's first sentence."""

    title: str
    link: str
    snippet: str


class Index:
    """A search index in memory.

    Args:
        documents: read once.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.execute("CREATE VIRTUAL TABLE pages USING fts5(title, text, url UNINDEXED, lead UNINDEXED)")
        rows = ((one.title, f"{one.lead} {one.text}", one.url, one.lead) for one in documents)
        self._connection.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", rows)
        self._connection.commit()

    def search(self, query: str, count: int = 10) -> list[Found]:
        """Return the best matches of any word of the query; ties go to the page that was added first."""
        words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)[:32]))
        if not words:
            return []
        rows = self._connection.execute(
            f"SELECT title, url, lead FROM pages WHERE pages MATCH ? ORDER BY bm25(pages, {_TITLE_WEIGHT}, 1.0), rowid LIMIT ?",  # noqa: S608
            (" OR ".join(f'"{word}"' for word in words), count),
        )
        return [Found(title, url, lead[:_SNIPPET]) for title, url, lead in rows]

    def close(self) -> None:
        """Free the index."""
        self._connection.close()
